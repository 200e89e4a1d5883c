"""The rules for environments that all written forms share, and words for what breaks them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from kadeploy import files
from kadeploy.environments.environment import MAX_VERSION, Archive, Environment, FileSystem
from kadeploy.errors import EnvironmentRefusedError, FileError
from kadeploy.hints import explained, nearest

ALWAYS = 10000
"""What ``demolishing_env : true`` stands for (wiki page: 10000 if the environment is demolishing)."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LENGTHS: Mapping[str, int] = {
    "name": 255,
    "alias": 255,
    "arch": 64,
    "description": 4096,
    "author": 255,
    "kernel": 1024,
    "kernel_params": 2048,
    "initrd": 1024,
    "hypervisor": 1024,
    "hypervisor_params": 2048,
    "filesystem": 32,
    "part": 255,
    "block_device": 255,
}
"""Texts of an environment, and how long they may be."""
_DEVICE = r"/dev/(?!.*\.\.)[A-Za-z0-9/_.:-]+"
_FILE_SYSTEM = r"([A-Za-z0-9][A-Za-z0-9._+-]{0,31})?"
_MAX_FILE = 2048
_MAX_VARIABLE = 4096
_MAXIMA: Mapping[str, int] = {"version": MAX_VERSION, "demolishing_env": 10**9 - 1}
_RESERVED = """
    ARCHIVE_KIND ARCHIVE_SCRIPT AUTHORIZED_KEYS BLOCK_DEVICE BOOTS_FROM CLUSTER CONTROLLER CONTROLLER_PID
    DEPLOYMENT_KERNEL_PARAMS DEPLOY_PART DEPLOY_PARTS DEPLOY_PART_NUM EFI_PART EFI_PART_NUM ENV ENV_EXTRACTION_DIR
    ENV_HYPERVISOR ENV_HYPERVISOR_PARAMS ENV_INITRD ENV_KERNEL ENV_KERNEL_PARAMS ENV_VERSION ERRANDS FIRMWARE
    FORMAT_FORCE FORMAT_OPTIONS FORMAT_PART FORMAT_TYPE FS_TYPE FS_TYPE_TMP GRUB_MENU KEXEC_DIR KEXEC_TARGET KEYS_ROOT
    MKFS_OPTIONS MKFS_OPTIONS_TMP OS_KIND PARTITION_TABLE PART_TYPE PREPOST_EXTRACTION_DIR PROD_PART PROD_PART_NUM
    ROOT_PART RUN SECRET SECURE_BOOT SEND_MODE SEND_NAME SEND_SIZE SEND_TO SWAP_PART SWAP_PART_NUM TMP_DIR TMP_PART
    TMP_PART_NUM
"""
RESERVED = frozenset(_RESERVED.split())
"""Names that are no custom variables: scripts find something of ours under ``KADEPLOY_NAME``."""


def check(environment: Environment, source: str) -> Environment:
    """*environment* with blanks trimmed and paths made absolute, if it makes sense.

    Raises:
        EnvironmentRefusedError: says which field is wrong and what was expected.
    """
    try:
        tidied = _tidied(environment, source)
        _check_fields(tidied)
        _check_variables(tidied.custom_variables)
        _check_partitions(tidied)
        _check_boot_files(tidied)
        _check_mandatory(tidied)
    except ValueError as error:
        raise EnvironmentRefusedError(f"{source}: {error}.") from error
    return tidied


def _tidied(environment: Environment, source: str) -> Environment:
    texts = {name: _text(name, getattr(environment, name), limit) for name, limit in _LENGTHS.items()}
    preinstall, image = environment.preinstall, environment.image
    return msgspec.structs.replace(
        environment,
        **texts,
        image=msgspec.structs.replace(image, file=_file("tarball", image.file, source)),
        preinstall=_tidied_archive("preinstall", preinstall, source) if preinstall else None,
        postinstalls=tuple(_tidied_archive("postinstall", archive, source) for archive in environment.postinstalls),
        partitions=tuple(_tidied_partition(each, source) for each in environment.partitions),
    )


