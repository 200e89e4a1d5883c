"""The log of a period as a whole, for the page that shows it: rates, reasons, durations, and how busy the site was.

A log may have ten million rows and a page many readers. So past days are summed up once (see `kadeploy.state.days`),
and what was found is told again for `KEPT` seconds.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import add
from typing import cast

import msgspec

from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError
from kadeploy.state.database import connect, url_of
from kadeploy.state.days import Sums, summed
from kadeploy.state.history import Durations, Image, Rate, worst_first
from kadeploy.state.load import DAY, HOUR, Load

KEPT = 60.0
"""Seconds for which an overview is told again."""
_SLICES = 60
"""Of the timeline, at most."""
_WAITING = 2
"""Threads that wait for the first look of another one: a service has few for all who ask."""


class Period(msgspec.Struct, frozen=True):
    """From when to when, in Unix seconds."""

    since: int
    until: int


class Reason(msgspec.Struct, frozen=True):
    """A step in which deployments failed, and how often."""

    macro: str
    """The implementation of the macro-step; empty where none was reached."""
    micro: str
    """Empty where the macro-step failed as a whole."""
    failures: int


class Usual(msgspec.Struct, frozen=True):
    """Seconds that a macro-step takes with an image: half of the deployments within *p50*, 95 % within *p95*."""

    image: Image
    step: int
    """1 to 3."""
    deployments: int
    p50: int
    p95: int


class Use(msgspec.Struct, frozen=True):
    """What came of the deployments of an image."""

    image: Image
    is_anonymous: bool
    deployments: int
    successes: int
    last: int
    """When the last one began (Unix)."""


class Overview(msgspec.Struct, frozen=True):
    """What a period tells."""

    period: Period
    rates: list[Rate]
    """Of nodes with any deployment, those that failed most often first."""
    reasons: list[Reason]
    """Most frequent first."""
    durations: list[Usual]
    """Of images, those deployed most often first, and their macro-steps."""
    timeline: list[Durations]
    """Means over time, of deployments that failed as well."""
    load: list[Load]
    """Of operations of all kinds."""
    uses: list[Use]
    """Most frequent first."""

    @property
    def deployments(self) -> int:
        """How many deployments of nodes came to an end of their own."""
        return sum(each.operations for each in self.rates)


@dataclass
class _Told:
    """An overview, and when it was made."""

    at: float = 0.0
    found: Overview | None = None
    making: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_old(self) -> bool:
        return self.found is None or time.monotonic() - self.at >= KEPT


_told: dict[tuple[str, int], _Told] = {}
_waiting = threading.BoundedSemaphore(_WAITING)


def overview(site: Site, days: int) -> Overview:
    """What the last *days* days tell, at most `KEPT` seconds ago, or what is told until somebody else has looked anew.

    Raises:
        DatabaseError: the database cannot be used, or `_WAITING` others wait for the first look already.
    """
    told = _told.setdefault((url_of(site), days), _Told())
    if told.is_old:
        with _turn(told) as is_mine:
            if is_mine and told.is_old:
                told.found, told.at = look(site, days, int(time.time())), time.monotonic()
    return cast("Overview", told.found)


@contextmanager
def _turn(told: _Told) -> Iterator[bool]:
    """Whether one may look oneself; who finds nothing told waits for who looks already."""
    is_mine = told.making.acquire(blocking=False)
    if not is_mine and told.found is None:
        if not _waiting.acquire(blocking=False):
            raise DatabaseError("The log is being summed up, which takes some seconds the first time: try again.")
        try:
            is_mine = told.making.acquire()
        finally:
            _waiting.release()
    try:
        yield is_mine
    finally:
        if is_mine:
            told.making.release()


def uses(site: Site, days: int) -> list[Use]:
    """`Overview.uses` alone."""
    return overview(site, days).uses


def look(site: Site, days: int, now: int) -> Overview:
    """What the last *days* days before *now* (Unix seconds) tell, asked of the database."""
    connect(site)
    period = Period(now - days * DAY, now)
    sums = summed(period.since, period.until)
    return Overview(
        period=period,
        rates=_rates(sums),
        reasons=_reasons(sums),
        durations=_durations(sums),
        timeline=_timeline(sums, -(-24 * days // _SLICES)),
        load=_load(sums, period, 1 if days <= 7 else 6),
        uses=_uses(sums),
    )


# --- deployments --------------------------------------------------------------------------------------------------


def _rates(sums: Sums) -> list[Rate]:
    return worst_first(Rate(name, number, sums.successes[name]) for name, number in sums.deployments.items())


def _reasons(sums: Sums) -> list[Reason]:
    found = [Reason(*steps, failures) for steps, failures in sums.reasons.items()]
    return sorted(found, key=lambda each: (-each.failures, each.macro, each.micro))


def _durations(sums: Sums) -> list[Usual]:
    images: dict[tuple[Image, int], list[tuple[int, int]]] = {}
    for (env, md5, step, seconds), count in sums.lengths.items():
        images.setdefault((Image(env, md5), step), []).append((seconds, count))
    found = [_usual(image, step, sorted(lengths)) for (image, step), lengths in images.items()]
    most: Counter[Image] = Counter()
    for each in found:
        most[each.image] = max(each.deployments, most[each.image])
    return sorted(found, key=lambda each: (-most[each.image], each.image, each.step))


def _usual(image: Image, step: int, lengths: Sequence[tuple[int, int]]) -> Usual:
    total = sum(count for _, count in lengths)
    return Usual(image, step, total, _within_share(lengths, 50), _within_share(lengths, 95))


def _within_share(lengths: Sequence[tuple[int, int]], percent: int) -> int:
    """The least length within which *percent* of all are; *lengths* are pairs of a length and its number, ascending.

    >>> _within_share([(10, 19), (300, 1)], 50), _within_share([(10, 19), (300, 2)], 95)
    (10, 300)
    """
    total, met = sum(count for _, count in lengths), 0
    for length, count in lengths:
        met += count
        if 100 * met >= percent * total:
            return length
    return 0


def _timeline(sums: Sums, hours: int) -> list[Durations]:
    """In slices of so many *hours*."""
    slots: dict[tuple[int, str, str], tuple[int, ...]] = {}
    for (env, md5, hour), means in sums.means.items():
        key = (hour - hour % hours, env, md5)
        slots[key] = tuple(map(add, slots[key], means)) if key in slots else means
    return [_mean(hour * HOUR, Image(env, md5), *slots[hour, env, md5]) for hour, env, md5 in sorted(slots)]


def _mean(start: int, image: Image, deployments: int, *numbers: int) -> Durations:
    step1, step2, step3 = (
        seconds / ran if ran else None for seconds, ran in zip(numbers[:3], numbers[3:], strict=True)
    )
    return Durations(start, step1, step2, step3, image, deployments)


def _uses(sums: Sums) -> list[Use]:
    found = [
        Use(Image(env, md5), is_anonymous, number, sums.good[env, md5, is_anonymous], sums.last[env, md5, is_anonymous])
        for (env, md5, is_anonymous), number in sums.uses.items()
    ]
    return sorted(found, key=lambda each: (-each.deployments, each.image, each.is_anonymous))


def _load(sums: Sums, period: Period, hours: int) -> list[Load]:
    """For each slice of so many *hours*, the seconds that operations spent in it, on whatever node."""
    width = hours * HOUR
    begin = period.since - period.since % width
    spent = dict.fromkeys(range(begin, period.until + 1, width), 0)
    seconds = 0
    for hour in range(begin // HOUR, period.until // HOUR + 1):
        seconds += sums.load[hour]
        spent[hour * HOUR - hour * HOUR % width] += seconds
    return [Load(start, width, seconds / width) for start, seconds in spent.items()]
