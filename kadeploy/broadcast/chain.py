"""Broadcast an image along chains (or a tree) of nodes: the controller's side of `relay.py`.

    outcomes = await chain.send(chain.describe(image, sink="tar -xf - -C /mnt/dest"), members, start_relay)

A node is believed about itself alone, and OK only when it tells the size and the SHA-256 of the image, which it is not
told. What its relay says is bounded; words that cannot be understood make that node KO.

A node whose predecessor passes on other bytes than the image's says that it is stranded, and is fed by a head of its
own from its last good byte on. So is one that gets the image far more slowly than the head could give it, or takes it
so slowly that those in front of it are held up. Nothing happens to a neighbour for it: each is judged by what it got.

The relay program is started on every node by `start_relay`, which is injected: ssh in real life, a local process in
tests. The head, the same program reading the image file, runs beside the controller; every byte leaves it once per
chain.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import os
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, cast

import msgspec

from kadeploy import checksums
from kadeploy.broadcast import relay
from kadeploy.broadcast.pace import Best, Complaint, Complaints
from kadeploy.checksums import Beginnings
from kadeploy.process import spawn
from kadeploy.workflow import Verdict

PORT = 25310
FIRST_PER_MEMBER = 0.1
"""Seconds that a relay waits longer for its first predecessor, for each member: it may be started before the others."""
PROGRAM = Path(relay.__file__).read_text(encoding="utf-8")
HEAD = "server"
KNOWN = 64
"""Members behind it that a member of a chain is told of. When all of them are dead, it has asked for 12 of the 20
seconds for which those behind wait, and the head goes on with these."""
CHECK = 0.5
"""Seconds between two looks at who is held up."""
EXCERPT = 100
"""Characters shown of words that cannot be understood."""
LOST = 255
"""Exit status of a relay whose connection was lost, as ssh(1) has it."""


class Member(msgspec.Struct, frozen=True):
    """A node that receives the image; its relay listens at address and port."""

    name: str
    address: str
    port: int = PORT


class Broadcast(msgspec.Struct, frozen=True):
    """What is sent and how.

    `sink` is a text for `/bin/bash -c` that reads the image on its standard input; `environment` holds the values that
    it needs (never write user text into the command itself). Sizes are in bytes, times in seconds.
    """

    image: Path
    size: int
    sha256: str
    beginnings: Beginnings  # by which nodes know whether what they are given is the image
    sink: str
    descriptor: int | None = None  # of the image, where it is open already: then its path is a name for messages
    environment: dict[str, str] = {}
    arity: int = 1  # chains fed side by side
    fanout: int = 1  # successors of a node: more than one makes trees of the chains
    ring: int = 64 << 20  # replay buffer of each node
    silence: float = 2.0  # without an acknowledgement before a node is asked again
    patience: float = 1.5  # for its answer before it is skipped
    slow_limit: float = 60.0  # for a sink that takes nothing, before its node is KO
    orphan_limit: float = 20.0  # for a new predecessor, once the old one is gone
    start_limit: float = 20.0  # for relays to listen, after the last one that does
    window: int = 100  # relays that are being started at a time
    pace_period: float = 1.0  # over which relays measure how fast a neighbour is, at least
    grace: float = 2.0  # for last words, once the head has finished
    stall_limit: float = 300.0  # without any news, until those who have none are fed by the head itself


class Reception(msgspec.Struct, frozen=True):
    """How the broadcast ended for one node."""

    verdict: Verdict
    message: str = ""
    bytes: int = 0
    sha256: str = ""
    seconds: float = 0.0  # from its first predecessor, or the start of its download, to its verdict
    note: str = ""  # what it went through


class RelayProcess(Protocol):
    """A relay started somewhere."""

    def lines(self) -> AsyncIterator[str]:
        """The lines of its standard output, until it closes."""

    async def wait(self) -> int:
        """Its exit status."""

    def kill(self) -> None:
        """End it; the relay then ends its sink."""

    def stderr(self) -> str:
        """The last words on its standard error."""


StartRelay = Callable[[Member, bytes], Awaitable[RelayProcess]]
Progress = Callable[[int, int], None]  # bytes sent, bytes acknowledged by the first nodes


def describe(image: Path, sink: str, **settings: Any) -> Broadcast:
    """A broadcast of an image file as it is now: its size and checksums are taken from the file."""
    with image.open("rb") as file:
        found = checksums.of(file)
    return Broadcast(
        image=image, size=found.size, sha256=found.sha256, beginnings=found.beginnings, sink=sink, **settings
    )


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key: node-2 before node-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def plan(members: Sequence[Member], arity: int = 1) -> list[list[Member]]:
    """The chains: members in natural order of their names, cut in `arity` runs of neighbours."""
    ordered = sorted(members, key=lambda member: natural(member.name))
    return [ordered[first:end] for first, end in relay.split(0, len(ordered), max(1, arity))]


def payload(
    broadcast: Broadcast,
    members: Sequence[Member],
    index: int,
    secret: bytes,
    key: bytes = b"",
    directly: Sequence[tuple[int, int]] = (),
    releases: Sequence[tuple[int, int]] = (),
) -> bytes:
    """The program of one member, to be given to `python3 -` on its standard input; index 0 is the head.

    It is told only of members behind it, as one text: to compile a list of thousands would cost more than all else. In
    a chain these are `KNOWN`: what all are told together must not grow with the square of their number.

    All know the *secret*; the *key* is the member's own, with which it signs its reports and knows the head. The head
    has the one of which all those are made. It feeds the chains in *directly* (first member, first behind it), or all
    members. Of *releases*, each first one is to feed the second no more.
    """
    last = index + KNOWN if index and broadcast.fanout == 1 else len(members)
    known = members[index - 1 : last] if index else [Member(HEAD, "-", 0), *members]
    config = {
        "members": "\n".join(f"{m.name} {m.address} {m.port}" for m in known),
        "end": len(members) + 1,
        "index": index,
        "fanout": broadcast.fanout if index else max(1, broadcast.arity),
        "image": "" if index else str(broadcast.image) if broadcast.descriptor is None else broadcast.descriptor,
        "directly": list(directly),
        "releases": list(releases),
        "pace_period": broadcast.pace_period,
        "size": broadcast.size,
        "secret": secret.hex(),
        "signature": key.hex(),
        "block": broadcast.beginnings.block,
        "proofs": binascii.b2a_base64(broadcast.beginnings.proofs, newline=False).decode() if index else "",
        "sink": broadcast.sink,
        "environment": broadcast.environment,
        "ring": max(relay.Sink.LAG * 2, relay.Blocks.IN_FLIGHT * broadcast.beginnings.block, broadcast.ring),
        "silence": broadcast.silence,
        "patience": broadcast.patience,
        "slow_limit": broadcast.slow_limit,
        "orphan_limit": broadcast.orphan_limit,
        "first_limit": broadcast.start_limit + broadcast.orphan_limit + FIRST_PER_MEMBER * len(members),
    }
    return f"CONFIG = {config!r}\n{PROGRAM}".encode()


class LocalRelay:
    """A relay in a process of this machine."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.tail = b""
        self.listening = asyncio.create_task(self._listen(cast("asyncio.StreamReader", process.stderr)))

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        while data := await stderr.read(65536):
            self.tail = (self.tail + data)[-relay.STDERR_TAIL :]

    async def lines(self) -> AsyncIterator[str]:
        """As `RelayProcess.lines`."""
        async for line in cast("asyncio.StreamReader", self.process.stdout):
            yield line.decode(errors="replace")

    async def wait(self) -> int:
        """As `RelayProcess.wait`."""
        status = await self.process.wait()
        await self.listening
        return status

    def kill(self) -> None:
        """As `RelayProcess.kill`."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def stderr(self) -> str:
        """As `RelayProcess.stderr`."""
        return self.tail.decode(errors="replace").strip()


async def start_local(_: Member, program: bytes, *prefix: str, keep: Sequence[int] = ()) -> LocalRelay:
    """Run a relay here, behind a command prefix if any (`ip netns exec …`); it has the descriptors of *keep*."""
    process = await spawn(
        *prefix,
        sys.executable,
        "-IS",
        "-",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=16 << 20,
        pass_fds=keep,
    )
    stdin = cast("asyncio.StreamWriter", process.stdin)
    stdin.write(program)
    with contextlib.suppress(ConnectionError):
        await stdin.drain()
    stdin.close()
    return LocalRelay(process)


class _Listening(msgspec.Struct, frozen=True, tag_field="event", tag="listening"):
    """A relay waits for its predecessor."""


class _Progress(msgspec.Struct, frozen=True, tag_field="event", tag="progress"):
    """How far the head is."""

    sent: int
    acknowledged: int
    given: int
    """Bytes of the image that have left the head, all together."""


class _Stranded(msgspec.Struct, frozen=True, tag_field="event", tag="stranded"):
    """A member cannot be fed by its predecessor any more."""

    by: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    """The predecessor, by its number."""
    reason: str


class _Pace(msgspec.Struct, frozen=True):
    """How fast a member gets on, while nothing but one neighbour holds it up."""

    by: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    """The neighbour, by its number."""
    bytes: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    """That the one has who gets them."""
    pace: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    """Bytes per second."""


class _Hungry(_Pace, frozen=True, tag_field="event", tag="hungry"):
    """The neighbour is its predecessor."""


class _Held(_Pace, frozen=True, tag_field="event", tag="held"):
    """The neighbour is a successor, who takes them slowly."""


class _Beyond(msgspec.Struct, frozen=True, tag_field="event", tag="beyond"):
    """All those behind a member of whom it was told are dead."""


class _Skipped(msgspec.Struct, frozen=True, tag_field="event", tag="skipped"):
    """A member has found another one dead."""

    node: str
    reason: str


class _Verdict(msgspec.Struct, frozen=True, tag_field="event", tag="verdict"):
    """How it ended for the member that says it."""

    verdict: Literal["ok", "ko"]
    message: str
    bytes: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    sha256: Annotated[str, msgspec.Meta(max_length=64)]
    seconds: float


class _Report(msgspec.Struct, frozen=True, tag_field="event", tag="report"):
    """What came back along the chains: a member's name, its signature, and what it says."""

    line: str


