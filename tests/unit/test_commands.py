"""Commands of the site: one grammar of placeholders, one way to run them, one way to say why they failed."""

from __future__ import annotations

import asyncio
import doctest
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy import commands, process
from kadeploy.commands import OUTPUT_LIMIT, Capture, Ended, argv, last_line, node_values
from kadeploy.errors import ConfigError

SOURCES = Path(commands.__file__).parent
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


def run(script: str, limit: float | None = None) -> Ended:
    return asyncio.run(commands.run(["bash", "-c", script], limit))


# --- words ------------------------------------------------------------------------------------------------------

VALUES = {"WORKFLOW_ID": "D-1", "NODES": ["-m", "a", "-m", "b"], "USER": ["eve; reboot"], "NONE": []}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("touch /run/hook-WORKFLOW_ID", ["touch", "/run/hook-D-1"]),
        ("a 'WORKFLOW_ID WORKFLOW_ID'", ["a", "D-1 D-1"]),
        ("kavlan NODES", ["kavlan", "-m", "a", "-m", "b"]),
        ("kavlan 'NODES'", ["kavlan", "-m", "a", "-m", "b"]),
        ("kavlan xNODES", ["kavlan", "xNODES"]),
        ("kavlan NONE", ["kavlan"]),
        ("sudo -u USER", ["sudo", "-u", "eve; reboot"]),
        ("sh -c 'echo $USER WORKFLOW_ID $HOME' USER", ["sh", "-c", "echo $USER D-1 $HOME", "eve; reboot"]),
        ("a $(b) | c ; d", ["a", "$(b)", "|", "c", ";", "d"]),
    ],
)
def test_texts_are_replaced_anywhere_and_lists_as_whole_arguments(command: str, expected: list[str]) -> None:
    assert argv(command, VALUES, "here") == expected


def test_every_command_that_the_configuration_may_hold_keeps_its_placeholders() -> None:
    power = argv("lanpower -m HOSTNAME_FQDN -b HOSTNAME_SHORT_bmc", node_values("n-1.site"), "power")
    assert power == ["lanpower", "-m", "n-1.site", "-b", "n-1_bmc"]
    broadcast = argv("kascade -n NODEFILE -i ENVFILE", {"ENVFILE": ["/i m"], "NODEFILE": ["/f"]}, "broadcast")
    assert broadcast == ["kascade", "-n", "/f", "-i", "/i m"]


@given(TEXT)
def test_whatever_a_node_is_called_it_stays_within_its_argument(name: str) -> None:
    assert argv("run -H HOSTNAME_FQDN 'two words'", node_values(name), "here") == ["run", "-H", name, "two words"]


@given(st.lists(TEXT, min_size=1), st.lists(TEXT))
def test_values_are_never_read_again(arguments: list[str], values: list[str]) -> None:
    found = argv(shlex.join(["p", *arguments, "NODES"]), {"NODES": values}, "here")
    kept = [value for word in arguments for value in (values if word == "NODES" else [word])]
    assert found == ["p", *kept, *values]


@pytest.mark.parametrize("command", ["ipmitool 'power", "  ", "NONE"])
def test_a_command_that_is_none_is_refused_with_its_place(command: str) -> None:
    with pytest.raises(ConfigError, match=f"^console in clusters/gdx.yml: .*{re.escape(repr(command))}"):
        argv(command, VALUES, "console in clusters/gdx.yml")


def test_nobody_else_splits_commands_of_the_site_or_replaces_placeholders() -> None:
    placeholders = re.compile(r"\.replace\(\W*(HOSTNAME_|WORKFLOW_ID|NODEFILE|ENVFILE)")
    splits = {path for path in SOURCES.rglob("*.py") if "shlex.split" in path.read_text()}
    # arguments that users give
    users = {SOURCES / "operations/custom.py", SOURCES / "microsteps/microstep.py", SOURCES / "cli/site/capture.py"}
    others = {SOURCES / "lab/light/profile.py"}  # the boot loader of light nodes
    assert splits == users | others | {SOURCES / "commands.py"}
    assert [path for path in SOURCES.rglob("*.py") if placeholders.search(path.read_text())] == []


# --- running ----------------------------------------------------------------------------------------------------


