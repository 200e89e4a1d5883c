"""Nodes in quarantine: put aside by an administrator or the site's rule, until a date or until somebody releases them.

A node that is out again begins anew: what it did before its release says nothing of it any more (see `failing`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from kadeploy.config.site import Site
from kadeploy.nodeset import natural_key
from kadeploy.state.database import chunked, connect, fetch, transaction, upsert
from kadeploy.state.tables import Moment, QuarantineRow

RULE = ""
"""Who puts a node into quarantine where no administrator does."""
End = Annotated[int, msgspec.Meta(ge=0, lt=Moment.END)]
"""When a stay ends by itself, in Unix seconds."""
_NAMES = 5000


class Stay(msgspec.Struct, frozen=True, kw_only=True):
    """A node in quarantine."""

    node: str
    since: int
    """Unix seconds."""
    put_by: str
    """The administrator; empty: the site's rule."""
    reason: str
    until: int | None = None
    """When it ends by itself (Unix); None: when somebody releases the node."""

    @property
    def told(self) -> str:
        """Since when, until when, by whom and why, without the node's name."""
        until = "" if self.until is None else f" until {_date(self.until)}"
        who = f" by {self.put_by}" if self.put_by else ""
        why = f": {self.reason}" if self.reason else ""
        return f"in quarantine since {_date(self.since)}{until}{who}{why}"


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


class Aside(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes that an administrator puts into quarantine."""

    nodes: tuple[str, ...]
    """Names or ranges."""
    reason: str = ""
    until: End | None = None


def current(site: Site, nodes: Sequence[str] | None = None) -> list[Stay]:
    """Those of *nodes* (default: all) that are in quarantine now, in the natural order of their names.

    There are few beside those of a request: all are read, whoever is asked for.
    """
    connect(site)
    columns = [getattr(QuarantineRow, name) for name in Stay.__struct_fields__]
    names = tuple(Stay.__struct_fields__)
    found = (Stay(**dict(zip(names, row, strict=True))) for row in fetch(QuarantineRow.select(*columns).where(_open())))
    wanted = None if nodes is None else frozenset(nodes)
    stays = (stay for stay in found if wanted is None or stay.node in wanted)
    return sorted(stays, key=lambda stay: natural_key(stay.node))


def put(site: Site, nodes: Iterable[str], by: str, reason: str, until: int | None = None) -> None:
    """Put *nodes* into quarantine; who is in it already is so since then, and without a *reason* for the same one."""
    connect(site)
    with transaction():
        there = {stay.node: stay for stay in current(site)}
        rows = [_stay(node, by, reason, until) for node in dict.fromkeys(nodes)]
        _write([row | _kept(there[row["node"]], reason) if row["node"] in there else row for row in rows])


def put_by_rule(site: Site, reasons: Mapping[str, str]) -> list[str]:
    """Put nodes (*reasons* by node) into quarantine that are not in it yet: those that were put there."""
    connect(site)
    with transaction():
        there = {stay.node for stay in current(site)}
        new = {node: reason for node, reason in reasons.items() if node not in there}
        _write([_stay(node, RULE, reason, None) for node, reason in new.items()])
    return list(new)


def release(site: Site, nodes: Iterable[str], by: str) -> list[str]:
    """Let those of *nodes* out that are in quarantine, and have all of them begin anew: those that were in it."""
    connect(site)
    names, now = list(dict.fromkeys(nodes)), int(time.time())
    with transaction():
        there = {stay.node for stay in current(site)}
        for part in chunked((name for name in names if name in there), _NAMES):
            QuarantineRow.update(released=now, released_by=by).where(QuarantineRow.node.in_(part)).execute()
        others = [_stay(name, by, "", None) for name in names if name not in there]
        _write([row | {"released": now, "released_by": by} for row in others])
    return [name for name in names if name in there]


def ends(site: Site, nodes: Sequence[str]) -> dict[str, int]:
    """When the last stay of each of *nodes* ended that has had one (Unix seconds)."""
    connect(site)
    columns = (QuarantineRow.node, QuarantineRow.until, QuarantineRow.released)
    query = QuarantineRow.select(*columns).where(~_open())
    parts = (fetch(query.where(QuarantineRow.node.in_(part))) for part in chunked(nodes, _NAMES))
    return {
        node: min(moment for moment in (until, released) if moment is not None)
        for part in parts
        for node, until, released in part
    }


def _open() -> Any:
    lasts = QuarantineRow.until.is_null() | (QuarantineRow.until > int(time.time()))
    return QuarantineRow.released.is_null() & lasts


def _kept(stay: Stay, reason: str) -> dict[str, Any]:
    """What stays of *stay* when the node is put there again for a *reason*."""
    return {"since": stay.since, "reason": reason or stay.reason}


def _stay(node: str, by: str, reason: str, until: int | None) -> dict[str, Any]:
    """A row of the table."""
    return {
        "node": node,
        "since": int(time.time()),
        "put_by": by,
        "reason": reason,
        "until": until,
        "released": None,
        "released_by": "",
    }


def _write(rows: Sequence[Mapping[str, Any]]) -> None:
    """Each in place of the node's last stay."""
    replaced = [field for name, field in QuarantineRow._meta.fields.items() if name != "node"]
    ordered = sorted(rows, key=lambda row: str(row["node"]))  # one order for all, against deadlocks
    upsert(QuarantineRow, ordered, key=[QuarantineRow.node], replaced=replaced)
