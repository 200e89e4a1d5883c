"""Partitions: one line of a disk's layout, and the device files that Linux gives them."""

from __future__ import annotations

import re
from typing import Literal

from kadeploy.config.file import Struct


class Partition(Struct, frozen=True, kw_only=True):
    """One line of the partition layout."""

    number: int
    size: str = ""
    """``512MiB``, ``4GiB``…; empty means the rest of the disk (last partition only)."""
    role: Literal["swap", "prod", "deploy", "tmp", "efi", "other"] = "other"


def partition_device(device: str, number: int | None) -> str:
    """Join disk and partition number the way Linux does; None is the whole device.

    >>> partition_device("/dev/sda", 3), partition_device("/dev/nvme0n1", 3)
    ('/dev/sda3', '/dev/nvme0n1p3')
    """
    if number is None:
        return device
    return f"{device}p{number}" if device[-1].isdigit() else f"{device}{number}"


def split_partition(part: str) -> tuple[str, int | None]:
    """Disk and number of a partition's device file, as Linux names them; mmcblk0 is a disk.

    >>> split_partition("/dev/sda3"), split_partition("/dev/nvme0n1p3"), split_partition("/dev/sdb")
    (('/dev/sda', 3), ('/dev/nvme0n1', 3), ('/dev/sdb', None))
    """
    if found := re.fullmatch(r"(.*\d)p(\d+)|(.*/(?:s|h|v|xv|das)d[a-z]+)(\d+)", part):
        return found[1] or found[3], int(found[2] or found[4])
    return part, None
