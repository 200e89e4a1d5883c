"""Nodes that keep failing, by the log of deployments and the site's rule (``quarantine`` in ``site.yml``).

A failure counts where it is the node's own: the same operation went well on another node or, where the node was alone
in it, its image went well on another node within the rule's days. A whole operation that fails says nothing of a node,
nor does one that was stopped. What a node did before its last quarantine ended does not count.

The log may be long. Each node's last deployments are found in its index, and of the site's only the newest `MOST` rows
are looked at.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from peewee import Case, fn

from kadeploy.config.site import Quarantine, Site
from kadeploy.nodeset import natural_key
from kadeploy.state import quarantine
from kadeploy.state.database import chunked, connect, fetch
from kadeploy.state.days import summed
from kadeploy.state.history import Image, counts
from kadeploy.state.load import DAY
from kadeploy.state.overview import Period
from kadeploy.state.tables import Log

MOST = 100_000
"""Rows of the log that are looked at: the newest ones."""
_MORE = 5
"""Times as many deployments are read of a node as the rule looks at: some say nothing of it."""


class Failing(msgspec.Struct, frozen=True):
    """A node that fails too often."""

    node: str
    failures: int
    operations: int
    """Its last deployments, which were looked at."""

    @property
    def told(self) -> str:
        """The figures, for people."""
        return f"{self.failures} of its last {self.operations} deployments failed"


class _Deployment(NamedTuple):
    """One of a node, as the log has it."""

    wid: str
    success: bool
    env: str
    md5: str

    @property
    def image(self) -> Image:
        return Image(self.env, self.md5)


def failing(site: Site, nodes: Sequence[str] | None = None) -> list[Failing]:
    """Those of *nodes* (default: all) that fail too often by the rule of *site*, in natural order; none without one."""
    rule = site.quarantine
    if rule is None:
        return []
    connect(site)
    now = int(time.time())
    period = _counted(now - rule.days * DAY, now)
    names = _suspects(rule, period) if nodes is None else list(dict.fromkeys(nodes))
    ends = quarantine.ends(site, names)
    last = {name: _last(name, rule, max(period.since, ends.get(name, 0) + 1)) for name in names}
    last = {name: rows for name, rows in last.items() if _may_fail(rule, rows)}
    own = _Own(last, period)
    found = filter(None, (_judged(name, rule, own.of(name, rows)) for name, rows in last.items()))
    return sorted(found, key=lambda each: natural_key(each.node))


def _counted(since: int, now: int) -> Period:
    """From *since* to *now*, as far as the newest `MOST` rows of the log go back."""
    newest = Log.select(Log.start).where(Log.start >= since).order_by(Log.start.desc())
    more = fetch(newest.limit(1).offset(MOST))
    return Period(more[0][0] + 1 if more else since, now)


def _within(query: Any, period: Period) -> Any:
    """*query* for deployments of *period*, which the index on the start finds.

    The one on the operation would have the whole log read; it does not know an operation within an expression.
    """
    return query.where(Log.start.between(period.since, period.until), fn.COALESCE(Log.operation, "") == "deploy")


def _suspects(rule: Quarantine, period: Period) -> list[str]:
    """Nodes that have failed so often within *period* that a look at their last deployments is worth it."""
    sums = summed(period.since, period.until)
    return [name for name, number in sums.deployments.items() if _is_too_often(rule, number - sums.successes[name])]


def _is_too_often(rule: Quarantine, failures: int) -> bool:
    return failures / rule.operations >= rule.failures


def _last(name: str, rule: Quarantine, since: int) -> list[_Deployment]:
    """The node's last deployments from *since* on that came to an end of their own, the newest first."""
    query = Log.select(Log.wid, Log.success, Log.env, Log.md5)
    mine = query.where(Log.operation == "deploy", Log.hostname == name, Log.start >= since, counts())
    newest = mine.order_by(Log.start.desc(), Log.id.desc()).limit(_MORE * rule.operations)
    return [_Deployment(*row) for row in fetch(newest)]


def _may_fail(rule: Quarantine, rows: Sequence[_Deployment]) -> bool:
    """Whether it would be too often if each failure were the node's own."""
    return len(rows) >= rule.operations and _is_too_often(rule, sum(not row.success for row in rows))


def _judged(name: str, rule: Quarantine, rows: Sequence[_Deployment]) -> Failing | None:
    """What the last of *rows*, all of which count, say of the node; None: nothing bad."""
    looked_at = rows[: rule.operations]
    failures = sum(not row.success for row in looked_at)
    if len(looked_at) < rule.operations or not _is_too_often(rule, failures):
        return None
    return Failing(name, failures, rule.operations)


class _Own:
    """Which failures are the node's own, of deployments *last* by node."""

    def __init__(self, last: Mapping[str, Sequence[_Deployment]], period: Period) -> None:
        failed = [row for rows in last.values() for row in rows if not row.success]
        self._ends = _ends({row.wid for row in failed})
        alone = {row.image for row in failed if self._was_alone(row)}
        self._well = _went_well(alone - {Image()}, period)

    def of(self, name: str, rows: Iterable[_Deployment]) -> list[_Deployment]:
        """Those of the node's *rows* that count."""
        return [row for row in rows if row.success or self._is_own(name, row)]

    def _is_own(self, name: str, row: _Deployment) -> bool:
        if self._was_alone(row):
            return any(other != name for other in self._well.get(row.image, ()))
        return self._ends[row.wid][1] > 0

    def _was_alone(self, row: _Deployment) -> bool:
        return self._ends[row.wid][0] == 1


def _ends(wids: Collection[str]) -> dict[str, tuple[int, int]]:
    """On how many nodes each workflow was, and on how many of them it went well."""
    succeeded = fn.SUM(Case(None, ((Log.success, 1),), 0))
    query = Log.select(Log.wid, fn.COUNT(Log.id), succeeded)
    parts = (fetch(query.where(Log.wid.in_(part)).group_by(Log.wid)) for part in chunked(sorted(wids)))
    return {wid: (nodes, int(well)) for part in parts for wid, nodes, well in part}


def _went_well(images: Collection[Image], period: Period) -> dict[Image, tuple[str, str]]:
    """Two nodes on which each of *images* was deployed well within *period*, one node twice where it is the only one.

    Images that went well nowhere are missing.
    """
    columns = (Log.env, Log.md5)
    query = _within(Log.select(*columns, fn.MIN(Log.hostname), fn.MAX(Log.hostname)).where(Log.success), period)
    parts = chunked(sorted({image.env for image in images}))
    found = (row for part in parts for row in fetch(query.where(Log.env.in_(part)).group_by(*columns)))
    return {Image(env, md5): (first, last) for env, md5, first, last in found}