class _End(msgspec.Struct, frozen=True, tag_field="event", tag="end"):
    """The head has served everybody."""


_FROM_NODES = msgspec.json.Decoder(_Listening | _Hungry | _Held | _Stranded | _Beyond | _Skipped | _Verdict)
_FROM_HEAD = msgspec.json.Decoder(_Progress | _Skipped | _Report | _End)


@dataclass(frozen=True)
class Help:
    """What a head does beside the one of the chains; nothing for that one. Members by their numbers."""

    feed: Collection[int] = ()
    releases: Mapping[int, int] = field(default_factory=dict)
    """Each is to feed the other no more."""
    chain: tuple[int, int] | None = None
    """One that it feeds by its first member, which may be dead; its end is behind its last."""

    @property
    def directly(self) -> list[tuple[int, int]]:
        """What it feeds, chains of one member among it."""
        return [*([self.chain] if self.chain else []), *((member, member + 1) for member in sorted(self.feed))]


class _Journal:
    """What the relays have told so far."""

    def __init__(self, broadcast: Broadcast, secret: bytes, names: Sequence[str], progress: Progress | None) -> None:
        self.broadcast = broadcast
        self.secret = secret
        self.progress = progress
        self.begun = time.monotonic()
        self.listening = {name: asyncio.Event() for name in names}
        self.moved = time.monotonic()  # when there was news
        self.verdicts: dict[str, _Verdict] = {}
        self.reported: dict[str, _Verdict] = {}  # verdicts that came back along the chain
        self.skipped: dict[str, str] = {}
        self.lost: dict[str, str] = {}
        self.nonsense: dict[str, str] = {}
        self.unfed: set[str] = set()  # not even the head itself can feed them
        self.names = [HEAD, *names]
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.best = Best()
        self.hungry = Complaints()
        self.held = Complaints()
        self.helped: dict[str, str] = {}  # by the head itself, and why
        self.calls: asyncio.Queue[Help] = asyncio.Queue()  # of the stranded, for the head
        self.at_a_loss: set[str] = set()  # those who know nobody alive behind them
        self.given: Counter[RelayProcess] = Counter()  # bytes, by head
        self.acknowledged = 0

    def hear(self, node: str, line: str) -> None:
        """Note one line of a node's output; what is not ours (a greeting of the login shell) is passed over."""
        try:
            event = _FROM_NODES.decode(line)
        except (ValueError, RecursionError) as error:
            if '"event"' in line:
                self.nonsense.setdefault(node, f"its relay said what no relay says ({error}): {line[:EXCERPT]}")
            return
        if isinstance(event, _Verdict):
            if node not in self.verdicts:
                self.verdicts[node] = event
                self.moved = time.monotonic()
        elif isinstance(event, _Skipped):
            self._skip(node, event)
        elif isinstance(event, _Stranded):
            self._strand(node, event)
        elif isinstance(event, _Beyond):
            self._go_on_behind(node)
        elif isinstance(event, _Pace) and event.by < len(self.names):
            left = self.broadcast.size - event.bytes
            complaints = self.hungry if isinstance(event, _Hungry) else self.held
            complaints.note(self.numbers[node], Complaint(time.monotonic(), event.by, left, event.pace))
        elif isinstance(event, _Listening) and not self.listening[node].is_set():
            self.listening[node].set()
            self.moved = time.monotonic()

    def _strand(self, node: str, event: _Stranded) -> None:
        """Each is helped once: there is nobody better than the head."""
        if node not in self.helped and event.by < len(self.names):
            self.helped[node] = f"{self.names[event.by]} {event.reason}"
            self.hungry.heed(self.numbers[node], time.monotonic())
            self.calls.put_nowait(Help({self.numbers[node]}))

    def _go_on_behind(self, node: str) -> None:
        """Once for each who says so, and as it was planned: whoever lies about it makes the head do little."""
        first = self.numbers[node] + KNOWN + 1
        ends = (
            end for start, end in relay.split(1, len(self.names), max(1, self.broadcast.arity)) if start <= first < end
        )
        if node not in self.at_a_loss and (end := next(ends, 0)):
            self.at_a_loss.add(node)
            self.calls.put_nowait(Help(chain=(first, end)))

    def slowed(self, streams: int) -> Help:
        """Those who hold others up, or are held up, and are better off with the head."""
        now, share = time.monotonic(), self.best.share(streams)
        hungry, held = self.hungry.heeded(now, share), self.held.heeded(now, share)
        for member, complaint in hungry.items():
            self._note_help(member, f"{self.names[complaint.by]} passed on {complaint.pace / 1e6:.1f} MB/s only")
        for member, complaint in held.items():
            self.hungry.heed(complaint.by, now)
            self._note_help(complaint.by, f"{self.names[member]} says it took {complaint.pace / 1e6:.1f} MB/s only")
        releases = {member: complaint.by for member, complaint in held.items()}
        return Help({*hungry, *releases.values()} - {0}, releases)

    def _note_help(self, member: int, why: str) -> None:
        self.helped.setdefault(self.names[member], why)

    def hear_head(self, head: RelayProcess, line: str) -> None:
        """Note one line of a head's output."""
        event = _FROM_HEAD.decode(line)
        if isinstance(event, _Progress):
            self.given[head] = event.given
            self.best.note(time.monotonic(), self.given.total())
            self._advance(event)
        elif isinstance(event, _Skipped):
            self._skip(HEAD, event)
            self.unfed.add(event.node)
        elif isinstance(event, _Report):
            self._hear_report(event.line)

    def _advance(self, event: _Progress) -> None:
        if event.acknowledged > self.acknowledged:
            self.acknowledged = event.acknowledged
            self.moved = time.monotonic()
        if self.progress and event.acknowledged >= self.acknowledged:
            self.progress(event.sent, event.acknowledged)

    def _hear_report(self, line: str) -> None:
        """Note what a member says over others, if it is that member's word."""
        author, _, signed = line.partition(" ")
        proof, _, text = signed.partition(" ")
        known = author in self.listening
        if not known or proof != relay.proof(relay.signature(self.secret, author), text.encode()).hex():
            return
        with contextlib.suppress(ValueError, RecursionError):
            event = _FROM_NODES.decode(text)
            if isinstance(event, _Verdict):
                self.reported.setdefault(author, event)
            elif isinstance(event, _Skipped):
                self._skip(author, event)

    def _skip(self, by: str, event: _Skipped) -> None:
        if event.node in self.listening:
            self.skipped.setdefault(event.node, f"skipped by {by}: {event.reason}")

    def without_verdict(self) -> set[str]:
        """Nodes that listen and do not say how it ended: nobody feeds them, or those who do let them starve."""
        listening = {node for node, event in self.listening.items() if event.is_set()}
        return listening - set(self.verdicts) - set(self.reported) - set(self.nonsense) - set(self.lost) - self.unfed

    def outcome(self, node: str) -> Reception:
        """A node's own word first, also by way of the chain, then what its neighbours or its ssh session say."""
        told = self.verdicts.get(node) or self.reported.get(node)
        complaint = self._complaint(node, told)
        if told and not complaint:
            return self._reception(node, told, "")
        if told and node not in self.skipped:
            return self._reception(node, told, complaint)
        reasons = (self.helped.get(node, ""), self.skipped.get(node, ""), self.lost.get(node, ""), complaint)
        return Reception(Verdict.KO, "; ".join(filter(None, reasons)) or "no verdict from its relay")

    def _complaint(self, node: str, told: _Verdict | None) -> str:
        """Why a node is not OK by what it says; empty when it is, or says nothing."""
        if node in self.nonsense or told is None:
            return self.nonsense.get(node, "")
        if told.verdict == "ko":
            return told.message or "its relay gives no reason"
        if complaint := refute(self.broadcast, told.bytes, told.sha256):
            return complaint
        given = self.given.total()
        missing = given < self.broadcast.size
        return f"it tells of the whole image, but {given} bytes were sent to anybody" if missing else ""

    def _reception(self, node: str, told: _Verdict, complaint: str) -> Reception:
        verdict = Verdict.KO if complaint else Verdict.OK
        seconds = round(min(max(0.0, told.seconds), time.monotonic() - self.begun), 3)
        helped = f"fed by the {HEAD} itself: {self.helped[node]}" if node in self.helped else ""
        return Reception(verdict, complaint, told.bytes, told.sha256, seconds, helped)


