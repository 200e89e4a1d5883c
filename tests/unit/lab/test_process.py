"""A process is told from a later one that has its number, and is really ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kadeploy.lab import process


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


def test_our_family_reaches_up_to_the_first_process() -> None:
    assert {os.getpid(), os.getppid(), 1} <= process.ancestors(os.getpid())
