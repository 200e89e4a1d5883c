"""What the log tells of a day, summed up: a period is read by its whole days and hours, each once.

Rows of the log never change, but some come late, when an operation ends that began the day before, and old ones go.
The sums of days are kept in the database, as long as they are of all rows (see `kadeploy.state.kept_days`); those of
hours, for the days of which only a part counts, are in memory, as long as the index has as many rows. They are copies:
what cannot be read, or not be written, is no loss but of time.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import chain, compress, islice, repeat
from operator import add
from typing import Any, NamedTuple, TypeVar

import msgspec
from peewee import Case, fn

from kadeploy.errors import DatabaseError
from kadeploy.state import kept_days
from kadeploy.state.database import DB, fetch, stream
from kadeploy.state.history import STEPS, counts
from kadeploy.state.load import DAY, HOUR
from kadeploy.state.tables import Log

_BATCH = 10_000
"""Rows of the log that are in memory at a time."""

_KeyT = TypeVar("_KeyT", bound=Hashable)
_KnownT = TypeVar("_KnownT")


class Stamp(NamedTuple):
    """Which rows of the log something is of."""

    number: int
    last: int
    """The highest id; 0 where there are none."""


Length = tuple[str, str, int, int]
"""Name and checksum of an image, a macro-step (1 to 3), and the seconds that it took."""
Used = tuple[str, str, bool]
"""Name and checksum of an image that was deployed, and whether it was no recorded environment."""
Slot = tuple[str, str, int]
"""Name and checksum of an image, and the hour since 1970 in which deployments of it began."""


class Means(NamedTuple):
    """What macro-steps took together, of some deployments, and in how many each was run."""

    deployments: int
    seconds1: int
    seconds2: int
    seconds3: int
    ran1: int
    ran2: int
    ran3: int


@dataclass
class Sums:
    """Counts of deployments that came to an end of their own, and when operations of all kinds were under way."""

    deployments: Counter[str] = field(default_factory=Counter)
    """By node."""
    successes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Failures by macro- and micro-step."""
    lengths: Counter[Length] = field(default_factory=Counter)
    """Of what went well."""
    uses: Counter[Used] = field(default_factory=Counter)
    good: Counter[Used] = field(default_factory=Counter)
    last: dict[Used, int] = field(default_factory=dict)
    """When the last one began (Unix)."""
    means: dict[Slot, Means] = field(default_factory=dict)
    """Of those that failed, too."""
    load: Counter[int] = field(default_factory=Counter)
    """By how many seconds more than in the hour before nodes were operated on, by hours since 1970."""

    def add(self, other: Sums) -> None:
        """Count *other*, of other rows, too."""
        for each in fields(self):
            if isinstance(counter := getattr(self, each.name), Counter):
                counter.update(getattr(other, each.name))
        for used, moment in other.last.items():
            self.last[used] = max(moment, self.last.get(used, moment))
        for slot, means in other.means.items():
            known = self.means.get(slot)
            self.means[slot] = means if known is None else Means(*map(add, known, means))


# --- of a period ------------------------------------------------------------------------------------------------------


def summed(since: int, until: int) -> Sums:
    """What began from *since* to *until* (Unix seconds, inclusive); the thread is connected already.

    Raises:
        DatabaseError: the database cannot be used, or rows are damaged (see `kadeploy.state.damage`).
    """
    sums = Sums()
    for width, first, last in _parts(since, until, (DAY, HOUR)):
        sums.add(_READERS[width](first, last))
    return sums


