"""A bound that all processes of this machine share: at most so many nodes at a time.

    async with window(site.state / "windows" / "reboot", site.windows.reboot):
        ...  # switch one node

A slot is a file that its holder locks (flock(2)): the kernel gives it back when the holder ends, however it ends.
Within a process, whoever has waited longest is next. Between processes, the holder of the turnstile gets the next free
slot: nobody who releases a slot and wants another one overtakes a neighbour that waits.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

PAUSE = (0.01, 0.05)
"""Seconds between two looks for a free slot; by chance, so that processes do not look in step."""

_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Path, asyncio.Lock]] = WeakKeyDictionary()


@asynccontextmanager
async def window(folder: Path, size: int) -> AsyncIterator[None]:
    """Hold one of the *size* slots of *folder* (made if it is not there), waiting for it as long as it takes."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    slot = await _take(folder, max(1, size))
    try:
        yield
    finally:
        os.close(slot)


def used(folder: Path) -> int:
    """How many slots of *folder* are held now, by whatever process; those that may not be looked at do not count."""
    slots = (path for path in folder.glob("*") if path.name.isdecimal())
    return sum(map(_is_held, slots))


def _is_held(slot: Path) -> bool:
    """Whether another holds it; who would take it at this very moment looks again."""
    try:
        descriptor = os.open(slot, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


async def _take(folder: Path, size: int) -> int:
    """The descriptor of a locked slot. One waiter per process looks, the others queue behind it."""
    async with _queue(folder):
        turn = await _lock_one([folder / "turnstile"])
        try:
            return await _lock_one([folder / str(number) for number in range(size)])
        finally:
            os.close(turn)


def _queue(folder: Path) -> asyncio.Lock:
    return _queues.setdefault(asyncio.get_running_loop(), {}).setdefault(folder, asyncio.Lock())


async def _lock_one(files: list[Path]) -> int:
    """Lock whichever of *files* is free first, looking again and again."""
    if (found := _try(files)) is not None:
        return found
    while True:
        await asyncio.sleep(random.uniform(*PAUSE))  # noqa: S311 - no secret
        if (found := _try(files)) is not None:
            return found


def _try(files: Iterable[Path]) -> int | None:
    for file in files:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            return descriptor
    return None