async def send(
    broadcast: Broadcast,
    members: Sequence[Member],
    start_relay: StartRelay,
    progress: Progress | None = None,
    start_head: StartRelay | None = None,
) -> dict[str, Reception]:
    """Send the image to all members; one reception per member's name.

    Cancelling it ends every relay. Nothing is raised for what happens on nodes; an image that cannot be read is every
    node's failure.
    """
    ordered = [member for chain in plan(members, broadcast.arity) for member in chain]
    if complaint := unfit(broadcast):
        return {member.name: Reception(Verdict.KO, complaint) for member in members}
    keep = () if broadcast.descriptor is None else (broadcast.descriptor,)
    start = start_head or partial(start_local, keep=keep)
    secret, own_secret = os.urandom(32), os.urandom(32)
    journal = _Journal(broadcast, own_secret, [member.name for member in ordered], progress)

    def program(index: int, member: Member) -> bytes:
        return payload(broadcast, ordered, index, secret, relay.signature(own_secret, member.name))

    def head(help_: Help) -> bytes:
        return payload(broadcast, ordered, 0, secret, own_secret, help_.directly, sorted(help_.releases.items()))

    window = asyncio.Semaphore(broadcast.window)
    async with asyncio.TaskGroup() as group:
        tasks = {
            member.name: group.create_task(
                _follow(journal, member, start_relay, partial(program, index, member), window),
            )
            for index, member in enumerate(ordered, 1)
        }
        await _all_listening(journal, tasks, broadcast.start_limit)
        complaint = await _serve(journal, tasks, start, head) if _some_run(tasks) else None
        for task in tasks.values():
            task.cancel()
    if complaint:
        journal.lost = dict.fromkeys(journal.listening, complaint)
    return {member.name: journal.outcome(member.name) for member in members}


