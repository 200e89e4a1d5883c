"""The events of a workflow, as a browser or a tool follows them: server-sent events (HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec

from kadeploy.operations.following import Tail
from kadeploy.operations.service import Refusal
from kadeploy.server.served import Served

_POLL = 0.2
_SIGN = 15.0
"""Seconds of silence after which a comment tells that the connection lives."""
_LOOK = 2.0
"""Seconds between two looks whether the workflow's controller lives."""
GONE = "gone"
"""Name of the last event of a workflow that was not brought to an end: a `Refusal`."""


async def of(served: Served, wid: str, after: int) -> AsyncIterator[bytes]:
    """The events of *wid* behind *after* bytes, for its user and administrators."""
    await asyncio.to_thread(served.require_mine, wid)
    return _messages(Tail(served.site, wid, after))


async def _messages(tail: Tail) -> AsyncIterator[bytes]:
    spoke = looked = time.monotonic()
    with tail:
        while True:
            found = tail.read()
            for after, line in found:
                yield b"id: %d\ndata: %b\n\n" % (after, line)
            if tail.ended:
                return
            now = time.monotonic()
            if found:
                spoke = now
                continue
            if now - looked > _LOOK:
                looked = now
                if (error := await asyncio.to_thread(tail.why_dead)) is not None:
                    yield b"event: gone\ndata: %b\n\n" % msgspec.json.encode(Refusal.of(error))
                    return
            if now - spoke > _SIGN:
                spoke = now
                yield b":\n\n"
            await asyncio.sleep(_POLL)
