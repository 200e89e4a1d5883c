"""How a workflow stands and how it went, told from the events of its run in the original's words."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from kadeploy import events
from kadeploy.config.site import Site
from kadeploy.errors import KadeployError
from kadeploy.events import (
    AttemptEnded,
    AttemptStarted,
    Began,
    Ended,
    Event,
    Finished,
    LeftOut,
    Note,
    StepResult,
    StepStarted,
    Taken,
)
from kadeploy.nodeset import fold, natural_key
from kadeploy.operations import following
from kadeploy.operations.follow import Tail
from kadeploy.workflow import Outcome, Verdict

_KEPT = 64
"""Runs of which is remembered what was read: clients look each second."""

Names = Mapping[str, Iterable[str]]


class Run:
    """A workflow whose events are kept; `look` before anything else."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._lock = threading.Lock()
        self.began: Began | None = None
        self.ended: Ended | None = None
        self.states: dict[str, dict[str, str]] = {}
        """By node: ``macro``, ``micro``, ``state`` (ok, ko) and ``out``."""
        self.ends: dict[str, bool] = {}
        """Nodes at their end, and whether they are well."""
        self.environment: Mapping[str, Any] | None = None
        """The one that is deployed, once somebody has looked it up."""

    def look(self) -> Run:
        """Read what is new."""
        with self._lock:
            for _, event in self._tail.read():
                self._hear(event)
        return self

    @property
    def nodes(self) -> list[str]:
        """All nodes of the request."""
        return sorted({*self.states, *self.ends}, key=natural_key)

    @property
    def clusters(self) -> dict[str, list[str]]:
        """The same, by cluster."""
        groups = self.ended.groups if self.ended else self.began.groups if self.began else {}
        return {name: sorted(nodes, key=natural_key) for name, nodes in groups.items()}

    def parted(self, nodes: Iterable[str]) -> dict[str, list[str]]:
        """*nodes* that are well, that are not, and that are on their way."""
        found: dict[str, list[str]] = {"ok": [], "ko": [], "processing": []}
        for node in nodes:
            found["processing" if node not in self.ends else "ok" if self.ends[node] else "ko"].append(node)
        return found

    @property
    def seconds(self) -> float:
        """How long it took, or takes so far."""
        if self.began is None:
            return 0.0
        return round((self.ended.at if self.ended else time.time()) - self.began.at, 2)

    # --- reading ------------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        match event:
            case Began():
                self.began = event
                self._stand((node for nodes in event.groups.values() for node in nodes), "", "")
            case AttemptStarted():
                self._stand(event.nodes, event.attempt.implementation, "")
            case StepStarted():
                self._stand(event.nodes, event.attempt.implementation, event.micro_step)
            case StepResult() | AttemptEnded():
                self._note(event.outcomes)
            case LeftOut() | Taken():
                self._lose(event.reasons)
            case Finished():
                for node, final in event.finals.items():
                    self._end(node, final.verdict is not Verdict.KO, final.message)
            case Ended():
                self._hear_end(event)
            case _:
                pass

    def _stand(self, nodes: Iterable[str], macro: str, micro: str) -> None:
        for node in nodes:
            self.states[node] = {"macro": macro, "micro": micro, "state": "ok", "out": ""}

    def _note(self, outcomes: Mapping[str, Outcome]) -> None:
        for node, outcome in outcomes.items():
            state = self.states.setdefault(node, {"macro": "", "micro": "", "state": "ok", "out": ""})
            state["out"] = outcome.answer or outcome.message or state["out"]
            if outcome.verdict is Verdict.KO:
                state["state"] = "ko"

    def _lose(self, reasons: Mapping[str, str]) -> None:
        for node, reason in reasons.items():
            self._end(node, False, reason)

    def _end(self, node: str, well: bool, message: str) -> None:
        self.ends[node] = well
        state = self.states.setdefault(node, {"macro": "", "micro": "", "state": "ok", "out": ""})
        state["state"] = "ok" if well else "ko"
        state["out"] = message or state["out"]

    def _hear_end(self, event: Ended) -> None:
        self.ended = event
        for node in event.report.ok:
            self._end(node, True, event.report.answers.get(node, ""))
        self._lose(event.report.ko)


