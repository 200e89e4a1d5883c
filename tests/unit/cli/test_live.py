"""The live view on a terminal: what is on the screen when a person types, narrows the window, or leaves.

The screen is that of pyte, which understands what a terminal is sent; the program is a process of its own on a
pseudo-terminal.
"""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pexpect
import pyte
import pytest

from kadeploy.cli.live import Row, View

CHILD = """\
import os, signal, sys, threading, time
from kadeploy.cli.display import Display
from kadeploy.cli import summary
from tests.unit.cli.test_display import BEGAN, FIRST, KO, NAMES, OK
from kadeploy.events import AttemptEnded, AttemptStarted, Ended, Report, StepStarted

display = Display(None, final_for_people=lambda event: summary.for_people(event, "kadeploy3"))
leave = threading.Event()

def interrupt(*_):
    if leave.is_set():
        display.abandon()
        os._exit(130)
    leave.set()
    display.interrupted()

signal.signal(signal.SIGINT, interrupt)
signal.signal(signal.SIGUSR1, lambda *_: proceed.set())
proceed = threading.Event()

with display.live():
    display(BEGAN)
    display(AttemptStarted(attempt=FIRST, nodes=NAMES))
    display(StepStarted(attempt=FIRST, micro_step="reboot", nodes=NAMES))
    while not proceed.wait(0.05):
        pass
    display(AttemptEnded(attempt=FIRST, outcomes={"n-1": OK, "n-2": OK, "n-3": KO}, seconds=12.0))
    report = Report("D-1", ok=NAMES[:2], ko={"n-3": KO.message})
    display(Ended(operation="deploy", groups={"gdx": NAMES}, report=report))
"""


