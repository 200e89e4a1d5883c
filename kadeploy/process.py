"""Processes of this machine: told from later ones that have their number, and ended with what they started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

_TICK = 0.05
_LOOKS = 10
"""How often `end_marked` looks again for processes that were just being started."""


# --- what the kernel tells --------------------------------------------------------------------------------------


class Stat(NamedTuple):
    """What ``/proc/PID/stat`` tells about a process (proc(5))."""

    state: str
    parent: int
    started: int
    """Clock ticks from the machine's start to the process's: field 22."""

    @property
    def seconds(self) -> float:
        """Seconds from the machine's start to the process's."""
        return self.started / os.sysconf("SC_CLK_TCK")


def parse_stat(text: str) -> Stat:
    """What the text of a ``/proc/PID/stat`` says.

    >>> parse_stat("7 (a (b) c) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 0 0 1 0 2000 0")
    Stat(state='S', parent=1, started=2000)

    Raises:
        ValueError: it is no such text.
        IndexError: as well.
    """
    fields = text.rsplit(")", 1)[1].split()  # the command's name, in brackets, may hold blanks and brackets
    return Stat(fields[0], int(fields[1]), int(fields[19]))


def read_stat(pid: int) -> Stat:
    """What the kernel tells about process *pid*; raises OSError when there is none."""
    return parse_stat(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace"))


def began(pid: int) -> float:
    """When process *pid* was started, as `time.monotonic` counts; raises OSError when there is none."""
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - read_stat(pid).seconds)


# --- one process ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """One process, for ever the same: its start time is kept beside its number."""

    pid: int
    started: int
    """See `Stat.started`."""

    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        return find(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it is gone."""
        if self.alive():
            kill(self.pid, number)

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
    """The living process that has this number now; a zombie that nobody has waited for does not live."""
    try:
        found = read_stat(pid)
    except OSError:
        return None
    return None if found.state in "ZX" else Process(pid, found.started)


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


# --- a controller -----------------------------------------------------------------------------------------------


class Controller(NamedTuple):
    """The process that does an operation, named so that any later process, on any machine, knows which one it was."""

    host: str
    pid: int
    process_start: str
    """See `Stat.started`."""
    boot_id: str


def this() -> Controller:
    """The running process."""
    pid = os.getpid()
    return Controller(socket.gethostname(), pid, _start(pid) or "", _boot_id())


def is_here(controller: Controller) -> bool:
    """Whether *controller* ran on this machine, so that :func:`is_alive` can tell."""
    return controller.host == socket.gethostname()


def told(controller: Controller) -> str:
    """*controller* as one line, for the environment of what it starts."""
    return " ".join(map(str, controller))


def running_here(text: str) -> Process | None:
    """The process that `told` wrote down; None when it is another machine's, or from before this one was booted.

    >>> running_here("elsewhere 7 2000 0123-4567")

    Raises:
        ValueError: *text* is no such line.
    """
    host, pid, started, boot_id = text.split()
    here = host == socket.gethostname() and boot_id == _boot_id()
    return Process(int(pid), int(started)) if here else None


def is_alive(controller: Controller) -> bool:
    """Whether *controller*, a process of this machine, still runs."""
    return controller.boot_id == _boot_id() and controller.process_start == _start(controller.pid)


@lru_cache(maxsize=1)
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _start(pid: int) -> str | None:
    process = find(pid)
    return str(process.started) if process else None


# --- families ---------------------------------------------------------------------------------------------------


def ancestors(pid: int) -> set[int]:
    """*pid* and the processes above it."""
    found: set[int] = set()
    while pid > 0:
        found.add(pid)
        pid = _parent(pid)
    return found


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return read_stat(pid).parent
    return 0


def children(pid: int) -> list[int]:
    """The processes that *pid*'s first thread has started, as far as they are still its children."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def family(pid: int) -> list[int]:
    """*pid* and its descendants that are still tied to it, parents first."""
    found = [pid]
    for parent in found:
        found += children(parent)
    return found


# --- ending -----------------------------------------------------------------------------------------------------


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process, which may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def end_group(leader: int) -> None:
    """Kill the process group that *leader* leads, which may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def end_marked(variable: str, is_meant: Callable[[str], bool]) -> None:
    """Kill every process with such a value of an environment variable, whoever its parent is by now; not our own."""
    for _ in range(_LOOKS):  # one that forked while we looked is found by the next look
        pids = marked(variable, is_meant)
        if not pids:
            return
        for pid in pids:
            kill(pid)
        time.sleep(0.02)


def marked(variable: str, is_meant: Callable[[str], bool]) -> list[int]:
    """Every process with such a value of an environment variable, our own left out."""
    start = f"{variable}=".encode()
    return [pid for pid in _others() if any(is_meant(value) for value in _values(pid, start))]


def _others() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]  # noqa: PTH208


def _values(pid: int, start: bytes) -> list[str]:
    """What follows *start* in the environment of a process; nothing when it is not ours, or no more than a zombie."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(each.removeprefix(start)) for each in variables if each.startswith(start)]


async def spawn(*arguments: str, **options: Any) -> asyncio.subprocess.Process:
    """Start a program as `asyncio.create_subprocess_exec` does; where that is cancelled, the program is ended.

    asyncio loses a program whose start is cancelled, or waits for ever for its end.

    Raises:
        OSError: it cannot be started.
    """
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*arguments, **options))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            started = await starting
            (end_group if options.get("start_new_session") else kill)(started.pid)
            await started.wait()
        raise


async def reap(process: asyncio.subprocess.Process, patience: float) -> None:
    """Wait for a child that is about to end; one that has not ended after *patience* seconds is killed."""
    try:
        async with asyncio.timeout(patience):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