def _parts(since: int, until: int, widths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """The period in whole days together, whole hours together, and what is left; each with its width.

    >>> list(_parts(3599, 86400, (DAY, HOUR)))
    [(0, 3599, 3599), (3600, 3600, 86399), (0, 86400, 86400)]
    """
    width, *finer = *widths, 0
    first, end = (-(-since // width) * width, (until + 1) // width * width) if width else (since, until + 1)
    if first >= end:
        yield from _parts(since, until, finer) if width and since <= until else ()
        return
    yield from _parts(since, first - 1, finer) if since < first else ()
    yield width, first, end - 1
    yield from _parts(end, until, finer) if end <= until else ()


_Key = tuple[Any, int, int]
"""A database, and the first and last second."""
_merged: OrderedDict[_Key, tuple[Mapping[int, int], Sums]] = OrderedDict()
"""Of several days, with their versions."""
_hours: OrderedDict[_Key, tuple[Stamp, Sums]] = OrderedDict()
_MERGED, _HOURS = 6, 100
"""How many are in memory."""
_reading = threading.Lock()
"""Who reads, and remembers what was read; others do not read the same meanwhile."""


def forget() -> None:
    """Have nothing in memory."""
    with _reading:
        _merged.clear()
        _hours.clear()


def _of_days(since: int, until: int) -> Sums:
    """Of whole days; not to be changed."""
    key, days = (DB.obj, since, until), range(since // DAY, (until + 1) // DAY)
    with _reading:
        versions = _versions(days)
        known = _merged.get(key)
        if known is None or known[0] != versions:
            sums, are_all_kept = _together(days, versions)
            known = (versions, sums)
            if are_all_kept:
                _remember(_merged, key, known, _MERGED)
    return known[1]


def _remember(memory: OrderedDict[_Key, _KnownT], key: _Key, known: _KnownT, most: int) -> None:
    memory[key] = known
    memory.move_to_end(key)
    while len(memory) > most:
        memory.popitem(last=False)


def _together(days: range, versions: dict[int, int]) -> tuple[Sums, bool]:
    """The sums of *days*, and whether each of them is kept; *versions* get those of days that were met first."""
    if missing := set(days) - set(versions):
        with suppress(DatabaseError):
            kept_days.expect(missing)
        versions |= _versions(days)
    sums, are_all_kept = Sums(), True
    for day in days:
        found, is_kept = _day(day, versions.get(day))
        sums.add(found)
        are_all_kept &= is_kept
    return sums, are_all_kept


def _versions(days: range) -> dict[int, int]:
    with suppress(DatabaseError):
        return kept_days.versions(days.start, days.stop)
    return {}


def _day(day: int, version: int | None) -> tuple[Sums, bool]:
    if (known := _kept(day, version)) is not None:
        return known, True
    period = (day * DAY, (day + 1) * DAY - 1)
    sums, stamp = read(*period)
    if version is None or stamp != _stamp(*period):
        return sums, False
    with suppress(DatabaseError):
        kept_days.keep(day, version, _text_of(sums))
    return sums, True


def _kept(day: int, version: int | None) -> Sums | None:
    with suppress(DatabaseError):
        kept = kept_days.kept(day)
        return _of_text(kept[1]) if kept and kept[0] == version else None
    return None


def _of_hours(since: int, until: int) -> Sums:
    sums = Sums()
    for start in range(since, until, HOUR):
        sums.add(_hour(start, start + HOUR - 1))
    return sums


def _hour(since: int, until: int) -> Sums:
    key, stamp = (DB.obj, since, until), _stamp(since, until)
    with _reading:
        known = _hours.get(key)
        if known is None or known[0] != stamp:
            sums, found = read(since, until)
            known = (found, sums)
            if found == stamp:
                _remember(_hours, key, known, _HOURS)
    return known[1]


def _rest(since: int, until: int) -> Sums:
    return read(since, until)[0]


_READERS = {DAY: _of_days, HOUR: _of_hours, 0: _rest}


def _stamp(since: int, until: int) -> Stamp:
    """By the index alone."""
    [(number, last)] = fetch(Log.select(fn.COUNT(Log.id), fn.MAX(Log.id)).where(Log.start.between(since, until)))
    return Stamp(number, last or 0)


# --- of rows ----------------------------------------------------------------------------------------------------------


def read(since: int, until: int) -> tuple[Sums, Stamp]:
    """What the rows tell that began from *since* to *until*, and which ones they are."""
    sums, number, last = Sums(), 0, 0
    rows = stream(_selection().where(Log.start.between(since, until)).order_by(Log.start))
    while batch := list(islice(rows, _BATCH)):
        columns = Columns(*zip(*batch, strict=True))
        sums.add(_of_rows(columns))
        number, last = number + len(batch), max(last, *columns.id)
    return sums, Stamp(number, last)


class Columns(NamedTuple):
    """Rows of the log, column by column."""

    id: Sequence[int]
    operation: Sequence[str]
    hostname: Sequence[str]
    start: Sequence[int]
    env: Sequence[str]
    md5: Sequence[str]
    is_anonymous: Sequence[bool]
    success: Sequence[bool]
    counts: Sequence[int]
    error: Sequence[str]
    step1: Sequence[int]
    step2: Sequence[int]
    step3: Sequence[int]


def _selection() -> Any:
    durations = [getattr(Log, f"step{step}_duration") for step in STEPS]
    image = (Log.env, Log.md5, Log.anonymous_env)
    ended = Case(None, ((counts(), 1),), 0)
    return Log.select(Log.id, Log.operation, Log.hostname, Log.start, *image, Log.success, ended, Log.error, *durations)


def _of_rows(rows: Columns) -> Sums:
    """What *rows* tell, which are in the order of their start."""
    ended = [kind == "deploy" and bool(each) for kind, each in zip(rows.operation, rows.counts, strict=True)]
    good = [each and well for each, well in zip(ended, rows.success, strict=True)]
    bad = [each and not well for each, well in zip(ended, rows.success, strict=True)]
    images = list(zip(rows.env, rows.md5, rows.is_anonymous, strict=True))
    return Sums(
        deployments=Counter(compress(rows.hostname, ended)),
        successes=Counter(compress(rows.hostname, good)),
        reasons=_by(step_of, Counter(compress(rows.error, bad))),
        lengths=Counter(chain.from_iterable(_lengths(rows, good, step) for step in STEPS)),
        uses=Counter(compress(images, ended)),
        good=Counter(compress(images, good)),
        last=dict(compress(zip(images, rows.start, strict=True), ended)),
        means=_means(rows, ended),
        load=_load(rows),
    )


def _by(name: Callable[[str], _KeyT], counted: Mapping[str, int]) -> Counter[_KeyT]:
    found: Counter[_KeyT] = Counter()
    for text, number in counted.items():
        found[name(text)] += number
    return found


def step_of(error: str) -> tuple[str, str]:
    """Macro- and micro-step that an error begins with.

    >>> step_of("BootNewEnvKexec-wait_reboot: no answer"), step_of("BootNewEnvKexec: no verdict"), step_of("no answer")
    (('BootNewEnvKexec', 'wait_reboot'), ('BootNewEnvKexec', ''), ('', ''))
    """
    where, colon, _ = error.partition(": ")
    if not colon or not where.replace("-", "_").replace(".", "_").isidentifier():
        return "", ""
    macro, _, micro = where.partition("-")
    return macro, micro


def _lengths(rows: Columns, good: Sequence[bool], step: int) -> Iterator[Length]:
    seconds: Sequence[int] = getattr(rows, f"step{step}")
    ran = [each and length > 0 for each, length in zip(good, seconds, strict=True)]
    return compress(zip(rows.env, rows.md5, repeat(step), seconds), ran)


def _means(rows: Columns, ended: Sequence[bool]) -> dict[Slot, Means]:
    found: dict[Slot, list[int]] = {}
    columns = (rows.env, rows.md5, rows.start, rows.step1, rows.step2, rows.step3)
    for env, md5, start, *steps in compress(zip(*columns, strict=True), ended):
        means = found.setdefault((env, md5, start // HOUR), [0] * len(Means._fields))
        means[0] += 1
        for rank, seconds in enumerate(steps, 1):
            means[rank] += seconds
            means[rank + 3] += seconds != 0
    return {slot: Means(*means) for slot, means in found.items()}


def _load(rows: Columns) -> Counter[int]:
    """As changes from hour to hour, an operation is six of them at most, however long it took."""
    found: Counter[int] = Counter()
    for start, *steps in zip(rows.start, rows.step1, rows.step2, rows.step3, strict=True):
        end = start + sum(steps)
        first, last = start // HOUR, end // HOUR
        if first == last:
            found[first] += end - start
            found[first + 1] -= end - start
            continue
        before, behind = (first + 1) * HOUR - start, end - last * HOUR
        found[first] += before
        found[first + 1] += HOUR - before
        found[last] += behind - HOUR
        found[last + 1] -= behind
    return found


# --- as they are kept -------------------------------------------------------------------------------------------------


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """`Sums` in little room; *lengths* and *uses* by image."""

    nodes: dict[str, tuple[int, int]]
    """Deployments and successes."""
    reasons: list[tuple[str, str, int]]
    lengths: list[tuple[str, str, int, dict[int, int]]]
    """How many took so many seconds."""
    uses: list[tuple[str, str, bool, int, int, int]]
    """Deployments, successes, and when the last one began."""
    means: list[tuple[str, str, int, Means]]
    load: dict[int, int]


def _text_of(sums: Sums) -> str:
    lengths: dict[tuple[str, str, int], dict[int, int]] = {}
    for (env, md5, step, seconds), number in sums.lengths.items():
        lengths.setdefault((env, md5, step), {})[seconds] = number
    kept = _Kept(
        nodes={name: (number, sums.successes[name]) for name, number in sums.deployments.items()},
        reasons=[(*steps, number) for steps, number in sums.reasons.items()],
        lengths=[(*key, numbers) for key, numbers in lengths.items()],
        uses=[(*used, number, sums.good[used], sums.last[used]) for used, number in sums.uses.items()],
        means=[(*slot, means) for slot, means in sums.means.items()],
        load=dict(sums.load),
    )
    return msgspec.json.encode(kept).decode()


def _of_text(text: str) -> Sums | None:
    """None: it is damaged."""
    try:
        kept = msgspec.json.decode(text, type=_Kept)
    except (msgspec.MsgspecError, UnicodeError):
        return None
    return Sums(
        deployments=Counter({name: number for name, (number, _) in kept.nodes.items()}),
        successes=Counter({name: number for name, (_, number) in kept.nodes.items() if number}),
        reasons=Counter({(macro, micro): number for macro, micro, number in kept.reasons}),
        lengths=Counter(dict(_unfolded(kept.lengths))),
        uses=Counter({(env, md5, odd): number for env, md5, odd, number, _, _ in kept.uses}),
        good=Counter({(env, md5, odd): number for env, md5, odd, _, number, _ in kept.uses if number}),
        last={(env, md5, odd): last for env, md5, odd, _, _, last in kept.uses},
        means={(env, md5, hour): means for env, md5, hour, means in kept.means},
        load=Counter(kept.load),
    )


def _unfolded(lengths: Iterable[tuple[str, str, int, Mapping[int, int]]]) -> Iterator[tuple[Length, int]]:
    for env, md5, step, seconds in lengths:
        yield from (((env, md5, step, each), number) for each, number in seconds.items())
