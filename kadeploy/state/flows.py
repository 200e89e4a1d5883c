"""Workflows as a list: those that run, and those that have ended, as long as the journal keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec
from peewee import Case, fn

from kadeploy.config.site import Site
from kadeploy.state import controllers
from kadeploy.state.database import chunked, connect, fetch, records
from kadeploy.state.journal import Flow, flow_of
from kadeploy.state.tables import Log, Progress, Workflow

FlowState = Literal["running", "ended", "aborted"]


class Wanted(msgspec.Struct, frozen=True):
    """Which workflows; what is empty does not restrict."""

    user: str = ""
    operation: str = ""
    state: FlowState | Literal[""] = ""
    nodes: tuple[str, ...] = ()
    """One of these took part."""


class Counts(NamedTuple):
    """How the nodes of a workflow that has ended came out."""

    ok: int
    ko: int


def running(site: Site, wanted: Wanted, most: int) -> list[Flow]:
    """The *most* that began last among those that have not ended; one whose controller died is aborted."""
    dead = controllers.left(site)
    here = Workflow.wid.in_(list(dead))
    only = {"running": [~here], "aborted": [here], "ended": [Workflow.wid.is_null()], "": []}[wanted.state]
    query = Workflow.select().where(Workflow.ended.is_null(), *only, *_those(wanted))
    return [flow_of(row, dead) for row in records(query.order_by(Workflow.started.desc(), Workflow.wid).limit(most))]


def ended(site: Site, wanted: Wanted, most: int, offset: int = 0) -> list[Flow]:
    """The *most* that ended last, behind the *offset* that ended after them."""
    if wanted.state == "running":
        return []
    connect(site)
    only = [Workflow.state == wanted.state] if wanted.state else []
    query = Workflow.select().where(Workflow.ended.is_null(False), *only, *_those(wanted))
    ordered = query.order_by(Workflow.ended.desc(), Workflow.wid).limit(most).offset(offset)
    return [flow_of(row, ()) for row in records(ordered)]


def find(site: Site, wid: str) -> Flow | None:
    """The one called *wid*, without its nodes; None: the journal does not know it, or no more."""
    dead = controllers.left(site)
    return next((flow_of(row, dead) for row in records(Workflow.select().where(Workflow.wid == wid))), None)


def sizes(site: Site, wids: Iterable[str]) -> dict[str, int]:
    """How many nodes take part in each of these."""
    connect(site)
    query = Progress.select(Progress.workflow, fn.COUNT(Progress.node)).group_by(Progress.workflow)
    return {wid: count for part in chunked(wids) for wid, count in fetch(query.where(Progress.workflow.in_(part)))}


def results(site: Site, wids: Iterable[str]) -> Mapping[str, Counts]:
    """How the nodes of each of these came out, by the log."""
    connect(site)
    good = fn.SUM(Case(None, ((Log.success, 1),), 0))
    query = Log.select(Log.wid, fn.COUNT(Log.id), good).group_by(Log.wid)
    rows = [row for part in chunked(wids) for row in fetch(query.where(Log.wid.in_(part)))]
    return {wid: Counts(int(well), total - int(well)) for wid, total, well in rows}


def _those(wanted: Wanted) -> list[Any]:
    found: list[Any] = []
    if wanted.user:
        found.append(Workflow.user == wanted.user)
    if wanted.operation:
        found.append(Workflow.operation == wanted.operation)
    if wanted.nodes:  # by the primary key of the nodes, workflow by workflow
        here = (Progress.workflow == Workflow.wid) & Progress.node.in_(wanted.nodes)
        found.append(fn.EXISTS(Progress.select().where(here)))
    return found
