"""How a workflow stands, by the events of its run; of one that only looks at nodes the journal knows nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from kadeploy.broadcast.progress import Transfer
from kadeploy.config.site import Site
from kadeploy.errors import KadeployError, UnknownWorkflowError
from kadeploy.events import (
    AttemptEnded,
    AttemptStarted,
    Began,
    Ended,
    Event,
    Finished,
    LeftOut,
    Progress,
    StepResult,
    StepStarted,
    Taken,
)
from kadeploy.nodeset import natural_key
from kadeploy.operations import follow
from kadeploy.operations.follow import Tail
from kadeploy.state import journal
from kadeploy.workflow import Outcome, Verdict

_KEPT = 128
"""Runs of which is remembered what was read: clients look each second."""


class Stand(msgspec.Struct, frozen=True):
    """Where a node is."""

    macro: str = ""
    micro: str = ""
    state: Literal["ok", "ko"] = "ok"
    out: str = ""
    """Why it is KO, or what it was asked for."""
    since: float = 0.0
    """When it came to the micro-step (Unix)."""
    ended: float | None = None
    """When it came to its end (Unix)."""
    transfer: Transfer | None = None
    """How far the image is, while it is sent."""


class Run:
    """A workflow whose events are kept; `look` before anything else."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._lock = threading.Lock()
        self._states: dict[str, Stand] = {}
        self.began: Began | None = None
        self.ended: Ended | None = None
        self.last = 0.0
        """When something was told last (Unix)."""
        self.environment: Mapping[str, Any] | None = None
        """The one that is deployed, once somebody has looked it up."""

    def look(self) -> Run:
        """Read what is new."""
        with self._lock:
            for _, event in self._tail.read():
                self._hear(event)
        return self

    @property
    def states(self) -> dict[str, Stand]:
        """Where each node was at the last look."""
        with self._lock:
            return dict(self._states)

    @property
    def nodes(self) -> list[str]:
        """All nodes of the request."""
        return sorted(self.states, key=natural_key)

    @property
    def clusters(self) -> dict[str, list[str]]:
        """The same, by cluster."""
        groups = self.ended.groups if self.ended else self.began.groups if self.began else {}
        return {name: sorted(nodes, key=natural_key) for name, nodes in groups.items()}

    def parted(self, nodes: Iterable[str]) -> dict[str, list[str]]:
        """*nodes* that are well, that are not, and that are on their way."""
        found: dict[str, list[str]] = {"ok": [], "ko": [], "processing": []}
        states = self.states
        for node in nodes:
            stand = states.get(node, Stand())
            found["processing" if stand.ended is None else stand.state].append(node)
        return found

    @property
    def seconds(self) -> float:
        """How long it took, or takes so far."""
        if self.began is None:
            return 0.0
        return round((self.ended.at if self.ended else time.time()) - self.began.at, 2)

    # --- reading ------------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        self.last = event.at
        match event:
            case Began():
                self.began = event
                self._enter((node for nodes in event.groups.values() for node in nodes), event.at)
            case AttemptStarted():
                self._enter(event.nodes, event.at, event.attempt.implementation)
            case StepStarted():
                self._enter(event.nodes, event.at, event.attempt.implementation, event.micro_step)
            case Progress():
                self._change(event.nodes, transfer=event.transfer)
            case StepResult() | AttemptEnded():
                self._note(event.outcomes)
            case LeftOut() | Taken():
                self._lose(event.reasons, event.at)
            case Finished():
                for node, final in event.finals.items():
                    self._end(node, event.at, final.verdict is not Verdict.KO, final.message)
            case Ended():
                self._hear_end(event)
            case _:
                pass

    def _enter(self, nodes: Iterable[str], at: float, macro: str = "", micro: str = "") -> None:
        for node in self._going(nodes):
            self._states[node] = Stand(macro, micro, since=at)

    def _note(self, outcomes: Mapping[str, Outcome]) -> None:
        for node, outcome in outcomes.items():
            if out := outcome.answer or outcome.message:
                self._change([node], out=out)
            if outcome.verdict is Verdict.KO:
                self._change([node], state="ko")

    def _change(self, nodes: Iterable[str], **known: Any) -> None:
        for node in self._going(nodes):
            self._states[node] = msgspec.structs.replace(self._of(node), **known)

    def _going(self, nodes: Iterable[str]) -> list[str]:
        """Those that are not at their end: what is told of the others does not count."""
        return [node for node in nodes if self._of(node).ended is None]

    def _of(self, node: str) -> Stand:
        return self._states.get(node) or Stand()

    def _lose(self, reasons: Mapping[str, str], at: float) -> None:
        for node, reason in reasons.items():
            self._end(node, at, False, reason)

    def _end(self, node: str, at: float, is_well: bool, message: str) -> None:
        before = self._of(node)
        self._states[node] = msgspec.structs.replace(
            before, state="ok" if is_well else "ko", out=message or before.out, ended=before.ended or at, transfer=None
        )

    def _hear_end(self, event: Ended) -> None:
        self.ended = event
        for node in event.report.ok:
            self._end(node, event.at, True, event.report.answers.get(node, ""))
        self._lose(event.report.ko, event.at)


