"""A workflow goes on after its controller died, in another process.

What was admitted is in its record, what has happened in its events. Nodes at their end keep it; the others begin the
try anew in which they were. Whoever is to go on takes the claims and the journal over first: one process at most does.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kadeploy import events
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.errors import OptionError
from kadeploy.events import AttemptEnded, AttemptStarted, Began, Event, Finished, Listener, Note, Report
from kadeploy.operations import launch, record
from kadeploy.operations.record import Record
from kadeploy.operations.work import Resumption, run_folder
from kadeploy.runner import playbooks
from kadeploy.runner.player import end_processes, find
from kadeploy.state import controllers
from kadeploy.workers import lease
from kadeploy.workflow import Plan, Verdict, Way

DEATHS = 3
"""How often a workflow may die within the same attempt: then it is given up."""


def resumable(site: Site) -> list[str]:
    """Workflows of this machine whose controllers are dead, and which have left what it takes to go on."""
    return sorted(controllers.resumable(site))


def go_on(wid: str, configuration: Configuration, listener: Listener, stop: threading.Event) -> Report:
    """Go on with *wid* in this process, to its end.

    Raises:
        OptionError: it runs, has ended, or another process goes on with it.
        KadeployError: its record cannot be read.
        BrokenOffError: the operation cannot go on after all.
    """
    folder, site = run_folder(configuration.site, wid), configuration.site
    dead = controllers.resumable(site).get(wid)
    if dead is None:
        raise OptionError(f"Workflow {wid} cannot go on: it runs, has ended, or its controller has left no record.")
    kept = record.read(folder)
    held = controllers.take_over(site, wid, dead)
    if held is None:
        raise OptionError(f"Workflow {wid} goes on in another process already.")
    end_processes(folder)
    if lease.withdraw_all(folder):
        time.sleep(lease.LOST)  # workers that nobody answers any more have ended all by then
    found = _decided(kept, site, held)
    return launch.go_on(kept.work(configuration, found), kept.account, kept.left_out, listener, stop)


# --- who goes on ----------------------------------------------------------------------------------------------------


def _decided(kept: Record, site: Site, held: Iterable[str]) -> Resumption:
    """How far the workflow had come, less the nodes with which it cannot go on."""
    folder = run_folder(site, kept.wid)
    told = Told.of(kept, lambda implementation: _reboots(implementation, Path(kept.config_dir)))
    told.hear(events.read(folder / events.FILE_NAME) if (folder / events.FILE_NAME).exists() else ())
    told.interrupt()
    found = told.resumption(kept.begun, _next_number(folder, told.number))
    found = found.give_up(set(kept.taken) - set(held), "another workflow has taken it", taken_away=True)
    reason = _why_not(kept, site, told)
    return found.give_up(kept.taken, reason) if reason else found


def _reboots(implementation: str, config_dir: Path) -> bool:
    playbook = find(implementation, config_dir)
    return playbook is not None and playbooks.reboots(playbook, config_dir)


def _why_not(kept: Record, site: Site, told: Told) -> str:
    """Why the whole workflow cannot go on; empty: it can."""
    if record.is_stopped(run_folder(site, kept.wid)):
        return "stopped by its user"
    silence = time.time() - (told.last or kept.begun)
    if kept.operation != "deploy" and silence > site.purge_deployment_timer:
        # A node that is not being deployed belongs to somebody, who may be at work again.
        return f"its controller was gone for {silence:.0f} s (purge_deployment_timer in site.yml)"
    deaths = max((told.deaths[name] for name, way in told.ways.items() if not way.final), default=0)
    return f"its controller has died {deaths} times within the same attempt" if deaths >= DEATHS else ""


def _next_number(folder: Path, last: int) -> int:
    """After all attempts that were told, and those that had a folder before they could be."""
    numbers = [int(found[1]) for path in folder.iterdir() if (found := re.match(r"(\d+)-", path.name))]
    return max(last, *numbers, 0) + 1


# --- what the events tell -------------------------------------------------------------------------------------------


@dataclass
class Told:
    """How far nodes have come, as the events of a run tell."""

    plans: Mapping[str, Plan]
    """By node."""
    ways: dict[str, Way]
    reboots: Callable[[str], bool] = lambda _implementation: False
    """Whether an implementation boots nodes: those in it when the controller dies may be in another system already."""
    running: dict[str, AttemptStarted] = field(default_factory=dict)
    """The attempts that nodes are in."""
    deaths: Counter[str] = field(default_factory=Counter)
    """How often the controller died in the present attempt of a node."""
    number: int = 0
    """The highest one of an attempt."""
    last: float = 0.0
    """When the last event was told (Unix)."""
    announced: bool = False

    @classmethod
    def of(cls, kept: Record, reboots: Callable[[str], bool]) -> Told:
        """Nothing yet of the nodes that take part."""
        taken = set(kept.taken)
        plans = {name: kept.plans[cluster] for cluster, names in kept.groups.items() for name in names if name in taken}
        return cls(plans, {name: Way() for name in plans}, reboots)

    def hear(self, told: Iterable[Event]) -> None:
        """Take in what happened."""
        for event in told:
            match event:
                case AttemptStarted():
                    self._started(event)
                case AttemptEnded():
                    self._ended(event)
                case Finished():
                    self._finished(event)
                case Note(resumed=True):
                    self.interrupt()
                case Began():
                    self.announced = True
                case _:
                    pass
            self.last = event.at

    def interrupt(self) -> None:
        """The controller died here."""
        for name, way in self.ways.items():
            if not way.final:
                self.ways[name] = self._interrupted(name, way)
                self.deaths[name] += 1
        self.running.clear()

    def resumption(self, begun: float, next_number: int) -> Resumption:
        """What another process goes on from."""
        return Resumption(ways=self.ways, begun=begun, next_number=next_number, announced=self.announced)

    def _interrupted(self, name: str, way: Way) -> Way:
        begun = self.running.get(name)
        late = way.history[-1:] if way.last.verdict is Verdict.LATE else ()
        implementations = [begun.attempt.implementation] if begun else [tried.attempt.implementation for tried in late]
        seconds = max(0.0, self.last - begun.at) if begun else 0.0
        return way.interrupted(seconds, booted=any(map(self.reboots, implementations)))

    def _started(self, event: AttemptStarted) -> None:
        self.number = max(self.number, event.attempt.number)
        for name in event.nodes:
            self.running[name] = event
            self.ways[name] = self.ways[name].at(self.plans[name], event.attempt)

    def _ended(self, event: AttemptEnded) -> None:
        for name, outcome in event.outcomes.items():
            self.running.pop(name, None)
            self.deaths.pop(name, None)
            way = self.ways[name]
            if not way.final:
                self.ways[name] = way.after(self.plans[name], event.attempt, outcome, event.seconds)

    def _finished(self, event: Finished) -> None:
        for name, final in event.finals.items():
            self.ways[name] = Way(None, final.history, final=final)
