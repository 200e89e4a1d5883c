"""Environments of several file systems, and archives of fsarchiver, on real block devices."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from kadeploy.environments.environment import Environment, FileSystem, Image
from kadeploy.runner.request import LocalImage, Options
from kadeploy.workflow import Verdict
from tests import fsarchiver
from tests.light.conftest import Cluster, all_ok
from tests.light.test_roles import (
    FILES,
    NO_BOOTLOADER,
    archive,
    broken_node,
    described,
    holds,
    only,
    partition_image,
    prepared,
)

HOME = {"alice/note": b"\0\1" * 9000, "alice/.profile": b"umask 077\n"}
PARTED = Options(block_device="/dev/sda", partition=3, disable_bootloader_install=True)

__all__ = ["broken_node"]


def archived(path: Path, *trees: dict[str, bytes], level: int = 1) -> Path:
    """An archive of fsarchiver with an ext4 file system for each of *trees*."""
    images = [partition_image(path.with_suffix(f".{number}"), files, "gz") for number, files in enumerate(trees)]
    return fsarchiver.save(path, *(image.with_suffix(".raw") for image in images), level=level)


def local(path: Path) -> LocalImage:
    content = path.read_bytes()
    return LocalImage(path=str(path), size=len(content), sha256=hashlib.sha256(content).hexdigest())


def parted(environment: Environment, *partitions: FileSystem) -> Environment:
    return msgspec.structs.replace(
        environment, multipart=True, partitions=partitions, block_device="/dev/sda", boot_partition=3
    )


def found_on(light: Cluster, number: int, files: dict[str, bytes]) -> None:
    """Every node has *files* on this partition, which nothing has left mounted."""
    assert light.everywhere(f"findmnt --source /dev/sda{number} || echo free") == {"free\n"}
    names = " ".join(f"/mnt/look/{name}" for name in files)
    sums = "".join(f"{hashlib.sha256(text).hexdigest()}  /mnt/look/{name}\n" for name, text in files.items())
    look = f"mkdir -p /mnt/look; mount -o ro /dev/sda{number} /mnt/look; sha256sum {names}; umount /mnt/look"
    assert light.everywhere(look) == {sums}


@pytest.mark.parametrize("level", [0, 9])
def test_an_archive_of_fsarchiver_becomes_the_partition(light: Cluster, tmp_path: Path, level: int) -> None:
    """Made for a smaller partition, with another file system on it before."""
    path = archived(tmp_path / "image.fsa", FILES, level=level)
    environment, image = described(path, f"fsa{level}")
    prepared(light, environment)
    light.everywhere("wipefs -qa /dev/sda3; mkfs.xfs -qf /dev/sda3; mount /dev/sda3 /mnt/dest")
    assert all_ok(light.play("BroadcastEnvChain", environment=environment, image=image, options=NO_BOOTLOADER))
    holds(light, FILES)
    assert light.everywhere("ls /rambin/*.fsa 2>/dev/null || echo gone") == {"gone\n"}


def test_each_file_system_of_an_archive_goes_to_its_partition(light: Cluster, tmp_path: Path) -> None:
    environment, image = described(archived(tmp_path / "two.fsa", HOME, FILES), "fsa1")
    places = (FileSystem(id=1, device="/dev/sda3"), FileSystem(id=0, device="/dev/sda5"))
    environment = parted(environment, *places)
    light.everywhere("swapoff /dev/sda1 || true; wipefs -qa /dev/sda1 || true")
    prepared(light, environment)
    assert light.everywhere("blkid -o value -s TYPE /dev/sda1 || echo unformatted") == {"unformatted\n"}
    assert all_ok(light.play("BroadcastEnvChain", environment=environment, image=image, options=PARTED))
    holds(light, FILES)
    found_on(light, 5, HOME)


@pytest.mark.parametrize("filesystem", ["ext4", "btrfs"])
def test_each_partition_may_have_an_image_of_its_own(light: Cluster, tmp_path: Path, filesystem: str) -> None:
    main, image = described(archive(tmp_path / "root.tgz", FILES, "gz"), "tgz")
    own = [archive(tmp_path / "home.txz", HOME, "xz"), partition_image(tmp_path / "other", HOME, "zst")]
    environment = parted(
        main,
        FileSystem(id=0, device="/dev/sda3"),
        FileSystem(id=1, device="/dev/sda5", filesystem=filesystem, image=Image(file=str(own[0]), kind="txz")),
        FileSystem(id=2, device="/dev/sda2", image=Image(file=str(own[1]), kind="dd.zst")),
    )
    prepared(light, environment)
    others = tuple(map(local, own))
    for method in ("Chain", "Bittorrent"):
        light.everywhere("umount -A /dev/sda5 || true; wipefs -qa /dev/sda5 /dev/sda2")
        assert all_ok(
            light.play(
                f"BroadcastEnv{method}", environment=environment, image=image, partition_images=others, options=PARTED
            )
        )
        holds(light, FILES)
        found_on(light, 5, HOME)
        found_on(light, 2, HOME)
    assert light.everywhere("blkid -o value -s TYPE /dev/sda5") == {f"{filesystem}\n"}


def test_a_partition_that_is_not_there_is_that_nodes_failure_and_named(
    light: Cluster, broken_node: str, tmp_path: Path
) -> None:
    environment, image = described(archive(tmp_path / "root.tgz", FILES, "gz"), "tgz")
    own = partition_image(tmp_path / "home", HOME, "gz")
    environment = parted(
        environment,
        FileSystem(id=0, device="/dev/sda3"),
        FileSystem(id=1, device="/dev/sda5", image=Image(file=str(own), kind="ddgz")),
    )
    prepared(light, environment)
    light.on(broken_node, "rm /dev/sda5")
    asked = {"environment": environment, "image": image, "partition_images": (local(own),), "options": PARTED}
    outcomes = light.play("BroadcastEnvChain", **asked)
    only(broken_node, outcomes, "send_environment", "no partition /dev/sda5 on this node")
    assert "image of /dev/sda5: " in outcomes[broken_node].message


def test_a_partition_whose_number_begins_alike_stays_mounted(light: Cluster, tmp_path: Path) -> None:
    """35 is no part of 3."""
    environment, image = described(partition_image(tmp_path / "image", FILES, "gz"), "ddgz")
    prepared(light, environment)
    light.everywhere("touch /dev/sda35; mkdir -p /mnt/other; mount -t tmpfs /dev/sda35 /mnt/other")
    assert all_ok(light.play("BroadcastEnvChain", environment=environment, image=image, options=NO_BOOTLOADER))
    holds(light, FILES)
    assert light.everywhere("umount /mnt/other && rm /dev/sda35 && echo kept") == {"kept\n"}


@pytest.mark.parametrize("spoil", ["small partition", "truncated", "no such file system"])
def test_what_fsarchiver_complains_of_is_told(light: Cluster, tmp_path: Path, spoil: str) -> None:
    path = archived(tmp_path / "image.fsa", {"filling": hashlib.sha256(b"").digest() * 100_000}, level=0)
    if spoil == "truncated":
        path.write_bytes(path.read_bytes()[:100_000])
    environment, image = described(path, "fsa0")
    places = [FileSystem(id=4 if spoil == "no such file system" else 0, device="/dev/sda3")]
    environment = parted(environment, *places)
    prepared(light, environment)
    if spoil == "small partition":
        light.everywhere("truncate -s 1M /small; ln -sf $(losetup -f --show /small) /dev/small")
        environment = parted(environment, FileSystem(id=0, device="/dev/small"))
    outcomes = light.play("BroadcastEnvChain", environment=environment, image=image, options=PARTED)
    said = {outcome.message.partition("send_environment: ")[2] for outcome in outcomes.values()}
    assert {outcome.verdict for outcome in outcomes.values()} == {Verdict.KO}
    assert len(said) == 1
