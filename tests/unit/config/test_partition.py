"""Names of partitions are joined and split as Linux does, here and nowhere else."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.config import partition
from kadeploy.config.partition import partition_device, split_partition

SOURCES = Path(partition.__file__).parents[1]
DISKS = st.sampled_from(
    [
        "sda",
        "sdaa",
        "vdb",
        "xvda",
        "hda",
        "nvme0n1",
        "nvme10n2",
        "mmcblk0",
        "loop7",
        "md127",
        "disk/by-id/wwn-0x5",
        "disk/by-path/pci-0000:00:1f.2-ata-1",
    ]
)


@pytest.mark.parametrize(
    ("device", "number", "path"),
    [
        ("/dev/sda", 3, "/dev/sda3"),
        ("/dev/nvme0n1", 3, "/dev/nvme0n1p3"),
        ("/dev/mmcblk0", 3, "/dev/mmcblk0p3"),
        ("/dev/sda", None, "/dev/sda"),
        ("/dev/disk/by-id/nvme-eui.0025385b01234567", 3, "/dev/disk/by-id/nvme-eui.0025385b01234567-part3"),
    ],
)
def test_disk_and_number_are_joined_as_linux_does(device: str, number: int | None, path: str) -> None:
    assert partition_device(device, number) == path


@given(DISKS, st.integers(1, 128) | st.none())
def test_what_was_joined_is_split_again(disk: str, number: int | None) -> None:
    assert split_partition(partition_device(f"/dev/{disk}", number)) == (f"/dev/{disk}", number)


@pytest.mark.parametrize("part", ["/dev/nvme0n1", "/dev/mmcblk0", "/dev/sdb", "/dev/mapper/vg-root1"])
def test_a_device_without_a_partition_stays_whole(part: str) -> None:
    assert split_partition(part) == (part, None)


def test_nobody_else_joins_or_splits_names() -> None:
    by_hand = re.compile(r"""\}p\{\w*number|[ (]"p"|'p'|\)p\(\\d|isdigit\(\) else f""")
    found = [path for path in SOURCES.rglob("*.py") if by_hand.search(path.read_text())]
    assert found == [SOURCES / "config" / "partition.py"]


def test_the_examples_hold() -> None:
    assert doctest.testmod(partition).failed == 0
