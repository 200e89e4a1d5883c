"""A deployment works whatever earlier systems left on the disk, and leaves alone what it was not asked to replace.

The nodes have something else on their disks each, so that one deployment shows several.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import msgspec
import pytest

from kadeploy.environments.environment import Environment
from kadeploy.runner.request import LocalImage
from tests.light import leftovers
from tests.light.conftest import DISK_PLAY, Cluster, all_ok
from tests.light.test_roles import FILES, NO_BOOTLOADER, archive, described, holds, partition_image, prepared

ON_DISKS = [name for name in leftovers.KINDS if name != "btrfs"]  # whose one superblock the first partition covers


def shared_out(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """A kind for each of the two nodes; the first one has the last one again where their number is odd."""
    return list(zip(kinds[::2], [*kinds[1::2], kinds[0]], strict=False))


@pytest.fixture
def tgz(tmp_path: Path) -> tuple[Environment, LocalImage]:
    return described(archive(tmp_path / "image.tgz", FILES, "gz"), "tgz")


def deployed(light: Cluster, environment: Environment, image: LocalImage) -> None:
    """Both macro-steps that work on disks succeed, with an mkfs that discards nothing, as on a hard disk."""
    options = {"ext4": "-q -E nodiscard", "xfs": "-K", "btrfs": "--nodiscard"}
    site = msgspec.structs.replace(light.configuration.site, mkfs_options=options)
    asked = {"site": site, "environment": environment, "options": NO_BOOTLOADER}
    assert all_ok(light.play(DISK_PLAY, **asked))
    assert all_ok(light.play("BroadcastEnvChain", image=image, **asked))
    holds(light, FILES)


def spoiled(light: Cluster, kinds: Sequence[str], number: int | str = "") -> list[Path]:
    """The disks of the nodes, or their partitions, with the mark of an earlier system each and no other."""
    devices = [light.device(node, number) for node in light.nodes]
    for device, kind in zip(devices, kinds, strict=True):
        write, name = leftovers.KINDS[kind]
        leftovers.clean(device)
        write(device)
        assert name in leftovers.types(device)
    return devices


@pytest.mark.parametrize(
    ("kinds", "filesystem"), [*zip(shared_out([*leftovers.KINDS]), cycle(["ext4", "xfs", "btrfs"]), strict=False)]
)
def test_an_archive_is_deployed_over_what_was_left_on_the_partition(
    light: Cluster, tmp_path: Path, kinds: tuple[str, str], filesystem: str
) -> None:
    environment, image = described(archive(tmp_path / "image.tgz", FILES, "gz"), "tgz", filesystem)
    prepared(light, environment)
    light.everywhere("umount -R /mnt/dest")
    devices = spoiled(light, kinds, 3)
    deployed(light, environment, image)
    assert [leftovers.types(device) for device in devices] == [{filesystem}] * len(devices)


@pytest.mark.parametrize("kinds", [("zfs", "md-1.0"), ("gpt", "zfs")])
def test_a_partition_image_is_deployed_over_what_was_left_on_the_partition(
    light: Cluster, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    environment, image = described(partition_image(tmp_path / "image", FILES, "gz"), "ddgz")
    prepared(light, environment)
    devices = spoiled(light, kinds, 3)
    deployed(light, environment, image)
    assert [leftovers.types(device) for device in devices] == [{"ext4"}] * len(devices)


@pytest.mark.parametrize("kinds", shared_out(ON_DISKS))
def test_a_disk_that_was_used_as_a_whole_is_cut_and_nothing_of_its_past_is_left(
    light: Cluster, tgz: tuple[Environment, LocalImage], kinds: tuple[str, str]
) -> None:
    light.everywhere("umount -R /mnt/dest 2>/dev/null || true; swapoff -a; partx -d /dev/sda || true")
    devices = spoiled(light, kinds)
    deployed(light, *tgz)
    assert [leftovers.types(device) for device in devices] == [{"dos"}] * len(devices)


def test_the_mark_at_the_end_of_the_last_partition_is_the_partitions_and_not_the_disks(
    light: Cluster, tgz: tuple[Environment, LocalImage]
) -> None:
    prepared(light, tgz[0])
    tmp = spoiled(light, ("zfs", "md-0.90"), 5)
    before = [_end(device) for device in tmp]
    deployed(light, *tgz)
    assert [_end(device) for device in tmp] == before


def test_partitions_that_are_mounted_or_swapped_on_are_let_go_first(
    light: Cluster, tgz: tuple[Environment, LocalImage]
) -> None:
    prepared(light, tgz[0])
    light.everywhere(
        "swapon /dev/sda1; mkdir -p /mnt/other /mnt/tmp; mount /dev/sda3 /mnt/other; mount -t tmpfs below /mnt/dest\n"
        "mkfs.ext4 -qF /dev/sda5; mount /dev/sda5 /mnt/tmp"
    )
    deployed(light, *tgz)
    assert light.everywhere("findmnt -nro SOURCE --source /dev/sda5 || echo free") == {"free\n"}
    assert light.everywhere("! grep -q ^/dev/sda1 /proc/swaps && echo free") == {"free\n"}


def test_a_partition_image_is_written_once_more_though_the_last_try_has_mounted_it(
    light: Cluster, tmp_path: Path
) -> None:
    environment, image = described(partition_image(tmp_path / "image", FILES, "gz"), "ddgz")
    deployed(light, environment, image)
    light.everywhere("echo wrong > /mnt/dest/etc/hostname")
    assert all_ok(light.play("BroadcastEnvChain", environment=environment, image=image, options=NO_BOOTLOADER))
    holds(light, FILES)


def test_a_disk_that_is_named_by_a_link_is_deployed_to(light: Cluster, tgz: tuple[Environment, LocalImage]) -> None:
    light.everywhere(
        "umount -R /mnt/dest 2>/dev/null || true; mkdir -p /dev/disk/by-id; cd /dev/disk/by-id\n"
        "ln -sfn ../../sda test; for number in 1 2 3 5; do ln -sfn ../../sda$number test-part$number; done"
    )
    known = light.configuration.clusters["lab"].disk
    named = msgspec.structs.replace(known, device="/dev/disk/by-id/test", firmware_number=0)
    asked = {"environment": tgz[0], "cluster": light.with_cluster(disk=named)}
    assert all_ok(light.play(DISK_PLAY, **asked))
    assert all_ok(light.play("BroadcastEnvChain", image=tgz[1], **asked))
    holds(light, FILES)
    (menu,) = light.everywhere("grep root=/dev /mnt/dest/boot/grub/grub.cfg")
    assert "'root=/dev/disk/by-id/test-part3'" in menu


def _end(device: Path) -> str:
    """Digest of the last MiB."""
    with device.open("rb") as stream:
        stream.seek(-leftovers.MIB, 2)
        return hashlib.sha256(stream.read()).hexdigest()
