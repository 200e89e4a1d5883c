"""Partitions: one line of a disk's layout, and the device files that Linux gives them."""

from __future__ import annotations

import re
from typing import Literal

from kadeploy.config.file import Struct

LINKS = "/dev/disk/"
"""Where names of disks are that stay the same whatever the order in which Linux finds them."""


class Partition(Struct, frozen=True, kw_only=True):
    """One line of the partition layout."""

    number: int
    size: str = ""
    """``512MiB``, ``4GiB``…; empty means the rest of the disk (last partition only)."""
    role: Literal["swap", "prod", "deploy", "tmp", "efi", "other"] = "other"


def partition_device(device: str, number: int | None) -> str:
    """Join disk and partition number the way Linux does, and udev for its links; None is the whole device.

    >>> partition_device("/dev/sda", 3), partition_device("/dev/nvme0n1", 3)
    ('/dev/sda3', '/dev/nvme0n1p3')
    >>> partition_device("/dev/disk/by-id/wwn-0x5000c500a1b2c3d4", 3)
    '/dev/disk/by-id/wwn-0x5000c500a1b2c3d4-part3'
    """
    if number is None:
        return device
    if device.startswith(LINKS):
        return f"{device}-part{number}"
    return f"{device}p{number}" if device[-1].isdigit() else f"{device}{number}"


def split_partition(part: str) -> tuple[str, int | None]:
    """Disk and number of a partition's device file, as Linux names them; mmcblk0 is a disk.

    >>> split_partition("/dev/sda3"), split_partition("/dev/nvme0n1p3"), split_partition("/dev/sdb")
    (('/dev/sda', 3), ('/dev/nvme0n1', 3), ('/dev/sdb', None))
    >>> split_partition("/dev/disk/by-path/pci-0000:00:1f.2-ata-1-part2")
    ('/dev/disk/by-path/pci-0000:00:1f.2-ata-1', 2)
    """
    if part.startswith(LINKS):
        device, mark, number = part.rpartition("-part")
        return (device, int(number)) if mark and number.isdigit() else (part, None)
    if found := re.fullmatch(r"(.*\d)p(\d+)|(.*/(?:s|h|v|xv|das)d[a-z]+)(\d+)", part):
        return found[1] or found[3], int(found[2] or found[4])
    return part, None