def test_status_and_both_outputs_are_told() -> None:
    ended = run("echo out; echo err >&2; exit 3")
    assert (ended.rc, ended.stdout, ended.stderr) == (3, "out\n", "err\n")
    assert (ended.said, ended.reason) == ("err", "err")


def test_a_silent_failure_is_told_by_its_status() -> None:
    assert (run("exit 3").said, run("exit 3").reason) == ("", "exit status 3")


def test_what_cannot_be_started_is_an_oserror() -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(commands.run(["/nonesuch/program"]))


def test_standard_input_is_empty() -> None:
    assert run("cat; echo end").stdout == "end\n"


def test_one_that_takes_too_long_is_killed_with_its_children_and_what_it_said_is_kept() -> None:
    ended = run("sleep 1000 & echo $!; wait", 0.5)
    assert ended.rc is None
    assert ended.seconds < 60
    child = process.find(int(ended.stdout))
    assert child is None or child.wait(5)


@pytest.mark.parametrize("status", [0, 3])
def test_one_has_ended_though_a_daemon_that_it_started_holds_its_output(status: int) -> None:
    ended = run(f"sleep 1000 & echo $!; exit {status}", 60)
    child = process.find(int(ended.stdout))
    assert child is not None, "it was left alone"
    os.kill(int(ended.stdout), signal.SIGKILL)
    assert ended.rc == status
    assert ended.seconds < 30


def test_one_that_is_no_longer_wanted_is_killed_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    async def main() -> None:
        task = asyncio.create_task(commands.run(["bash", "-c", f"sleep 1000 & echo $! >{note}; wait"]))
        while not (note.exists() and note.read_text().strip()):
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(asyncio.wait_for(main(), 60))
    child = process.find(int(note.read_text()))
    assert child is None or child.wait(5)


@pytest.mark.parametrize("turns", range(6))
def test_one_that_is_no_longer_wanted_while_it_is_started_is_killed(turns: int) -> None:
    """asyncio waits for ever for some of these."""
    mark = f"KADEPLOY_TEST_MARK={time.monotonic_ns()}"

    async def main() -> None:
        task = asyncio.create_task(commands.run(["env", mark, "sh", "-c", "sleep 1000 & wait"]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(asyncio.wait_for(main(), 60))
    name, _, value = mark.partition("=")
    assert process.marked(name, lambda found: found == value) == []


def test_a_long_output_keeps_its_head_and_its_tail() -> None:
    ended = run("seq 1 200000")
    assert len(ended.stdout) < OUTPUT_LIMIT + 100
    assert ended.stdout.startswith("1\n2\n")
    assert ended.stdout.endswith("199999\n200000\n")
    assert ended.said == "200000"


def test_seconds_are_those_it_took() -> None:
    before = time.monotonic()
    assert 0.2 <= run("sleep 0.2").seconds <= time.monotonic() - before + 0.001


# --- output -----------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40)), st.integers(1, 30))
def test_capture_keeps_what_fits_however_it_is_cut(pieces: list[bytes], half: int) -> None:
    capture = Capture(2 * half)
    for piece in pieces:
        capture.add(piece)
    whole = b"".join(pieces)
    if len(whole) <= 2 * half:
        wanted = whole[:half].decode(errors="replace") + whole[half:].decode(errors="replace")
    else:
        left_out = f"\n[{len(whole) - 2 * half} bytes left out]\n"
        wanted = whole[:half].decode(errors="replace") + left_out + whole[-half:].decode(errors="replace")
    assert capture.text() == wanted


@pytest.mark.parametrize(
    ("text", "line"),
    [("", ""), (" \n\n", ""), ("one\ntwo", "two"), ("one\n  two \n \n", "two"), ("x" * 400, "x" * 300)],
)
def test_the_last_line_that_says_something_is_the_reason(text: str, line: str) -> None:
    assert last_line(text) == line


def test_nobody_else_looks_for_the_last_line() -> None:
    by_hand = re.compile(r"reversed\(\w+(\.\w+\(\))?\.splitlines|splitlines\(\)\[-1\]|(said|lines)\[-1\]")
    elsewhere = [path for path in SOURCES.rglob("*.py") if by_hand.search(path.read_text())]
    assert elsewhere == [SOURCES / "commands.py"]


def test_the_examples_hold() -> None:
    assert doctest.testmod(commands).failed == 0
