"""The nodes of a site: who holds them, and what was last done to them.

A claim is a row whose key is the node, taken in one transaction: two workflows can never hold a node, not even those of
two controllers that share a database. What takes no site works for the one that the calling thread connected to last.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
from peewee import fn

from kadeploy.config.service import Quota
from kadeploy.config.site import Site
from kadeploy.errors import LimitError
from kadeploy.nodeset import natural_key
from kadeploy.process import this
from kadeploy.state import controllers, journal
from kadeploy.state.database import DB, alone, chunked, connect, fetch, insert, records, stream, transaction, upsert
from kadeploy.state.tables import Claim, NodeState
from kadeploy.workflow import ABORTED

State = Literal[
    "prod_env",
    "recorded_env",
    "deploy_env",
    "deploying",
    "deployed",
    "deploy_failed",
    "aborted",
    "rebooting",
    "rebooted",
    "reboot_failed",
    "powering",
    "powered",
    "power_failed",
]
MEANINGS: dict[State, str] = {
    "prod_env": "the production system runs",
    "recorded_env": "a recorded environment was booted",
    "deploy_env": "the deployment system runs",
    "deploying": "a deployment runs",
    "deployed": "the environment was deployed",
    "deploy_failed": "the last deployment failed",
    "rebooting": "a reboot runs",
    "rebooted": "it was rebooted into what is on its disk",
    "reboot_failed": "the last reboot failed",
    "powering": "its power is being switched",
    "powered": "its power was switched",
    "power_failed": "switching its power failed",
    "aborted": "its operation was stopped by its user, or its controller died",
}
"""What each state says of a node, for people."""
IN_FLIGHT = ("deploying", "rebooting", "powering")
"""States that only a running workflow may leave a node in."""
FINISHED = ("prod_env", "recorded_env", "deploy_env", "deployed", "rebooted", "powered")
"""States in which an operation leaves a node that is well."""
_NAMES = 5000
"""Names per ``IN (…)``."""


class Named(Protocol):
    """An environment, as far as the state of a node tells it; `Environment` is one."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def version(self) -> int | None: ...  # noqa: D102

    @property
    def user(self) -> str: ...  # noqa: D102

    @property
    def arch(self) -> str: ...  # noqa: D102


class Recorded(NamedTuple):
    """Name, version, owner and architecture of the environment on a node."""

    name: str = ""
    version: int | None = None
    user: str = ""
    arch: str = ""

    @classmethod
    def of(cls, environment: Named) -> Recorded:
        """What is recorded of *environment*."""
        return cls(environment.name, environment.version, environment.user, environment.arch)

    @property
    def columns(self) -> dict[str, object]:
        """As columns of a node's row."""
        return {f"env_{name}": value for name, value in zip(("name", "version", "owner", "arch"), self, strict=True)}


NO_ENVIRONMENT = Recorded()
"""Nothing recorded is on the node: an anonymous environment, the deployment system, or who knows what."""
_AFTER_ABORT: dict[str, Any] = {"state": "aborted", **NO_ENVIRONMENT.columns}
"""Columns of a node that was in flight when its controller died."""


class NodeRow(msgspec.Struct, frozen=True):
    """One node as ``kanodes3 -d`` shows it, in the order of its columns, and when its last operation began (Unix).

    *user* is who deployed it last, whoever has rebooted or switched it since.
    """

    hostname: str
    state: State
    user: str
    env_name: str
    env_version: int | None
    env_owner: str
    date: int
    env_arch: str = ""


# --- claims -----------------------------------------------------------------------------------------------------


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A node in the hands of a workflow."""

    node: str
    wid: str
    user: str
    since: int
    """Unix seconds."""
    part: str
    """The partition that is worked on; of several, the one that is booted."""
    host: str
    """Machine of the workflow's controller."""
    is_left: bool
    """Whether the controller is dead and nobody goes on in its place: the next operation frees the node."""


def claims(site: Site, nodes: Sequence[str] | None = None) -> list[Held]:
    """Which of *nodes* (default: all) are in whose hands, in the natural order of their names."""
    left = controllers.left(site)
    parts = [None] if nodes is None else chunked(nodes, _NAMES)
    queries = (Claim.select() if part is None else Claim.select().where(Claim.node.in_(part)) for part in parts)
    rows = sorted((row for query in queries for row in records(query)), key=lambda row: natural_key(row.node))
    return [_held_by(row, row.wid in left) for row in rows]


