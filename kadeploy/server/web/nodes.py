"""The nodes of the site as a grid, and one of them with all that is known of it: what kanodes3 -d and -l tell.

Many people look at the grid while many nodes change. So what the grid tells, which is the same for everybody, is looked
up once for all who look within `KEPT` seconds, and of a node there is no more in it than a link.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, get_args
from urllib.parse import urlencode

import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from markupsafe import Markup, escape

from kadeploy.environments.reference import Reference
from kadeploy.errors import EnvironmentRefusedError, KadeployError
from kadeploy.nodeset import expand, natural_key
from kadeploy.operations.service import Rows
from kadeploy.server.served import Served
from kadeploy.server.web.damaged import readable
from kadeploy.server.web.environments import path_of
from kadeploy.server.web.visit import Visit
from kadeploy.state.database import url_of
from kadeploy.state.history import Selection
from kadeploy.state.nodes import FINISHED, IN_FLIGHT, MEANINGS, NodeRow
from kadeploy.workflow import Operation

KEPT = 2.0
"""Seconds for which the states of all nodes are told again."""
MOST = 2000
"""Nodes on one page; where there are more, the page shows their clusters."""
LAST = 20
"""Operations that the page of a node shows."""
KINDS = {"ok": "well", "ko": "failed", "busy": "in an operation", "aborted": "stopped", "unknown": "never operated on"}
"""What a node's state amounts to; each has a colour and a sign (``nodes.css``)."""
_FIELDS = ("start", "operation", "wid", "user", "env", "success", "error")


def kind_of(state: str) -> str:
    """Which of `KINDS` a state is.

    >>> [kind_of(state) for state in ("deployed", "rebooting", "power_failed", "aborted", "")]
    ['ok', 'busy', 'ko', 'aborted', 'unknown']
    """
    if state in FINISHED:
        return "ok"
    if state in IN_FLIGHT:
        return "busy"
    return {"": "unknown", "aborted": "aborted"}.get(state, "ko")


# --- what all see ---------------------------------------------------------------------------------------------------


class Stand(msgspec.Struct, frozen=True):
    """How a node stands."""

    name: str
    cluster: str
    state: str = ""
    """Empty for one that was never operated on."""
    user: str = ""
    """Who deployed it last."""
    holder: str = ""
    """Whose operation has it now; empty: nobody's."""

    @property
    def kind(self) -> str:
        """Which of `KINDS` it is."""
        return "busy" if self.holder else kind_of(self.state)


@dataclass(frozen=True)
class _Told:
    """What was found, when, and what is to be said of rows that cannot be read."""

    at: float
    cluster_of: Mapping[str, str]
    stands: Sequence[Stand]
    left_out: str


_kept: dict[str, _Told] = {}
_asking = threading.Lock()


def stands(served: Served) -> tuple[Sequence[Stand], str]:
    """All nodes of the site in the natural order of their names, and what is to be said of those that are left out."""
    key, cluster_of = url_of(served.site), served.configuration.cluster_of
    with _asking:
        told = _kept.get(key)
        if told is None or told.cluster_of is not cluster_of or time.monotonic() - told.at >= KEPT:
            told = _kept[key] = _look(served, cluster_of)
    return told.stands, told.left_out


def _look(served: Served, cluster_of: Mapping[str, str]) -> _Told:
    rows, left_out = readable(served.states)
    states = {row.hostname: row for row in rows}
    holders = {held.node: held.user for held in served.claims() if not held.is_left}
    names = sorted(cluster_of, key=natural_key)
    found = [_stand(name, cluster_of[name], states.get(name), holders.get(name, "")) for name in names]
    return _Told(time.monotonic(), cluster_of, found, left_out)


def _stand(name: str, cluster: str, row: NodeRow | None, holder: str) -> Stand:
    return Stand(name, cluster, row.state, row.user, holder) if row else Stand(name, cluster, holder=holder)


# --- the grid -------------------------------------------------------------------------------------------------------