def refute(broadcast: Broadcast, size: int, sha256: str) -> str:
    """Why what a node has got is not the image, by what it tells; empty when it is."""
    if size != broadcast.size:
        return f"it tells of {size} bytes, the image has {broadcast.size}: does the deployment system answer?"
    if sha256 != broadcast.sha256:
        return f"wrong sha256: {sha256} received, {broadcast.sha256} expected; check the image, then the network"
    return ""


def unfit(broadcast: Broadcast) -> str | None:
    """Why the image cannot be sent at all."""
    try:
        status = broadcast.image.stat() if broadcast.descriptor is None else os.fstat(broadcast.descriptor)
    except OSError as error:
        return f"image {broadcast.image}: {error.strerror}"
    if status.st_size != broadcast.size:
        return f"image {broadcast.image} has {status.st_size} bytes, not {broadcast.size}: record the environment again"
    return None


async def _all_listening(journal: _Journal, tasks: dict[str, asyncio.Task[None]], limit: float) -> None:
    """Wait until every relay listens or has ended, or none has begun to listen for *limit* seconds."""

    async def listening_or_ended(name: str) -> None:
        heard = asyncio.ensure_future(journal.listening[name].wait())
        await asyncio.wait((heard, tasks[name]), return_when=asyncio.FIRST_COMPLETED)
        heard.cancel()

    everybody = asyncio.gather(*map(listening_or_ended, tasks))
    try:
        while not everybody.done() and (left := journal.moved + limit - time.monotonic()) > 0:
            await asyncio.wait((everybody,), timeout=left)
    finally:
        everybody.cancel()


