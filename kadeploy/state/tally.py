"""Counts of runs and nodes, for metrics: the database counts, and the log is read by workflow alone, never as a whole.

What has ended is found by the index of the journal, which keeps each workflow for `kadeploy.state.journal.KEPT_DAYS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_
from typing import Any, Literal, NamedTuple

from peewee import JOIN, Case, fn

from kadeploy.config.site import Site
from kadeploy.state import controllers
from kadeploy.state.database import chunked, connect, fetch
from kadeploy.state.history import STEPS, counts
from kadeploy.state.tables import Log, Progress, Workflow

Verdict = Literal["ok", "ko", "aborted"]
"""How an operation ended for a node; one that was stopped, or had the node taken away, is nobody's failure."""


class Running(NamedTuple):
    """A workflow that has not ended."""

    wid: str
    operation: str
    started: int
    """Unix seconds."""
    is_left: bool
    """Its controller is dead, and nobody goes on with it."""


class Closed(NamedTuple):
    """A workflow that has ended."""

    wid: str
    operation: str
    state: str
    """``ended`` or ``aborted``."""
    ended: int
    """Unix seconds."""


class Nodes(NamedTuple):
    """How many nodes of some workflows came to the same end at the same place."""

    wid: str
    operation: str
    cluster: str
    verdict: Verdict
    told: bool
    """Whether the reason has one of the phrases that were asked for."""
    implementation: str
    """The macro-step in which they were last, as `kanodes3` names it."""
    micro_step: str
    number: int


class Took(NamedTuple):
    """How many nodes of some workflows took the same time for a macro-step."""

    cluster: str
    implementation: str
    seconds: int
    number: int


def running(site: Site) -> list[Running]:
    """Workflows that have not ended."""
    left = controllers.left(site)
    columns = (Workflow.wid, Workflow.operation, Workflow.started)
    rows = fetch(Workflow.select(*columns).where(Workflow.ended.is_null()))
    return [Running(wid, operation, started, wid in left) for wid, operation, started in rows]


def closed(site: Site, since: int) -> list[Closed]:
    """Workflows that have ended at the Unix second *since* or later."""
    connect(site)
    columns = (Workflow.wid, Workflow.operation, Workflow.state, Workflow.ended)
    return [Closed(*row) for row in fetch(Workflow.select(*columns).where(Workflow.ended >= since))]


def ends(site: Site, wids: Iterable[str], phrases: Sequence[str]) -> list[Nodes]:
    """How the nodes of these workflows ended, and whether any of *phrases* is in their reasons."""
    connect(site)
    verdict = Case(None, ((Log.success, "ok"), (counts(), "ko")), "aborted").alias("verdict")
    told = Case(None, ((reduce(or_, (Log.error.contains(each) for each in phrases)), 1),), 0).alias("told_so")
    place = (_known(Progress.macro_step), _known(Progress.micro_step))
    columns = (Log.wid, Log.operation, _known(Progress.cluster), verdict, told, *place)
    found = _of_each(wids, (*columns, fn.COUNT(Log.id)), columns)
    return [Nodes(wid, operation, cluster, end, bool(so), *rest) for wid, operation, cluster, end, so, *rest in found]


def durations(site: Site, wids: Iterable[str]) -> list[Took]:
    """How long macro-steps took in these workflows, all tries together; nodes whose run was stopped do not count."""
    connect(site)
    known = list(wids)
    return [each for step in STEPS for each in _durations(known, step)]


def _durations(wids: Sequence[str], step: int) -> list[Took]:
    name, seconds = getattr(Log, f"step{step}"), getattr(Log, f"step{step}_duration")
    columns = (_known(Progress.cluster), name, seconds)
    found = _of_each(wids, (*columns, fn.COUNT(Log.id)), columns, name != "", counts())
    return [Took(*row) for row in found]


def _known(column: Any) -> Any:
    """*column* of the journal; empty where it knows nothing of the node."""
    return fn.COALESCE(column, "").alias(f"known_{column.name}")


def _of_each(wids: Iterable[str], columns: Sequence[Any], groups: Sequence[Any], *only: Any) -> list[tuple[Any, ...]]:
    """Rows of the log of these workflows, with where their nodes are in the journal."""
    same = (Progress.workflow == Log.wid) & (Progress.node == Log.hostname)
    joined = Log.select(*columns).join(Progress, JOIN.LEFT_OUTER, on=same)
    parts = (joined.where(Log.wid.in_(part), *only).group_by(*groups) for part in chunked(wids))
    return [row for part in parts for row in fetch(part)]
