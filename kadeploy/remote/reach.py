"""Wait until nodes have booted the system that was asked for. TCP tells, since a user's system may refuse our key.

The deployment system has its ssh port and a marker port open. A user's system has its ssh port open and the marker port
closed. A system that is about to go down answers just like the one that will come. There are two ways to tell them
apart:

- A node that was seen in a state other than the wanted one since the wait began has changed, and counts at once. It
  refused a port, or was in the other system.
- Any other node is asked whether it has been booted (*confirm*). One that does not let us in counts if it was silent
  twice in a row; a single packet may get lost. It is KO at the end if it was never away: nothing proves that it booted.

Where nobody is asked, a silent node counts as well, and one that was never away must keep answering for *settle*
seconds, within which a system that was told to reboot goes down.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from types import MappingProxyType

from kadeploy import process
from kadeploy.errors import UnreachableError
from kadeploy.remote.fanout import Systems, Target
from kadeploy.workflow import Outcome, Verdict

PROBE_LIMIT = 1.0
"""Seconds that a TCP connection may take to be accepted or refused."""
SETTLE = 20.0
"""Seconds within which a system that was told to reboot stops answering."""
MOST, LATE_FACTOR, LATE_AT_LEAST = 0.75, 1.25, 1.0
"""When nodes are late: so many are there, the others take so much longer, by so many seconds at least."""
CONFIRM_LIMIT = 10.0
"""Seconds that a node may take to tell its uptime."""

ASKED = 3
"""How often a node is asked that does not let us in: its system may be about to go down, or to come up."""

Confirm = Callable[[Target], Awaitable[str | None]]
"""Why a node that answers as it should does not run the wanted system yet; empty when it does, None when it does not
let us in."""
Prove = Callable[[Target], Awaitable[str]]
"""Why a node that answers as it should is not the system that was to be booted; empty when it is."""
_OLD = "it still runs the system from before the reboot"
_UNPROVED = "it answers, was never seen to be away, and does not let us in to tell when it was booted"


class Port(Enum):
    """What a TCP connection attempt met."""

    OPEN = "open"
    REFUSED = "refused"
    SILENT = "silent"


async def wait(
    targets: Sequence[Target],
    up: Sequence[int],
    down: Sequence[int],
    *,
    timeout: float,
    window: int,
    poll: float = 1.0,
    on_outcome: Callable[[str, Outcome], None] | None = None,
    settle: float = SETTLE,
    confirm: Confirm | None = None,
    prove: Prove | None = None,
    leave_late: bool = False,
    taken: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Outcome]:
    """Probe until every port of *up* accepts and none of *down* does, on each target; outcomes by name.

    The first probe is immediate, the next ones come about every *poll* seconds, *window* at a time. A node that is not
    there after *timeout* seconds is KO, and its message says what was seen last. *prove* is asked last, of every node.
    With *leave_late* nobody waits for a few nodes: once `MOST` of them are there, the others are LATE when they take
    `LATE_FACTOR` times as long. Nodes that appear in *taken* meanwhile are KO at once, for the reason that it gives.
    """
    free = asyncio.Semaphore(max(1, window))
    begun = time.monotonic()

    async def one(target: Target) -> tuple[str, Outcome]:
        watch = _Watch(target, up, down, settle, confirm, prove)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + timeout):
                await watch.until_there(free, poll, lambda: target.name in taken)
            reason = taken.get(target.name)
            outcome = Outcome(Verdict.KO if reason else Verdict.OK, reason or "", seconds=_since(begun))
        except TimeoutError:
            title = "Not rebooted" if watch.last.startswith((_OLD, _UNPROVED)) else "Unreachable after the reboot"
            message = f"{title}: {watch.last} after {timeout:g} s"
            outcome = Outcome(Verdict.KO, message, 1, seconds=_since(begun))
        if on_outcome:
            on_outcome(target.name, outcome)
        return target.name, outcome

    waiting = [asyncio.create_task(one(target), name=target.name) for target in targets]
    try:
        if leave_late:
            await _most(waiting, begun)
        else:
            await asyncio.wait(waiting)
        late = Outcome(Verdict.LATE, seconds=_since(begun))
        return dict(task.result() if task.done() else (task.get_name(), late) for task in waiting)
    finally:
        for task in waiting:
            task.cancel()


async def _most(waiting: Sequence[asyncio.Task[tuple[str, Outcome]]], begun: float) -> None:
    """Wait for all, or until what is left is late."""
    there = 0
    enough = asyncio.Event()

    def count(task: asyncio.Task[tuple[str, Outcome]]) -> None:
        nonlocal there
        there += not task.cancelled() and task.exception() is None and task.result()[1].verdict is Verdict.OK
        if there >= MOST * len(waiting):
            enough.set()

    for task in waiting:
        task.add_done_callback(count)
    all_done, most_there = asyncio.ensure_future(asyncio.wait(waiting)), asyncio.ensure_future(enough.wait())
    try:
        await asyncio.wait((all_done, most_there), return_when=asyncio.FIRST_COMPLETED)
        more = max(LATE_AT_LEAST, (LATE_FACTOR - 1) * (time.monotonic() - begun))
        await asyncio.wait((all_done,), timeout=more)
    finally:
        all_done.cancel()
        most_there.cancel()


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 3)


class _Watch:
    """What has been seen of one node."""

    def __init__(
        self,
        target: Target,
        up: Sequence[int],
        down: Sequence[int],
        settle: float,
        confirm: Confirm | None,
        prove: Prove | None,
    ) -> None:
        self.target = target
        self.up, self.down = up, down
        self.settle, self.confirm, self.prove = settle, confirm, prove
        self.last = f"nothing answers at {target.address}"
        self.changed = False
        self.away = False
        """It was silent for longer than a lost packet explains."""
        self.refusals = 0
        self.silent = 0
        self.answering_since: float | None = None

    async def until_there(self, free: asyncio.Semaphore, poll: float, enough: Callable[[], bool]) -> None:
        """Probe again and again, unless it is *enough*; `last` says what the last probe met."""
        while not enough():
            async with free:
                self.last = await self._missing() or await self._doubt() or await self._proof()
            if not self.last:
                return
            await asyncio.sleep(self._pause(poll))

    def _pause(self, poll: float) -> float:
        """Seconds to the next look; a node that settles has time, and each look costs it a process."""
        pause = poll * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        if self.answering_since is None:
            return pause
        left = self.answering_since + self.settle - time.monotonic()
        return max(pause, min(left, 3 * poll))

    async def _doubt(self) -> str:
        """Why a node that answers as it should may be the system from before the reboot; empty when it is not."""
        self.silent = 0
        if self.changed:
            return ""
        if self._may_be_asked():
            return await self._asked()
        if self.away:
            return ""
        if self.confirm:
            return _UNPROVED
        now = time.monotonic()
        self.answering_since = self.answering_since or now
        return "" if now - self.answering_since >= self.settle else "it answers, but may not have gone down yet"

    def _may_be_asked(self) -> bool:
        return self.confirm is not None and self.refusals < ASKED

    async def _asked(self) -> str:
        """What the node itself says of its boot; that it says nothing, as long as it may be asked again."""
        doubt = await self.confirm(self.target) if self.confirm else None
        if doubt != "" and self.target.port in self.up and (closed := await self._closed(self.target.port)):
            return closed
        if doubt is None:
            self.refusals += 1
            return _UNPROVED
        return doubt

    async def _proof(self) -> str:
        """Why a node that answers as it should is not the system that was to be booted; empty when it is."""
        return await self.prove(self.target) if self.prove else ""

    async def _missing(self) -> str:
        """What is not as it should be; empty when all is.

        Ports that must be closed come first: a system that goes down closes them all, and must not be met in between.
        """
        for port in self.down:
            seen = await probe(self.target.address, port)
            if seen is Port.SILENT:  # a lost packet, perhaps
                seen = await probe(self.target.address, port)
            if seen is Port.OPEN:
                return self._otherwise(f"still in the deployment system (port {port} answers)")
        asking = self._may_be_asked() and not self.changed and len(self.up) > 1  # ssh is asked anyway
        for port in self.up:
            if asking and port == self.target.port:
                continue
            if missing := await self._closed(port):
                return missing
        return ""

    async def _closed(self, port: int) -> str:
        """What a port that should accept does instead; empty when it accepts."""
        seen = await probe(self.target.address, port)
        if seen is Port.REFUSED:
            return self._otherwise(f"the node is alive and refuses port {port}")
        if seen is Port.SILENT:
            self.silent += 1
            self.away |= self.silent > 1
            return self._otherwise(f"nothing answers at {self.target.address} port {port}", sure=False)
        return ""

    def _otherwise(self, text: str, sure: bool = True) -> str:
        self.changed |= sure
        self.answering_since = None
        return text


async def probe(address: str, port: int, limit: float = PROBE_LIMIT) -> Port:
    """Try to connect; an address without a route, or a name that nobody knows, is silent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as connection:
        try:
            async with asyncio.timeout(limit):
                await asyncio.get_running_loop().sock_connect(connection, (address, port))
        except (ConnectionRefusedError, ConnectionResetError):
            return Port.REFUSED
        except (TimeoutError, OSError):
            return Port.SILENT
    return Port.OPEN


