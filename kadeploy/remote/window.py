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
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

from kadeploy.remote import errands

_Found = TypeVar("_Found")

PAUSE = (0.01, 0.05)
"""Seconds between two looks for a free slot; by chance, so that processes do not look in step."""


@asynccontextmanager
async def window(folder: Path, size: int) -> AsyncIterator[None]:
    """Hold one of the *size* slots of *folder* (made if it is not there), waiting for it as long as it takes.

    A worker's tasks hold one of the folder of that name on their controller.
    """
    if worker := errands.place():
        async with errands.slot(worker, folder.name):
            yield
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    slots = _slots(folder, max(1, size))
    number, descriptor = await slots.take()
    try:
        yield
    finally:
        os.close(descriptor)
        slots.numbers.appendleft(number)


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


@dataclass
class _Slots:
    """The slots of a folder, as those who wait for one in this process see them."""

    folder: Path
    numbers: deque[int]
    """Slots that this process does not hold; first those that it has just given back, last those that others held."""
    queue: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One waiter per process looks, the others queue behind it."""

    async def take(self) -> tuple[int, int]:
        """A slot that is locked now: its number and its descriptor."""
        async with self.queue:
            turn = await _again_and_again(partial(_lock, f"{self.folder}/turnstile"))
            try:
                return await _again_and_again(self._find)
            finally:
                os.close(turn)

    def _find(self) -> tuple[int, int] | None:
        for _ in range(len(self.numbers)):
            number = self.numbers[0]
            if (descriptor := _lock(f"{self.folder}/{number}")) is not None:
                return self.numbers.popleft(), descriptor
            self.numbers.rotate(-1)
        return None


_known: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[Path, int], _Slots]] = WeakKeyDictionary()


def _slots(folder: Path, size: int) -> _Slots:
    known = _known.setdefault(asyncio.get_running_loop(), {})
    if (folder, size) not in known:
        known[folder, size] = _Slots(folder, deque(range(size)))
    return known[folder, size]


async def _again_and_again(look: Callable[[], _Found | None]) -> _Found:
    """What *look* finds, as soon as it finds something."""
    while (found := look()) is None:
        await asyncio.sleep(random.uniform(*PAUSE))  # noqa: S311 - no secret
    return found


def _lock(file: str) -> int | None:
    """The descriptor of *file*, locked; None while another holds it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
