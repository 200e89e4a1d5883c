"""The log of a period as a whole, for the page that shows it: rates, reasons, durations, and how busy the site was.

A log may have ten million rows and a page many readers. So the rows are found by the index on their start, only the
newest `MOST` of them count, the database sums them up, and what was found is told again for `KEPT` seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import msgspec
import peewee
from peewee import Case, fn

from kadeploy.config.site import Site
from kadeploy.nodeset import natural_key
from kadeploy.state.database import DB, connect, fetch, url_of, with_numbers
from kadeploy.state.history import STEPS, Durations, Image, Rate, Selection, counts, durations
from kadeploy.state.load import Load
from kadeploy.state.tables import Log
from kadeploy.workflow import Operation

DAY = 86400
HOUR = 3600
MOST = 100_000
"""Rows of the log that a period has at most: the newest ones."""
KEPT = 60.0
"""Seconds for which an overview is told again."""
_GROUPS = 20_000
"""Rows of one answer of the database."""
_TOLD = 120
"""Characters of an error's beginning, in which its macro- and micro-step are named."""


class Period(msgspec.Struct, frozen=True):
    """From when to when, in Unix seconds."""

    since: int
    until: int
    is_whole: bool
    """False: there was more than is counted, and *since* is when the oldest that counts began."""


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
    uses: list[Use]
    """Most frequent first."""

    @property
    def deployments(self) -> int:
        """How many deployments of nodes came to an end of their own."""
        return sum(each.operations for each in self.rates)


_kept: dict[tuple[str, int, str], tuple[float, Any]] = {}
_asking = threading.Lock()


def overview(site: Site, days: int) -> Overview:
    """What the last *days* days tell, at most `KEPT` seconds ago; those who ask meanwhile wait for the same answer."""
    return cast("Overview", _remembered(site, days, "overview", lambda: look(site, days, int(time.time()))))


def uses(site: Site, days: int) -> list[Use]:
    """`Overview.uses` alone, which is found sooner; kept alike."""

    def ask() -> list[Use]:
        connect(site)
        now = int(time.time())
        return _uses(counted(now - days * DAY, now))

    return cast("list[Use]", _remembered(site, days, "uses", ask))


def _remembered(site: Site, days: int, what: str, ask: Callable[[], Any]) -> Any:
    key = (url_of(site), days, what)
    with _asking:
        found = _kept.get(key)
        if found is None or time.monotonic() - found[0] >= KEPT:
            found = _kept[key] = (time.monotonic(), ask())
    return found[1]


def look(site: Site, days: int, now: int) -> Overview:
    """What the last *days* days before *now* (Unix seconds) tell, asked of the database."""
    connect(site)
    period = counted(now - days * DAY, now)
    slice_ = HOUR if days <= 7 else 6 * HOUR
    return Overview(
        period=period,
        rates=_rates(period),
        reasons=_reasons(period),
        durations=_durations(period),
        timeline=durations(site, Selection(since=period.since, until=period.until)),
        load=_load(period, slice_),
        uses=_uses(period),
    )


def counted(since: int, now: int) -> Period:
    """From *since* to *now*, as far as the newest `MOST` rows of the log go back; the thread is connected already."""
    newest = Log.select(Log.start).where(Log.start >= since).order_by(Log.start.desc())
    more = fetch(newest.limit(1).offset(MOST))
    return Period(more[0][0] + 1 if more else since, now, not more)


def within(query: Any, period: Period, operation: Operation | None = "deploy") -> Any:
    """*query* for rows of *period*, which the index on the start finds; *operation* None means all.

    The one on the operation would have the whole log read; it does not know an operation within an expression.
    """
    query = query.where(Log.start.between(period.since, period.until))
    return query if operation is None else query.where(fn.COALESCE(Log.operation, "") == operation)


# --- deployments --------------------------------------------------------------------------------------------------


def _rates(period: Period) -> list[Rate]:
    query = Log.select(Log.hostname, fn.COUNT(Log.id), _successes()).where(counts())
    rows = fetch(with_numbers(within(query, period), Log.start, Log.success).group_by(Log.hostname))
    found = [Rate(name, total, int(good)) for name, total, good in rows]
    return sorted(found, key=lambda rate: (-_share(rate), -rate.operations, natural_key(rate.hostname)))


def _share(rate: Rate) -> float:
    return 1 - rate.successes / rate.operations


def _successes() -> Any:
    return fn.SUM(Case(None, ((Log.success, 1),), 0))


