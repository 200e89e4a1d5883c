"""What the log of past operations says: rows, failure rates and durations, for kastat3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import and_, or_
from typing import Annotated, Any, NamedTuple, get_args

import msgspec
from peewee import Case, fn

from kadeploy.config.site import Site
from kadeploy.errors import OptionError
from kadeploy.nodeset import natural_key
from kadeploy.state import kept_days
from kadeploy.state.database import chunked, connect, fetch, stream, transaction, with_numbers
from kadeploy.state.tables import Log, Moment, NodeState
from kadeploy.workflow import ABORTED, Operation

FIELDS = (
    "user",
    "hostname",
    "step1",
    "step2",
    "step3",
    "timeout_step1",
    "timeout_step2",
    "timeout_step3",
    "retry_step1",
    "retry_step2",
    "retry_step3",
    "start",
    "step1_duration",
    "step2_duration",
    "step3_duration",
    "env",
    "anonymous_env",
    "md5",
    "success",
    "error",
)
"""What ``kastat3 -d`` prints, in this order (reference §1.6)."""
MORE_FIELDS = ("wid", "operation", "given_up")
"""Printed when asked for."""
RETRY_FIELDS = ("start", "hostname", "retry_step1", "retry_step2", "retry_step3")
"""What ``kastat3 -a`` prints."""
STEPS = (1, 2, 3)
_TRUTHS = ("success", "anonymous_env")


_Second = Annotated[int, msgspec.Meta(gt=-Moment.END, lt=Moment.END)]


class Selection(msgspec.Struct, frozen=True):
    """Which rows of the log count; None does not restrict. Dates are Unix seconds, inclusive."""

    operation: str | None = "deploy"
    nodes: Sequence[str] | None = None
    since: _Second | None = None
    until: _Second | None = None
    wid: str | None = None


class Rate(msgspec.Struct, frozen=True):
    """How often an operation failed on a node."""

    hostname: str
    operations: int
    successes: int

    @property
    def failures(self) -> int:
        """Failure rate in percent, rounded up: reference §1.6."""
        return 100 - 100 * self.successes // self.operations


class Image(NamedTuple):
    """What was deployed: environments that were recorded anew have another image under the same name."""

    env: str = ""
    md5: str = ""


class Durations(msgspec.Struct, frozen=True):
    """Mean seconds of each macro-step in one slice of time that begins at *start*; None when it never ran."""

    start: int
    step1: float | None
    step2: float | None
    step3: float | None
    image: Image = Image()
    operations: int = 1
    """How many these are the means of."""


class Last(msgspec.Struct, frozen=True):
    """What was last done to a node, and what came of it; *env* is ``name:version``, empty where none was deployed."""

    hostname: str
    operation: Operation
    wid: str
    user: str
    env: str
    start: int
    """Unix seconds."""
    success: bool
    error: str


def rows(
    site: Site,
    selection: Selection,
    fields: Sequence[str],
    min_retries: int = 0,
    steps: Sequence[int] = (),
    order: Sequence[str] = (),
    limit: int | None = None,
) -> Iterator[tuple[Any, ...]]:
    """Values of *fields* of each row, one row at a time; truths are the words ``true`` and ``false``.

    With *min_retries*, rows where each of *steps* (default: any step) needed that many. They come in the *order* of
    these fields, downwards where the field begins with ``-``, and then oldest first; at most *limit* of them.

    Raises:
        OptionError: a field that there is not.
    """
    for name in (*fields, *(each.removeprefix("-") for each in order)):
        if name not in FIELDS + MORE_FIELDS:
            raise OptionError(f"{name}: there is no such field. The fields are {', '.join(FIELDS + MORE_FIELDS)}.")
    connect(site)
    query = selected(Log.select(*(getattr(Log, name) for name in fields)), selection)
    if min_retries:
        enough = [getattr(Log, f"retry_step{step}") >= min_retries for step in steps or STEPS]
        query = query.where(reduce(and_ if steps else or_, enough))
    columns = [getattr(Log, name[1:]).desc() if name.startswith("-") else getattr(Log, name).asc() for name in order]
    ordered = query.order_by(*columns, Log.start, Log.id)
    found = stream(ordered if limit is None else ordered.limit(limit))
    truths = [rank for rank, name in enumerate(fields) if name in _TRUTHS]
    return (_in_words(row, truths) for row in found) if truths else found


def _in_words(row: tuple[Any, ...], truths: Sequence[int]) -> tuple[Any, ...]:
    values = list(row)
    for rank in truths:
        values[rank] = "true" if values[rank] else "false"
    return tuple(values)


def latest(site: Site, nodes: Sequence[str] | None = None) -> Iterator[Last]:
    """The last operation on each of *nodes* (default: all), in no particular order; nodes without any are missing.

    The log may be long: it is looked up node by node in its index, not read.
    """
    connect(site)
    newest = [_newest(operation) for operation in get_args(Operation)]
    query = NodeState.select(*newest)
    parts = [None] if nodes is None else chunked(nodes)
    found = (fetch(query if part is None else query.where(NodeState.hostname.in_(part))) for part in parts)
    ids = [number for part in found for row in part for number in row if number is not None]
    columns = [getattr(Log, name) for name in Last.__struct_fields__]
    last: dict[str, Last] = {}
    for part in chunked(sorted(ids)):
        for values in fetch(Log.select(*columns).where(Log.id.in_(part)).order_by(Log.id)):
            row = Last(*values)
            if row.hostname not in last or row.start >= last[row.hostname].start:
                last[row.hostname] = row
    return iter(last.values())


def _newest(operation: str) -> Any:
    """Subquery for the number of the last row of an operation on the node of the outer query."""
    of_node = (Log.operation == operation) & (Log.hostname == NodeState.hostname)
    return Log.select(Log.id).where(of_node).order_by(Log.start.desc(), Log.id.desc()).limit(1)


def failure_rates(site: Site, selection: Selection) -> list[Rate]:
    """Operations and successes of each node that has any, sorted by name; those that were aborted do not count."""
    connect(site)
    succeeded = fn.SUM(Case(None, ((Log.success, 1),), 0))
    query = _ended(Log.select(Log.hostname, fn.COUNT(Log.hostname), succeeded), selection)
    query = with_numbers(query, Log.start, Log.success)
    found = [Rate(name, total, int(good)) for name, total, good in fetch(query.group_by(Log.hostname))]
    return sorted(found, key=lambda rate: natural_key(rate.hostname))


def worst_first(rates: Iterable[Rate]) -> list[Rate]:
    """Those that failed most often first; of those alike, the ones that more is known of."""

    def rank(rate: Rate) -> tuple[float, int, Any]:
        return rate.successes / rate.operations, -rate.operations, natural_key(rate.hostname)

    return sorted(rates, key=rank)


def durations(site: Site, selection: Selection, slices: int = 60) -> list[Durations]:
    """Mean durations of each image over time, in about *slices* slices at most.

    Steps that did not run do not count, nor do operations that were aborted.
    """
    connect(site)
    numbers = (Log.start, Log.success, *(getattr(Log, f"step{step}_duration") for step in STEPS))
    ends = _ended(Log.select(fn.MIN(Log.start), fn.MAX(Log.start)), selection)
    [(first, last)] = fetch(with_numbers(ends, *numbers))
    if first is None:
        return []
    bits = ((last - first) // slices).bit_length()  # a power of two: all three databases round alike by masking
    means = [fn.AVG(fn.NULLIF(getattr(Log, f"step{step}_duration"), 0)) for step in STEPS]
    offset = (Log.start - first).bin_and(-(1 << bits)).alias("begins")
    columns = (offset, Log.env, Log.md5)
    query = with_numbers(_ended(Log.select(*columns, fn.COUNT(Log.id), *means), selection), *numbers)
    return [
        Durations(first + int(begin), *map(_seconds, steps), image=Image(env, md5), operations=count)  # type: ignore[arg-type,misc]
        for begin, env, md5, count, *steps in fetch(query.group_by(*columns).order_by(*columns))
    ]


RUNS = 10
"""Operations of which the usual durations are taken: the last ones."""
_SAMPLE = 50
"""Nodes of a cluster whose rows are looked at: those of one set take equally long."""


def usual(site: Site, operation: str, nodes: Sequence[str], image: Image) -> dict[str, list[int]]:
    """Seconds that each implementation took in each of the last operations like this one, the newest first.

    Alike are those of *image* that went well at the first try on some of *nodes*, and on about as many (a third to
    three times).
    """
    connect(site)
    pairs = [(getattr(Log, f"step{step}"), getattr(Log, f"step{step}_duration")) for step in STEPS]
    retries = [getattr(Log, f"retry_step{step}") for step in STEPS]
    query = Log.select(Log.wid, *(column for pair in pairs for column in pair))
    same = (Log.operation == operation) & (Log.env == image.env) & (Log.md5 == image.md5)
    alike = same & Log.success & (sum(retries) == 0)
    sample = Log.hostname.in_(list(nodes[:_SAMPLE]))
    rows = fetch(query.where(alike, sample).order_by(Log.start.desc()).limit(3 * RUNS * _SAMPLE))
    longest: dict[str, dict[str, int]] = {}
    for wid, *values in rows:
        steps = longest.setdefault(wid, {})
        for name, seconds in zip(values[::2], values[1::2], strict=True):
            if name:
                steps[name] = max(seconds, steps.get(name, 0))
    found: dict[str, list[int]] = {}
    for wid in _of_a_size(longest, len(nodes))[:RUNS]:
        for name, seconds in longest[wid].items():
            found.setdefault(name, []).append(seconds)
    return found


def _of_a_size(wids: Iterable[str], nodes: int) -> list[str]:
    """Those of *wids* that were on a third to three times as many nodes, in their order."""
    ordered = list(wids)
    sizes: dict[str, int] = {}
    for part in chunked(ordered):
        sizes |= dict(fetch(Log.select(Log.wid, fn.COUNT(Log.id)).where(Log.wid.in_(part)).group_by(Log.wid)))
    return [wid for wid in ordered if nodes <= 3 * sizes[wid] <= 9 * nodes]


def forget(site: Site, before: int, dry_run: bool = False) -> int:
    """Forget what operations did that began before the Unix second *before*, or count it alone: the rows of the log."""
    connect(site)
    if dry_run:
        return int(Log.select().where(Log.start < before).count())
    with transaction():
        kept_days.removed(before)
        return int(Log.delete().where(Log.start < before).execute())


def strangers(site: Site, nodes: Sequence[str]) -> list[str]:
    """Those of *nodes* of which the log knows nothing."""
    connect(site)
    known: set[str] = set()
    for part in chunked(nodes):
        known |= {name for (name,) in fetch(Log.select(Log.hostname).where(Log.hostname.in_(part)).distinct())}
    return [name for name in nodes if name not in known]


def _seconds(value: Any) -> float | None:
    return None if value is None else float(value)


def _ended(query: Any, selection: Selection) -> Any:
    return selected(query, selection).where(counts())


def counts() -> Any:
    """Condition that an operation came to an end of its own: one that its user stopped tells nothing of its nodes."""
    aborted = (Log.error == ABORTED) | Log.error.startswith(f"{ABORTED}: ")
    return Log.success | ~aborted


def selected(query: Any, selection: Selection) -> Any:
    """*query* for the rows of the log that *selection* has."""
    if selection.operation is not None:
        query = query.where(Log.operation == selection.operation)
    if selection.wid is not None:
        query = query.where(Log.wid == selection.wid)
    if selection.nodes is not None:
        query = query.where(Log.hostname.in_(selection.nodes))
    if selection.since is not None:
        query = query.where(Log.start >= selection.since)
    if selection.until is not None:
        query = query.where(Log.start <= selection.until)
    return query