class Wanted(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which nodes are to be shown; what is empty does not restrict."""

    nodes: str = ""
    """Names or ranges, as tools take them after ``-m``."""
    cluster: str = ""
    state: str = ""
    """A state, or one of `KINDS`."""
    user: str = ""
    """Who deployed them last, or has them in an operation now."""

    def among(self, found: Iterable[Stand], served: Served) -> list[Stand]:
        """Those of *found* that are wanted.

        Raises:
            NodeListError: a malformed pattern, or nodes that the site does not have.
        """
        names = _named(self.nodes, served)
        return [each for each in found if (names is None or each.name in names) and self._fits(each)]

    def _fits(self, stand: Stand) -> bool:
        return (
            self.cluster in ("", stand.cluster)
            and self.state in ("", stand.state, stand.kind)
            and self.user in ("", stand.user, stand.holder)
        )

    def path(self, **changes: Any) -> str:
        """The page that shows them."""
        query = {**msgspec.to_builtins(self), **changes}
        return f"/ui/nodes?{urlencode(query)}" if query else "/ui/nodes"


def _named(patterns: str, served: Served) -> set[str] | None:
    """The nodes that *patterns* stand for; None: all."""
    if not patterns:
        return None
    most = served.site.limits.nodes
    names = served.configuration.full_names(name for each in patterns.split() for name in expand(each, most))
    served.configuration.cluster_nodes(names)
    return set(names)


class Cluster(msgspec.Struct, frozen=True):
    """Some nodes of a cluster, as the page shows them."""

    name: str
    domain: str
    """What the names of all these nodes end in."""
    count: int
    kinds: Mapping[str, int]
    """How many are how, in the order of `KINDS`."""
    cells: Markup
    """A link for each of those that are shown."""


def _clusters(found: Sequence[Stand], shows_cells: bool, page: int) -> list[Cluster]:
    groups: dict[str, list[Stand]] = {}
    for stand in found:
        groups.setdefault(stand.cluster, []).append(stand)
    return [_cluster(name, groups[name], shows_cells, page) for name in sorted(groups, key=natural_key)]


def _cluster(name: str, members: Sequence[Stand], shows_cells: bool, page: int) -> Cluster:
    domain = _domain(members)
    counted = Counter(each.kind for each in members)
    shown = members[(page - 1) * MOST : page * MOST] if shows_cells else ()
    cells = Markup("\n").join([_cell(each, domain) for each in shown])
    return Cluster(name, domain, len(members), {kind: counted[kind] for kind in KINDS}, cells)


def _domain(members: Sequence[Stand]) -> str:
    domains = {each.name.partition(".")[2] for each in members}
    return f".{domain}" if len(domains) == 1 and (domain := domains.pop()) else ""


_CELL = '<li><a id="n-{1}" class="{0}" href="/ui/nodes/{1}">{2}</a></li>'
"""With an id, by which htmx finds the one again that had the focus."""


def _cell(stand: Stand, domain: str) -> Markup:
    name, shown = escape(stand.name), escape(stand.name.removesuffix(domain))
    return Markup(_CELL.format(stand.kind, name, shown))  # noqa: S704 - both are escaped


# --- one node -------------------------------------------------------------------------------------------------------


class Done(msgspec.Struct, frozen=True):
    """An operation that a node has behind it."""

    start: int
    operation: Operation
    wid: str
    user: str
    env: str
    success: str
    """``true`` or ``false``."""
    error: str


def _past(served: Served, name: str) -> tuple[list[Done], str]:
    """The last operations on a node, newest first; of each kind by the index, since the log may be long."""

    def ask() -> Iterable[Done]:
        for operation in get_args(Operation):
            wanted = Selection(operation, [name])
            for row in served.rows(Rows(selection=wanted, fields=_FIELDS, order=("-start",), limit=LAST)):
                yield Done(*row)

    found, left_out = readable(ask)
    return sorted(found, key=lambda done: -done.start)[:LAST], left_out


def _environment(served: Served, row: NodeRow | None) -> str:
    """The page of the environment on a node; empty where there is none that the visitor may see."""
    if row is None or not row.env_name:
        return ""
    wanted = Reference(row.env_name, row.env_version, row.env_owner, row.env_arch)
    with suppress(EnvironmentRefusedError):
        return path_of(served.versions(wanted, all_versions=False)[0])
    return ""


class Nodes(Controller):
    """Nodes."""

    path = "/ui/nodes"
    include_in_schema = False

    @get("/", sync_to_thread=True)
    def all(
        self,
        visit: NamedDependency[Visit],
        nodes: FromQuery[str] = "",
        cluster: FromQuery[str] = "",
        in_state: Annotated[str, QueryParameter(name="state")] = "",
        user: FromQuery[str] = "",
        page: FromQuery[int] = 1,
    ) -> Response[str]:
        """The nodes that are wanted; where they are too many for a page, their clusters."""
        wanted = Wanted(nodes.strip(), cluster.strip(), in_state.strip(), user.strip())
        known, left_out = stands(visit.served)
        refused, status, found = left_out, 200, []
        try:
            found = wanted.among(known, visit.served)
        except KadeployError as error:
            refused, status = str(error), visit.refused(error)
        is_one = len({each.cluster for each in found}) == 1
        shows_cells = is_one or len(found) <= MOST
        pages = -(-len(found) // MOST) if is_one else 1
        here = min(max(1, page), max(1, pages))
        return visit.page(
            "nodes.html",
            "Nodes",
            status=status,
            refused=refused,
            wanted=wanted,
            clusters=_clusters(found, shows_cells, here),
            count=len(found),
            shows_cells=shows_cells,
            page=here,
            pages=pages,
            every_cluster=sorted(visit.served.configuration.clusters, key=natural_key),
            states=MEANINGS,
            kinds=KINDS,
            aside=readable(visit.served.quarantine)[0],
        )

    @get("/{node:str}", sync_to_thread=True)
    def one(self, visit: NamedDependency[Visit], node: FromPath[str]) -> Response[str]:
        """All that is known of a node."""
        served = visit.served
        names = served.configuration.full_names([node])
        (cluster,) = served.configuration.cluster_nodes(names)
        (name,) = names
        row = next(iter(served.states([name])), None)
        past, left_out = _past(served, name)
        return visit.page(
            "node.html",
            name,
            node=name,
            cluster=cluster,
            row=row,
            environment=_environment(served, row),
            held=next(iter(served.claims([name])), None),
            stay=next(iter(readable(lambda: served.quarantine([name]))[0]), None),
            holders=served.holders([name])[name],
            past=past,
            left_out=left_out,
            rate=next(iter(served.failure_rates(Selection(nodes=[name]))), None),
            has_console=bool(served.configuration.clusters[cluster].console),
            recordings=served.recordings(name)[::-1][:LAST],
            meanings=MEANINGS,
            kind_of=kind_of,
        )
