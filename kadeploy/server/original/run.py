"""How a workflow stands and how it went, in the original's words."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kadeploy.config.site import Site
from kadeploy.errors import UnknownWorkflowError
from kadeploy.events import (
    AttemptEnded,
    AttemptStarted,
    Began,
    Ended,
    Event,
    LeftOut,
    Note,
    StepResult,
    StepStarted,
    Taken,
)
from kadeploy.nodeset import fold, natural_key
from kadeploy.operations.follow import Tail
from kadeploy.operations.stand import Run, broken
from kadeploy.workflow import Verdict

Names = Mapping[str, Iterable[str]]


def log(path: Path, only: Iterable[str] | None = None) -> Iterator[str]:
    """Lines for people about each event so far, of *only* these nodes where some are given."""
    wanted = None if only is None else frozenset(only)
    for event in _heard(path):
        for line in _said(event, wanted):
            yield f"{time.strftime('%H:%M:%S', time.localtime(event.at))} {line}\n"


def _heard(path: Path) -> Iterator[Event]:
    """All events so far; that what was kept of them is damaged is told as one more."""
    try:
        for _, event in Tail(path).read():
            yield event
    except UnknownWorkflowError as error:
        yield Note(text=str(error))


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
    for event in _heard(path):
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


def states(run: Run) -> dict[str, dict[str, str]]:
    """Where each node is."""
    return {
        node: {"macro": stand.macro, "micro": stand.micro, "state": stand.state, "out": stand.out}
        for node, stand in run.states.items()
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
