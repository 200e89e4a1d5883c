"""What a run has told, as a picture: sets of nodes over time, what failed, and how each node stands.

`Lanes` hears the events one by one, at a cost that grows with the nodes that they name. A set of nodes is a bar from
the beginning of its attempt to its end. The first set that goes on from another one stays in its lane; when nodes
part, the others get a lane of their own.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kadeploy.broadcast.progress import Transfer
from kadeploy.events import (
    AttemptEnded,
    AttemptStarted,
    Began,
    Ended,
    Event,
    Finished,
    LeftOut,
    Note,
    Progress,
    StepResult,
    StepStarted,
    Taken,
)
from kadeploy.nodeset import fold
from kadeploy.operations import forecast
from kadeploy.operations.forecast import Forecast
from kadeploy.server.web.failures import Failure, Failures
from kadeploy.server.web.stands import Group, Stands, State
from kadeploy.workflow import Attempt, Operation, Outcome, Verdict

MOST = 200
"""Bars that are shown: those that are under way, and the last ones of the others."""
_NOTES = 20
_ANSWERS = 20
"""Kinds of answers that are shown."""
_WINDOW = 6
"""Reports of a broadcast by which its present rate is known; they come twice a second."""

Look = Literal["busy", "ok", "ko", "parted", "aborted"]
"""How a bar ended: all nodes well, none, or some; aborted: by the user, or with the controller or a worker."""


@dataclass(frozen=True)
class Sending:
    """How far the broadcast of an attempt is."""

    title: str
    transfer: Transfer
    rate: float
    """Bytes per second, by the last reports."""
    is_over: bool


@dataclass(frozen=True)
class Bar:
    """An attempt: a set of nodes in an implementation of a macro-step; times are Unix seconds."""

    number: int
    lane: int
    """From 0, the one at the top."""
    macro_step: str
    title: str
    """Implementation, and which try it is."""
    look: Look
    begun: float
    until: float
    """When it ended, or the present."""
    count: int
    folded: str
    ends: Mapping[str, int]
    """How many of its nodes ended how, by the words of `Verdict` and *aborted*."""
    micro_step: str
    """The one under way, or the last one."""
    in_step: float
    """Seconds for which that has been under way, or took."""
    longest: str
    """The micro-step that took the longest, once there were several."""
    longest_seconds: float
    before: tuple[int, ...]
    """Numbers of the attempts that its nodes come from."""


@dataclass(frozen=True)
class Picture:
    """A run at one moment; times are Unix seconds."""

    wid: str
    operation: Operation | None
    """None: the beginning of the run was not told."""
    user: str
    began: float
    now: float
    ended: float | None
    bars: tuple[Bar, ...]
    bars_left_out: int
    lanes: int
    sending: tuple[Sending, ...]
    failures: tuple[Failure, ...]
    failures_left_out: int
    groups: tuple[Group, ...]
    """All nodes by their states."""
    answers: Mapping[str, str]
    """What nodes were asked for: folded nodes by answer."""
    notes: tuple[str, ...]
    left: str
    """How long it will still take, for people; empty where nobody knows."""

    @property
    def counts(self) -> dict[State, int]:
        """Nodes by state."""
        return {group.state: len(group.names) for group in self.groups}

    @property
    def nodes(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    @property
    def seconds(self) -> float:
        """How long it took, or takes so far."""
        return max(0.0, (self.ended or self.now) - self.began) if self.began else 0.0


@dataclass
class _Set:
    """An attempt that is, or was, under way."""

    attempt: Attempt
    names: tuple[str, ...]
    lane: int
    begun: float
    before: tuple[int, ...]
    folded: str
    ended: float | None = None
    broken: bool = False
    """It came to no end of its own."""
    ends: Counter[str] = field(default_factory=Counter)
    failed: dict[str, None] = field(default_factory=dict)
    """Nodes of whose failure in it was told."""
    micro_step: str = ""
    step_begun: float = 0.0
    longest: tuple[float, str] = (0.0, "")
    steps: int = 0
    reports: deque[Transfer] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def enter(self, micro_step: str, at: float) -> None:
        self.leave(at)
        self.micro_step, self.step_begun = micro_step, at
        self.steps += 1

    def leave(self, at: float) -> None:
        if self.micro_step:
            self.longest = max(self.longest, (at - self.step_begun, self.micro_step))

    def end(self, at: float, broken: bool = False) -> None:
        if self.ended is None:
            self.leave(at)
            self.ended, self.broken = at, broken

    @property
    def title(self) -> str:
        name, late = self.attempt.implementation, ", late nodes" if self.attempt.goes_on else ""
        return f"{name} (retry {self.attempt.retry}){late}" if self.attempt.retry else f"{name}{late}"

    @property
    def look(self) -> Look:
        if self.ended is None:
            return "busy"
        good, bad = self.ends["ok"] + self.ends["brk"], self.ends["ko"] + self.ends["late"]
        if self.broken or self.ends["aborted"] + self.ends["lost"] > good + bad:
            return "aborted"
        return "parted" if good and bad else "ko" if bad else "ok"

    def bar(self, lane: int, now: float) -> Bar:
        until = max(self.begun, now if self.ended is None else self.ended)
        several = self.longest if self.steps > 1 else (0.0, "")
        return Bar(
            number=self.attempt.number,
            lane=lane,
            macro_step=self.attempt.macro_step,
            title=self.title,
            look=self.look,
            begun=self.begun,
            until=until,
            count=len(self.names),
            folded=self.folded,
            ends={word: count for word, count in self.ends.items() if count},
            micro_step=self.micro_step,
            in_step=max(0.0, until - self.step_begun) if self.micro_step else 0.0,
            longest=several[1],
            longest_seconds=several[0],
            before=self.before,
        )

    def sending(self) -> Sending:
        first, last = self.reports[0], self.reports[-1]
        seconds = last.seconds - first.seconds
        rate = (last.done - first.done) / seconds if seconds > 0 else last.rate
        return Sending(self.title, last, last.rate if self.ended else rate, self.ended is not None)


class Lanes:
    """What is known of a run by the events that were told so far."""

    def __init__(self, wid: str) -> None:
        self.wid = wid
        self.began: Began | None = None
        self.ended: Ended | None = None
        self.last = 0.0
        """When something was told last (Unix)."""
        self.stands = Stands()
        self._failures = Failures()
        self._sets: dict[int, _Set] = {}
        self._in: dict[str, int] = {}
        """The attempt in which each node was last."""
        self._ends: list[int] = []
        """The attempt at the end of each lane."""
        self._free: list[tuple[int, int]] = []
        """Lanes whose attempt has ended, with its number: nobody goes on there if it is still the last."""
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._answers: dict[str, dict[str, None]] = {}
        self._forecast: Forecast | None = None

    # --- hearing ------------------------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Hear *event*, which comes behind all that were heard before."""
        self.last = event.at
        if hear := _HEARS.get(type(event)):
            hear(self, event)

    def _begin(self, event: Began) -> None:
        self.began = event
        self._forecast = forecast.of(event)
        self._notes.extend(event.notes)
        self.stands.begin(name for names in event.groups.values() for name in names)

    def _start(self, event: AttemptStarted) -> None:
        number = event.attempt.number
        came = Counter(self._in[name] for name in event.nodes if name in self._in)
        before = tuple(each for each, _ in came.most_common())
        lane = self._lane(before, number)
        self._sets[number] = _Set(event.attempt, event.nodes, lane, event.at, before, fold(event.nodes))
        self._in.update(dict.fromkeys(event.nodes, number))

    def _enter(self, event: StepStarted) -> None:
        if found := self._sets.get(event.attempt.number):
            found.enter(event.micro_step, event.at)

    def _send(self, event: Progress) -> None:
        if found := self._sets.get(event.attempt.number):
            found.reports.append(event.transfer)

    def _step(self, event: StepResult) -> None:
        self._result(event.attempt, event.outcomes, event.micro_step)

    def _lane(self, before: Iterable[int], number: int) -> int:
        """Where an attempt goes on: where its nodes were, else in the first lane that is free."""
        lane = next((self._sets[each].lane for each in before if self._ends[self._sets[each].lane] == each), None)
        while lane is None and self._free:
            free, last = heapq.heappop(self._free)
            lane = free if self._ends[free] == last else None
        if lane is None:
            lane = len(self._ends)
            self._ends.append(number)
        self._ends[lane] = number
        return lane

    def _result(self, attempt: Attempt, outcomes: Mapping[str, Outcome], micro_step: str = "") -> None:
        """What a step, or at the end the whole attempt, did to nodes; each fails once in an attempt."""
        found = self._sets.get(attempt.number)
        for name, outcome in outcomes.items():
            if outcome.answer:
                self._answers.setdefault(outcome.answer, {})[name] = None
            if outcome.verdict is Verdict.KO and found and name not in found.failed:
                found.failed[name] = None
                self.stands.reasons[name] = outcome.message
                where = micro_step or outcome.micro_step or _said(outcome.message, attempt, found.micro_step)
                self._failures.add(name, outcome.message, attempt, where)

    def _end(self, event: AttemptEnded) -> None:
        if found := self._sets.get(event.attempt.number):
            self._result(event.attempt, event.outcomes)
            found.ends.update(outcome.verdict.value for outcome in event.outcomes.values())
            found.end(event.at)
            heapq.heappush(self._free, (found.lane, event.attempt.number))

    def _finish(self, event: Finished) -> None:
        self.stands.finish(event.finals)
        for name, final in event.finals.items():
            if final.aborted:
                self._abort(name, final.message)

    def _abort(self, name: str, message: str) -> None:
        """A node was stopped, or taken away: its attempt may have said so of it as of one that failed."""
        found = self._sets.get(self._in.get(name, 0))
        if found and name in found.failed:
            found.ends.subtract(["ko"])
        else:
            self._failures.add(name, message)
        if found and (name in found.failed or found.ended is None):
            found.ends["aborted"] += 1

    def _lose(self, event: LeftOut | Taken) -> None:
        self.stands.lose(event.reasons, "ko" if isinstance(event, LeftOut) else "aborted")
        if isinstance(event, LeftOut):  # of nodes that were taken, their end is told as well
            for name, reason in event.reasons.items():
                self._failures.add(name, reason)

    def _note(self, event: Note) -> None:
        self._notes.append(event.text)
        if event.resumed:
            self._break_off(event.at)

    def _break_off(self, at: float) -> None:
        for found in self._sets.values():
            if found.ended is None:
                found.end(at, broken=True)
                heapq.heappush(self._free, (found.lane, found.attempt.number))

    def _close(self, event: Ended) -> None:
        self.ended = event
        self._break_off(event.at)
        self.stands.close(event)
        for name, answer in event.report.answers.items():
            self._answers.setdefault(answer, {})[name] = None

    # --- showing ------------------------------------------------------------------------------------------------

    def picture(self, now: float, *, goes_on: bool = True) -> Picture:
        """What is known at *now* (Unix seconds); unless it *goes_on*, nothing more will be told."""
        is_over = self.ended is not None or not goes_on
        moment = self.last if is_over else max(now, self.last)
        shown = self._shown()
        lanes = {lane: rank for rank, lane in enumerate(sorted({each.lane for each in shown}))}
        return Picture(
            wid=self.wid,
            operation=self.began.operation if self.began else self.ended.operation if self.ended else None,
            user=self.began.user if self.began else "",
            began=self.began.at if self.began else 0.0,
            now=moment,
            ended=self.last if is_over else None,
            bars=tuple(self._bar(each, lanes[each.lane], moment, is_over) for each in shown),
            bars_left_out=len(self._sets) - len(shown),
            lanes=len(lanes),
            sending=tuple(each.sending() for each in shown if each.reports),
            failures=(failures := self._failures.largest(self.stands)),
            failures_left_out=len(self._failures) - len(failures),
            groups=self.stands.groups(),
            answers={answer: fold(names) for answer, names in list(self._answers.items())[:_ANSWERS]},
            notes=tuple(self._notes),
            left="" if is_over else self._left(shown, moment),
        )

    def _shown(self) -> list[_Set]:
        sets = list(self._sets.values())
        if len(sets) <= MOST:
            return sets
        running = {each.attempt.number for each in sets if each.ended is None}
        last = sorted(sets, key=lambda each: (each.attempt.number in running, each.attempt.number))[-MOST:]
        return sorted(last, key=lambda each: each.attempt.number)

    def _bar(self, found: _Set, lane: int, now: float, is_over: bool) -> Bar:
        if is_over and found.ended is None:  # its controller is gone
            found.end(now, broken=True)
        return found.bar(lane, now)

    def _left(self, sets: Iterable[_Set], now: float) -> str:
        """Until the last set is through, where all of them can be told of."""
        going = [each for each in sets if each.ended is None]
        if self._forecast is None or not going:
            return ""
        times = [self._forecast.left(each.attempt, each.names, now - each.begun) for each in going]
        known = [seconds for seconds in times if seconds is not None]
        return forecast.told(max(known, default=math.inf)) if len(known) == len(times) else ""

    def where(self, name: str) -> tuple[str, str]:
        """In which attempt *name* is, or was last, and in which micro-step of it."""
        found = self._sets.get(self._in.get(name, 0))
        return (found.title, found.micro_step) if found else ("", "")


_HEARS: Mapping[type[Event], Callable[[Lanes, Any], None]] = {
    Began: Lanes._begin,
    AttemptStarted: Lanes._start,
    StepStarted: Lanes._enter,
    StepResult: Lanes._step,
    Progress: Lanes._send,
    AttemptEnded: Lanes._end,
    Finished: Lanes._finish,
    LeftOut: Lanes._lose,
    Taken: Lanes._lose,
    Note: Lanes._note,
    Ended: Lanes._close,
}


def _said(message: str, attempt: Attempt, micro_step: str) -> str:
    """*micro_step*, where the message says that it was there."""
    return micro_step if micro_step and message.startswith(f"{attempt.implementation}-{micro_step}: ") else ""
