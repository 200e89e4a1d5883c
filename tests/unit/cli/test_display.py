"""What people see, by level, on a plain stream and on a terminal."""

from __future__ import annotations

import io
import itertools
import os
import pty
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

import pytest

from kadeploy.broadcast.progress import Transfer
from kadeploy.cli.display import Display, debug_lines, plan_lines
from kadeploy.config.cluster import Implementation
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
    Report,
    StepResult,
    StepStarted,
)
from kadeploy.workflow import Attempt, Final, Outcome, Plan, Verdict

FIRST = Attempt("SetDeploymentEnv", "SetDeploymentEnvUntrusted", 0, 60, 1)
RETRY = Attempt("SetDeploymentEnv", "SetDeploymentEnvUntrusted", 1, 60, 2)
NAMES = ("n-1", "n-2", "n-3")
OK = Outcome(Verdict.OK)
KO = Outcome(Verdict.KO, "SetDeploymentEnvUntrusted-reboot: no answer")


BEGAN = Began(
    at=100.0,
    wid="D-1",
    operation="deploy",
    user="alice",
    groups={"gdx": NAMES},
    plans={"gdx": (("SetDeploymentEnv", (Implementation(name="SetDeploymentEnvUntrusted", retries=1, timeout=60),)),)},
    notes=("a note",),
)
STORY: tuple[Event, ...] = (
    BEGAN,
    LeftOut(at=100.0, reasons={"n-8": "busy", "n-9": "busy"}),
    AttemptStarted(at=100.0, attempt=FIRST, nodes=NAMES),
    StepStarted(at=101.0, attempt=FIRST, micro_step="reboot", nodes=NAMES),
    StepResult(at=104.0, attempt=FIRST, micro_step="reboot", outcomes={"n-1": OK, "n-2": OK, "n-3": KO}),
    StepStarted(at=104.0, attempt=FIRST, micro_step="wait_reboot", nodes=NAMES[:2]),
    AttemptEnded(at=112.0, attempt=FIRST, outcomes={"n-1": OK, "n-2": OK, "n-3": KO}, seconds=12.0),
    AttemptStarted(at=112.0, attempt=RETRY, nodes=("n-3",)),
)
"""A macro-step in which n-3 fails."""


def story(display: Display) -> None:
    for event in STORY:
        display(event)


def told(level: int, debug: bool = False) -> list[str]:
    stream = io.StringIO()
    story(Display(level, debug, stream))
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    return [line[9:] for line in lines]


def test_each_level_adds_to_the_one_before() -> None:
    reason = ": SetDeploymentEnvUntrusted-reboot: no answer"
    by_level = [[line.removesuffix(reason) for line in told(level)] for level in range(5)]
    for less, more in itertools.pairwise(by_level):
        assert len(more) > len(less)
        assert [line for line in more if line in less] == less


def test_level_0_tells_the_beginning_and_who_is_left_out() -> None:
    assert told(0) == ["Deployment D-1 started on 3 nodes: n-[1-3]", "a note", "left out: n-[8-9]: busy"]


def test_level_1_tells_where_a_set_of_nodes_parts() -> None:
    assert told(1)[3:] == [
        "SetDeploymentEnvUntrusted begins on n-[1-3]",
        "SetDeploymentEnvUntrusted done in 12 s on n-[1-2]",
        "SetDeploymentEnvUntrusted failed on n-3: SetDeploymentEnvUntrusted-reboot: no answer",
        "SetDeploymentEnvUntrusted (retry 1) begins on n-3",
    ]


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_the_reason_of_a_failure_is_told_once_when_it_happens_from_level_2_on(level: int) -> None:
    reason = "SetDeploymentEnvUntrusted-reboot: no answer"
    assert [line for line in told(level) if reason in line] == [
        f"n-3: {reason}" if level >= 2 else f"SetDeploymentEnvUntrusted failed on n-3: {reason}"
    ]


def test_a_failure_that_is_not_that_of_a_micro_step_is_told_at_any_level() -> None:
    stream = io.StringIO()
    display = Display(3, stream=stream)
    story(display)
    display(
        AttemptEnded(at=120.0, attempt=RETRY, outcomes={"n-3": Outcome(Verdict.KO, "time-out of 60 s")}, seconds=8.0)
    )
    assert stream.getvalue().endswith("SetDeploymentEnvUntrusted (retry 1) failed on n-3: time-out of 60 s\n")


