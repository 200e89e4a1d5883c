"""What people see of an operation: time-stamped lines, and on a terminal a live view under them. Rich's one home.

Levels: 0 beginning, end, nodes left out and final lists; 1 macro-steps, failures and where sets of nodes part;
2 failures within micro-steps and breakpoints; 3 the plan and each micro-step; 4 how long each micro-step took.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any

from kadeploy.broadcast.progress import Transfer
from kadeploy.cli import hangup
from kadeploy.cli.shell import is_plain
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
)
from kadeploy.nodeset import fold, natural_key
from kadeploy.operations.plan import lines as plan_lines
from kadeploy.printable import printable
from kadeploy.workflow import Attempt, Final, Outcome, Verdict

TITLES = {"deploy": "Deployment", "reboot": "Reboot", "power": "Power operation"}
DONE = {"deploy": "deployed", "reboot": "rebooted", "power": "switched"}


@dataclass
class _Set:
    """Nodes that go through an attempt together; times are Unix seconds."""

    attempt: Attempt
    nodes: tuple[str, ...]
    begun: float
    step: str = ""
    step_begun: float = 0.0
    transfer: Transfer | None = None
    """How far the broadcast of this micro-step is."""
    gone: set[str] = field(default_factory=set)
    """Nodes with a KO or at a breakpoint."""

    def still(self) -> list[str]:
        return [node for node in self.nodes if node not in self.gone]


class Display:
    """A listener of an operation that prints what happens, with the time at which it happened.

    *stream* gets plain lines; on a terminal they scroll above a live view while the display is entered as a context.
    *final* makes the last lines of what has ended.
    """

    def __init__(
        self,
        verbosity: int,
        debug: bool = False,
        stream: IO[str] | None = None,
        final: Callable[[Ended], list[str]] | None = None,
    ) -> None:
        self.verbosity = verbosity
        self.debug = debug
        self.stream = sys.stdout if stream is None else stream
        self._final = final or report_lines
        self._sets: dict[int, _Set] = {}
        self._finals: dict[str, Final] = {}
        self._begun = time.time()
        self._now = self._begun
        self._lock = threading.RLock()
        self._live: Any = None

    # --- a listener -------------------------------------------------------------------------------------------------

    def __call__(self, event: Event) -> None:
        """Show *event*."""
        with self._lock:
            self._now = event.at
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case Began():
                self._began(event)
            case LeftOut():
                for reason, names in _by_word(event.reasons).items():
                    self.say(0, f"left out: {fold(names)}: {reason}")
            case AttemptStarted():
                self._attempt_started(event)
            case AttemptEnded():
                self._attempt_ended(event)
            case StepStarted():
                self._step_started(event)
            case StepResult():
                self._step_result(event)
            case Progress():
                if group := self._sets.get(event.attempt.number):
                    group.transfer = event.transfer
            case Finished():
                self._finals |= event.finals
            case Note():
                self.say(0, event.text)
            case Ended():
                self._ended(event)

    def _began(self, event: Began) -> None:
        self._begun = event.at
        names = [name for group in event.groups.values() for name in group]
        self.say(0, f"{TITLES[event.operation]} {event.wid} started on {_count(names)}: {fold(names)}")
        for note in event.notes:
            self.say(0, note)
        for cluster, plan in event.plans.items():
            self.say(3, f"plan of cluster {cluster}:", *(f"    {line}" for line in plan_lines(plan)))

    def _attempt_started(self, event: AttemptStarted) -> None:
        attempt = event.attempt
        self._sets[attempt.number] = _Set(attempt, event.nodes, event.at)
        self.say(1, f"{_title(attempt)} {'continues' if attempt.goes_on else 'begins'} on {fold(event.nodes)}")

    def _attempt_ended(self, event: AttemptEnded) -> None:
        attempt, outcomes = event.attempt, event.outcomes
        self._end_step(attempt)
        self._sets.pop(attempt.number, None)
        ok = [name for name, outcome in outcomes.items() if outcome.verdict is Verdict.OK]
        if ok:
            self.say(1, f"{_title(attempt)} done in {event.seconds:.0f} s on {fold(ok)}")
        late = [name for name, outcome in outcomes.items() if outcome.verdict is Verdict.LATE]
        if late:
            self.say(1, f"{_title(attempt)} is late on {fold(late)}: the other nodes go on without waiting for them")
        for verdict, word in ((Verdict.BRK, "stopped on"), (Verdict.KO, "failed on")):
            said = {name: outcome.message for name, outcome in outcomes.items() if outcome.verdict is verdict}
            for reason, names in _by_word(said).items():
                self.say(1, f"{_title(attempt)} {word} {fold(names)}: {reason}")

    def _step_started(self, event: StepStarted) -> None:
        self._end_step(event.attempt)
        if group := self._sets.get(event.attempt.number):
            group.step, group.step_begun, group.transfer = event.micro_step, event.at, None
        self.say(3, f"{event.attempt.implementation}: {event.micro_step} on {fold(event.nodes)}")

    def _step_result(self, event: StepResult) -> None:
        bad = {name: outcome for name, outcome in event.outcomes.items() if outcome.verdict is not Verdict.OK}
        if group := self._sets.get(event.attempt.number):
            group.gone |= bad.keys()
        reasons = {name: outcome.message for name, outcome in bad.items() if outcome.verdict is not Verdict.LATE}
        for reason, names in _by_word(reasons).items():
            self.say(2, f"{fold(names)}: {reason}")
        if self.debug:
            self.say(0, *debug_lines(event.micro_step, event.outcomes))

    def _ended(self, event: Ended) -> None:
        report = event.report
        seconds = event.at - self._begun
        counts = f"{len(report.ok)} OK, {len(report.ko)} KO"
        self.say(0, f"{TITLES[event.operation]} {report.wid} ended after {seconds:.0f} s: {counts}")
        self.print(*self._final(event))

    # --- words ------------------------------------------------------------------------------------------------------

    def say(self, level: int, *lines: str) -> None:
        """Print *lines* with the time in front, when the display is that talkative."""
        if level > self.verbosity or not lines:
            return
        stamp = time.strftime("%H:%M:%S", time.localtime(self._now))
        self.print(*(f"{stamp} {line}" for line in lines))

    def print(self, *lines: str) -> None:
        """Print *lines* as they are, if they are fit to be shown."""
        text = printable("\n".join(lines))
        with self._lock:
            try:
                self._write(text)
            except OSError:
                hangup.unread()

    def _write(self, text: str) -> None:
        if self._live is None:
            print(text, file=self.stream, flush=True)
        else:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def status_lines(self) -> list[str]:
        """Where every node is, for ENTER."""
        now = time.time()
        with self._lock:
            lines = [f"--- after {now - self._begun:.0f} s"]
            for where, seconds, names, group in self._where(now):
                far = f" ({group.transfer})" if group.transfer else ""
                lines.append(f"{where} ~{seconds:.0f} s{far}: {fold(names)}")
            words = {Verdict.OK: "OK", Verdict.KO: "KO", Verdict.BRK: "at the breakpoint"}
            ended = {name: words[final.verdict] for name, final in self._finals.items()}
        return lines + [f"{word}: {fold(names)}" for word, names in _by_word(ended).items()]

    def _end_step(self, attempt: Attempt) -> None:
        group = self._sets.get(attempt.number)
        if group and group.step:
            seconds = self._now - group.step_begun
            self.say(4, f"{attempt.implementation}: {group.step} took {seconds:.1f} s")
            group.step = ""

    def _where(self, now: float) -> Iterator[tuple[str, float, list[str], _Set]]:
        for group in self._sets.values():
            if names := group.still():
                step = f"-{group.step}" if group.step else ""
                yield f"{_title(group.attempt)}{step}", now - (group.step_begun or group.begun), names, group

    # --- the live view ----------------------------------------------------------------------------------------------

    @contextmanager
    def live(self, stdin: IO[str] | None = None) -> Iterator[None]:
        """While it lasts: a live view where the stream is a terminal; ENTER shows the state where *stdin* is one."""
        source = sys.stdin if stdin is None else stdin
        if source is not None and source.isatty():
            threading.Thread(target=self._answer_enter, args=(source,), daemon=True, name="enter").start()
        if is_plain(self.stream):
            yield
            return
        from rich.console import Console  # noqa: PLC0415 - a tenth of a second that scripts need not pay
        from rich.live import Live  # noqa: PLC0415

        console = Console(file=self.stream)
        with Live(get_renderable=self._table, console=console, refresh_per_second=2, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def _answer_enter(self, source: IO[str]) -> None:
        last = 0.0
        with suppress(OSError, ValueError):  # the terminal is gone, or the tool has closed its input
            for _ in source:
                if time.monotonic() - last >= 1.0:
                    last = time.monotonic()
                    self.print(*self.status_lines())

    def _table(self) -> Any:
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table.grid(padding=(0, 1), expand=True)
        for width in (None, None, 1, None, None):  # names give way first
            table.add_column(no_wrap=True, overflow="ellipsis", ratio=width)
        with self._lock:
            for where, seconds, names, group in self._where(time.time()):
                far = group.transfer
                bar = ProgressBar(total=1.0, completed=far.share, width=20) if far else ""
                cells = (Text(f"{seconds:4.0f} s", style="dim"), Text(where, style="cyan"), Text(fold(names)))
                table.add_row(*cells, bar, Text(str(far) if far else ""))
            counts = [sum(f.verdict is verdict for f in self._finals.values()) for verdict in (Verdict.OK, Verdict.KO)]
        if any(counts):
            table.add_row("", Text("ended"), Text(f"{counts[0]} OK, {counts[1]} KO"), "", "")
        return table


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


def report_lines(event: Ended) -> list[str]:
    """The final lists, cluster by cluster: one node per line, with the reason where it failed."""
    done, good, ko, lines = DONE[event.operation], set(event.report.ok), event.report.ko, []
    for cluster, names in event.groups.items():
        ordered = sorted(names, key=natural_key)
        fine = [name for name in ordered if name in good]
        bad = [name for name in ordered if name in ko]
        if fine:
            lines += [f"Nodes correctly {done} on cluster {cluster}", *fine]
        if bad:
            lines += [f"Nodes not correctly {done} on cluster {cluster}", *(f"{name} ({ko[name]})" for name in bad)]
    return lines


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
