"""Where an environment goes: the disk and the partitions, as they are asked for and as the cluster has them."""

from __future__ import annotations

import re

import msgspec

from kadeploy.config.partition import partition_device, split_partition
from kadeploy.environments.environment import Environment
from kadeploy.errors import EnvironmentRefusedError, OptionError
from kadeploy.runner.request import Assignment, Options

_DISK = re.compile(r"/dev(/[A-Za-z0-9_:@+-][A-Za-z0-9._:@+-]*)+")


def require_disk(options: Options) -> None:
    """Refuse a block device that is no device file: commands on nodes get it as a word.

    Raises:
        OptionError: says what was expected, or which options are meant.
    """
    if options.block_device and not _DISK.fullmatch(options.block_device):
        raise OptionError(f"-b {options.block_device!r}: not a disk. Expected a device such as /dev/sda.")
    disk, number = split_partition(options.block_device)
    if number is not None:
        raise OptionError(f"-b {options.block_device}: that is a partition of {disk}. Write -b {disk} -p {number}.")


def placed(options: Options, environment: Environment) -> Options:
    """*options* with the disk and partition that *environment* goes to and boots from.

    Raises:
        OptionError: they name other ones than the environment does.
        EnvironmentRefusedError: the environment does not boot from where it goes.
    """
    if not environment.multipart:
        return _on_default_partition(_on_whole_device(options), environment)
    _on_its_partitions(environment)
    device, number = environment.block_device, environment.boot_partition
    if options.block_device not in ("", device) or options.partition not in (None, number):
        raise OptionError(
            f"-b, -p: {environment.name} says itself where it goes ({', '.join(environment.devices)}): leave them out."
        )
    return msgspec.structs.replace(options, block_device=device, partition=number)


def _on_its_partitions(environment: Environment) -> None:
    """Refuse an environment on several partitions that are none, or not those that it boots from."""
    disks = [device for device in environment.devices if split_partition(device)[1] is None]
    if disks:
        raise EnvironmentRefusedError(
            f"{environment.name}: options.partitions: {', '.join(disks)}: not a partition, such as /dev/sda3."
        )
    booted = partition_device(environment.block_device, environment.boot_partition)
    filled = [each.device for each in environment.partitions if each.image is None]
    if booted not in filled:
        raise EnvironmentRefusedError(
            f"{environment.name}: boots from {booted} (boot.block_device, boot.partition), and its image goes to "
            f"{', '.join(filled)}: correct one of them."
        )


def _on_whole_device(options: Options) -> Options:
    """*options* for the whole disk, when it is named without a partition but with what to boot from it."""
    whole = bool(options.block_device) and options.partition is None and options.boot_partition is not None
    return msgspec.structs.replace(options, whole_device=True) if whole else options


def _on_default_partition(options: Options, environment: Environment) -> Options:
    """*options* with the environment's own partition where the user named none."""
    if not environment.part or options.block_device or options.partition is not None:
        return options
    device, number = split_partition(environment.part)
    return msgspec.structs.replace(options, block_device=device, partition=number, whole_device=number is None)


def require_made(assignment: Assignment) -> None:
    """Refuse a file system that the deployment system cannot make, before a disk is cut for it.

    Raises:
        OptionError: names those that the cluster formats.
    """
    environment, cluster = assignment.environment, assignment.cluster
    if environment is None:
        return
    made = [environment.filesystem] if environment.image.is_tar and not environment.preinstall else []
    made += [each.filesystem for each in environment.partitions if environment.multipart and each.filesystem]
    for filesystem in made:
        if filesystem not in cluster.supported_filesystems:
            raise OptionError(
                f"Environment {environment.name} is on {filesystem}, and cluster {cluster.name} formats "
                f"{', '.join(cluster.supported_filesystems)} (supported_filesystems in {cluster.file})."
            )


def require_in_layout(assignment: Assignment) -> None:
    """Refuse partitions that the disk will not have, or not for systems: no right on them would help.

    Raises:
        OptionError: names the partitions that there are.
    """
    options, cluster = assignment.options, assignment.cluster
    if assignment.operation == "deploy" or assignment.boot.kind == "deployed":
        _are_for_systems(assignment)
    if assignment.operation != "deploy" or options.disable_disk_partitioning or options.whole_device:
        return
    numbers = [part.number for part in cluster.disk.partitions]
    wanted = [(_which(assignment), number) for number in _numbers(assignment)]
    if options.boot_partition:
        wanted.append(("-c", options.boot_partition))
    for what, number in wanted:
        if number not in numbers:
            raise OptionError(
                f"{what} {number}: the disks of cluster {cluster.name} are cut into {', '.join(map(str, numbers))}. "
                "Choose one of these, or keep the disk as it is with --disable-disk-partitioning."
            )


def _which(assignment: Assignment) -> str:
    """What named the partitions, for people."""
    environment = assignment.environment
    return f"{environment.name}: partition" if environment and environment.multipart else "-p"


def _numbers(assignment: Assignment) -> list[int]:
    """Numbers of the partitions of the cluster's layout that are deployed to."""
    parts = map(split_partition, assignment.deploy_parts)
    return [number for device, number in parts if device == assignment.device and number is not None]


def _are_for_systems(assignment: Assignment) -> None:
    """Refuse partitions that the site needs for something else than a system."""
    kinds = {part.number: part.role for part in assignment.cluster.disk.partitions}
    others = [str(number) for number, role in kinds.items() if role not in ("swap", "efi")]
    for number in _numbers(assignment):
        if kinds.get(number) in ("swap", "efi"):
            raise OptionError(
                f"{_which(assignment)} {number}: that is the {kinds[number]} partition of cluster "
                f"{assignment.cluster.name}, not one for a system. Choose {', '.join(others)}."
            )