def test_nodes_that_are_lost_with_their_worker_begin_anew_and_have_not_failed() -> None:
    said = io.StringIO()
    display = Display(1, False, said)
    lost = Outcome(Verdict.LOST, "SetDeploymentEnvUntrusted: worker w1 has said nothing for 9 s")
    for event in (
        BEGAN,
        AttemptStarted(at=100.0, attempt=FIRST, nodes=NAMES),
        AttemptEnded(at=112.0, attempt=FIRST, outcomes={"n-1": OK, "n-2": lost, "n-3": lost}, seconds=12.0),
    ):
        display(event)
    [line] = [line for line in said.getvalue().splitlines() if "w1" in line]
    assert "begins anew on n-[2-3]" in line
    assert "failed" not in said.getvalue()


def test_level_3_tells_the_plan_and_each_micro_step() -> None:
    lines = told(3)
    assert "    SetDeploymentEnv: SetDeploymentEnvUntrusted (2 tries, 60 s each)" in lines
    assert "SetDeploymentEnvUntrusted: wait_reboot on n-[1-2]" in lines


def test_level_4_tells_how_long_micro_steps_took() -> None:
    assert [line for line in told(4) if " took " in line] == [
        "SetDeploymentEnvUntrusted: reboot took 3.0 s",
        "SetDeploymentEnvUntrusted: wait_reboot took 8.0 s",
    ]


def test_of_several_servers_each_line_and_each_set_of_nodes_says_whose_it_is() -> None:
    """Attempts of two servers have the same numbers."""
    stream = io.StringIO()
    display = Display(1, stream=stream)
    for event in STORY[:4]:
        for server in ("paris", "lyon"):
            display(Heard(server=server, told=event))
    lines = stream.getvalue().splitlines()
    assert {line.partition(" ")[0] for line in lines} == {"[paris]", "[lyon]"}
    first, *status = display.status_lines()
    assert first.endswith(": 6 on their way")
    assert [line.partition(" ~")[0] for line in status] == [
        f"[{server}] SetDeploymentEnvUntrusted-reboot" for server in ("paris", "lyon")
    ]
    display(Heard(server="lyon", told=STORY[6]))
    assert [line.partition(" ")[0] for line in display.status_lines()[1:]] == ["[paris]"]
    ended = Ended(operation="deploy", groups={"gdx": NAMES}, report=Report("D-1", ok=NAMES))
    display(Heard(server="lyon", told=ended))
    display(ended)
    assert stream.getvalue().splitlines()[-4:] == ["Nodes correctly deployed on cluster gdx", *NAMES]
    assert stream.getvalue().count("Nodes correctly deployed") == 1


def test_debug_output_is_folded_where_nodes_agree() -> None:
    same = Outcome(Verdict.OK, stdout="mounted\n")
    assert debug_lines("mount", {"n-1": same, "n-2": same, "n-3": Outcome(Verdict.KO, rc=3, stderr="no\nway\n")}) == [
        "[mount] n-[1-2]: status 0",
        "    out: mounted",
        "[mount] n-3: status 3",
        "    err: no",
        "    err: way",
    ]


def test_debug_is_told_at_any_level() -> None:
    assert "[reboot] n-[1-3]: status 0" in told(0, debug=True)


def test_what_nodes_say_cannot_steer_the_terminal() -> None:
    stream = io.StringIO()
    Display(0, stream=stream)(Note(text="evil \x1b]0;title\x07 end"))
    assert "\x1b" not in stream.getvalue()
    assert "evil" in stream.getvalue()


def test_the_report_lists_nodes_by_cluster_in_natural_order() -> None:
    groups = {"gdx": ("gdx-10", "gdx-2"), "nvm": ("nvm-1",)}
    report = Report("D-1", ok=("gdx-10", "gdx-2"), ko={"nvm-1": "A-b: c"})
    stream = io.StringIO()
    display = Display(0, stream=stream)
    display(BEGAN)
    display(Ended(at=160.0, operation="deploy", groups=groups, report=report))
    assert stream.getvalue().splitlines()[-6:] == [
        f"{time.strftime('%H:%M:%S', time.localtime(160.0))} Deployment D-1 ended after 1 min 0 s: 2 OK, 1 KO",
        "Nodes correctly deployed on cluster gdx",
        "gdx-2",
        "gdx-10",
        "Nodes not correctly deployed on cluster nvm",
        "nvm-1 (A-b: c)",
    ]