def _tidied_partition(partition: FileSystem, source: str) -> FileSystem:
    if partition.image is None:
        return partition
    image = msgspec.structs.replace(partition.image, file=_file("image of a partition", partition.image.file, source))
    return msgspec.structs.replace(partition, image=image)


def _tidied_archive(field: str, archive: Archive, source: str) -> Archive:
    script = _text(f"{field} script", archive.script, _MAX_FILE)
    if not script:
        raise ValueError(f"{field}: the script is empty; write none to only unpack the archive")
    return msgspec.structs.replace(archive, file=_file(field, archive.file, source), script=script)


def _text(field: str, text: str, limit: int) -> str:
    tidy = text.strip()
    if _CONTROL.search(tidy):
        raise ValueError(f"{field}: line ends, tabs and other control characters are not allowed")
    if len(tidy) > limit:
        raise ValueError(f"{field}: {len(tidy)} characters; at most {limit} are allowed")
    return tidy


def _file(field: str, text: str, source: str) -> str:
    """An absolute path, an http(s) URL, or ``server:///PATH``."""
    file = _text(field, text, _MAX_FILE)
    if files.is_url(file):
        _refusing(files.check_url, file, field)
        return file
    if not file:
        raise ValueError(f"{field}: expected the name of a file")
    path = _text(field, str(_refusing(files.local_path, file, field)), _MAX_FILE)
    if files.is_server(file):
        return file
    if path.startswith("~"):
        raise ValueError(f"{field}: {short(path)}: write the whole path")
    if path.startswith("/"):
        return path
    if files.is_url(source):
        raise ValueError(f"{field}: {short(path)} is relative, but the description came from a URL: write a whole one")
    return _text(field, str(_folder(source) / path), _MAX_FILE)


def _folder(source: str) -> Path:
    """Where relative paths start: beside the description, for one on standard input where the user is."""
    return Path.cwd() if files.is_stream(source) else files.local_path(source).absolute().parent


def _refusing(function: Callable[[str], Any], text: str, field: str) -> Any:
    try:
        return function(text)
    except FileError as error:
        raise ValueError(f"{field}: {str(error).rstrip('.')}") from error


def _check_fields(environment: Environment) -> None:
    if not environment.name:
        raise ValueError("name: expected a name")
    for field, maximum in _MAXIMA.items():
        if not 0 <= getattr(environment, field) <= maximum:
            raise ValueError(f"{field}: expected a number from 0 to {maximum}")
    patterns = {
        "fdisktype": (r"[0-9A-Fa-f]{2}", "two hexadecimal digits, such as 83"),
        "filesystem": (_FILE_SYSTEM, "the name of a file system, such as ext4"),
        "part": (rf"({_DEVICE})?", "a block device, such as /dev/sda3"),
        "block_device": (rf"({_DEVICE})?", "a disk, such as /dev/sda"),
        "arch": (r"[A-Za-z0-9_.-]*", "an architecture, such as x86_64"),
    }
    for field, (pattern, expected) in patterns.items():
        value = getattr(environment, field)
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{field}: expected {expected}, found {short(value)}")


