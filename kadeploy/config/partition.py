"""Partitions: one line of a disk's layout, and the device files that Linux gives them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from kadeploy.config.file import Struct
from kadeploy.config.rules import Positive, Wrong, expects

LINKS = "/dev/disk/"
"""Where names of disks are that stay the same whatever the order in which Linux finds them."""


_SIZE = re.compile(r"(?=[\d.]*[1-9])\d+(?:\.\d+)?[KMGT](?:iB)?")


def _size_of(text: str) -> str:
    """A size with the unit that was probably meant: powers of 1024 are what partitions are counted in."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(?:i?b)?\s*", text, re.IGNORECASE)
    return f"{found[1]}{found[2].upper()}iB" if found else ""


Size = Annotated[
    str,
    expects(
        lambda text: _SIZE.fullmatch(text) is not None,
        "a number with MiB, GiB or TiB, such as 4GiB, or no size for the rest of the disk",
        meant=_size_of,
    ),
]


class Partition(Struct, frozen=True, kw_only=True):
    """One line of the partition layout."""

    number: Positive
    size: Size = ""
    """``512MiB``, ``4GiB``…; empty means the rest of the disk (last partition only)."""
    role: Literal["swap", "prod", "deploy", "tmp", "efi", "other"] = "other"

    @property
    def mib(self) -> float:
        """Its size in MiB; 0 for the rest of the disk.

        >>> Partition(number=1, size="1.5GiB").mib
        1536.0
        """
        number, unit = self.size.removesuffix("iB")[:-1], self.size.removesuffix("iB")[-1:]
        return float(number) * 1024.0 ** ("KMGT".index(unit) - 1) if self.size else 0


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


# --- layouts ----------------------------------------------------------------------------------------------------

_GPT_MOST = 128
_PRIMARY = 4
"""Partitions of an MS-DOS table; those from the next number on are logical ones, in an extended one among the four."""
_DOS_MOST = 60
"""Numbers that Linux gives to partitions in an MS-DOS table."""


def layout_wrong(table: str, partitions: Sequence[Partition]) -> Iterator[Wrong]:
    """What is wrong with a layout, at places in ``partitions``."""
    ranks: dict[int, int] = {}
    for rank, part in enumerate(partitions):
        if part.number in ranks:
            yield Wrong((rank, "number"), f"{part.number} is the number of partitions[{ranks[part.number]}] too.")
        ranks.setdefault(part.number, rank)
    roles = Counter(part.role for part in partitions)
    if roles["deploy"] != 1:
        given = f"{roles['deploy']} have" if roles["deploy"] else "none has"
        yield Wrong((), f"{given} the role deploy; expected one partition with role 'deploy', which is deployed to.")
    most = _GPT_MOST if table == "gpt" else _DOS_MOST
    for number in (number for number in ranks if number > most):
        yield Wrong((ranks[number], "number"), f"wrong value {number}; expected a number from 1 to {most} ({table}).")
    yield from _open_wrong(partitions)
    if table == "msdos":
        yield from _logical_wrong(ranks)


def _open_wrong(partitions: Sequence[Partition]) -> Iterator[Wrong]:
    """A partition without a size takes the rest of the disk; nothing is left for another behind it."""
    last = max((part.number for part in partitions), default=0)
    for rank, part in enumerate(partitions):
        if not part.size and part.number < last:
            yield Wrong(
                (rank, "size"),
                f"partition {part.number} has no size and would take what partition {last} needs; expected a size for "
                f"all but the last.",
                (rank,),
            )


def _logical_wrong(ranks: dict[int, int]) -> Iterator[Wrong]:
    """Logical partitions are numbered from 5 on without a gap, and need one of the four primary ones around them."""
    logical = sorted(number for number in ranks if _PRIMARY < number <= _DOS_MOST)
    if not logical:
        return
    if all(number in ranks for number in range(1, _PRIMARY + 1)):
        yield Wrong(
            (ranks[logical[0]], "number"),
            f"partition {logical[0]} is a logical one, and an msdos table has no room for the extended one around it "
            f"besides 1, 2, 3 and 4; leave out one of these, or set disk.table to gpt.",
        )
    for before, number in pairwise([_PRIMARY, *logical]):
        if number != before + 1:
            yield Wrong(
                (ranks[number], "number"),
                f"wrong value {number}; expected {before + 1}: Linux numbers logical partitions from 5 on without a "
                f"gap. Did you mean {before + 1}?",
            )
            return
