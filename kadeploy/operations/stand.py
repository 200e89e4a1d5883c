"""How a workflow stands, by the events of its run; of one that only looks at nodes the journal knows nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

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
    StepResult,
    StepStarted,
    Taken,
)
from kadeploy.nodeset import natural_key
from kadeploy.operations import follow
from kadeploy.operations.follow import Tail
from kadeploy.workflow import Outcome, Verdict

_KEPT = 64
"""Runs of which is remembered what was read: clients look each second."""


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


def shown(wid: str, run: Run, names: Iterable[str] | None = None) -> dict[str, Any]:
    """What `kadeploy.state.journal.workflows` would tell of it, had it been written down there."""
    wanted = run.nodes if names is None else [node for node in run.nodes if node in set(names)]
    nodes = {
        node: [{"macro-step": each["macro"]}, {"micro-step": each["micro"]}, {"state": each["state"]}]
        for node, each in ((node, run.states[node]) for node in wanted)
    }
    return {
        wid: {
            "user": run.began.user if run.began else "",
            "deploy_id": wid,
            "environment_name": "",
            "environment_version": None,
            "environment_user": "",
            "anonymous_environment": False,
            "nodes": nodes,
        }
    }