AGE = b"cat /proc/uptime /proc/1/stat"
"""What a node is asked for `first_process_age`."""


def booted_after(remote: Systems, begun: float, *, may_refuse: bool = False) -> Confirm:
    """Confirms that a node's system was started after *begun* (`time.monotonic`), by the age of its first process.

    The deployment system lets us in; a retry often reboots a node that is in it already. A user's system *may refuse*.
    """

    async def confirm(target: Target) -> str | None:
        try:
            age = await boot_age(remote, target)
        except UnreachableError as error:
            return None if may_refuse else f"its marker port answers, but {error}"
        return f"{_OLD} (up for {age:.0f} s)" if age >= time.monotonic() - begun else ""

    return confirm


async def boot_age(remote: Systems, target: Target) -> float:
    """Seconds since a node's system was started, by the age of its first process.

    Raises:
        UnreachableError: it does not let us in, or does not tell.
    """
    outcome = await remote.run(target, AGE, timeout=CONFIRM_LIMIT)
    if outcome.verdict is not Verdict.OK:
        raise UnreachableError(outcome.message)
    try:
        return first_process_age(outcome.stdout)
    except (ValueError, IndexError) as error:
        raise UnreachableError("it does not tell when it was booted (/proc/uptime, /proc/1/stat)") from error


def first_process_age(text: str) -> float:
    r"""Seconds since the first process started, from ``/proc/uptime`` followed by ``/proc/1/stat`` (proc(5)).

    The machine's uptime would do for machines; nodes that are containers have a first process of their own.

    >>> first_process_age("120.50 99.00\n1 (init) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 0 0 1 0 2000 0")
    100.5
    """
    uptime, stat = text.split(maxsplit=1)
    return float(uptime) - process.parse_stat(stat).seconds


COMMAND_LINE = b"cat /proc/cmdline"
"""What a node is asked for the parameters that its kernel was booted with."""


def shows(remote: Systems, parameter: Callable[[str], str]) -> Prove:
    """Confirms that a node's kernel was booted with the *parameter* of that node."""

    async def prove(target: Target) -> str:
        outcome = await remote.run(target, COMMAND_LINE, timeout=CONFIRM_LIMIT)
        if outcome.verdict is not Verdict.OK:
            return f"its marker port answers, but {outcome.message}"
        if parameter(target.name) not in outcome.stdout.split():
            return "it answers as the deployment system, but did not boot by the profile of this try (/proc/cmdline)"
        return ""

    return prove