def test_a_plan_tells_tries_and_limits_in_order_of_preference() -> None:
    plan: Plan = (
        (
            "BootNewEnv",
            (Implementation(name="BootNewEnvKexec", retries=1, timeout=60), Implementation(name="BootNewEnvClassical")),
        ),
    )
    assert plan_lines(plan) == [
        "BootNewEnv: BootNewEnvKexec (2 tries, 60 s each), then BootNewEnvClassical (1 try, no time limit)"
    ]


def test_the_status_says_where_every_node_is() -> None:
    display = Display(0, stream=io.StringIO())
    story(display)
    display(Finished(finals={"n-1": Final(Verdict.OK), "n-2": Final(Verdict.BRK)}))
    lines = display.status_lines()
    assert re.fullmatch(r"SetDeploymentEnvUntrusted \(retry 1\) ~\d+ s: n-3", lines[1])
    assert lines[2:] == ["OK: n-1", "at the breakpoint: n-2"]


def test_failed_nodes_leave_the_status_line_of_their_set() -> None:
    display = Display(0, stream=io.StringIO())
    for event in STORY[:5]:
        display(event)
    assert re.fullmatch(r"SetDeploymentEnvUntrusted-reboot ~\d+ s: n-\[1-2\]", display.status_lines()[1])


def on_terminal(act: Callable[[TextIO], None]) -> str:
    """What appears on a terminal while *act* writes to it."""
    screen, program = pty.openpty()
    seen = bytearray()

    def read() -> None:
        with suppress(OSError):  # how Linux tells the end of a terminal
            while data := os.read(screen, 4096):
                seen.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(program, "w", encoding="utf-8") as stream:
        act(stream)
    reader.join()
    os.close(screen)
    return seen.decode(errors="replace")


def test_on_a_terminal_lines_scroll_above_a_live_view_with_a_bar_for_the_broadcast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")

    def act(stream: TextIO) -> None:
        display = Display(1, stream=stream)
        with display.live(stdin=io.StringIO()):
            display(BEGAN)
            display(AttemptStarted(attempt=FIRST, nodes=NAMES))
            display(StepStarted(attempt=FIRST, micro_step="send_environment", nodes=NAMES))
            far = Transfer(total=4_000_000_000, done=1_000_000_000, sent=1_200_000_000, nodes=3, seconds=10.0)
            display(Progress(attempt=FIRST, nodes=NAMES, transfer=far))
            time.sleep(1)

    text = on_terminal(act)
    assert "SetDeploymentEnvUntrusted begins on n-[1-3]" in text
    assert "SetDeploymentEnvUntrusted-send_environment" in text
    assert "━" in text
    assert "25 %, 100 MB/s, 30 s left" in text


def test_the_next_micro_step_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    display = Display(0, stream=io.StringIO())
    display(AttemptStarted(attempt=FIRST, nodes=NAMES))
    display(StepStarted(attempt=FIRST, micro_step="send_environment", nodes=NAMES))
    display(Progress(attempt=FIRST, nodes=NAMES, transfer=Transfer(4, 1, 2, 3, 10.0)))
    assert "25 %" in display.status_lines()[1]
    display(StepStarted(attempt=FIRST, micro_step="sync", nodes=NAMES))
    assert "%" not in display.status_lines()[1]


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")

    def act(stream: TextIO) -> None:
        display = Display(1, stream=stream)
        with display.live(stdin=io.StringIO()):
            story(display)

    text = on_terminal(act)
    assert "begins on n-[1-3]" in text
    assert "\x1b" not in text


def test_enter_shows_where_every_node_is() -> None:
    keyboard, program = pty.openpty()
    output = io.StringIO()
    display = Display(0, stream=output)
    story(display)
    with os.fdopen(program, encoding="utf-8") as stdin, display.live(stdin=stdin):
        os.write(keyboard, b"\n")
        while "--- after" not in output.getvalue():
            time.sleep(0.01)
        os.close(keyboard)
    assert "SetDeploymentEnvUntrusted (retry 1)" in output.getvalue()