def _check_variables(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            raise ValueError(f"custom_variables: {short(name)}: a name is letters, digits and _, 64 at most")
        if name in RESERVED:
            raise ValueError(f"custom_variables: {name}: KADEPLOY_{name} is Kadeploy's own; choose another name")
        _text(f"custom_variables.{name}", value, _MAX_VARIABLE)


def _check_partitions(environment: Environment) -> None:
    """What an image on several partitions needs, and that no two of its file systems go to one place."""
    partitions = environment.partitions
    for rank, partition in enumerate(partitions):
        field = f"options.partitions[{rank}]"
        if partition.id < 0 or not re.fullmatch(_DEVICE, partition.device):
            raise ValueError(f"{field}: expected an id from 0 on and a device, such as {{id: 0, device: /dev/sda3}}")
        before = partitions[:rank]
        if partition.id in {each.id for each in before} or partition.device in {each.device for each in before}:
            raise ValueError(f"{field}: id {partition.id} or {partition.device} is given twice")
        _check_own_image(partition, field)
    if environment.multipart:
        needed = {
            "options.partitions": partitions,
            "boot.block_device": environment.block_device,
            "boot.partition": environment.boot_partition is not None,
        }
        missing = [field for field, given in needed.items() if not given]
        if missing:
            raise ValueError(f"{', '.join(missing)}: missing, and an image on several partitions (multipart) needs it")
        of_the_image = [each for each in partitions if each.image is None]
        if not environment.image.is_fsa and len(of_the_image) != 1:
            raise ValueError(
                f"options.partitions: {len(of_the_image)} of them have no image of their own, and an image of kind "
                f"{environment.image.kind} is one file system: give all others an image, or take one of fsarchiver"
            )
    if environment.boot_partition is not None and environment.boot_partition < 0:
        raise ValueError("boot.partition: expected the number of a partition, such as 3")


def _check_own_image(partition: FileSystem, field: str) -> None:
    """That what is for one partition alone can be put there."""
    if not re.fullmatch(_FILE_SYSTEM, partition.filesystem):
        raise ValueError(f"{field}.filesystem: expected the name of a file system, such as ext4")
    if partition.image and partition.image.is_fsa:
        raise ValueError(f"{field}.image: an archive of fsarchiver can be the image of the whole environment only")
    takes_archive = partition.image is not None and partition.image.is_tar
    if takes_archive and not partition.filesystem:
        raise ValueError(f"{field}.filesystem: missing, and an archive needs it, such as ext4")
    if partition.filesystem and not takes_archive:
        raise ValueError(f"{field}.filesystem: only an archive (tar) of its own has a file system made for it")


def _check_boot_files(environment: Environment) -> None:
    """Paths in the image; environments of kind other may say anything there (wiki page, "Differences")."""
    for field in ("kernel", "initrd", "hypervisor"):
        path = getattr(environment, field)
        if ".." in path.split("/"):
            raise ValueError(f"{field}: {short(path)}: .. is not allowed")
        if path and environment.environment_kind != "other" and not path.startswith("/"):
            raise ValueError(f"{field}: {short(path)}: expected an absolute path in the image, such as /boot/vmlinuz")


_MANDATORY: Mapping[str, tuple[str, ...]] = {
    "linux": ("kernel", "filesystem"),
    "xen": ("kernel", "filesystem", "hypervisor"),
    "other": (),
}
"""What an archive needs, by kind of environment, to be unpacked and booted; dd and fsa images bring their own."""


def _check_mandatory(environment: Environment) -> None:
    kind = environment.environment_kind
    if not environment.image.is_tar:
        return
    needed = _MANDATORY[kind] if environment.preinstall or kind != "other" else ("filesystem",)
    for field in needed:
        if not getattr(environment, field):
            raise ValueError(f"{field} is missing: an archive ({environment.image.kind}) of kind {kind} needs it")


def short(text: str) -> str:
    """*text* fit for a message: quoted, on one line, not too long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


def one_line(error: BaseException) -> str:
    """What *error* says, on one line, without the full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def one_of(text: str, choices: Iterable[str], noun: str) -> str:
    """*text*, if it is one of *choices*; ValueError names them."""
    if text not in choices:
        meant = nearest(text, choices)
        maybe = f" ({meant}?)" if meant else ""
        raise ValueError(f"unknown {noun} {short(text)}{maybe}; expected one of {', '.join(choices)}")
    return text


def converted(fields: Mapping[str, Any], source: str) -> Environment:
    """An environment of *fields*, unless one of them has the wrong type (EnvironmentRefusedError)."""
    try:
        return msgspec.convert(fields, Environment)
    except (msgspec.ValidationError, RecursionError) as error:
        raise EnvironmentRefusedError(f"{source}: {explained(error, Environment)}") from error
