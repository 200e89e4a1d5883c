"""How a way of doing a macro-step went on nodes, as the log of past deployments tells."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_
from typing import Any

import msgspec
from peewee import Case, fn

from kadeploy.config.site import Site
from kadeploy.state.database import chunked, connect, fetch, with_numbers
from kadeploy.state.history import Image, counts
from kadeploy.state.tables import Log

DAYS = 90
"""For so long a try counts."""
MOST = 100_000
"""Rows of the log that count at most, the newest: it may have ten million."""
_DAY = 86400


class Tries(msgspec.Struct, frozen=True):
    """Tries of a way on one node, or on several.

    Seconds are the fewest that a try took which went well at once, 0 where there is none: in others a node may have
    waited for one that failed.
    """

    worked: int = 0
    failed: int = 0
    last_worked: int = 0
    """Unix seconds; 0: never."""
    last_failed: int = 0
    """Likewise."""
    seconds: int = 0
    other_seconds: int = 0
    """Of the other ways."""

    @property
    def tried(self) -> int:
        """All of them."""
        return self.worked + self.failed

    @property
    def failed_last(self) -> bool:
        """Whether the last try failed."""
        return self.last_failed > self.last_worked


NEVER = Tries()
"""Nothing is known."""


def together(tries: Iterable[Tries]) -> Tries:
    """Of all the nodes."""
    found = list(tries)
    sums = {name: sum(getattr(each, name) for each in found) for name in Tries.__struct_fields__}
    last = {name: max((getattr(each, name) for each in found), default=0) for name in ("last_worked", "last_failed")}
    names = ("seconds", "other_seconds")
    least = {name: min((took for each in found if (took := getattr(each, name))), default=0) for name in names}
    return Tries(**sums | last | least)


def of(
    site: Site, nodes: Sequence[str], step: int, way: str, others: Sequence[str], image: Image | None, since: int = 0
) -> dict[str, Tries]:
    """Tries of the implementation *way* and of *others* in macro-step *step* (1 to 3) on *nodes*, by node.

    Only of deployments of *image*, where one is given, and from the Unix second *since* on. Nodes of which there is
    no row are missing. Deployments that were aborted do not count.

    Raises:
        DatabaseError: the log cannot be read.
    """
    connect(site)
    since = max(since, int(time.time()) - DAYS * _DAY, _oldest())
    query = Log.select(Log.hostname, *_sums(step, way, others))
    query = query.where(Log.operation == "deploy", Log.start >= since, counts())
    if image is not None:
        query = query.where(Log.env == image.env, Log.md5 == image.md5)
    numbers = (Log.start, Log.success, getattr(Log, f"step{step}_duration"), getattr(Log, f"retry_step{step}"))
    query = with_numbers(query, *numbers)
    parts = (fetch(query.where(Log.hostname.in_(part)).group_by(Log.hostname)) for part in chunked(nodes))
    return {name: Tries(*map(int, values)) for part in parts for name, *values in part}


def _oldest() -> int:
    """When the oldest of the rows began that count."""
    rows = fetch(Log.select(Log.start).order_by(Log.start.desc(), Log.id.desc()).offset(MOST - 1).limit(1))
    return int(rows[0][0]) if rows else 0


def _sums(step: int, way: str, others: Sequence[str]) -> list[Any]:
    """What the database adds up, in the order of the fields of `Tries`."""
    columns = (f"step{step}", f"retry_step{step}", f"step{step}_duration")
    name, retries, seconds = (getattr(Log, column) for column in columns)
    is_last = (
        getattr(Log, f"step{step + 1}") == "" if step < 3 else Log.id.is_null(False)
    )  # behind the third comes none
    ended_there = ~Log.success & is_last
    failed = _gave_up(way) | ((name == way) & ended_there)
    worked = (name == way) & ~ended_there
    other = name.in_(list(others)) & ~ended_there & (retries == 0)
    at_once = worked & (retries == 0)
    return [
        _sum(worked, 1),
        _sum(failed, 1),
        fn.MAX(Case(None, ((worked, Log.start),), 0)),
        fn.MAX(Case(None, ((failed, Log.start),), 0)),
        _least(at_once, seconds),
        _least(other, seconds),
    ]


def _sum(condition: Any, value: Any) -> Any:
    return fn.SUM(Case(None, ((condition, value),), 0))


def _least(condition: Any, seconds: Any) -> Any:
    return fn.COALESCE(fn.MIN(Case(None, ((condition & (seconds > 0), seconds),))), 0)


def _gave_up(way: str) -> Any:
    """Condition that *way* is one of the names, with commas, in the column."""
    column = Log.given_up
    places = (column.startswith(f"{way},"), column.endswith(f",{way}"), column.contains(f",{way},"))
    return reduce(or_, places, column == way)
