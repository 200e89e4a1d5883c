"""The automaton: macro-steps, retries, fallbacks and verdicts, in plain Python without Ansible.

An *attempt* is a set of nodes that go through one implementation of a macro-step. When it ends, its nodes part: the OK
ones enter the next macro-step at once, as a set of their own; the KO ones try the whole implementation again, then the
next implementation of the same macro-step, then are KO for good. Sets never merge again. A node goes back to an earlier
macro-step only if it has lost what that one did: then its next try begins there. Nodes that are LATE leave the set as
well, which goes on without them: they go on with the same try from the micro-step in which they are, as a set of their
own. Those that are LOST begin their try anew.

A workflow whose process died goes on from the `Way` of each node: one at its end keeps it, the others begin their try
anew, those that are at the same place as one set.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal, Protocol

from kadeploy.printable import printable

Operation = Literal["deploy", "reboot", "power"]
"""What a workflow does to nodes."""


Again = Literal["", "before", "never"]
"""How a node that is KO is tried again, if a try is left: as it is, from the macro-step before on, or not at all."""


class Verdict(Enum):
    """How an attempt ended for one node."""

    OK = "ok"
    KO = "ko"
    BRK = "brk"
    """Stopped at a breakpoint, on purpose."""
    LATE = "late"
    """Not through a micro-step, while most others are: the outcome names it, its seconds count from there."""
    LOST = "lost"
    """Nobody knows: the machine that worked on it is gone. Its try begins anew."""


@dataclass(frozen=True)
class Outcome:
    """What one step did to one node."""

    verdict: Verdict
    message: str = ""
    """Why it is KO, and what to look at."""
    rc: int = 0
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    answer: str = ""
    """What was asked for, where a step asks: ``on`` or ``off``."""
    micro_step: str = ""
    """Where it waits when it is LATE, or failed."""
    again: Again = ""
    """How it is tried again when it is KO; or LOST, where ``before`` says that it may have been booted."""

    def __post_init__(self) -> None:
        """Make words of nodes and BMCs fit to be shown."""
        for name in ("message", "stdout", "stderr", "answer"):
            said = getattr(self, name)
            if (shown := printable(said)) is not said:
                object.__setattr__(self, name, shown)


class Implementation(Protocol):
    """One way to do a macro-step: ``1 + retries`` tries of at most *timeout* seconds each (0: no limit)."""

    @property
    def name(self) -> str:
        """The playbook's name."""

    @property
    def retries(self) -> int:
        """Additional tries."""

    @property
    def timeout(self) -> int:
        """Seconds that a try may take."""


Plan = Sequence[tuple[str, Sequence[Implementation]]]
"""Macro-steps in order, each with its implementations in order of preference."""


@dataclass(frozen=True)
class GoesOn:
    """Where and since when nodes that are LATE go on."""

    micro_step: str
    begun: float
    """When their try began (`time.monotonic`); its limit is counted from there."""
    waited: float
    """Seconds for which they have been in the micro-step."""


@dataclass(frozen=True)
class Attempt:
    """One run of one implementation; *number* is unique in the workflow and starts at 1."""

    macro_step: str
    implementation: str
    retry: int = 0
    timeout: int = 0
    number: int = 1
    goes_on: GoesOn | None = None
    """For nodes that were LATE in this try."""


@dataclass(frozen=True)
class Tried:
    """What a node went through: the attempt, how it ended for this node, and the seconds it took."""

    attempt: Attempt
    verdict: Verdict
    seconds: float


ABORTED = "aborted"
"""Reason of a node whose workflow was stopped, by its user or with its controller; more may follow after a colon."""


@dataclass(frozen=True)
class Final:
    """The end of one node: its verdict, the last reason, and every attempt it took part in."""

    verdict: Verdict
    message: str = ""
    history: tuple[Tried, ...] = ()
    aborted: bool = False
    """The workflow was stopped, or the node taken from it, before this node came to an end (its verdict is KO)."""


@dataclass(frozen=True)
class Place:
    """Where an attempt stands in the plan."""

    step: int = 0
    choice: int = 0
    retry: int = 0
    then: Place | None = None
    """Where nodes go on once they are through the macro-step, when they have come back to it."""