class Terminal:
    """A program on a terminal of 100 columns and 30 lines, and what is to be seen there."""

    def __init__(self) -> None:
        self.screen = pyte.Screen(100, 30)
        self.stream = pyte.Stream(self.screen)
        self.cleared = 0
        """How often the program has begun on an empty screen."""
        root = Path(__file__).resolve().parents[3]
        env = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(root)}
        for name in ("NO_COLOR", "KADEPLOY_PLAIN", "COLUMNS", "LINES"):
            env.pop(name, None)
        self.child = pexpect.spawn(
            sys.executable, ["-c", CHILD], env=env, cwd=str(root), dimensions=(30, 100), encoding="utf-8"
        )

    def read(self) -> None:
        """Take what has been written within a tenth of a second."""
        try:
            text = self.child.read_nonblocking(65536, timeout=0.1)
            self.cleared += text.count("\x1b[2J")
            self.stream.feed(text)
        except (pexpect.TIMEOUT, pexpect.EOF):
            time.sleep(0.01)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            self.read()

    def sees(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def end(self) -> int | None:
        """Let the operation end; the program's status."""
        self.child.kill(signal.SIGUSR1)
        return self.left()

    def left(self) -> int | None:
        while self.child.isalive():
            self.read()
        self.read()
        return self.child.exitstatus


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    try:
        made.until(lambda: made.sees("SetDeploymentEnvUntrusted-reboot"))
        made.until(lambda: made.sees("in all"))
        yield made
    finally:
        made.child.close(force=True)


def is_echoing(terminal: Terminal) -> bool:
    """Whether the terminal shows what is typed, as it did before."""
    return bool(terminal.child.getecho())


EXPECTED = [
    r"\d\d:\d\d:\d\d Deployment D-1 started on 3 nodes: n-\[1-3\]",
    r"\d\d:\d\d:\d\d a note",
    r"\d\d:\d\d:\d\d SetDeploymentEnvUntrusted begins on n-\[1-3\]",
    r"\d\d:\d\d:\d\d SetDeploymentEnvUntrusted done in 12 s on n-\[1-2\]",
    r"\d\d:\d\d:\d\d SetDeploymentEnvUntrusted failed on n-3: SetDeploymentEnvUntrusted-reboot: no answer",
    r"\d\d:\d\d:\d\d Deployment D-1 ended after .*: 2 OK, 1 KO",
    r"OK  2 nodes: n-\[1-2\]",
    r"KO  1 node: n-3",
    r"    SetDeploymentEnvUntrusted-reboot: no answer",
    r"once more, these alone  kadeploy3 -m 'n-3' and the same options",
    r"what each of them did   kastat3 -d -w D-1 -F hostname,step1,step2,step3,error",
]
"""All that stays on the screen."""


def assert_clean(terminal: Terminal, *more: str) -> None:
    patterns = [re.compile(pattern) for pattern in (*EXPECTED, *more)]
    odd = [line for line in terminal.lines if not any(pattern.fullmatch(line) for pattern in patterns)]
    assert odd == []
    times = [sum(bool(pattern.fullmatch(line)) for line in terminal.lines) for pattern in patterns]
    assert times == [1] * len(patterns)
    assert not terminal.screen.cursor.hidden
    assert is_echoing(terminal)


def test_the_view_shows_where_nodes_are_and_goes_when_all_is_said(terminal: Terminal) -> None:
    assert terminal.sees("3 on their way")
    assert terminal.end() == 0
    assert_clean(terminal)


def test_failures_are_red(terminal: Terminal) -> None:
    terminal.end()
    red = [
        terminal.screen.display[row].strip()
        for row, line in terminal.screen.buffer.items()
        if any(cell.fg == "red" for cell in line.values())
    ]
    assert [line.split(" ", 1)[1] if line[0].isdigit() else line for line in red] == [
        "SetDeploymentEnvUntrusted failed on n-3: SetDeploymentEnvUntrusted-reboot: no answer",
        "KO  1 node: n-3",
    ]


def test_enter_leaves_no_line_of_the_view_behind(terminal: Terminal) -> None:
    terminal.child.send("\n")
    terminal.until(lambda: terminal.sees("--- after"))
    terminal.child.send("nonsense\n\n\n")
    time.sleep(1)
    assert terminal.end() == 0
    assert_clean(terminal, r"--- after .*: 3 on their way", r"SetDeploymentEnvUntrusted-reboot ~\d+ s: n-\[1-3\]")


def test_a_narrower_window_leaves_no_line_of_the_view_behind(terminal: Terminal) -> None:
    for times, columns in enumerate((60, 90), start=1):
        terminal.child.setwinsize(30, columns)
        terminal.screen.resize(30, columns)
        terminal.until(lambda times=times: terminal.cleared == times)
        terminal.until(lambda: terminal.sees("in all"))
    assert sum("begins on" in line for line in terminal.lines) == 1
    terminal.screen.resize(30, 100)
    assert terminal.end() == 0
    assert not any("in all" in line or "-reboot ~" in line for line in terminal.lines)
    assert terminal.sees("KO  1 node: n-3")


def test_ctrl_c_is_told_above_the_view(terminal: Terminal) -> None:
    terminal.child.sendintr()
    terminal.until(lambda: terminal.sees("Interrupted: ending cleanly"))
    assert terminal.end() == 0
    assert_clean(terminal, r"Interrupted: ending cleanly \(once more to leave at once\)\.")


def test_a_second_ctrl_c_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    assert terminal.screen.cursor.hidden
    assert not is_echoing(terminal)
    terminal.child.sendintr()
    terminal.until(lambda: terminal.sees("Interrupted"))
    terminal.child.sendintr()
    assert terminal.left() == 130
    assert not terminal.screen.cursor.hidden
    assert is_echoing(terminal)


def test_lines_are_printed_while_the_view_waits_for_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever prints may hold what the rows need: each would wait for the other, and the tool would hang."""
    monkeypatch.setenv("TERM", "xterm")
    screen, program = pty.openpty()
    turn, asked = threading.Lock(), threading.Event()

    def rows() -> list[Row]:
        asked.set()
        with turn:
            return [Row("1 s", "reboot", "n-1")]

    def drain() -> None:
        with suppress(OSError):  # how Linux tells the end of a terminal
            while os.read(screen, 4096):
                pass

    threading.Thread(target=drain, daemon=True).start()
    with os.fdopen(program, "w", encoding="utf-8") as stream:
        view = View(stream, rows)
        with view.shown():
            asked.clear()
            with turn:
                assert asked.wait(60)
                printing = threading.Thread(target=view.print, args=("a line",), daemon=True)
                printing.start()
                printing.join(60)
                has_printed = not printing.is_alive()
    os.close(screen)
    assert has_printed
