"""What people see of an operation: time-stamped lines, and on a terminal a live view under them. Rich's one home.

Levels: 0 beginning, end, nodes left out and final lists; 1 macro-steps, failures and where sets of nodes part;
2 failures within micro-steps and breakpoints; 3 the plan and each micro-step; 4 how long each micro-step took.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from kadeploy.nodeset import fold, natural_key
from kadeploy.workflow import Attempt, Final, Outcome, Plan, Verdict

TITLES = {"deploy": "Deployment", "reboot": "Reboot", "power": "Power operation"}
DONE = {"deploy": "deployed", "reboot": "rebooted", "power": "switched"}


class Shown(Protocol):
    """The parts of an operation that are shown; `kadeploy.operations.admission.Work` has them."""

    @property
    def wid(self) -> str:
        """Workflow id."""

    @property
    def operation(self) -> str:
        """deploy, reboot or power."""

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Nodes by cluster."""

    @property
    def plans(self) -> Mapping[str, Plan]:
        """Plan by cluster."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know."""

    @property
    def folder(self) -> Path:
        """Folder of the workflow."""


@dataclass
class _Set:
    """Nodes that go through an attempt together."""

    attempt: Attempt
    nodes: tuple[str, ...]
    begun: float
    step: str = ""
    step_begun: float = 0.0
    gone: set[str] = field(default_factory=set)
    """Nodes with a KO or at a breakpoint."""

    def still(self) -> list[str]:
        return [node for node in self.nodes if node not in self.gone]


