"""The events of a workflow, as a browser or a tool follows them: server-sent events (HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError, KadeployError, UnknownWorkflowError
from kadeploy.operations import follow
from kadeploy.operations.follow import PERIOD, Tail, is_last
from kadeploy.operations.service import Refusal
from kadeploy.server.served import Served
from kadeploy.server.standing import Require, watched

_SIGN = 15.0
"""Seconds of silence after which a comment tells that the connection lives."""
_AT_A_TIME = 500
"""Events of a run whose folder is gone that are unpacked at a time."""
_LOOK = 2.0
"""Seconds between two looks whether the workflow's controller lives."""


async def of(served: Served, wid: str, after: int, require: Require) -> AsyncIterator[bytes]:
    """The events of *wid* behind *after* bytes, for its user and administrators, while *require* lets them stay."""
    await asyncio.to_thread(served.require_mine, wid)
    tail = follow.opened(served.site, wid, after)
    if tail.may_grow:
        return _messages(served.site, wid, tail, require)
    return _kept_messages(served.site, wid, tail)


async def _messages(site: Site, wid: str, tail: Tail, require: Require) -> AsyncIterator[bytes]:
    with _watched(site, wid, tail.path) as watch, watched(require) as refused:
        while not refused.done():
            change, goes_on = watch.change, watch.goes_on  # as they were before the look: no last word is lost
            events: list[asyncio.Future[Any]] = [change, refused]
            for offset, line in tail.lines():
                yield _message(offset, line)
                if is_last(line):
                    return
            if not goes_on:
                break
            if not (await asyncio.wait(events, timeout=_SIGN, return_when=asyncio.FIRST_COMPLETED))[0]:
                yield b":\n\n"
        if refused.done():
            yield _gone(refused.result())
            return
    if not tail.is_complete():
        yield _gone(await asyncio.to_thread(follow.broken_off, site, wid))


async def _kept_messages(site: Site, wid: str, tail: Tail) -> AsyncIterator[bytes]:
    """Those of a run whose folder is gone: no more will come. They are unpacked in a thread, some at a time."""
    lines, some, error = tail.lines(), [b""], None
    while some and error is None:
        some, error = await asyncio.to_thread(_some, lines)
        for message in some:
            yield message
    if error is None and not await asyncio.to_thread(tail.is_complete):
        error = await asyncio.to_thread(follow.broken_off, site, wid)
    if error is not None:
        yield _gone(error)


def _some(lines: Iterator[tuple[int, bytes]]) -> tuple[list[bytes], KadeployError | None]:
    """The messages of the next *lines*, and why those behind them cannot be read: what was kept is damaged."""
    found = []
    try:
        for offset, line in islice(lines, _AT_A_TIME):
            found.append(_message(offset, line))
    except UnknownWorkflowError as error:
        return found, error
    return found, None


def _message(offset: int, line: bytes) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (offset, line)


def _gone(error: KadeployError) -> bytes:
    """That no more will come, and why."""
    return b"event: gone\ndata: %b\n\n" % msgspec.json.encode(Refusal.of(error))


class _Watch:
    """Looks at a workflow for all who follow it: what costs anything is done once, however many they are."""

    def __init__(self, site: Site, wid: str, path: Path) -> None:
        self.change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Is done when there is more to read, or no more will come; another one takes its place then."""
        self.goes_on = True
        self.followers = 0
        self._workflow = site, wid, path
        self._size = _size(path)
        self._task = asyncio.create_task(self._look())

    def end(self) -> None:
        """Nobody follows any more."""
        self._task.cancel()

    async def _look(self) -> None:
        site, wid, path = self._workflow
        looked = time.monotonic()
        while self.goes_on:
            await asyncio.sleep(PERIOD)
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                with suppress(DatabaseError):  # it may be back at the next look
                    self.goes_on = await asyncio.to_thread(follow.goes_on, site, wid, path)
            before, self._size = self._size, _size(path)
            if self._size != before or not self.goes_on:
                self._tell()

    def _tell(self) -> None:
        done, self.change = self.change, asyncio.get_running_loop().create_future()
        done.set_result(None)


_watches: dict[tuple[asyncio.AbstractEventLoop, Path], _Watch] = {}
"""Of the workflows that somebody follows."""


@contextmanager
def _watched(site: Site, wid: str, path: Path) -> Iterator[_Watch]:
    """The watch over a workflow, which lasts as long as it has followers."""
    key = asyncio.get_running_loop(), path
    watch = _watches.get(key)
    if watch is None:
        watch = _watches[key] = _Watch(site, wid, path)
    watch.followers += 1
    try:
        yield watch
    finally:
        watch.followers -= 1
        if not watch.followers:
            del _watches[key]
            watch.end()


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0
