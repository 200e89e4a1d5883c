"""The nodes of a site: who holds them, and what was last done to them.

A claim is a row whose key is the node, taken in one transaction: two workflows can never hold a node, not even those of
two controllers that share a database. What takes no site works for the one that the calling thread connected to last.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from kadeploy.config.site import Site
from kadeploy.process import Controller, is_alive, is_here, this
from kadeploy.state import journal
from kadeploy.state.database import DB, chunked, connect, fetch, insert, stream, transaction, upsert
from kadeploy.state.tables import Claim, NodeState, Workflow

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


class NodeRow(NamedTuple):
    """One node as ``kanodes3 -d`` shows it, in the order of its columns, and when that operation began (Unix)."""

    hostname: str
    state: State
    user: str
    env_name: str
    env_version: int | None
    env_owner: str
    date: int
    env_arch: str = ""


# --- claims -----------------------------------------------------------------------------------------------------


def claim(
    site: Site, nodes: Sequence[str], wid: str, user: str, force: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Take *nodes* for *wid* of this process: those taken, and why each of the others was not.

    With *force* (``--ignore-nodes-deploying``) a node is taken from the workflow that holds it. Call :func:`reap`
    before, so that dead controllers hold nothing.
    """
    connect(site)
    columns = this()._asdict() | {"wid": wid, "user": user, "since": int(time.time())}
    rows = [columns | {"node": node} for node in sorted(set(nodes))]  # one order for all, against deadlocks
    with transaction():
        if force:
            for part in chunked(nodes, _NAMES):
                Claim.delete().where(Claim.node.in_(part)).execute()
        insert(Claim, rows, ignore=True)
        holders = _holders(nodes)
    refused = {node: _reason(holders.get(node)) for node in nodes if _holder(holders.get(node)) != wid}
    return [node for node in nodes if node not in refused], refused


def _holders(nodes: Iterable[str]) -> dict[str, Claim]:
    return {row.node: row for part in chunked(nodes, _NAMES) for row in Claim.select().where(Claim.node.in_(part))}


def _holder(row: Claim | None) -> str:
    return "" if row is None else row.wid


def _reason(row: Claim | None) -> str:
    if row is None:
        return "was released at this very moment: try again"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.since))
    return f"already used by {row.user} since {since} (workflow {row.wid} on {row.host})"


def release(wid: str) -> None:
    """Give back the nodes that *wid* still holds."""
    Claim.delete().where(Claim.wid == wid).execute()


def reap(site: Site) -> dict[str, list[str]]:
    """End the workflows of dead controllers: nodes by workflow, for the caller to tell; mostly empty.

    A controller of this machine is dead when its process is gone; one of another machine when it gave no sign of life
    for ``purge_deployment_timer`` seconds. Nodes left in flight become ``aborted``, the log says why they failed, and
    the claims are freed.
    """
    connect(site)
    oldest = time.time() - site.purge_deployment_timer
    dead = {wid: who for wid, (who, seen) in _controllers().items() if _is_dead(who, seen, oldest)}
    reaped = {}
    for wid, who in dead.items():
        with transaction():
            reaped[wid] = _abort(wid, who)
    return {wid: names for wid, names in reaped.items() if names is not None}


def _controllers() -> dict[str, tuple[Controller, int]]:
    """Controller of each workflow that claims nodes or is not closed, and when it last gave a sign of life."""
    columns = ("host", "pid", "process_start", "boot_id")
    claims = Claim.select(Claim.wid, *(getattr(Claim, name) for name in columns), Claim.since).distinct()
    running = Workflow.select(Workflow.wid, *(getattr(Workflow, name) for name in columns), Workflow.seen)
    found = {wid: (Controller(*who), since) for wid, *who, since in fetch(claims)}
    # A workflow tells more than its claims: it is the one that goes on giving signs of life.
    rows = running.where(Workflow.ended.is_null() | Workflow.wid.in_(list(found)))
    found.update({wid: (Controller(*who), seen) for wid, *who, seen in fetch(rows)})
    return found


def _is_dead(who: Controller, seen: int, oldest: float) -> bool:
    return not is_alive(who) if is_here(who) else seen < oldest


def _abort(wid: str, who: Controller) -> list[str] | None:
    """Within a transaction; None when another process did it in the meantime."""
    query = Claim.select(Claim.node).where(Claim.wid == wid)
    if DB.for_update:  # a second reaper waits here, and then finds nothing
        query = query.for_update()
    nodes = [node for (node,) in fetch(query)]
    finished = _finished(wid)
    for part in chunked(nodes, _NAMES):
        NodeState.update(state="aborted", **NO_ENVIRONMENT.columns).where(
            NodeState.hostname.in_(part), NodeState.state.in_(IN_FLIGHT)
        ).execute()
    closed = journal.abort(wid, f"aborted: its controller (process {who.pid} on {who.host}) is gone", finished)
    release(wid)
    return nodes if nodes or closed else None


def _finished(wid: str) -> set[str]:
    """Nodes that the workflow had brought to a good end before its controller died."""
    query = NodeState.select(NodeState.hostname).join(Claim, on=Claim.node == NodeState.hostname)
    ended = query.where(Claim.wid == wid, NodeState.state.in_(FINISHED), NodeState.date >= Claim.since)
    return {name for (name,) in fetch(ended)}


# --- states -----------------------------------------------------------------------------------------------------


def set_state(
    nodes: Iterable[str], state: State, environment: Named | None, user: str, date: float | None = None
) -> None:
    """*nodes* are now in *state*, brought there by *user* with an operation begun at *date* (Unix; default: now).

    *environment* None leaves what is recorded of a node's environment; ``NO_ENVIRONMENT`` forgets it.
    """
    columns: dict[str, object] = {"state": state, "user": user, "date": int(time.time() if date is None else date)}
    if environment is not None:
        columns |= Recorded.of(environment).columns
    with transaction():
        upsert(
            NodeState,
            [columns | {"hostname": node} for node in sorted(set(nodes))],
            key=[NodeState.hostname],
            replaced=[getattr(NodeState, name) for name in columns],
        )


def states(site: Site, nodes: Sequence[str] | None = None) -> Iterator[NodeRow]:
    """What is recorded of *nodes* (default: all), in no particular order; nodes never operated on are missing."""
    columns = [getattr(NodeState, name) for name in NodeRow._fields]
    parts = [None] if nodes is None else chunked(nodes, _NAMES)
    for part in parts:
        connect(site)  # whoever reads the rows may turn to another site in between
        query = NodeState.select(*columns)
        rows = stream(query if part is None else query.where(NodeState.hostname.in_(part)))
        yield from map(NodeRow._make, rows)
