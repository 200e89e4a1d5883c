"""How far the broadcasts of runs are, by the files in which their sending sides say so."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from kadeploy.broadcast import progress
from kadeploy.broadcast.progress import Transfer

STILL = 60.0
"""Seconds after which a broadcast that tells nothing new does not count as one that runs."""


class Going(msgspec.Struct, frozen=True):
    """The broadcasts that run."""

    number: int = 0
    rate: float = 0.0
    """Bytes per second of all of them, each on the average since it began, as its slowest node has them."""


class Broadcasts:
    """What the broadcasts of this site have sent since this was made; not for two threads at a time."""

    def __init__(self, since: float) -> None:
        self.sent = 0
        """Bytes that have left the sending sides."""
        self._since = since
        self._known: dict[Path, int] = {}
        """Bytes that were told, by folder of the attempt."""

    def look(self, runs: Iterable[Path]) -> Going:
        """Look into the folders of *runs* that run, or have ended since the last look."""
        found = {path.parent: path for run in runs for path in run.glob(f"*/{progress.FILE_NAME}")}
        transfers = {folder: told for folder in found if (told := progress.read(folder)) is not None}
        ages = {folder: _age(found[folder]) for folder in transfers}
        self.sent += sum(self._more(folder, told, ages[folder]) for folder, told in transfers.items())
        self._known = {folder: told.sent for folder, told in transfers.items()}
        going = [told for folder, told in transfers.items() if told.done < told.total and ages[folder] < STILL]
        return Going(len(going), sum(told.rate for told in going))

    def _more(self, folder: Path, told: Transfer, age: float) -> int:
        """Bytes since the last look; what was told last before the first look of all is not ours."""
        if folder in self._known:
            return max(0, told.sent - self._known[folder])
        return told.sent if time.time() - age >= self._since else 0


def _age(path: Path) -> float:
    """Seconds since it was written; a file that is gone is old."""
    with suppress(OSError):
        return max(0.0, time.time() - path.stat().st_mtime)
    return STILL
