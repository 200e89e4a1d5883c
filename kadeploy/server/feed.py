"""The events of all workflows that somebody may follow, as they begin and end, in one stream of server-sent events.

The id of each event is a `Cursor`: how far each workflow has been told. Who has lost the connection shows the last one
and is told what came after it, of each workflow, also of those that began or ended meanwhile.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Container, Iterator, Mapping
from contextlib import suppress
from weakref import WeakKeyDictionary, WeakSet

import msgspec

from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError, KadeployError, LimitError, RightsError, UnknownWorkflowError
from kadeploy.operations import follow
from kadeploy.operations.follow import Tail, is_last
from kadeploy.operations.service import Refusal
from kadeploy.server.served import Served
from kadeploy.server.standing import Require, watched
from kadeploy.state import controllers, journal, rights

STREAMS = 10
"""That one user may have open at a time."""
ALL_STREAMS = 200
"""That all users have open together, but for administrators: each costs a thousandth of a processor's time."""
FOLLOWED = 100
"""Workflows that run and are followed at a time, those that began first; others follow when one of them has ended."""
LIFE = 600.0
"""Seconds after which a stream ends: who comes again, with the last id, shows again who it is."""
_PERIOD = 0.5
"""Seconds between two looks at the files of events."""
_LOOK = 2.0
"""Seconds between two looks for workflows that have begun or ended."""
_SIGN = 15.0
"""Seconds of silence after which a comment tells that the connection lives."""


class Cursor(msgspec.Struct, frozen=True):
    """How far a stream has come: ``1795898400;D-3hq7a2k1xv:5120;P-x7c2m4k9qa.``, the latter told to its end."""

    since: int
    """All that ended before was told (Unix seconds)."""
    told: Mapping[str, int | None]
    """Bytes of its events, by workflow; None: to its end."""

    def __str__(self) -> str:
        return ";".join([str(self.since), *(f"{wid}{_written(place)}" for wid, place in self.told.items())])

    @classmethod
    def read(cls, text: str) -> Cursor | None:
        """The cursor that is written so; None for anything else."""
        if len(text) > _LONGEST or not _FORM.fullmatch(text):
            return None
        since, *told = text.split(";")
        places = (each.partition(":") for each in told)
        return cls(int(since), {wid.rstrip("."): int(place) if colon else None for wid, colon, place in places})


def _written(place: int | None) -> str:
    return "." if place is None else f":{place}"


_FORM = re.compile(r"[0-9]{1,12}(;[A-Z]-[0-9a-z]{1,32}(:[0-9]{1,15}|\.))*")
_LONGEST = 16_384
"""Characters; those of `FOLLOWED` workflows that run, and as many that have ended, are far fewer."""


class _Place:
    """How far a workflow has been told."""

    def __init__(self, wid: str, tail: Tail | None) -> None:
        self.wid = wid
        self.tail = tail
        """None: nothing more will be told of it."""
        self.lost: Refusal | None = None
        """Why it will come to no end."""

    @property
    def told(self) -> int | None:
        """For the cursor."""
        return None if self.tail is None else self.tail.offset


