"""The events of a workflow, as a browser or a tool follows them: server-sent events (HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec

from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError
from kadeploy.operations import follow
from kadeploy.operations.follow import PERIOD, Tail, is_last
from kadeploy.operations.service import Refusal
from kadeploy.server.served import Served

_SIGN = 15.0
"""Seconds of silence after which a comment tells that the connection lives."""
_LOOK = 2.0
"""Seconds between two looks whether the workflow's controller lives."""


async def of(served: Served, wid: str, after: int) -> AsyncIterator[bytes]:
    """The events of *wid* behind *after* bytes, for its user and administrators."""
    await asyncio.to_thread(served.require_mine, wid)
    return _messages(served.site, wid, Tail(follow.events_of(served.site, wid), after))


async def _messages(site: Site, wid: str, tail: Tail) -> AsyncIterator[bytes]:
    spoke = looked = time.monotonic()
    goes_on = True
    while True:
        now = time.monotonic()
        if now - looked > _LOOK:
            looked = now
            with suppress(DatabaseError):  # it may be back at the next look
                goes_on = await asyncio.to_thread(follow.goes_on, site, wid, tail.path)
        for offset, line in tail.lines():
            spoke = now
            yield b"id: %d\ndata: %b\n\n" % (offset, line)
            if is_last(line):
                return
        if not goes_on:
            if tail.is_complete():
                return
            error = await asyncio.to_thread(follow.broken_off, site, wid)
            yield b"event: gone\ndata: %b\n\n" % msgspec.json.encode(Refusal.of(error))
            return
        if now - spoke > _SIGN:
            spoke = now
            yield b":\n\n"
        await asyncio.sleep(PERIOD)
