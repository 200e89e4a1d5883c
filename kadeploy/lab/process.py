"""A process told from a later one with the same number: its start time is kept beside its pid."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_TICK = 0.05


@dataclass(frozen=True)
class Process:
    """One process, for ever the same."""

    pid: int
    started: int
    """Clock ticks between the machine's start and the process's, from ``/proc/PID/stat`` (proc(5))."""

    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        found = _stat(self.pid)
        return found is not None and found[1] == self.started and found[0] != "Z"

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it is gone."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, patience: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after *patience* seconds; returns when it is gone."""
        self.send(signal.SIGTERM)
        if not self.wait(patience):
            self.send(signal.SIGKILL)
            self.wait(patience)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within *seconds*."""
        limit = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > limit:
                return False
            time.sleep(_TICK)
        return True


def find(pid: int) -> Process | None:
    """The process that has this number now."""
    found = _stat(pid)
    return Process(pid, found[1]) if found else None


def write(path: Path, process: Process) -> None:
    """Keep *process* in a file."""
    path.write_text(f"{process.pid} {process.started}\n")


def read(path: Path) -> Process | None:
    """The process kept in *path*, if it is still alive."""
    try:
        pid, started = path.read_text().split()
        process = Process(int(pid), int(started))
    except (OSError, ValueError):
        return None
    return process if process.alive() else None


def ancestors(pid: int) -> set[int]:
    """*pid* and the processes above it."""
    found: set[int] = set()
    while pid > 0:
        found.add(pid)
        pid = _parent(pid)
    return found


def _fields(pid: int) -> list[str]:
    """State, parent and so on: what follows the command's name in ``/proc/PID/stat``."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _stat(pid: int) -> tuple[str, int] | None:
    fields = _fields(pid)
    return (fields[0], int(fields[19])) if fields else None


def _parent(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if fields else 0
