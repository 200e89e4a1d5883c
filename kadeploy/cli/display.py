"""What people see of an operation: time-stamped lines, and on a terminal a live view under them.

Levels: 0 beginning, end, nodes left out and final lists; 1 macro-steps, failures and where sets of nodes part;
2 failures within micro-steps and breakpoints; 3 the plan and each micro-step; 4 how long each micro-step took.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from kadeploy.broadcast.progress import Transfer
from kadeploy.cli import hangup, summary
from kadeploy.cli.shell import is_plain
from kadeploy.events import (
    AttemptEnded,
    AttemptStarted,
    Began,
    Ended,
    Event,
    Finished,
    Heard,
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
from kadeploy.operations.plan import lines as plan_lines
from kadeploy.operations.reasons import kinds
from kadeploy.printable import printable
from kadeploy.workflow import Attempt, Final, Outcome, Verdict

if TYPE_CHECKING:
    from kadeploy.cli.live import Row, View

TITLES = {"deploy": "Deployment", "reboot": "Reboot", "power": "Power operation"}
ON_TERMINAL, IN_LINES = 1, 3
"""How talkative a display is by itself: the live view shows what else goes on."""
_REASONS = 2
"""Level from which reasons are told when they happen."""
_BAD, _ODD = "red", "yellow"
LastLines = Callable[[Ended], list[str]]


@dataclass
class _Set:
    """Nodes that go through an attempt together; times are Unix seconds."""

    attempt: Attempt
    nodes: tuple[str, ...]
    begun: float
    server: str = ""
    """Whose attempt it is, of several."""
    step: str = ""
    step_begun: float = 0.0
    transfer: Transfer | None = None
    """How far the broadcast of this micro-step is."""
    gone: set[str] = field(default_factory=set)
    """Nodes with a KO or at a breakpoint."""
    told: dict[str, str] = field(default_factory=dict)
    """Reasons that have been shown, by node."""

    def still(self) -> list[str]:
        return [node for node in self.nodes if node not in self.gone]


class Display:
    """A listener of an operation that prints what happens, with the time at which it happened.

    *stream* gets plain lines; on a terminal they scroll above a live view while the display is entered as a context.
    *verbosity* None is `ON_TERMINAL` or `IN_LINES`. The last lines of what has ended are made by *final*, and on a
    terminal by *final_for_people*. Of several servers, lines begin with the name of the one that they are about.
    The *clock* (Unix seconds) says how long things have taken; for what is told again it is not that of the present.
    """

    def __init__(
        self,
        verbosity: int | None,
        debug: bool = False,
        stream: IO[str] | None = None,
        final: LastLines = summary.lists,
        final_for_people: LastLines | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.debug = debug
        self.stream = sys.stdout if stream is None else stream
        self.plain = is_plain(self.stream)
        self.verbosity = (IN_LINES if self.plain else ON_TERMINAL) if verbosity is None else verbosity
        self._forecasts: dict[str, Forecast | None] = {}
        """They tell how long it will still take, where that can be told; by server."""
        self._final = final if self.plain else final_for_people or final
        self._server = ""
        """Whose event is being shown, of several."""
        self._sets: dict[tuple[str, int], _Set] = {}
        self._finals: dict[str, Final] = {}
        self._clock = clock
        self._begun = clock()
        self._now = self._begun
        self._nodes: dict[str, int] = {}
        """How many nodes take part; by server."""
        self._lock = threading.RLock()
        self._view: View | None = None

    # --- a listener -------------------------------------------------------------------------------------------------

    def __call__(self, event: Event) -> None:
        """Show *event*."""
        with self._lock:
            self._now = event.at
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case Heard():
                with self._speaking(event.server):
                    self._show(event.told)
            case Began():
                self._began(event)
            case LeftOut() | Taken():
                self._without(event)
            case AttemptStarted():
                self._attempt_started(event)
            case AttemptEnded():
                self._attempt_ended(event)
            case StepStarted():
                self._step_started(event)
            case StepResult():
                self._step_result(event)
            case Progress():
                if group := self._set_of(event.attempt):
                    group.transfer = event.transfer
            case Finished():
                self._finals |= event.finals
            case Note():
                self.say(0, event.text)
            case Ended():
                self._ended(event)

    @contextmanager
    def _speaking(self, server: str) -> Iterator[None]:
        self._server = server
        try:
            yield
        finally:
            self._server = ""

    def _set_of(self, attempt: Attempt) -> _Set | None:
        return self._sets.get((self._server, attempt.number))

    def _without(self, event: LeftOut | Taken) -> None:
        """Nodes take no part, or none any more; those that are at their end already are nobody's worry."""
        reasons = {name: reason for name, reason in event.reasons.items() if name not in self._finals}
        for group in self._sets.values():
            group.gone |= reasons.keys()
        title, style = ("left out: ", _ODD) if isinstance(event, LeftOut) else ("", _BAD)
        for reason, names in kinds(reasons).items():
            self.say(0, f"{title}{fold(names)}: {reason}", style=style)

    def _began(self, event: Began) -> None:
        if not self._forecasts:
            self._begun = event.at
        self._forecasts[self._server] = forecast.of(event)
        names = [name for group in event.groups.values() for name in group]
        self._nodes[self._server] = len(names)
        self.say(0, f"{TITLES[event.operation]} {event.wid} started on {_count(names)}: {fold(names)}")
        for note in event.notes:
            self.say(0, note)
        for cluster, plan in event.plans.items():
            self.say(3, f"plan of cluster {cluster}:", *(f"    {line}" for line in plan_lines(plan)))

    def _attempt_started(self, event: AttemptStarted) -> None:
        attempt = event.attempt
        self._sets[self._server, attempt.number] = _Set(attempt, event.nodes, event.at, self._server)
        self.say(1, f"{_title(attempt)} {'continues' if attempt.goes_on else 'begins'} on {fold(event.nodes)}")

    def _attempt_ended(self, event: AttemptEnded) -> None:
        attempt, outcomes = event.attempt, event.outcomes
        self._end_step(attempt)
        group = self._sets.pop((self._server, attempt.number), None)
        told = group.told if group else {}
        ok = [name for name, outcome in outcomes.items() if outcome.verdict is Verdict.OK]
        if ok:
            self.say(1, f"{_title(attempt)} done in {event.seconds:.0f} s on {fold(ok)}")
        late = [name for name, outcome in outcomes.items() if outcome.verdict is Verdict.LATE]
        if late:
            self.say(1, f"{_title(attempt)} is late on {fold(late)}: the other nodes go on without waiting for them")
        lost = {name: outcome.message for name, outcome in outcomes.items() if outcome.verdict is Verdict.LOST}
        for reason, names in kinds(lost).items():
            self.say(1, f"{_title(attempt)} begins anew on {fold(names)}: {reason}")
        for verdict, word, style in ((Verdict.BRK, "stopped on", ""), (Verdict.KO, "failed on", _BAD)):
            said = {name: outcome.message for name, outcome in outcomes.items() if outcome.verdict is verdict}
            for reason, names in kinds(said).items():
                why = "" if all(told.get(name) == said[name] for name in names) else f": {reason}"
                self.say(1, f"{_title(attempt)} {word} {fold(names)}{why}", style=style)

    def _step_started(self, event: StepStarted) -> None:
        self._end_step(event.attempt)
        if group := self._set_of(event.attempt):
            group.step, group.step_begun, group.transfer = event.micro_step, event.at, None
        self.say(3, f"{event.attempt.implementation}: {event.micro_step} on {fold(event.nodes)}")

    def _step_result(self, event: StepResult) -> None:
        bad = {name: outcome for name, outcome in event.outcomes.items() if outcome.verdict is not Verdict.OK}
        if group := self._set_of(event.attempt):
            group.gone |= bad.keys()
        reasons = {name: outcome.message for name, outcome in bad.items() if outcome.verdict is not Verdict.LATE}
        for reason, names in kinds(reasons).items():
            self.say(2, f"{fold(names)}: {reason}", style=_BAD)
        if group and self.verbosity >= _REASONS:
            group.told |= reasons
        if self.debug:
            self.say(0, *debug_lines(event.micro_step, event.outcomes))

    def _ended(self, event: Ended) -> None:
        ended = event.report
        counts = f"{len(ended.ok)} OK, {len(ended.ko)} KO"
        took = duration(event.at - self._begun)
        self.say(0, f"{TITLES[event.operation]} {ended.wid} ended after {took}: {counts}")
        for line in () if self._server else self._final(event):
            self.print(line, style=_BAD if line.startswith("KO ") else "")

    # --- words ------------------------------------------------------------------------------------------------------

    def say(self, level: int, *lines: str, style: str = "") -> None:
        """Print *lines* with the time in front, when the display is that talkative."""
        if level > self.verbosity or not lines:
            return
        stamp = f"{_speaker(self._server)}{time.strftime('%H:%M:%S', time.localtime(self._now))}"
        self.print(*(f"{stamp} {line}" for line in lines), style=style)

    def print(self, *lines: str, style: str = "") -> None:
        """Print *lines* as they are, if they are fit to be shown; *style* is for terminals."""
        if not lines:
            return
        text = printable("\n".join(lines))
        with self._lock:
            try:
                self._write(text, style)
            except OSError:
                hangup.unread()

    def _write(self, text: str, style: str) -> None:
        if self._view is None:
            print(text, file=self.stream, flush=True)
        else:
            self._view.print(text, style)

    def interrupted(self) -> None:
        """Say that the operation ends, and how to leave at once; safe in a signal's handler."""
        text = "Interrupted: ending cleanly (once more to leave at once)."
        if self._view is None:
            with suppress(OSError):  # nobody may read it any more
                os.write(2, f"\n{text}\n".encode())
        else:
            threading.Thread(target=self.print, args=(text,), kwargs={"style": _ODD}, daemon=True).start()

    def abandon(self) -> None:
        """Leave the terminal as it was found; safe in a signal's handler."""
        if self._view is not None:
            self._view.abandon()

    def status_lines(self) -> list[str]:
        """Where every node is, for ENTER."""
        now = self._clock()
        with self._lock:
            counts = ", ".join([self._counts(), *self._time_left(now)])
            lines = [f"--- after {duration(now - self._begun)}: {counts}"]
            for where, seconds, names, group in self._where(now):
                far = f" ({group.transfer})" if group.transfer else ""
                lines.append(f"{where} ~{seconds:.0f} s{far}: {fold(names)}")
            words = {Verdict.OK: "OK", Verdict.KO: "KO", Verdict.BRK: "at the breakpoint"}
            ended = {name: words[final.verdict] for name, final in self._finals.items()}
        return lines + [f"{word}: {fold(names)}" for word, names in _by_word(ended).items()]

    def _end_step(self, attempt: Attempt) -> None:
        group = self._set_of(attempt)
        if group and group.step:
            seconds = self._now - group.step_begun
            self.say(4, f"{attempt.implementation}: {group.step} took {seconds:.1f} s")
            group.step = ""

    def _where(self, now: float) -> Iterator[tuple[str, float, list[str], _Set]]:
        for group in self._sets.values():
            if names := group.still():
                step = f"-{group.step}" if group.step else ""
                what = f"{_speaker(group.server)}{_title(group.attempt)}{step}"
                yield what, now - (group.step_begun or group.begun), names, group

    # --- the live view ----------------------------------------------------------------------------------------------

    @contextmanager
    def live(self, stdin: IO[str] | None = None) -> Iterator[None]:
        """While it lasts: a live view where the stream is a terminal; ENTER shows the state where *stdin* is one."""
        source = sys.stdin if stdin is None else stdin
        if source is not None and source.isatty():
            threading.Thread(target=self._answer_enter, args=(source,), daemon=True, name="enter").start()
        if self.plain:
            yield
            return
        from kadeploy.cli.live import View  # noqa: PLC0415 - a tenth of a second that scripts need not pay

        self._view = View(self.stream, self._rows, source)
        try:
            with self._view.shown():
                yield
        finally:
            self._view = None

    def _answer_enter(self, source: IO[str]) -> None:
        last = 0.0
        with suppress(OSError, ValueError):  # the terminal is gone, or the tool has closed its input
            for _ in source:
                if time.monotonic() - last >= 1.0:
                    last = time.monotonic()
                    self.print(*self.status_lines())

    def _rows(self) -> list[Row]:
        from kadeploy.cli.live import Row  # noqa: PLC0415 - see `live`

        now = self._clock()
        with self._lock:
            rows = [
                Row(
                    f"{seconds:4.0f} s",
                    where,
                    printable(fold(names)),
                    group.transfer.share if group.transfer else None,
                    str(group.transfer or ""),
                )
                for where, seconds, names, group in self._where(now)
            ]
            what = ", ".join(["in all", *self._time_left(now)])
            return [*rows, Row(duration(now - self._begun), what, self._counts())]

    def _counts(self) -> str:
        """How many nodes are where: ``94 on their way, 3 OK, 3 KO``."""
        by_verdict = Counter(final.verdict for final in self._finals.values())
        left = sum(self._nodes.values()) - len(self._finals)
        good = by_verdict[Verdict.OK] + by_verdict[Verdict.BRK]
        ways = {"on their way": left, "OK": good, "KO": by_verdict[Verdict.KO]}
        return ", ".join(f"{count} {word}" for word, count in ways.items() if count)

    def _time_left(self, now: float) -> list[str]:
        """Until the last set of nodes is done; empty where one of them cannot be told of."""
        sets = [(group, names) for group in self._sets.values() if (names := group.still())]
        if not sets:
            return []
        times = [self._left(group, names, now) for group, names in sets]
        known = [seconds for seconds in times if seconds is not None]
        return [forecast.told(max(known))] if len(known) == len(times) else []

    def _left(self, group: _Set, names: Sequence[str], now: float) -> float | None:
        found = self._forecasts.get(group.server)
        return None if found is None else found.left(group.attempt, names, now - group.begun)