def _reasons(period: Period) -> list[Reason]:
    beginning = fn.SUBSTR(Log.error, 1, _TOLD).alias("beginning")
    query = within(Log.select(beginning, fn.COUNT(Log.id)).where(~Log.success, counts()), period)
    ordered = query.group_by(beginning).order_by(fn.COUNT(Log.id).desc()).limit(_GROUPS)
    found: dict[tuple[str, str], int] = {}
    for text, failures in fetch(ordered):
        found[_steps(text)] = found.get(_steps(text), 0) + failures
    return sorted(
        (Reason(*steps, count) for steps, count in found.items()),
        key=lambda each: (-each.failures, each.macro, each.micro),
    )


def _steps(error: str) -> tuple[str, str]:
    """Macro- and micro-step that an error begins with.

    >>> _steps("BootNewEnvKexec-wait_reboot: no answer"), _steps("BootNewEnvKexec: no verdict"), _steps("no answer")
    (('BootNewEnvKexec', 'wait_reboot'), ('BootNewEnvKexec', ''), ('', ''))
    """
    where, colon, _ = error.partition(": ")
    if not colon or not where.replace("-", "_").replace(".", "_").isidentifier():
        return "", ""
    macro, _, micro = where.partition("-")
    return macro, micro


def _durations(period: Period) -> list[Usual]:
    found = [each for step in STEPS for each in _durations_of(period, step)]
    most: dict[Image, int] = {}
    for each in found:
        most[each.image] = max(each.deployments, most.get(each.image, 0))
    return sorted(found, key=lambda each: (-most[each.image], each.image, each.step))


def _durations_of(period: Period, step: int) -> Iterator[Usual]:
    """By how many deployments took how many seconds: whole seconds are few, however many deployments there are."""
    seconds = getattr(Log, f"step{step}_duration")
    columns = (Log.env, Log.md5, seconds)
    query = within(Log.select(*columns, fn.COUNT(Log.id)).where(Log.success, seconds > 0), period)
    rows = fetch(with_numbers(query, Log.start, seconds).group_by(*columns).order_by(*columns).limit(_GROUPS))
    images: dict[Image, list[tuple[int, int]]] = {}
    for env, md5, length, count in rows:
        images.setdefault(Image(env, md5), []).append((length, count))
    for image, lengths in images.items():
        yield Usual(
            image, step, sum(count for _, count in lengths), _within_share(lengths, 50), _within_share(lengths, 95)
        )


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


def _uses(period: Period) -> list[Use]:
    columns = (Log.env, Log.md5, Log.anonymous_env)
    query = Log.select(*columns, fn.COUNT(Log.id), _successes(), fn.MAX(Log.start)).where(counts())
    asked = with_numbers(within(query, period), Log.start, Log.success).group_by(*columns)
    rows = fetch(asked.order_by(fn.COUNT(Log.id).desc(), *columns).limit(_GROUPS))
    return [Use(Image(env, md5), bool(odd), total, int(good), last) for env, md5, odd, total, good, last in rows]


# --- load -----------------------------------------------------------------------------------------------------------


def _load(period: Period, width: int) -> list[Load]:
    """For each slice of *width* seconds, the seconds that operations of all kinds spent in it, on whatever node."""
    end = Log.start + sum((getattr(Log, f"step{step}_duration") for step in STEPS[1:]), Log.step1_duration)
    first, last = _slice(Log.start, width).alias("first"), _slice(end, width).alias("last")
    query = Log.select(first, last, fn.COUNT(Log.id), fn.SUM(Log.start), fn.SUM(end))
    numbers = (Log.start, *(getattr(Log, f"step{step}_duration") for step in STEPS))
    rows = fetch(with_numbers(within(query, period, None), *numbers).group_by(first, last).limit(_GROUPS))
    begin = period.since - period.since % width
    spent = dict.fromkeys(range(begin, period.until + 1, width), 0)
    for begins, ends, count, starts, finishes in rows:
        for at, seconds in _spread(int(begins) * width, int(ends) * width, count, int(starts), int(finishes), width):
            if at in spent:
                spent[at] += seconds
    return [Load(start, width, seconds / width) for start, seconds in spent.items()]


def _slice(moment: Any, width: int) -> Any:
    """In which slice of *width* seconds a moment is, counted from the beginning of time; MySQL divides with a rest."""
    slices = moment / width
    return slices if isinstance(DB.obj, peewee.SqliteDatabase) else fn.FLOOR(slices)


def _spread(first: int, last: int, count: int, starts: int, ends: int, width: int) -> Iterator[tuple[int, int]]:
    """Seconds by slice of *count* operations that began in the slice *first* and ended in *last*, from sums of both."""
    if first == last:
        yield first, ends - starts
        return
    yield first, count * (first + width) - starts
    for between in range(first + width, last, width):
        yield between, count * width
    yield last, ends - count * last