async def _follow(
    journal: _Journal,
    member: Member,
    start_relay: StartRelay,
    program: Callable[[], bytes],
    window: asyncio.Semaphore,
) -> None:
    """Run the relay of a node and note what it says, until it ends."""
    try:
        async with window:
            process = await start_relay(member, program())
    except Exception as error:  # whatever it is, the other nodes go on
        journal.lost[member.name] = f"its relay cannot be started: {error}"
        return
    try:
        async for line in process.lines():
            journal.hear(member.name, line)
        status = await process.wait()
        ended = "the connection to its relay was lost" if status == LOST else f"its relay ended with status {status}"
        journal.lost[member.name] = ": ".join(filter(None, (ended, process.stderr())))
    except Exception as error:
        journal.lost[member.name] = f"its relay cannot be listened to: {error}"
    finally:
        await _end(process)


def _some_run(tasks: Mapping[str, asyncio.Task[None]]) -> bool:
    return not all(task.done() for task in tasks.values())


async def _serve(
    journal: _Journal,
    relays: Mapping[str, asyncio.Task[None]],
    start_head: StartRelay,
    head: Callable[[Help], bytes],
) -> str | None:
    """Have the head feed everybody by chains, then each whom others have left behind; the reason when it fails.

    Last words are waited for: first of nodes that nobody has found dead, then of those that the head could feed.
    """
    complaint = await _lead_all(journal, start_head, head)
    if complaint is None:
        await _last_words(journal, [relays[name] for name in relays.keys() - journal.skipped.keys()])
        if left := journal.without_verdict():
            await _lead(journal, start_head, head(Help({journal.numbers[name] for name in left})))
            await _last_words(journal, [relays[name] for name in left - journal.unfed])
    return complaint


