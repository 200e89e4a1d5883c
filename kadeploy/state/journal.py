"""What workflows do, written down while they do it, so that ``kanodes3 -y`` and kastat3 work from other processes.

Every call is one short transaction over many nodes. A controller that is killed leaves its journal behind; see
:func:`kadeploy.state.nodes.reap`. What takes a workflow id but no site works for the site that the calling thread
connected to last (`begin` connects it): another thread has to call :func:`kadeploy.state.database.connect` first.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from kadeploy import process
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.errors import UnknownWorkflowError
from kadeploy.hints import did_you_mean
from kadeploy.nodeset import natural_key
from kadeploy.state import controllers, kept_days
from kadeploy.state.database import chunked, connect, fetch, insert, records, transaction
from kadeploy.state.tables import Log, Progress, Workflow
from kadeploy.workflow import Operation

NodeProgress = Literal["ok", "ko", "reboot_in_progress", "rebooted", "discarded"]

KEPT_DAYS = 30
"""How long ``kanodes3 -y -w WID`` still shows a workflow that has ended; its log rows stay."""
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # no letter that looks like another or like a digit


class LogRow(msgspec.Struct, frozen=True, kw_only=True):
    """How an operation went on one node; durations in seconds, retries are tries minus one (reference §8.2)."""

    hostname: str
    step1: str = ""
    step2: str = ""
    step3: str = ""
    timeout_step1: int = 0
    timeout_step2: int = 0
    timeout_step3: int = 0
    retry_step1: int = 0
    retry_step2: int = 0
    retry_step3: int = 0
    step1_duration: int = 0
    step2_duration: int = 0
    step3_duration: int = 0
    md5: str = ""
    """Checksum of the image."""
    success: bool
    error: str = ""
    given_up: str = ""
    """Implementations that failed before another one of their macro-step was tried, with commas."""


def new_workflow_id(operation: Operation) -> str:
    """A short unique name: ``D-``, ``R-`` or ``P-`` and ten letters and digits; tells nothing else."""
    return f"{operation[0].upper()}-{''.join(secrets.choice(_ALPHABET) for _ in range(10))}"


def begin(
    site: Site,
    wid: str,
    operation: Operation,
    user: str,
    environment: Environment | None,
    nodes_by_cluster: Mapping[str, Sequence[str]],
    *,
    anonymous: bool | None = None,
) -> None:
    """Open the workflow *wid* of this process on these nodes (names by cluster).

    *anonymous* says that the environment is not a recorded one; left out, it is one without owner.
    """
    connect(site)
    now = int(time.time())
    columns: dict[str, Any] = process.this()._asdict()
    if environment is not None:
        columns |= {"env_name": environment.name, "env_version": environment.version, "env_owner": environment.user}
        columns["anonymous"] = not environment.user if anonymous is None else anonymous
    rows = [
        {"workflow": wid, "node": node, "cluster": cluster}
        for cluster, nodes in nodes_by_cluster.items()
        for node in nodes
    ]
    with transaction():
        Workflow.insert(wid=wid, operation=operation, user=user, started=now, seen=now, **columns).execute()
        insert(Progress, rows)


def micro_step(wid: str, nodes: Iterable[str], macro_step: str, micro_step: str) -> None:
    """*nodes* of the workflow enter *micro_step* of *macro_step* (the implementation's name)."""
    _update(wid, nodes, macro_step=macro_step, micro_step=micro_step, state="ok", told="")


def node_state(wid: str, nodes: Iterable[str], state: NodeProgress) -> None:
    """*nodes* of the workflow are now in *state*, within the micro-step they are in."""
    _update(wid, nodes, state=state)


def told(wid: str, nodes: Iterable[str], text: str) -> None:
    """*nodes* of the workflow are that far in their micro-step: ``42 %, 118 MB/s, 12 s left``; 64 characters count."""
    _update(wid, nodes, told=text[: Progress.told.max_length])


def keep_alive(wid: str) -> None:
    """A sign of life, for controllers of other machines; due at least every ``purge_deployment_timer`` / 3 seconds."""
    Workflow.update(seen=int(time.time())).where(Workflow.wid == wid).execute()


def _update(wid: str, nodes: Iterable[str], **columns: str) -> None:
    with transaction():
        for part in chunked(nodes, 5000):
            Progress.update(**columns).where(Progress.workflow == wid, Progress.node.in_(part)).execute()
        keep_alive(wid)


def end(wid: str, rows: Iterable[LogRow], state: Literal["ended", "aborted"] = "ended") -> bool:
    """Close the workflow and write its log rows, once: a second call changes nothing and returns False."""
    now = int(time.time())
    with transaction():
        closed = Workflow.update(ended=now, state=state).where(Workflow.wid == wid, Workflow.ended.is_null()).execute()
        if not closed:
            return False
        [flow] = records(Workflow.select().where(Workflow.wid == wid))
        shared = {
            "wid": wid,
            "operation": flow.operation,
            "user": flow.user,
            "start": flow.started,
            "env": f"{flow.env_name}:{flow.env_version}" if flow.env_name else "",
            "anonymous_env": flow.anonymous,
        }
        insert(Log, [shared | msgspec.structs.asdict(row) for row in rows])
        kept_days.changed([flow.started])
        Workflow.delete().where(Workflow.ended < now - KEPT_DAYS * 86400).execute()
    return True


def abort(wid: str, reason: str, finished: Container[str] = ()) -> bool:
    """Close a workflow whose controller is gone: each node that had not *finished* gets a log row that says so.

    Called within the transaction of :func:`kadeploy.state.nodes.reap`. False when the workflow was closed already.
    """
    nodes = fetch(Progress.select(Progress.node).where(Progress.workflow == wid, Progress.state != "discarded"))
    rows = [
        LogRow(hostname=node, success=node in finished, error="" if node in finished else reason) for (node,) in nodes
    ]
    return end(wid, rows, state="aborted")


def ended(site: Site) -> dict[str, bool]:
    """Whether it has ended, for each workflow that the journal still knows."""
    connect(site)
    return {wid: end is not None for wid, end in fetch(Workflow.select(Workflow.wid, Workflow.ended))}


def running(site: Site, user: str | None, most: int) -> list[str]:
    """Ids of the *most* workflows that began first among those of *user* (None: of all) that have not ended."""
    connect(site)
    query = Workflow.select(Workflow.wid).where(Workflow.ended.is_null(), *_of(user))
    return [wid for (wid,) in fetch(query.order_by(Workflow.started, Workflow.wid).limit(most))]


def ended_since(site: Site, since: int, user: str | None, most: int) -> dict[str, int]:
    """When the *most* workflows ended that ended first since then, of *user* (None: of all), by id; Unix seconds."""
    connect(site)
    query = Workflow.select(Workflow.wid, Workflow.ended).where(Workflow.ended >= since, *_of(user))
    return dict(fetch(query.order_by(Workflow.ended, Workflow.wid).limit(most)))


def _of(user: str | None) -> list[Any]:
    return [] if user is None else [Workflow.user == user]


def newest(site: Site, most: int = 50) -> list[str]:
    """Ids of the workflows that began last, whether they run or not."""
    connect(site)
    query = Workflow.select(Workflow.wid).order_by(Workflow.started.desc(), Workflow.wid).limit(most)
    return [wid for (wid,) in fetch(query)]


def is_known(site: Site, wid: str) -> bool:
    """Whether a workflow is or was called so."""
    connect(site)
    kept = (Workflow.select().where(Workflow.wid == wid), Log.select().where(Log.wid == wid))
    return any(query.exists() for query in kept)


# --- as ``kanodes3 -y`` shows it ------------------------------------------------------------------------------------


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow without its nodes; times are Unix seconds."""

    wid: str
    operation: str
    user: str
    state: str
    """running, ended or aborted."""
    began: int
    ended: int | None
    last: int
    """When it gave its last sign of life."""
    env_name: str = ""
    env_version: int | None = None
    env_owner: str = ""
    anonymous: bool = False

    @property
    def seconds(self) -> int:
        """How long it took, or takes so far."""
        until = self.ended or (int(time.time()) if self.state == "running" else self.last)
        return max(0, until - self.began)


def workflows(site: Site, wid: str | None = None, nodes: Iterable[str] | None = None) -> dict[str, Any]:
    """The running workflows, or the one named *wid* even when it has ended, by their ids (see `shown`).

    One whose controller is dead does not run, unless somebody is about to go on with it. Named, it has a key *aborted*
    more, with the reason; so has one that its user has stopped. *nodes* leaves out all other nodes.

    Raises:
        UnknownWorkflowError: no workflow is called *wid*.
    """
    dead = controllers.left(site)
    wanted = Workflow.ended.is_null() & ~Workflow.wid.in_(list(dead)) if wid is None else Workflow.wid == wid
    flows = records(Workflow.select().where(wanted).order_by(Workflow.started, Workflow.wid))
    if wid is not None and not flows:
        hint = did_you_mean(wid, newest(site))
        raise UnknownWorkflowError(f"No workflow is called {wid!r}. `kanodes3 -y` shows those that run.{hint}")
    only = None if nodes is None else set(nodes)
    dump = {row.wid: shown(flow_of(row, dead), _stands(row, only)) | _aborted(site, row, dead) for row in flows}
    return {name: flow for name, flow in dump.items() if flow["nodes"] or only is None}


def shown(flow: Flow, nodes: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """A workflow and how its *nodes* stand.

    ``{user, deploy_id, environment_name, environment_version, environment_user, anonymous_environment, operation,
    state, began, ended, seconds, nodes: {host: [{macro-step: …}, {micro-step: …}, {state: …}]}}``, and
    ``{progress: …}`` at the end of the list where the micro-step tells it.
    """
    return {
        "user": flow.user,
        "deploy_id": flow.wid,
        "environment_name": flow.env_name,
        "environment_version": flow.env_version,
        "environment_user": flow.env_owner,
        "anonymous_environment": flow.anonymous,
        "operation": flow.operation,
        "state": flow.state,
        "began": flow.began,
        "ended": flow.ended,
        "seconds": flow.seconds,
        "nodes": nodes,
    }


def stand(macro_step: str, micro_step: str, state: str, progress: str = "") -> list[dict[str, Any]]:
    """How a node stands: mappings of one key each, which is the form that programs know."""
    found = [{"macro-step": macro_step}, {"micro-step": micro_step}, {"state": state}]
    return [*found, {"progress": progress}] if progress else found


def flow_of(row: Workflow, dead: Container[str]) -> Flow:
    """The workflow of a whole *row*; one that is among the *dead* was aborted, though nobody has written that down."""
    is_left = row.ended is None and row.wid in dead
    shared = {name: getattr(row, name) for name in _SHARED}
    return Flow(state="aborted" if is_left else row.state, began=row.started, last=row.seen, **shared)


_SHARED = ("wid", "operation", "user", "ended", "env_name", "env_version", "env_owner", "anonymous")
"""Columns that a `Flow` has by the same names."""


def _stands(row: Workflow, only: Container[str] | None) -> dict[str, list[dict[str, Any]]]:
    columns = (Progress.node, Progress.macro_step, Progress.micro_step, Progress.state, Progress.told)
    rows = fetch(Progress.select(*columns).where(Progress.workflow == row.wid))
    return {
        node: stand(*told)
        for node, *told in sorted(rows, key=lambda row: natural_key(row[0]))
        if only is None or node in only
    }


def _aborted(site: Site, row: Workflow, dead: Mapping[str, process.Controller]) -> dict[str, str]:
    if row.ended is None and row.wid in dead:
        return {"aborted": controllers.gone(site, row.wid, dead[row.wid])}
    if row.state == "aborted":
        return {"aborted": f"by its user, or with its controller{controllers.last_words(site, row.wid)}"}
    return {}