@dataclass(frozen=True)
class Way:
    """How far a node has come in a workflow, as its attempts tell: what another process needs to go on with it."""

    place: Place | None = Place()
    """Where its next attempt stands, or the one that runs; None: it is at its end."""
    history: tuple[Tried, ...] = ()
    last: Outcome = Outcome(Verdict.OK)
    """How the attempt before ended."""
    lost: float = 0.0
    """Seconds that attempts at this place took which came to no end."""
    final: Final | None = None
    """Its end, once it was told."""

    def at(self, plan: Plan, attempt: Attempt) -> Way:
        """The same where *attempt* stands, should that be elsewhere: what led there was not told."""
        names = [name for name, _ in plan]
        step = names.index(attempt.macro_step)
        choice = [way.name for way in plan[step][1]].index(attempt.implementation)
        here = Place(step, choice, attempt.retry)
        return self if self.place and replace(self.place, then=None) == here else replace(self, place=here)

    def after(self, plan: Plan, attempt: Attempt, outcome: Outcome, seconds: float) -> Way:
        """What comes after an attempt that took *seconds*."""
        if outcome.verdict is Verdict.LOST:
            return self.interrupted(seconds, booted=outcome.again == "before")
        place = self.place or Place()
        stays = outcome.verdict is Verdict.LATE
        tried = Tried(attempt, outcome.verdict, seconds + self.lost)
        return Way(place if stays else _next(plan, place, outcome), (*self.history, tried), outcome)

    def interrupted(self, seconds: float = 0.0, *, booted: bool = False) -> Way:
        """Its try begins anew, after an attempt that came to no end within *seconds*.

        A node that may have been *booted* by then has lost what earlier macro-steps did: it goes through them first.
        """
        if self.final or not self.place:
            return self
        history, lost = self.history, self.lost + seconds
        if history and history[-1].verdict is Verdict.LATE:  # it was in the middle of its try
            *before, late = history
            history, lost = tuple(before), lost + late.seconds
        place = _from_the_start(self.place) if booted else self.place
        return replace(self, place=place, history=history, lost=lost, last=Outcome(Verdict.OK))


def _from_the_start(place: Place) -> Place:
    """The first macro-step, from which the others lead to *place*."""
    for step in reversed(range(place.step)):
        place = Place(step, then=place)
    return place


def _next(plan: Plan, place: Place, outcome: Outcome) -> Place | None:
    """Where a node goes from *place*, unless it is LATE; None: nowhere."""
    if outcome.verdict is Verdict.BRK:
        return None
    if outcome.verdict is Verdict.KO:
        return _ways_on(plan, place)[outcome.again]
    following = place.then or Place(place.step + 1)
    return following if following.step < len(plan) else None


def _ways_on(plan: Plan, place: Place) -> dict[Again, Place | None]:
    """Where nodes that are KO at *place* try again, each in its way."""
    another = _another_way(plan, place)
    back = another and place.step > 0 and Place(place.step - 1, then=another)
    return {"": another, "before": back or another, "never": None}


def _another_way(plan: Plan, place: Place) -> Place | None:
    """Where the KO nodes of an attempt go: another try, the next implementation, or None, nowhere."""
    implementations = plan[place.step][1]
    if place.retry < implementations[place.choice].retries:
        return replace(place, retry=place.retry + 1)
    if place.choice + 1 < len(implementations):
        return replace(place, choice=place.choice + 1, retry=0)
    return None


Perform = Callable[[Attempt, tuple[str, ...]], Mapping[str, Outcome]]
"""Does one attempt on some nodes and answers with their outcomes; it minds the time-out and the stop event itself."""


class Observer(Protocol):
    """Who wants to know; called from the thread that runs the automaton, one call at a time."""

    def started(self, attempt: Attempt, nodes: tuple[str, ...], /) -> None:
        """An attempt begins."""

    def ended(self, attempt: Attempt, outcomes: Mapping[str, Outcome], seconds: float, /) -> None:
        """An attempt is over; every one of its nodes has an outcome."""

    def finished(self, nodes: Mapping[str, Final], /) -> None:
        """Nodes that have come to their end."""


