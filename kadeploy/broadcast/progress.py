"""How far a broadcast is: written by the sending side, read by the controller, in a file of the attempt's folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from kadeploy import files

FILE_NAME = "progress.json"
PERIOD = 0.5
"""Seconds between two writes."""
_MEGA = 1e6


class Transfer(msgspec.Struct, frozen=True):
    """How much of the images has arrived, on the slowest of the nodes that are fed directly; sizes in bytes."""

    total: int
    done: int
    sent: int
    """What has left the sending side."""
    nodes: int
    seconds: float
    """Since the broadcast began."""

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def rate(self) -> float:
        """Bytes per second, on the average."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """As long as it goes on like this; None before the first bytes have arrived."""
        return (self.total - self.done) / self.rate if self.rate else None

    def __str__(self) -> str:
        """For people: ``42 %, 118 MB/s, 12 s left``."""
        words = [f"{100 * self.share:.0f} %", f"{self.rate / _MEGA:.0f} MB/s"]
        if self.seconds_left is not None:
            words.append(f"{self.seconds_left:.0f} s left")
        return ", ".join(words)


class ProgressFile:
    """Tells how far a broadcast is, in a file that is replaced at most twice a second."""

    def __init__(self, folder: Path, total: int, nodes: int) -> None:
        self._path = folder / FILE_NAME
        self._total = total
        self._nodes = nodes
        self._begun = time.monotonic()
        self._next = 0.0

    def __call__(self, sent: int, acknowledged: int) -> None:
        """Take note of the bytes that have left us, and of those that the first nodes have acknowledged."""
        now = time.monotonic()
        if now < self._next and acknowledged < self._total:
            return
        self._next = now + PERIOD
        told = Transfer(self._total, acknowledged, sent, self._nodes, round(now - self._begun, 3))
        files.replace_file(self._path, msgspec.json.encode(told))

    def after(self, before: int) -> Callable[[int, int], None]:
        """The same for an image in front of which *before* bytes of others were sent."""
        return lambda sent, acknowledged: self(before + sent, before + acknowledged)


def read(folder: Path) -> Transfer | None:
    """What was told last in *folder*; None before that, or when it cannot be read."""
    try:
        return msgspec.json.decode((folder / FILE_NAME).read_bytes(), type=Transfer)
    except (OSError, msgspec.DecodeError):
        return None