def _held_by(row: Claim, is_left: bool) -> Held:
    columns = {name: getattr(row, name) for name in Held.__struct_fields__ if name != "is_left"}
    return Held(**columns, is_left=is_left)


def claim(
    site: Site,
    nodes: Sequence[str],
    wid: str,
    user: str,
    force: bool = False,
    parts: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[str], dict[str, str]]:
    """Take *nodes* for *wid* of this process: those taken, and why each of the others was not.

    With *force* (``--ignore-nodes-deploying``) a node is taken from the workflow that holds it. Call :func:`reap`
    before, so that dead controllers hold nothing. *parts* tells which partition of each node is worked on.

    Raises:
        LimitError: *user*, who is no administrator, would have more running than ``service.quota`` allows; nothing was
            taken.
    """
    connect(site)
    columns = this()._asdict() | {"wid": wid, "user": user, "since": int(time.time())}
    ordered = sorted(set(nodes))  # one order for all, against deadlocks
    rows = [columns | {"node": node, "part": parts.get(node, "")[: Claim.part.max_length]} for node in ordered]
    with alone(f"claims of {user}"), transaction():
        if force:
            for part in chunked(nodes, _NAMES):
                Claim.delete().where(Claim.node.in_(part)).execute()
        insert(Claim, rows, ignore=True)
        holders = _holders(nodes)
        if user not in site.almighty_users:
            _require_room(user, wid, site.service.quota)
    refused = {node: _reason(holders.get(node)) for node in nodes if _holder(holders.get(node)) != wid}
    return [node for node in nodes if node not in refused], refused


def _require_room(user: str, wid: str, quota: Quota) -> None:
    """Refuse, within the transaction that claims for *wid*, what is more than the user may have."""
    counted = Claim.select(Claim.wid, fn.COUNT(Claim.node)).where(Claim.user == user).group_by(Claim.wid)
    running = dict(fetch(counted.order_by(fn.MIN(Claim.since), Claim.wid)))
    wanted = running.pop(wid, 0)
    ids = f" ({', '.join(running)})" if running else ""
    wait = "Wait until one has ended." if running else "Ask for fewer."
    if wanted and len(running) >= quota.workflows:
        raise LimitError(
            f"{user} has {_counted(len(running), 'operation')} running{ids}, and one user may have {quota.workflows} "
            f"(service.quota.workflows in site.yml). {wait}"
        )
    if wanted and sum(running.values()) + wanted > quota.nodes:
        raise LimitError(
            f"{user} has {_counted(sum(running.values()), 'node')} in running operations{ids} and asks for {wanted}; "
            f"one user may have {quota.nodes} (service.quota.nodes in site.yml). {wait}"
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _holders(nodes: Iterable[str]) -> dict[str, Claim]:
    parts = (records(Claim.select().where(Claim.node.in_(part))) for part in chunked(nodes, _NAMES))
    return {row.node: row for part in parts for row in part}


def _holder(row: Claim | None) -> str:
    return "" if row is None else row.wid


def _reason(row: Claim | None) -> str:
    if row is None:
        return "was released at this very moment: try again"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.since))
    return f"already used by {row.user} since {since} (workflow {row.wid} on {row.host})"


def release(wid: str, nodes: Iterable[str] | None = None) -> None:
    """Give back the nodes that *wid* still holds: these, or all of them."""
    mine = Claim.delete().where(Claim.wid == wid)
    if nodes is None:
        mine.execute()
        return
    for part in chunked(nodes, _NAMES):
        mine.where(Claim.node.in_(part)).execute()


def holders(site: Site, nodes: Sequence[str]) -> list[str]:
    """Workflows that hold any of *nodes*."""
    connect(site)
    return sorted({row.wid for row in _holders(nodes).values()})


def lost(site: Site, wid: str, nodes: Sequence[str]) -> dict[str, str]:
    """Those of *nodes* that *wid* does not hold any more, and who does."""
    connect(site)
    holders = _holders(nodes)
    return {node: _loss(holders.get(node)) for node in nodes if _holder(holders.get(node)) != wid}


def _loss(row: Claim | None) -> str:
    if row is None:
        return "its claim was freed, by a controller to which this one seemed dead"
    return f"taken by workflow {row.wid} of {row.user} (--ignore-nodes-deploying)"


def reap(site: Site, only: str | None = None) -> dict[str, list[str]]:
    """End the workflows of dead controllers, or *only* that one: nodes by workflow, to be told; mostly empty.

    Nodes left in flight become ``aborted``, the log says why they failed, and the claims are freed. Workflows that
    somebody is about to go on with are left alone.
    """
    reaped = {}
    for wid, who in controllers.left(site).items():
        with transaction():
            if only in (None, wid) and controllers.still(wid, who):
                reaped[wid] = _abort(wid, controllers.gone(site, wid, who))
    return {wid: names for wid, names in reaped.items() if names is not None}