def run(
    nodes: Iterable[str],
    plan: Plan,
    perform: Perform,
    observer: Observer,
    stop: threading.Event,
    *,
    numbers: Iterator[int] | None = None,
    ways: Mapping[str, Way] | None = None,
    leaving: Leaving | None = None,
    passing: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Final]:
    """Bring *nodes* through *plan* and answer with the end of each.

    *perform* runs in a thread per set of nodes. Once *stop* is set no attempt begins, and the nodes that are not at
    their end are aborted as soon as the running attempts answer. *numbers* numbers the attempts, for automata that
    share a workflow. *ways* tells how far nodes have come already; the others begin. Nodes are taken from it while it
    runs by *leaving*. *passing* has the nodes that leave out an implementation, by its name: where it would be theirs,
    they begin with the next one, as a set of their own. The last implementation of a macro-step nobody leaves out.
    """
    left_out = {name: frozenset(names) for name, names in (passing or {}).items()}
    automaton = _Automaton(plan, perform, observer, stop, numbers or itertools.count(1), left_out)
    if leaving:
        automaton.ends = leaving.ends
    return automaton.run({node: (ways or {}).get(node, Way()) for node in nodes})


class Leaving:
    """The door by which nodes leave an automaton before their end, called from any thread.

    They are aborted at once, and what their attempt says of them later is ignored. A node that is at its end keeps it.
    """

    def __init__(self) -> None:
        self.ends: queue.SimpleQueue[_End | _Taken] = queue.SimpleQueue()

    def take(self, reasons: Mapping[str, str]) -> None:
        """Nodes leave, each for a reason."""
        self.ends.put(_Taken(dict(reasons)))


@dataclass(frozen=True)
class _Taken:
    """Nodes that leave, and why."""

    reasons: dict[str, str]


@dataclass(frozen=True)
class _End:
    """What a thread reports when its attempt is over."""

    place: Place
    attempt: Attempt
    nodes: tuple[str, ...]
    outcomes: dict[str, Outcome]
    begun: float
    seconds: float


