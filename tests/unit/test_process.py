"""A process is told from a later one that has its number, and is really ended."""

from __future__ import annotations

import asyncio
import doctest
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kadeploy import process

SOURCES = Path(process.__file__).parent


def sleeper(code: str = "import time; print(flush=True); time.sleep(60)") -> subprocess.Popen[bytes]:
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert started.stdout is not None
    started.stdout.readline()
    return started


def test_a_process_file_leads_back_to_its_process(tmp_path: Path) -> None:
    ourselves = process.find(os.getpid())
    assert ourselves is not None
    process.write(tmp_path / "pid", ourselves)
    assert process.read(tmp_path / "pid") == ourselves


def test_another_process_with_the_same_number_is_not_taken_for_it(tmp_path: Path) -> None:
    ourselves = process.find(os.getpid())
    assert ourselves is not None
    process.write(tmp_path / "pid", process.Process(ourselves.pid, ourselves.started - 1))
    assert process.read(tmp_path / "pid") is None


def test_a_damaged_process_file_is_no_process(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("12")
    assert process.read(tmp_path / "pid") is None
    assert process.read(tmp_path / "absent") is None


def test_ending_waits_until_it_is_gone() -> None:
    with sleeper() as started:
        found = process.find(started.pid)
        assert found is not None
        found.end()
        assert not found.alive()


def test_what_ignores_sigterm_is_killed() -> None:
    ignoring = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with sleeper(ignoring) as started:
        found = process.find(started.pid)
        assert found is not None
        found.end(patience=0.2)
        assert started.wait() == -9


def test_a_zombie_does_not_live() -> None:
    with sleeper() as started:
        found = process.find(started.pid)
        started.kill()
        os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
        assert process.read_stat(started.pid).state == "Z"
        assert found is not None
        assert not found.alive()
        assert process.find(started.pid) is None


def test_the_name_of_a_program_may_hold_blanks_and_brackets(tmp_path: Path) -> None:
    program = tmp_path / "odd) R 1 (x"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "1000"], stdout=subprocess.PIPE) as started:
        found = process.read_stat(started.pid)
        started.kill()
    assert found.parent == os.getpid()


def test_the_example_holds() -> None:
    assert doctest.testmod(process).failed == 0


def test_the_start_of_a_process_is_told_in_our_own_time() -> None:
    before = time.monotonic()
    with sleeper() as started:
        began = process.began(started.pid)
        started.kill()
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert before - tick <= began <= time.monotonic()
    assert process.began(1) <= began
    with pytest.raises(OSError, match="No such"):
        process.began(2**22 + 1)


# --- controllers ------------------------------------------------------------------------------------------------


def test_this_process_is_alive_and_here() -> None:
    assert process.is_here(process.this())
    assert process.is_alive(process.this())


@pytest.mark.parametrize("other", [{"pid": 2**22 + 1}, {"process_start": "1"}, {"boot_id": "another boot"}])
def test_another_pid_start_or_boot_is_another_controller(other: dict[str, str]) -> None:
    assert not process.is_alive(process.this()._replace(**other))


def test_a_controller_of_another_machine_is_not_here() -> None:
    assert not process.is_here(process.this()._replace(host="elsewhere"))


# --- families and ends ------------------------------------------------------------------------------------------


def test_our_family_reaches_up_to_the_first_process() -> None:
    assert {os.getpid(), os.getppid(), 1} <= process.ancestors(os.getpid())


def test_a_family_holds_children_and_grandchildren_parents_first() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        child = int(shell.stdout.readline())
        assert process.children(shell.pid) == [child]
        found = process.family(os.getpid())
        assert found.index(os.getpid()) < found.index(shell.pid) < found.index(child)
        for pid in process.family(shell.pid):
            process.kill(pid)
    gone = process.find(child)
    assert gone is None or gone.wait(5)
    assert process.family(shell.pid) == [shell.pid]


def test_a_group_ends_with_its_leader() -> None:
    command = ["sh", "-c", "sleep 1000 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        process.end_group(leader.pid)
        assert leader.wait() == -signal.SIGKILL
    gone = process.find(child)
    assert gone is None or gone.wait(5)


def test_what_is_gone_is_ended_without_complaint() -> None:
    process.kill(2**22 + 1)
    process.end_group(2**22 + 1)


def test_only_processes_with_the_mark_are_ended() -> None:
    marks = {"a": {"MARK": "meant"}, "b": {"MARK": "other"}, "c": {"XMARK": "meant"}}
    started = {name: subprocess.Popen(["sleep", "1000"], env=env) for name, env in marks.items()}
    try:
        process.end_marked("MARK", "meant".__eq__)
        assert started["a"].wait() == -signal.SIGKILL
        assert (started["b"].poll(), started["c"].poll()) == (None, None)
    finally:
        for each in started.values():
            each.kill()
            each.wait()


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("sleep 1000", -signal.SIGKILL)])
def test_a_child_that_does_not_end_in_time_is_killed(script: str, status: int) -> None:
    async def run() -> int | None:
        child = await asyncio.create_subprocess_exec("sh", "-c", f"exec {script}" if "sleep" in script else script)
        await process.reap(child, 0.5 if "sleep" in script else 30)
        return child.returncode

    assert asyncio.run(run()) == status


# --- one home ---------------------------------------------------------------------------------------------------


def test_nobody_else_reads_the_start_of_a_process_or_kills_a_group() -> None:
    alone = SOURCES / "broadcast" / "relay.py"  # one file on purpose: it runs on nodes
    elsewhere = [
        path.relative_to(SOURCES)
        for path in SOURCES.rglob("*.py")
        if path not in (SOURCES / "process.py", alone)
        and re.search(r"os\.killpg|\[19\]|fields\[18\]|/proc/\{.*\}/(stat|environ)", path.read_text())
    ]
    assert elsewhere == []
