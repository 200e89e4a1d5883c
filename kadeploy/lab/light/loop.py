"""Loop devices that vanish with the process that made them (loop(4)).

They are made with LO_FLAGS_AUTOCLEAR: the kernel detaches the device, and drops its partitions, when nobody has it
open or mounted any more, however its users ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_AUTOCLEAR, _PARTSCAN = 4, 8
_CONFIG_BYTES = 304
_FLAGS_OFFSET = 60
"""Of ``info.lo_flags`` in ``struct loop_config`` (linux/loop.h)."""
_TRIES = 50
_PATIENCE = 30.0
"""Seconds that an earlier user of a file may take to let go of it."""


@dataclass(frozen=True)
class Loop:
    """A disk made of a file, for as long as `descriptor` is open or something on it is mounted."""

    name: str
    """As in ``/dev`` and ``/sys/block``: ``loop0``."""
    descriptor: int

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor device number."""
        device = os.fstat(self.descriptor).st_rdev
        return os.major(device), os.minor(device)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)


def attach(file: Path) -> Loop:
    """Make *file* a disk, once nobody else has it as one; blocks for up to half a minute.

    Raises:
        OSError: no loop device to be had, or the file stays in use.
    """
    limit = time.monotonic() + _PATIENCE
    while users := attached(file):
        if time.monotonic() > limit:
            raise OSError(errno.EBUSY, f"still in use as {', '.join(users)}", str(file))
        time.sleep(0.1)
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _configured(backing)
    finally:
        os.close(backing)


def attached(file: Path) -> list[str]:
    """Names of the loop devices that *file* is the disk of, whoever made them."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().rstrip("\n") == str(file.resolve()):
                found.append(backing.parts[3])
        except OSError:  # detached meanwhile
            continue
    return found


def _configured(backing: int) -> Loop:
    config = bytearray(_CONFIG_BYTES)
    struct.pack_into("=I", config, 0, backing)
    struct.pack_into("=I", config, _FLAGS_OFFSET, _AUTOCLEAR | _PARTSCAN)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            name = f"loop{fcntl.ioctl(control, _GET_FREE)}"
            descriptor = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, _CONFIGURE, bytes(config))
            except OSError as error:
                os.close(descriptor)
                if error.errno != errno.EBUSY:  # somebody else was quicker
                    raise
            else:
                return Loop(name, descriptor)
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "every loop device is taken by others as soon as it is free")