class Display:
    """A listener of `kadeploy.operations.launch` that prints.

    *stream* gets plain lines; on a terminal they scroll above a live view while the display is entered as a context.
    """

    def __init__(self, verbosity: int, debug: bool = False, stream: IO[str] | None = None) -> None:
        self.verbosity = verbosity
        self.debug = debug
        self.stream = sys.stdout if stream is None else stream
        self._sets: dict[int, _Set] = {}
        self._finals: dict[str, Final] = {}
        self._folder = Path()
        self._begun = time.monotonic()
        self._lock = threading.RLock()
        self._live: Any = None

    # --- a listener -------------------------------------------------------------------------------------------------

    def began(self, work: Shown) -> None:
        """The operation begins."""
        self._folder = work.folder
        names = [name for group in work.groups.values() for name in group]
        self.say(0, f"{TITLES[work.operation]} {work.wid} started on {_count(names)}: {fold(names)}")
        for note in work.notes:
            self.say(0, note)
        for cluster, plan in work.plans.items():
            if cluster in work.groups:
                self.say(3, f"plan of cluster {cluster}:", *(f"    {line}" for line in plan_lines(plan)))

    def left_out(self, reasons: Mapping[str, str]) -> None:
        """Nodes that take no part."""
        for reason, names in _by_word(reasons).items():
            self.say(0, f"left out: {fold(names)}: {reason}")

    def attempt_started(self, attempt: Attempt, names: tuple[str, ...]) -> None:
        """A macro-step begins."""
        with self._lock:
            self._sets[attempt.number] = _Set(attempt, names, time.monotonic())
        self.say(1, f"{_title(attempt)} {'continues' if attempt.goes_on else 'begins'} on {fold(names)}")

    def attempt_ended(self, attempt: Attempt, outcomes: Mapping[str, Outcome], seconds: float) -> None:
        """A macro-step is over: its nodes part."""
        with self._lock:
            self._end_step(attempt)
            self._sets.pop(attempt.number, None)
        ok = [name for name, outcome in outcomes.items() if outcome.verdict is Verdict.OK]
        if ok:
            self.say(1, f"{_title(attempt)} done in {seconds:.0f} s on {fold(ok)}")
        late = [name for name, outcome in outcomes.items() if outcome.verdict is Verdict.LATE]
        if late:
            self.say(1, f"{_title(attempt)} is late on {fold(late)}: the other nodes go on without waiting for them")
        for verdict, word in ((Verdict.BRK, "stopped on"), (Verdict.KO, "failed on")):
            said = {name: outcome.message for name, outcome in outcomes.items() if outcome.verdict is verdict}
            for reason, names in _by_word(said).items():
                self.say(1, f"{_title(attempt)} {word} {fold(names)}: {reason}")

    def step_started(self, attempt: Attempt, micro_step: str, names: tuple[str, ...]) -> None:
        """A micro-step begins."""
        with self._lock:
            self._end_step(attempt)
            if group := self._sets.get(attempt.number):
                group.step, group.step_begun = micro_step, time.monotonic()
        self.say(3, f"{attempt.implementation}: {micro_step} on {fold(names)}")

    def step_result(self, attempt: Attempt, micro_step: str, outcomes: Mapping[str, Outcome]) -> None:
        """A task of a micro-step has ended."""
        bad = {name: outcome for name, outcome in outcomes.items() if outcome.verdict is not Verdict.OK}
        with self._lock:
            if group := self._sets.get(attempt.number):
                group.gone |= bad.keys()
        bad = {name: outcome for name, outcome in bad.items() if outcome.verdict is not Verdict.LATE}
        for reason, names in _by_word({name: outcome.message for name, outcome in bad.items()}).items():
            self.say(2, f"{fold(names)}: {reason}")
        if self.debug:
            self.say(0, *debug_lines(micro_step, outcomes))

    def finished(self, finals: Mapping[str, Final]) -> None:
        """Nodes have come to their end."""
        with self._lock:
            self._finals |= finals

    def ended(self, operation: str, wid: str, ok: int, ko: int) -> None:
        """The operation is over."""
        self.say(0, f"{TITLES[operation]} {wid} ended after {time.monotonic() - self._begun:.0f} s: {ok} OK, {ko} KO")

    def note(self, text: str) -> None:
        """Something that people should know."""
        self.say(0, text)

    # --- words ------------------------------------------------------------------------------------------------------

    def say(self, level: int, *lines: str) -> None:
        """Print *lines* with the time in front, when the display is that talkative."""
        if level > self.verbosity or not lines:
            return
        stamp = time.strftime("%H:%M:%S")
        self.print(*(f"{stamp} {line}" for line in lines))

    def print(self, *lines: str) -> None:
        """Print *lines* as they are."""
        text = "\n".join(map(_printable, lines))
        with self._lock:
            if self._live is None:
                print(text, file=self.stream, flush=True)
            else:
                self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def status_lines(self) -> list[str]:
        """Where every node is, for ENTER."""
        now = time.monotonic()
        with self._lock:
            lines = [f"--- after {now - self._begun:.0f} s"]
            lines += [f"{where} ~{seconds:.0f} s: {fold(names)}" for where, seconds, names, _ in self._where(now)]
            words = {Verdict.OK: "OK", Verdict.KO: "KO", Verdict.BRK: "at the breakpoint"}
            ended = {name: words[final.verdict] for name, final in self._finals.items()}
        return lines + [f"{word}: {fold(names)}" for word, names in _by_word(ended).items()]

    def _end_step(self, attempt: Attempt) -> None:
        group = self._sets.get(attempt.number)
        if group and group.step:
            seconds = time.monotonic() - group.step_begun
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
        self._begun = time.monotonic()
        source = sys.stdin if stdin is None else stdin
        if source is not None and source.isatty():
            threading.Thread(target=self._answer_enter, args=(source,), daemon=True, name="enter").start()
        if not self.stream.isatty() or os.environ.get("TERM") == "dumb":
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
        for width in (None, None, 1, None):  # names give way first
            table.add_column(no_wrap=True, overflow="ellipsis", ratio=width)
        now = time.monotonic()
        with self._lock:
            for where, seconds, names, group in self._where(now):
                share = progress(self._folder, group.attempt)
                bar = ProgressBar(total=1.0, completed=share, width=24) if share is not None else ""
                table.add_row(Text(f"{seconds:4.0f} s", style="dim"), Text(where, style="cyan"), Text(fold(names)), bar)
            counts = [sum(f.verdict is verdict for f in self._finals.values()) for verdict in (Verdict.OK, Verdict.KO)]
        if any(counts):
            table.add_row("", Text("ended"), Text(f"{counts[0]} OK, {counts[1]} KO"), "")
        return table


def progress(folder: Path, attempt: Attempt) -> float | None:
    """How much of the image has arrived, 0 to 1, from the attempt's ``progress.json``; None when nobody tells."""
    for path in folder.glob(f"{attempt.number:02d}-*/progress.json"):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            total = float(told["total"])
            return min(1.0, float(told["done"]) / total) if total else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return None


def plan_lines(plan: Plan) -> list[str]:
    """Macro-steps with their implementations in order of preference."""
    lines = []
    for macro_step, ways in plan:
        told = []
        for way in ways:
            limit = f"{way.timeout} s each" if way.timeout else "no time limit"
            told.append(f"{way.name} ({1 + way.retries} {'try' if not way.retries else 'tries'}, {limit})")
        lines.append(f"{macro_step}: {', then '.join(told)}")
    return lines


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


def report_lines(
    operation: str, groups: Mapping[str, Sequence[str]], ok: Iterable[str], ko: Mapping[str, str]
) -> list[str]:
    """The final lists, cluster by cluster: one node per line, with the reason where it failed."""
    done, good, lines = DONE[operation], set(ok), []
    for cluster, names in groups.items():
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


def _printable(line: str) -> str:
    """*line* without the control characters that a node's output may hold: they would reach the user's terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in line)


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} node{'s' if len(names) != 1 else ''}"
