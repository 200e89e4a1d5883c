"""The process that does an operation, named so that any later process can tell whether it still lives."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class Controller(NamedTuple):
    """A process of a machine; numbers are used again, so the start time and the machine's boot belong to it."""

    host: str
    pid: int
    process_start: str
    """Clock ticks between boot and start, ``/proc/PID/stat`` field 22 (proc(5))."""
    boot_id: str


def this() -> Controller:
    """The running process."""
    pid = os.getpid()
    return Controller(socket.gethostname(), pid, _start(pid) or "", _boot_id())


def is_here(controller: Controller) -> bool:
    """Whether *controller* ran on this machine, so that :func:`is_alive` can tell."""
    return controller.host == socket.gethostname()


def is_alive(controller: Controller) -> bool:
    """Whether *controller*, a process of this machine, still runs."""
    return controller.boot_id == _boot_id() and controller.process_start == _start(controller.pid)


@lru_cache(maxsize=1)
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _start(pid: int) -> str | None:
    """Start time of process *pid*; None when it is gone, a zombie that nobody has waited for included."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat[stat.rindex(")") + 2 :].split()  # the name before may hold blanks and brackets
    return None if state in "ZX" else fields[18]