async def _last_words(journal: _Journal, relays: Collection[asyncio.Task[None]]) -> None:
    if relays:
        await asyncio.wait(relays, timeout=journal.broadcast.grace)


async def _lead_all(journal: _Journal, start_head: StartRelay, head: Callable[[Help], bytes]) -> str | None:
    """Run the head of the chains, and one more for those who call for it meanwhile; the reason when the first fails."""
    async with asyncio.TaskGroup() as group:
        first = group.create_task(_lead(journal, start_head, head(Help())))
        leads = {first}
        while leads:
            calling = asyncio.create_task(journal.calls.get())
            try:
                await asyncio.wait({*leads, calling}, timeout=CHECK, return_when=asyncio.FIRST_COMPLETED)
                called = calling.result() if calling.done() else journal.slowed(len(leads))
            finally:
                calling.cancel()
            leads = {lead for lead in leads if not lead.done()}
            if called.directly:
                leads.add(group.create_task(_lead(journal, start_head, head(called))))
    return first.result()


async def _lead(journal: _Journal, start_head: StartRelay, program: bytes) -> str | None:
    """Run the head to its end, or until there has been no news for too long; the reason when it fails."""
    process = await start_head(Member(HEAD, ""), program)
    journal.moved = time.monotonic()
    listening = asyncio.create_task(_listen_to_head(journal, process))
    try:
        while not listening.done() and (left := journal.moved + journal.broadcast.stall_limit - time.monotonic()) > 0:
            await asyncio.wait((listening,), timeout=left)
        if not listening.done():
            return None
        await listening
        status = await process.wait()
    finally:
        listening.cancel()
        await _end(process)
    return f"the sending side ended with status {status}: {process.stderr()}" if status else None


async def _listen_to_head(journal: _Journal, process: RelayProcess) -> None:
    async for line in process.lines():
        journal.hear_head(process, line)


async def _end(process: RelayProcess) -> None:
    """Kill a relay if it still runs, and wait until it is gone as far as we can see."""
    process.kill()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 2)
