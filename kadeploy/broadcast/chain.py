"""Broadcast an image along chains (or a tree) of nodes: the controller's side of `relay.py`.

    outcomes = await chain.send(chain.describe(image, sink="tar -xf - -C /mnt/dest"), members, start_relay)

The relay program is started on every node by `start_relay`, which is injected: ssh in real life, a local process in
tests. The head, the same program reading the image file, runs beside the controller; every byte leaves it once per
chain.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from kadeploy.broadcast import relay
from kadeploy.workflow import Verdict

PORT = 25310
FIRST_PER_MEMBER = 0.1
"""Seconds that a relay waits longer for its first predecessor, for each member: it may be started before the others."""
PROGRAM = Path(relay.__file__).read_text(encoding="utf-8")
HEAD = "server"
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
    grace: float = 2.0  # for last words, once the head has finished


class Reception(msgspec.Struct, frozen=True):
    """How the broadcast ended for one node."""

    verdict: Verdict
    message: str = ""
    bytes: int = 0
    sha256: str = ""
    seconds: float = 0.0  # from its first predecessor, or the start of its download, to its verdict


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
    """A broadcast of an image file as it is now: its size and SHA-256 are taken from the file."""
    with image.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Broadcast(image=image, size=image.stat().st_size, sha256=sha256, sink=sink, **settings)


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key: node-2 before node-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def plan(members: Sequence[Member], arity: int = 1) -> list[list[Member]]:
    """The chains: members in natural order of their names, cut in `arity` runs of neighbours."""
    ordered = sorted(members, key=lambda member: natural(member.name))
    return [ordered[first:end] for first, end in relay.split(0, len(ordered), max(1, arity))]


def payload(broadcast: Broadcast, members: Sequence[Member], index: int, secret: bytes) -> bytes:
    """The program of one member, to be given to `python3 -` on its standard input; index 0 is the head.

    It is told only of the members behind it, as one text: to compile a list of thousands would cost more than all else.
    """
    config = {
        "members": "\n".join(f"{m.name} {m.address} {m.port}" for m in [Member(HEAD, "-", 0), *members][index:]),
        "index": index,
        "fanout": broadcast.fanout if index else max(1, broadcast.arity),
        "image": "" if index else str(broadcast.image) if broadcast.descriptor is None else broadcast.descriptor,
        "size": broadcast.size,
        "sha256": broadcast.sha256,
        "secret": secret.hex(),
        "sink": broadcast.sink,
        "environment": broadcast.environment,
        "ring": max(relay.Sink.LAG * 2, broadcast.ring),
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
    process = await asyncio.create_subprocess_exec(
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


class _Journal:
    """What the relays have told so far."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.listening: dict[str, asyncio.Event] = {}
        self.moved = time.monotonic()  # when a relay listened that did not before
        self.verdicts: dict[str, Reception] = {}
        self.hearsay: dict[str, Reception] = {}  # verdicts that came back along the chain
        self.skipped: dict[str, str] = {}
        self.lost: dict[str, str] = {}

    def hear(self, node: str, line: str) -> None:
        """Note one line of a member's output; what is not ours (a greeting of the login shell) is passed over."""
        try:
            facts = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            return
        event = facts.get("event")
        if event == "progress" and self.progress:
            self.progress(facts["sent"], facts["acknowledged"])
        elif event == "listening":
            self.listening[node].set()
            self.moved = time.monotonic()
        elif event == "skipped":
            self.skipped.setdefault(facts["node"], f"skipped by {facts['by']}: {facts['reason']}")
        elif event == "verdict":
            self.verdicts[node] = _reception(facts)
        elif event == "outcome":
            self.hearsay[facts["node"]] = _reception(facts)

    def outcome(self, node: str) -> Reception:
        """A node's own word first, then what came along the chain, then what its neighbours or its ssh session say."""
        told = self.verdicts.get(node) or self.hearsay.get(node)
        if told and (told.verdict is Verdict.OK or node not in self.skipped):
            return told
        reasons = (self.skipped.get(node, ""), self.lost.get(node, ""), told.message if told else "")
        return Reception(Verdict.KO, "; ".join(filter(None, reasons)) or "no verdict from its relay")


def _reception(facts: dict[str, Any]) -> Reception:
    return Reception(Verdict(facts["verdict"]), facts["message"], facts["bytes"], facts["sha256"], facts["seconds"])


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
    secret = os.urandom(32)
    journal = _Journal(progress)
    journal.listening = {member.name: asyncio.Event() for member in ordered}
    window = asyncio.Semaphore(broadcast.window)
    async with asyncio.TaskGroup() as group:
        tasks = {
            member.name: group.create_task(
                _follow(journal, member, start_relay, partial(payload, broadcast, ordered, index, secret), window),
            )
            for index, member in enumerate(ordered, 1)
        }
        await _all_listening(journal, tasks, broadcast.start_limit)
        if any(not task.done() for task in tasks.values()):
            keep = () if broadcast.descriptor is None else (broadcast.descriptor,)
            head = start_head or partial(start_local, keep=keep)
            complaint = await _lead(journal, head, payload(broadcast, ordered, 0, secret))
            present = [task for name, task in tasks.items() if name not in journal.skipped]
            if complaint is None and present:
                await asyncio.wait(present, timeout=broadcast.grace)
        for task in tasks.values():
            task.cancel()
    if complaint:
        journal.lost = dict.fromkeys(journal.listening, complaint)
    return {member.name: journal.outcome(member.name) for member in members}


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
    except (OSError, EOFError) as error:
        journal.lost[member.name] = f"its relay cannot be started: {error}"
        return
    try:
        async for line in process.lines():
            journal.hear(member.name, line)
        status = await process.wait()
        ended = "the connection to its relay was lost" if status == LOST else f"its relay ended with status {status}"
        journal.lost[member.name] = ": ".join(filter(None, (ended, process.stderr())))
    finally:
        await _end(process)


async def _lead(journal: _Journal, start_head: StartRelay, program: bytes) -> str | None:
    """Run the head to its end; the reason when it fails."""
    process = await start_head(Member(HEAD, ""), program)
    try:
        async for line in process.lines():
            journal.hear(HEAD, line)
        status = await process.wait()
    finally:
        await _end(process)
    return f"the sending side ended with status {status}: {process.stderr()}" if status else None


async def _end(process: RelayProcess) -> None:
    """Kill a relay if it still runs, and wait until it is gone as far as we can see."""
    process.kill()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 2)