def debug_lines(micro_step: str, outcomes: Mapping[str, Outcome]) -> list[str]:
    """Everything that commands said, nodes that agree together (``-d``)."""
    groups: dict[tuple[int, str, str], list[str]] = {}
    for name, outcome in outcomes.items():
        groups.setdefault((outcome.rc, outcome.stdout.rstrip(), outcome.stderr.rstrip()), []).append(name)
    lines = []
    for (rc, stdout, stderr), names in groups.items():
        lines.append(f"[{micro_step}] {fold(names)}: status {rc}")
        lines += [f"    out: {line}" for line in stdout.splitlines()]
        lines += [f"    err: {line}" for line in stderr.splitlines()]
    return lines


def duration(seconds: float) -> str:
    """For people.

    >>> duration(45), duration(192.4), duration(3600)
    ('45 s', '3 min 12 s', '1 h 0 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _speaker(server: str) -> str:
    return f"[{server}] " if server else ""


def _title(attempt: Attempt) -> str:
    return f"{attempt.implementation} (retry {attempt.retry})" if attempt.retry else attempt.implementation


def _by_word(words: Mapping[str, str]) -> dict[str, list[str]]:
    """Names by what is said about them."""
    groups: dict[str, list[str]] = {}
    for name, word in words.items():
        groups.setdefault(word, []).append(name)
    return groups


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} node{'s' if len(names) != 1 else ''}"