@lru_cache(maxsize=_KEPT)
def _kept(path: Path) -> Run:
    return Run(path)


def find(site: Site, wid: str) -> Run:
    """The run of the workflow *wid* as it is now.

    Raises:
        UnknownWorkflowError: there is none, or nothing of it is kept any more.
    """
    return _kept(following.events_of(site, wid)).look()


def broken(site: Site, wid: str, run: Run) -> KadeployError | None:
    """Why the workflow will come to no end, if it will not."""
    if run.ended is not None or following.goes_on(site, wid, following.events_of(site, wid)):
        return None
    return None if run.look().ended else following.broken_off(site, wid)


# --- its log --------------------------------------------------------------------------------------------------------


def log(path: Path, only: Iterable[str] | None = None) -> Iterator[str]:
    """Lines for people about each event so far, of *only* these nodes where some are given."""
    wanted = None if only is None else frozenset(only)
    for event in events.read(path):
        for line in _said(event, wanted):
            yield f"{time.strftime('%H:%M:%S', time.localtime(event.at))} {line}\n"


def _said(event: Event, wanted: frozenset[str] | None) -> Iterator[str]:
    def kept(nodes: Iterable[str]) -> list[str]:
        return [node for node in nodes if wanted is None or node in wanted]

    def told(what: str, nodes: Iterable[str], more: str = "") -> Iterator[str]:
        if those := kept(nodes):
            yield f"{what} {fold(those)}{more}"

    match event:
        case Began():
            yield from told(f"{event.wid}: {event.operation} of {event.user} on", _all(event.groups))
            yield from event.notes
        case AttemptStarted():
            yield from told(f"{event.attempt.implementation} on", event.nodes)
        case StepStarted():
            yield from told(f"  {event.micro_step} on", event.nodes)
        case AttemptEnded():
            well = [node for node, outcome in event.outcomes.items() if outcome.verdict is not Verdict.KO]
            yield from told(f"{event.attempt.implementation} is done on", well, f" ({event.seconds:.0f} s)")
            for node in kept(set(event.outcomes).difference(well)):
                yield f"  {node}: {event.outcomes[node].message}"
        case LeftOut() | Taken():
            yield from (f"{node} is left out: {event.reasons[node]}" for node in kept(event.reasons))
        case Note():
            yield event.text
        case Ended():
            yield from told("The operation went well on", event.report.ok)
            yield from told("The operation failed on", event.report.ko)
            yield from (f"{node}: {event.report.answers[node]}" for node in kept(event.report.answers))
        case _:
            pass


def _all(groups: Names) -> Iterator[str]:
    return (node for nodes in groups.values() for node in nodes)


def debugged(path: Path, node: str = "") -> Iterator[str]:
    """What commands said on the nodes, or on one of them, and how they ended."""
    for event in events.read(path):
        if not isinstance(event, StepResult):
            continue
        for name, outcome in event.outcomes.items():
            if node in ("", name):
                yield f"--- {name}: {event.attempt.implementation}, {event.micro_step}: exit status {outcome.rc}\n"
                yield from (f"{text.rstrip()}\n" for text in (outcome.stdout, outcome.stderr) if text.strip())


def summary(site: Site, wid: str, run: Run) -> dict[str, Any]:
    """What its owner is told of a workflow."""
    error = broken(site, wid, run)
    is_done = run.ended is not None or error is not None
    parts = run.parted(run.nodes)
    if is_done:
        parts["ko"] = sorted([*parts["ko"], *parts.pop("processing")], key=natural_key)
    known = {"environment": run.environment} if run.environment else {}
    return {
        **outline(wid, run, is_done, error is not None),
        **known,
        "logs": True,
        "debugs": True,
        "nodes": parts,
        "time": run.seconds,
    }


def outline(wid: str, run: Run, is_done: bool, is_error: bool) -> dict[str, Any]:
    """What everybody is told of a workflow."""
    return {
        "wid": wid,
        "user": run.began.user if run.began else "",
        "done": is_done,
        "error": is_error,
        "start_time": int(run.began.at) if run.began else 0,
        "nodes": run.nodes,
    }
