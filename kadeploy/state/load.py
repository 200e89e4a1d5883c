"""How busy a site was: nodes that were operated on, slice of time by slice of time, whoever asks for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec
import peewee
from peewee import fn

from kadeploy.config.site import Site
from kadeploy.state.database import DB, connect, fetch, with_numbers
from kadeploy.state.history import STEPS, Selection, selected
from kadeploy.state.tables import Log

HOUR = 3600
DAY = 24 * HOUR
_WIDTHS = (HOUR, 6 * HOUR, DAY, 7 * DAY, 28 * DAY)
"""Seconds of a slice, each a multiple of the one before it: what several sites tell can be added up."""
_SLICES = 168
"""More than these are too many to be seen: the hours of a week."""
_GROUPS = 20_000
"""Rows of one answer of the database."""


class Load(msgspec.Struct, frozen=True):
    """How many nodes were operated on, on average over the *seconds* from *start* on (Unix)."""

    start: int
    seconds: int
    nodes: float


def load(site: Site, selection: Selection) -> list[Load]:
    """How busy the operations of *selection* kept the site; from the first to the last where it has no dates.

    For each slice it is the seconds that operations spent in it, on whatever node, by those that it has.
    """
    connect(site)
    ends = selected(Log.select(fn.MIN(Log.start), fn.MAX(_end())), selection)
    [(first, last)] = fetch(with_numbers(ends, *_numbers()))
    if first is None:
        return []
    since = first if selection.since is None else max(0, selection.since)
    until = last if selection.until is None else min(selection.until, max(last, int(time.time())))
    width = _width(until - since)
    spent = dict.fromkeys(range(since - since % width, until + 1, width), 0)
    for at, seconds in _spent(selection, width):
        if at in spent:
            spent[at] += seconds
    return [Load(start, width, seconds / width) for start, seconds in spent.items()]


def _spent(selection: Selection, width: int) -> Iterator[tuple[int, int]]:
    """When a slice of *width* seconds begins, and seconds that operations spent in it; a slice comes several times."""
    first, last = _slice(Log.start, width).alias("first"), _slice(_end(), width).alias("last")
    query = selected(Log.select(first, last, fn.COUNT(Log.id), fn.SUM(Log.start), fn.SUM(_end())), selection)
    found = fetch(with_numbers(query, *_numbers()).group_by(first, last).limit(_GROUPS))
    for begins, ends, count, starts, finishes in found:
        yield from _spread(int(begins) * width, int(ends) * width, count, int(starts), int(finishes), width)


def together(parts: Iterable[Sequence[Load]]) -> list[Load]:
    """The load of several sites as that of one, in the widest of their slices."""
    every = list(chain.from_iterable(parts))
    if not every:
        return []
    width = max(each.seconds for each in every)
    begins = [each.start - each.start % width for each in every]
    spent = dict.fromkeys(range(min(begins), max(begins) + 1, width), 0.0)
    for begin, each in zip(begins, every, strict=True):
        spent[begin] += each.nodes * each.seconds
    return [Load(start, width, seconds / width) for start, seconds in spent.items()]


def _width(seconds: int) -> int:
    """The least width with which *seconds* are few slices.

    >>> [_width(days * DAY) // HOUR for days in (0, 7, 8, 30, 365)]
    [1, 1, 6, 6, 168]
    """
    for width in _WIDTHS:
        if seconds <= _SLICES * width:
            return width
    while seconds > _SLICES * width:
        width *= 2
    return width


def _end() -> Any:
    return Log.start + sum((getattr(Log, f"step{step}_duration") for step in STEPS[1:]), Log.step1_duration)


def _numbers() -> tuple[Any, ...]:
    return (Log.start, *(getattr(Log, f"step{step}_duration") for step in STEPS))


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
