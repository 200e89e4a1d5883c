"""What earlier systems leave on disks: each function puts one kind of signature on a block device.

Real tools write them where Debian has some that need no driver in this kernel. ZFS labels, the superblocks of arrays
and the headers of LUKS are written as their formats have them; libblkid knows all of them, which the tests check.
"""

from __future__ import annotations

import os
import struct
import subprocess
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
_UBERBLOCK = 0x00BAB10C
_MD = 0xA92B4EFC
_SECTOR = 512


def zfs(device: Path) -> None:
    """A pool's four labels of 256 KiB, two at each end, their second halves full of uberblocks."""
    end = _size(device) // (256 * KIB) * (256 * KIB)
    for label in (0, 256 * KIB, end - 512 * KIB, end - 256 * KIB):
        blocks = (struct.pack("<5Q", _UBERBLOCK, 5000, txg, 7, txg).ljust(KIB, b"\0") for txg in range(128))
        _write(device, label + 128 * KIB, b"".join(blocks))


def lvm(device: Path) -> None:
    """A physical volume of LVM."""
    _run("pvcreate", "--yes", "--force", "--force", "--config", "devices { use_devicesfile=0 }", str(device))


def luks1(device: Path) -> None:
    """The header of LUKS 1, without keys."""
    about = struct.pack(">6sH32s32s32sII20s32sI", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 64,
                        b"", b"", 1000)  # fmt: skip
    slots = struct.pack(">II32sII", 0x0000DEAD, 0, b"", 8, 4000) * 8
    _write(device, 0, about + str(uuid.uuid4()).encode().ljust(40, b"\0") + slots)


def luks2(device: Path) -> None:
    """The two headers of LUKS 2, one behind the other."""
    for magic, offset in ((b"LUKS\xba\xbe", 0), (b"SKUL\xba\xbe", 16 * KIB)):
        fields = struct.pack(
            ">6sHQQ48s32s64s40s48sQ184x64s", magic, 2, 16 * KIB, 1, b"", b"sha256", b"", str(uuid.uuid4()).encode(),
            b"", offset, b"",
        )  # fmt: skip
        _write(device, offset, fields.ljust(4096, b"\0"))


def md_090(device: Path) -> None:
    """A member of an array with the oldest superblock, in the last 64 KiB."""
    start = _size(device) // (64 * KIB) * (64 * KIB) - 64 * KIB
    fields = struct.pack("<13I", _MD, 0, 90, 0, 992, 7, 1700000000, 1, start // KIB, 2, 2, 0, 0)
    _write(device, start, fields.ljust(4 * KIB, b"\0"))


def md_10(device: Path) -> None:
    """A member of an array with superblock 1.0, near the end."""
    _md_1(device, (_size(device) // _SECTOR - 16) // 8 * 8, 0)


def md_12(device: Path) -> None:
    """A member of an array with superblock 1.2, near the beginning."""
    _md_1(device, 8, 2048)


def _md_1(device: Path, sector: int, data: int) -> None:
    members = struct.pack("<2H", 0, 1).ljust(256, b"\xff")
    head = struct.pack("<4I16s32sQ2IQ2I", _MD, 1, 0, 0, uuid.uuid4().bytes, b"old:0", 1700000000, 1, 0, 4096, 0, 2)
    about = struct.pack("<4Q3I16s", data, 4096, sector, 0, 0, 0, 0, uuid.uuid4().bytes)
    state = struct.pack("<3Q2I", 1700000000, 1, 2**64 - 1, 0, 128)
    block = bytearray(head.ljust(128, b"\0") + about.ljust(64, b"\0") + state.ljust(64, b"\0") + members)
    total = sum(struct.unpack(f"<{len(block) // 4}I", block))
    struct.pack_into("<I", block, 216, (total & 0xFFFFFFFF) + (total >> 32))
    _write(device, sector * _SECTOR, bytes(block))


def btrfs(device: Path) -> None:
    """One of two disks of a btrfs."""
    other = _sparse(device, "other")
    try:
        _run("mkfs.btrfs", "--quiet", "--force", str(device), str(other))
    finally:
        _run("losetup", "--detach", str(other))


def gpt(device: Path) -> None:
    """A partition table with its copy at the end."""
    _run("sfdisk", "--quiet", "--no-reread", "--force", str(device), stdin="label: gpt\nsize=100MiB\n")


KINDS: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "zfs": (zfs, "zfs_member"),
    "lvm": (lvm, "LVM2_member"),
    "luks1": (luks1, "crypto_LUKS"),
    "luks2": (luks2, "crypto_LUKS"),
    "md-0.90": (md_090, "linux_raid_member"),
    "md-1.0": (md_10, "linux_raid_member"),
    "md-1.2": (md_12, "linux_raid_member"),
    "btrfs": (btrfs, "btrfs"),
    "gpt": (gpt, "gpt"),
}
"""Name → what writes it, and what libblkid calls it."""


def clean(device: Path) -> None:
    """Take every mark off a device."""
    _run("wipefs", "--quiet", "--all", "--force", str(device))


def types(device: Path) -> set[str]:
    """What libblkid finds on a device, all of it."""
    return set(_run("wipefs", "--noheadings", "--output", "TYPE", str(device)).split())


def _sparse(device: Path, name: str) -> Path:
    """Another disk, of 1 GiB."""
    file = Path(f"/tmp/{device.name}-{name}-{os.getpid()}")
    file.touch()
    os.truncate(file, 1 << 30)
    try:
        return Path(_run("losetup", "--find", "--show", str(file)).strip())
    finally:
        file.unlink()


def _size(device: Path) -> int:
    with device.open("rb") as stream:
        return stream.seek(0, os.SEEK_END)


def _write(device: Path, offset: int, data: bytes) -> None:
    with device.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _run(*words: str, stdin: str = "") -> str:
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
