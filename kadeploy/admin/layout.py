"""The layout of a disk as administrators type it: ``swap:4GiB,prod:20GiB,deploy:50GiB,tmp``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

from kadeploy.config.partition import Partition
from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean

USUAL = {
    "bios": "swap:4GiB,prod:20GiB,deploy:50GiB,tmp",
    "uefi": "swap:4GiB,prod:20GiB,deploy:50GiB,efi:512MiB,tmp",
}
"""Firmware → a layout that most machines have room for."""
TABLES = {"bios": "msdos", "uefi": "gpt"}
"""Firmware → the partition table that goes with it."""
_ROLES: tuple[str, ...] = get_args(get_type_hints(Partition)["role"])
_SIZE = re.compile(r"[1-9]\d{0,6}[MGT]iB")
_PRIMARY = 4
"""Partitions that an msdos table has room for; further ones are logical, and their numbers begin above."""
_MOST = 60


def partitions(text: str, table: str, firmware: str) -> list[dict[str, Any]]:
    """Partitions of a cluster file for the layout *text*, numbered as *table* has it.

    >>> [part["number"] for part in partitions("swap:1GiB,prod:4GiB,deploy:4GiB,tmp:1GiB,other", "msdos", "bios")]
    [1, 2, 3, 5, 6]

    Raises:
        OptionError: a role or a size is none, or partitions are missing or too many.
    """
    parts = [part.strip() for part in text.split(",")]
    found = [_partition(number, part) for number, part in zip(_numbers(len(parts), table), parts, strict=False)]
    roles = [part["role"] for part in found]
    if len(parts) > _MOST:
        raise OptionError(f"--partitions: {len(parts)} partitions; at most {_MOST} are taken.")
    if roles.count("deploy") != 1:
        raise OptionError(f"--partitions {text}: expected one deploy partition, found {roles.count('deploy')}.")
    if firmware == "uefi" and "efi" not in roles:
        raise OptionError(f"--partitions {text}: UEFI boots from a partition with the role efi: add efi:512MiB.")
    open_ended = [part for part in found[:-1] if "size" not in part]
    if open_ended:
        role = open_ended[0]["role"]
        raise OptionError(
            f"--partitions {text}: {role} needs a size, {role}:4GiB; only the last one may have the rest."
        )
    return found


def _numbers(count: int, table: str) -> Sequence[int]:
    if table == "msdos" and count > _PRIMARY:
        return [*range(1, _PRIMARY), *range(_PRIMARY + 1, count + 2)]
    return range(1, count + 1)


def _partition(number: int, part: str) -> dict[str, Any]:
    role, _, size = part.partition(":")
    if role not in _ROLES:
        hint = did_you_mean(role, _ROLES)
        raise OptionError(f"--partitions: {role!r} is no role of a partition: {', '.join(_ROLES)}.{hint}")
    if size and not _SIZE.fullmatch(size):
        raise OptionError(f"--partitions: {size!r} is no size: expected 512MiB, 4GiB or 1TiB.{_meant(size)}")
    return {"number": number, **({"size": size} if size else {}), "role": role}


def _meant(size: str) -> str:
    found = re.fullmatch(r"(\d{1,7})\s*([MGT])(?:i?B?)", size, re.IGNORECASE)
    return f" Did you mean {found[1]}{found[2].upper()}iB?" if found else ""
