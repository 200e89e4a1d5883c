"""What a task asks of its controller where that is another machine: slots of windows, and boot profiles.

A worker listens at a socket, which `VARIABLE` names, and asks the controller's service. Without the variable there is
nobody in between: windows and profiles are files of this machine.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from kadeploy.remote import sockets
from kadeploy.workflow import Outcome, Verdict

VARIABLE = "KADEPLOY_ERRANDS"
"""Environment variable: the socket of the worker whose task this is."""
_LIMIT = 16 << 20
"""Bytes of one answer."""


class Slot(msgspec.Struct, frozen=True, tag="slot"):
    """Wait for a slot of a window; it is held for as long as the connection stays."""

    window: str


class Profiles(msgspec.Struct, frozen=True, tag="profiles"):
    """Write boot profiles."""

    boot: str
    nodes: tuple[str, ...]


Errand = Slot | Profiles


class Done(msgspec.Struct, frozen=True):
    """The answer: what became of each node, where that was asked; or why nothing did."""

    outcomes: Mapping[str, Outcome] = {}
    fault: str = ""


def place() -> Path | None:
    """The socket of the worker whose task this is; None where this machine is the controller."""
    told = os.environ.get(VARIABLE)
    return Path(told) if told else None


@asynccontextmanager
async def slot(worker: Path, window: str) -> AsyncIterator[None]:
    """Hold a slot of the controller's *window*, waiting for it as long as it takes.

    Raises:
        ConnectionError: the controller is out of reach.
    """
    async with _asked(worker, Slot(window)) as reader:
        done = await _answer(reader)
        if done.fault:
            raise ConnectionError(done.fault)
        yield


async def profiles(worker: Path, boot: str, nodes: Iterable[str]) -> dict[str, Outcome]:
    """Have the controller write boot profiles: what became of each node."""
    names = tuple(nodes)
    async with _asked(worker, Profiles(boot, names)) as reader:
        done = await _answer(reader)
    missing = Outcome(Verdict.KO, done.fault or "the controller has not written its boot profile", 1)
    return {name: done.outcomes.get(name, missing) for name in names}


@asynccontextmanager
async def _asked(worker: Path, errand: Errand) -> AsyncIterator[asyncio.StreamReader]:
    with sockets.address(worker.parent, worker.name) as path:
        reader, writer = await asyncio.open_unix_connection(path, limit=_LIMIT)
    try:
        writer.write(msgspec.json.encode(errand) + b"\n")
        await writer.drain()
        yield reader
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> Done:
    line = await reader.readline()
    if not line:
        raise ConnectionResetError("the worker is gone")
    return msgspec.json.decode(line, type=Done)