def abort_all(site: Site, reason: str) -> dict[str, list[str]]:
    """End all workflows that are open and free all claims, for *reason*, in one transaction: nodes by workflow.

    It does not ask whether controllers live: it is for a database that comes from another time or machine.
    """
    connect(site)
    with transaction():
        claimed = {wid for (wid,) in fetch(Claim.select(Claim.wid).distinct())}
        found = sorted(claimed | {wid for wid, has_ended in journal.ended(site).items() if not has_ended})
        return {wid: _abort(wid, reason) or [] for wid in found}


def _abort(wid: str, reason: str) -> list[str] | None:
    """Within a transaction; None when another process did it in the meantime."""
    nodes = [node for (node,) in fetch(Claim.select(Claim.node).where(Claim.wid == wid))]
    finished = _finished(wid)
    for part in chunked(nodes, _NAMES):
        NodeState.update(**_AFTER_ABORT).where(NodeState.hostname.in_(part), NodeState.state.in_(IN_FLIGHT)).execute()
    closed = journal.abort(wid, f"{ABORTED}: {reason}", finished)
    release(wid)
    return nodes if nodes or closed else None


def _finished(wid: str) -> set[str]:
    """Nodes that the workflow had brought to a good end before its controller died."""
    query = NodeState.select(NodeState.hostname).join(Claim, on=Claim.node == NodeState.hostname)
    ended = query.where(Claim.wid == wid, NodeState.state.in_(FINISHED), NodeState.date >= Claim.since)
    return {name for (name,) in fetch(ended)}


# --- states -----------------------------------------------------------------------------------------------------


def set_state(
    nodes: Iterable[str],
    state: State,
    environment: Named | None,
    user: str | None,
    date: float | None = None,
    *,
    held_by: str | None = None,
) -> None:
    """*nodes* are now in *state*, by an operation begun at *date* (Unix; default: now).

    *user* is who deploys them; None, for other operations, leaves who did so last. *environment* None leaves what is
    recorded of a node's environment; ``NO_ENVIRONMENT`` forgets it. Nothing is written of nodes that the workflow
    *held_by* does not hold (any more): they are somebody else's.
    """
    columns: dict[str, object] = {"state": state, "date": int(time.time() if date is None else date)}
    if user is not None:
        columns["user"] = user
    if environment is not None:
        columns |= Recorded.of(environment).columns
    with transaction():
        names = set(nodes) if held_by is None else _held(held_by, nodes)
        upsert(
            NodeState,
            [columns | {"hostname": node} for node in sorted(names)],
            key=[NodeState.hostname],
            replaced=[getattr(NodeState, name) for name in columns],
        )


def _held(wid: str, nodes: Iterable[str]) -> set[str]:
    """Those of *nodes* that *wid* holds; within a transaction nobody takes them from it."""
    held: set[str] = set()
    for part in chunked(nodes, _NAMES):
        query = Claim.select(Claim.node).where(Claim.wid == wid, Claim.node.in_(part))
        held.update(node for (node,) in fetch(query.for_update() if DB.for_update else query))
    return held


def states(site: Site, nodes: Sequence[str] | None = None) -> Iterator[NodeRow]:
    """What is recorded of *nodes* (default: all), in no particular order; nodes never operated on are missing.

    A node in flight whose controller is dead is told as the next operation will find it: aborted.
    """
    left = set(_left_in_flight(site))
    columns = [getattr(NodeState, name) for name in NodeRow.__struct_fields__]
    parts = [None] if nodes is None else chunked(nodes, _NAMES)
    for part in parts:
        connect(site)  # whoever reads the rows may turn to another site in between
        query = NodeState.select(*columns)
        rows = stream(query if part is None else query.where(NodeState.hostname.in_(part)))
        for values in rows:
            row = NodeRow(*values)
            gone = row.hostname in left and row.state in IN_FLIGHT
            yield msgspec.structs.replace(row, **_AFTER_ABORT) if gone else row


def _left_in_flight(site: Site) -> Iterator[str]:
    """Nodes that dead controllers hold, and with which nobody will go on."""
    for part in chunked(controllers.left(site)):
        yield from (node for (node,) in fetch(Claim.select(Claim.node).where(Claim.wid.in_(part))))