@lru_cache(maxsize=_KEPT)
def _kept(path: Path) -> Run:
    return Run(path)


def find(site: Site, wid: str) -> Run:
    """The run of the workflow *wid* as it is now.

    Raises:
        UnknownWorkflowError: there is none, or nothing of it is kept any more.
    """
    return _kept(follow.events_of(site, wid)).look()


def kept(site: Site, wid: str) -> Run | None:
    """The same; None when nothing of it is kept."""
    try:
        return find(site, wid)
    except UnknownWorkflowError:
        return None


def broken(site: Site, wid: str, run: Run) -> KadeployError | None:
    """Why the workflow will come to no end, if it will not."""
    if run.ended is not None or follow.goes_on(site, wid, follow.events_of(site, wid)):
        return None
    return None if run.look().ended else follow.broken_off(site, wid)


# --- as ``kanodes3 -y`` shows it -------------------------------------------------------------------------------------


def workflows(
    site: Site, wid: str | None, names: Sequence[str] | None, may_see: Callable[[str], bool]
) -> dict[str, Any]:
    """See `kadeploy.state.journal.workflows`; those of whose user the asker *may_see* everything are `detailed`."""
    found = _known(site, wid, names)
    runs = {name: kept(site, name) for name, flow in found.items() if may_see(flow["user"])}
    return {name: detailed(run, flow, names) if (run := runs.get(name)) else flow for name, flow in found.items()}


def _known(site: Site, wid: str | None, names: Sequence[str] | None) -> dict[str, Any]:
    """What the journal knows; of one that only looks at nodes its events tell the same."""
    try:
        return journal.workflows(site, wid, names)
    except UnknownWorkflowError:
        found = kept(site, wid or "")
        if found is None:
            raise
        return {wid or "": _shown(site, wid or "", found, names)}


def _shown(site: Site, wid: str, run: Run, names: Iterable[str] | None) -> dict[str, Any]:
    some = None if names is None else frozenset(names)
    wanted = run.nodes if some is None else [node for node in run.nodes if node in some]
    states = run.states
    told = {node: journal.stand(states[node].macro, states[node].micro, states[node].state) for node in wanted}
    is_over = run.ended is not None or broken(site, wid, run) is not None
    first = run.began or run.ended
    flow = journal.Flow(
        wid=wid,
        operation=first.operation if first else "",
        user=run.began.user if run.began else "",
        state="running" if not is_over else "ended" if run.ended else "aborted",
        began=int(run.began.at) if run.began else 0,
        ended=int(run.ended.at) if run.ended else None,
        last=int(run.last),
    )
    return journal.shown(flow, told)


def detailed(run: Run, flow: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, Any]:
    """*flow*, as the journal shows it, with what the events tell beyond that: for its user and administrators.

    ``counts`` are ``{ok, ko, processing}``, of all nodes of the request. The list of a node goes on with what is known
    of ``out`` (why it is KO, or its answer), ``bytes`` and ``size`` of the image that is being sent, ``since``
    (when it came to its micro-step), ``seconds`` (in it) and ``ended``. Nodes that were left out are there as well.
    *names* leaves out all other nodes.
    """
    goes_on = flow["state"] == "running"
    states, now = run.states, time.time() if goes_on else run.last
    parts = run.parted(states)
    if not goes_on:
        parts["ko"] += parts.pop("processing")
    wanted = set(states if names is None else names).difference(flow["nodes"])
    left_out = {node: journal.stand("", "", "discarded") for node in run.nodes if node in wanted}
    nodes = {
        node: [*told, *_more(states.get(node) or Stand(), now)] for node, told in {**flow["nodes"], **left_out}.items()
    }
    counts = {how: len(parts.get(how, ())) for how in ("ok", "ko", "processing")}
    above = {key: value for key, value in flow.items() if key != "nodes"}
    return {**above, "counts": counts, "nodes": nodes}


def _more(stand: Stand, now: float) -> Iterator[dict[str, Any]]:
    if stand.out:
        yield {"out": stand.out}
    if stand.transfer:
        yield {"bytes": stand.transfer.done}
        yield {"size": stand.transfer.total}
    if stand.since:
        yield {"since": int(stand.since)}
        yield {"seconds": round((stand.ended or now) - stand.since, 1)}
    if stand.ended:
        yield {"ended": int(stand.ended)}