class Feed:
    """What is told to one client, *user*, of the workflows of *whose* (None: everybody's)."""

    def __init__(self, site: Site, user: str, whose: str | None, after: Cursor | None) -> None:
        self.user = user
        self._site = site
        self._whose = whose
        self._since = after.since if after else int(time.time())
        self._told = after.told if after else {}
        """What the client has been told before."""
        self._places: dict[str, _Place] = {}

    def look(self) -> None:
        """See which workflows there are by now."""
        now = int(time.time())
        running = journal.running(self._site, self._whose, FOLLOWED)  # first: one that ends meanwhile is in both
        ended = journal.ended_since(self._site, self._since, self._whose, FOLLOWED)
        going = [wid for wid, place in self._places.items() if place.tail]
        self._places = {wid: self._places.get(wid) or self._place(wid) for wid in (*going, *ended, *running)}
        self._told = {}
        self._look_who_is_lost(ended)
        self._since = self._whole_until(ended, now)

    def _look_who_is_lost(self, ended: Container[str]) -> None:
        left = controllers.left(self._site)
        for wid, place in self._places.items():
            if place.tail and (not follow.goes_on(self._site, wid, place.tail.path) if wid in ended else wid in left):
                place.lost = Refusal.of(follow.broken_off(self._site, wid))

    def _whole_until(self, ended: Mapping[str, int], now: int) -> int:
        """Until when all that ended has been told."""
        open_ends = [end for wid, end in ended.items() if self._places[wid].tail is not None]
        if len(ended) == FOLLOWED:  # there are more of them
            open_ends.append(max(self._since + 1, *ended.values()))
        return max(self._since, min(open_ends, default=now))  # clocks may be put back

    def _place(self, wid: str) -> _Place:
        told = self._told.get(wid, 0)
        with suppress(UnknownWorkflowError):  # nothing of it is kept, or not for this account
            if told is not None:
                return _Place(wid, follow.opened(self._site, wid, told))
        return _Place(wid, None)

    def messages(self) -> Iterator[bytes]:
        """What is new."""
        for place in self._places.values():
            yield from self._news(place)

    def _news(self, place: _Place) -> Iterator[bytes]:
        try:
            for _, line in place.tail.lines() if place.tail else ():
                if is_last(line):
                    place.tail = None
                if _is_whole(line):
                    yield self._message(b'{"wid":"%b","event":%b}' % (place.wid.encode(), line))
        except UnknownWorkflowError as error:  # what was kept of them is damaged
            place.lost = Refusal.of(error)
        if place.tail and place.lost:
            place.tail = None
            told = {"wid": place.wid, **msgspec.structs.asdict(place.lost)}
            yield b"event: gone\n" + self._message(msgspec.json.encode(told))

    def _message(self, data: bytes) -> bytes:
        cursor = Cursor(self._since, {wid: place.told for wid, place in self._places.items()})
        return b"id: %b\ndata: %b\n\n" % (str(cursor).encode(), data)


def _is_whole(line: bytes) -> bool:
    """Whether its writer has finished it."""
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True


# --- as a stream ----------------------------------------------------------------------------------------------------

_open: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakSet[Feed]] = WeakKeyDictionary()
"""Those that somebody reads, by service."""


def whose(served: Served, user: str | None) -> str | None:
    """Whose workflows the caller is told of who asks for those of *user*; None: everybody's.

    Raises:
        RightsError: they are another user's.
    """
    if user and user != served.user:
        rights.require_almighty(served.site, served.user)
    return user or (None if served.is_administrator else served.user)


def require_same(now: Served, user: str | None, then: Served) -> None:
    """Refuse a caller who by now is told of other workflows than *then*, when they asked for those of *user*.

    Raises:
        RightsError: they are no administrator any more, or have become one.
    """
    if whose(now, user) != whose(then, user):
        raise RightsError("What you may follow has changed: ask for it again.")


async def of(served: Served, user: str | None, after: str, require: Require) -> AsyncIterator[bytes]:
    """The events of the workflows of *user* behind the id *after*; of no *user*, all that the caller may follow.

    They are told as long as *require* lets the caller stay.

    Raises:
        RightsError: they are another user's.
        LimitError: the caller has too many such streams.
    """
    feed = Feed(served.site, served.user, whose(served, user), Cursor.read(after))
    _require_room(feed, served.is_administrator)
    await asyncio.to_thread(feed.look)
    return _stream(feed, require)


def _require_room(feed: Feed, is_administrator: bool) -> None:
    here = _open.setdefault(asyncio.get_running_loop(), WeakSet())
    if sum(each.user == feed.user for each in here) >= STREAMS:
        raise LimitError(
            f"{feed.user} has {STREAMS} streams of events open, which is all that one may: leave one first."
        )
    if len(here) >= ALL_STREAMS and not is_administrator:
        raise LimitError(
            f"{ALL_STREAMS} streams of events are open, which is all that the service takes: come again later, or "
            "follow single workflows."
        )
    here.add(feed)


async def _stream(feed: Feed, require: Require) -> AsyncIterator[bytes]:
    with watched(require) as refused:
        async for message in _told(feed, refused):
            yield message
        if refused.done():
            yield b"event: gone\ndata: %b\n\n" % msgspec.json.encode(Refusal.of(refused.result()))


async def _told(feed: Feed, refused: asyncio.Task[KadeployError]) -> AsyncIterator[bytes]:
    begun = looked = spoke = time.monotonic()
    while time.monotonic() - begun < LIFE and not refused.done():
        for message in feed.messages():
            spoke = time.monotonic()
            yield message
        if time.monotonic() - spoke > _SIGN:
            spoke = time.monotonic()
            yield b":\n\n"
        await asyncio.wait([refused], timeout=_PERIOD)
        if time.monotonic() - looked > _LOOK:
            looked = time.monotonic()
            with suppress(DatabaseError):  # it may be back at the next look
                await asyncio.to_thread(feed.look)