@dataclass
class _Automaton:
    plan: Plan
    perform: Perform
    observer: Observer
    stop: threading.Event
    numbers: Iterator[int]
    passing: Mapping[str, frozenset[str]] = field(default_factory=dict)
    ends: queue.SimpleQueue[_End | _Taken] = field(default_factory=queue.SimpleQueue)
    running: int = 0
    history: dict[str, tuple[Tried, ...]] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    trying: dict[str, tuple[Attempt, float]] = field(default_factory=dict)
    """The attempt in which a node is, and when it began."""
    finals: dict[str, Final] = field(default_factory=dict)

    def run(self, ways: Mapping[str, Way]) -> dict[str, Final]:
        self.history = {node: way.history for node, way in ways.items()}
        self.lost = {node: way.lost for node, way in ways.items()}
        self.finals = {node: way.final for node, way in ways.items() if way.final}
        sets: dict[Place | None, dict[str, Outcome]] = {}
        for node, way in ways.items():
            if node not in self.finals:
                sets.setdefault(way.place, {})[node] = way.last
        try:
            for place, nodes in sets.items():
                self._enter(place, nodes)
            while self.running:
                end = self.ends.get()
                if isinstance(end, _Taken):
                    self._lose(end.reasons)
                    continue
                self.running -= 1
                self._part(end)
        except BaseException:
            self._abandon()
            raise
        return {node: self.finals[node] for node in ways}

    def _enter(self, place: Place | None, nodes: Mapping[str, Outcome]) -> None:
        """Start an attempt, unless the nodes are at their end."""
        if not nodes:
            return
        if place is None or place.step == len(self.plan):
            self._finish(nodes)
        elif self.stop.is_set():
            self._finish(nodes, aborted=True)
        else:
            passing = self._passing(place)
            self._start(place, tuple(node for node in nodes if node not in passing))
            following = replace(place, choice=place.choice + 1, retry=0)
            self._enter(following, {node: outcome for node, outcome in nodes.items() if node in passing})

    def _passing(self, place: Place) -> frozenset[str]:
        """The nodes that leave out the implementation at *place*."""
        ways = self.plan[place.step][1]
        last = place.choice + 1 == len(ways)
        return frozenset() if last else self.passing.get(ways[place.choice].name, frozenset())

    def _start(self, place: Place, nodes: tuple[str, ...], goes_on: GoesOn | None = None) -> None:
        if not nodes:
            return
        macro_step, implementations = self.plan[place.step]
        chosen = implementations[place.choice]
        attempt = Attempt(macro_step, chosen.name, place.retry, chosen.timeout, next(self.numbers), goes_on)
        self.observer.started(attempt, nodes)
        self.trying |= dict.fromkeys(nodes, (attempt, time.monotonic()))
        threading.Thread(target=self._attempt, args=(place, attempt, nodes), name=f"try-{attempt.number}").start()
        self.running += 1

    def _attempt(self, place: Place, attempt: Attempt, nodes: tuple[str, ...]) -> None:
        start = time.monotonic()
        missing = Outcome(Verdict.KO, f"{attempt.implementation}: no verdict")
        try:
            answer = self.perform(attempt, nodes)
        except Exception as error:  # whatever went wrong, these nodes are not deployed
            answer, missing = {}, Outcome(Verdict.KO, f"{attempt.implementation}: {type(error).__name__}: {error}")
        outcomes = {node: answer.get(node, missing) for node in nodes}
        if attempt.goes_on:
            again = Outcome(Verdict.KO, f"{attempt.implementation}-{attempt.goes_on.micro_step}: late again")
            outcomes = {node: again if o.verdict is Verdict.LATE else o for node, o in outcomes.items()}
        self.ends.put(_End(place, attempt, nodes, outcomes, start, time.monotonic() - start))

    def _part(self, end: _End) -> None:
        """Send each node where its verdict leads, but for those that have left meanwhile."""
        end = replace(end, outcomes={node: o for node, o in end.outcomes.items() if node not in self.finals})
        for node, outcome in end.outcomes.items():
            if outcome.verdict is not Verdict.LOST:
                self.history[node] += (Tried(end.attempt, outcome.verdict, end.seconds + self.lost.pop(node, 0.0)),)
        self.observer.ended(end.attempt, end.outcomes, end.seconds)
        sets = {verdict: {n: o for n, o in end.outcomes.items() if o.verdict is verdict} for verdict in Verdict}
        self._finish(sets[Verdict.BRK])
        self._enter(end.place.then or Place(end.place.step + 1), sets[Verdict.OK])
        if self.stop.is_set():
            self._finish(sets[Verdict.KO] | sets[Verdict.LATE] | sets[Verdict.LOST], aborted=True)
        else:
            self._again(end.place, sets[Verdict.KO])
            self._go_on(end, sets[Verdict.LATE])
            self._anew(end, sets[Verdict.LOST])

    def _again(self, place: Place, ko: Mapping[str, Outcome]) -> None:
        """Try again with nodes that are KO, each in its way."""
        for again, way in _ways_on(self.plan, place).items():
            self._enter(way, {node: outcome for node, outcome in ko.items() if outcome.again == again})

    def _go_on(self, end: _End, late: Mapping[str, Outcome]) -> None:
        """Let late nodes go on where they are; each node is late once in a try."""
        sets: dict[GoesOn, list[str]] = {}
        for node, outcome in late.items():
            sets.setdefault(GoesOn(outcome.micro_step, end.begun, outcome.seconds), []).append(node)
        for goes_on, nodes in sets.items():
            self._start(end.place, tuple(nodes), goes_on)

    def _anew(self, end: _End, lost: Mapping[str, Outcome]) -> None:
        """Let nodes begin their try anew, those at the same place as one set."""
        sets: dict[Place | None, dict[str, Outcome]] = {}
        for node, outcome in lost.items():
            way = Way(end.place, self.history[node], lost=self.lost.pop(node, 0.0))
            way = way.interrupted(end.seconds, booted=outcome.again == "before")
            self.history[node], self.lost[node] = way.history, way.lost
            sets.setdefault(way.place, {})[node] = way.last
        for place, nodes in sets.items():
            self._enter(place, nodes)

    def _lose(self, reasons: Mapping[str, str]) -> None:
        """Nodes that are not at their end leave."""
        ends = {}
        for node in reasons.keys() & self.history.keys() - self.finals.keys():
            attempt, begun = self.trying[node]
            tried = Tried(attempt, Verdict.KO, time.monotonic() - begun + self.lost.pop(node, 0.0))
            ends[node] = Final(Verdict.KO, reasons[node], (*self.history[node], tried), aborted=True)
        if ends:
            self.finals.update(ends)
            self.observer.finished(ends)

    def _finish(self, nodes: Mapping[str, Outcome], aborted: bool = False) -> None:
        if not nodes:
            return
        ends = {
            node: Final(
                Verdict.KO if aborted else outcome.verdict,
                ABORTED if aborted else outcome.message,
                self.history[node],
                aborted,
            )
            for node, outcome in nodes.items()
        }
        self.finals.update(ends)
        self.observer.finished(ends)

    def _abandon(self) -> None:
        """Wait for the attempts that still run, so that nothing outlives the automaton."""
        self.stop.set()
        while self.running:
            self.running -= isinstance(self.ends.get(), _End)
