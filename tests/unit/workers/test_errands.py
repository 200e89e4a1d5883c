"""What tasks ask of their controller through a worker, from one end to the other: slots of windows, and profiles."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from kadeploy.remote import errands as asked
from kadeploy.remote.window import used, window
from kadeploy.workers import errands
from kadeploy.workers.connection import Controller
from kadeploy.workflow import Verdict
from tests.unit.server.test_work import JOB, NODES, Stage, profiles, stage, until

__all__ = ["stage"]


TASK = """\
import asyncio, sys
from pathlib import Path
from kadeploy.remote.window import window

async def main():
    async with window(Path(sys.argv[1]), 1):
        print("held", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/site/state/kadeploy.db"


@pytest.fixture
def worker(stage: Stage, tmp_path: Path) -> Iterator[Path]:
    """The socket of a worker whose controller is in this process: tasks that are told of it are others."""
    folder = tmp_path / "run"
    folder.mkdir()
    with errands.running(folder, partial(Controller, stage.address(), JOB)) as path:
        yield path


@contextmanager
def task(worker: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A task of the worker that wants a slot; of the folder, its name alone counts there."""
    command = [sys.executable, "-c", TASK, f"/nowhere/windows/{folder.name}"]
    variables = os.environ | {asked.VARIABLE: str(worker)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=variables) as process:
        try:
            yield process
        finally:
            process.kill()


def has_it(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == b"held\n"


def test_a_window_held_through_a_worker_is_the_controllers_and_free_when_its_task_is_killed(
    stage: Stage, worker: Path
) -> None:
    with task(worker, stage.windows) as process:
        assert has_it(process)
        assert used(stage.windows) == 1
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: used(stage.windows) == 0, 20)
    assert not Path("/nowhere").exists()


def test_a_task_waits_for_a_slot_that_the_controller_itself_holds(stage: Stage, worker: Path) -> None:
    async def main() -> None:
        async with window(stage.windows, 1):
            waiting = asyncio.ensure_future(entered(worker))
            await asyncio.sleep(0.5)
            assert not waiting.done()
        async with asyncio.timeout(20):
            await waiting

    asyncio.run(main())


def test_tasks_of_a_worker_never_exceed_the_bound_and_all_get_through(stage: Stage, worker: Path) -> None:
    inside: list[int] = []

    async def main() -> None:
        async with asyncio.timeout(60):
            await asyncio.gather(*(entered(worker, inside) for _ in range(3)))

    asyncio.run(main())
    assert inside == [1, -1] * 3


async def entered(worker: Path, inside: list[int] | None = None) -> None:
    async with asked.slot(worker, "reboot"):
        if inside is not None:
            inside.append(1)
            await asyncio.sleep(0.05)
            inside.append(-1)


def test_who_waits_in_vain_and_is_cancelled_leaves_nothing_behind(stage: Stage, worker: Path) -> None:
    async def main() -> None:
        async with window(stage.windows, 1):
            waiting = asyncio.ensure_future(entered(worker))
            await asyncio.sleep(0.5)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await asyncio.sleep(2.5)
        async with asyncio.timeout(20):
            await entered(worker)

    asyncio.run(main())
    until(lambda: used(stage.windows) == 0, 20)


def test_a_slot_that_the_controller_does_not_give_is_a_fault_of_the_connection(stage: Stage, worker: Path) -> None:
    stage.give(is_over=True)

    with pytest.raises(ConnectionError, match="not yours"):
        asyncio.run(entered(worker))


def test_profiles_are_written_on_the_controller_and_refusals_are_verdicts(stage: Stage, worker: Path) -> None:
    outcomes = asyncio.run(asked.profiles(worker, "deploy", [*NODES, "gdx-4.site"]))
    assert {name: outcome.verdict for name, outcome in outcomes.items()} == {
        **dict.fromkeys(NODES, Verdict.OK),
        "gdx-4.site": Verdict.KO,
    }
    assert profiles(stage) == {"1", "2", "3"}
    stage.give(is_over=True)
    outcomes = asyncio.run(asked.profiles(worker, "deploy", NODES))
    assert {outcome.verdict for outcome in outcomes.values()} == {Verdict.KO}
    assert "not yours" in outcomes[NODES[0]].message


@pytest.mark.parametrize("line", [b"", b"nonsense\n", b"{}\n", b'{"type":"slot"}\n', b"x" * 5_000_000])
def test_nonsense_is_answered_with_nothing_and_holds_up_nobody(stage: Stage, worker: Path, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(20)
        asking.connect(str(worker))
        try:
            asking.sendall(line)
            asking.shutdown(socket.SHUT_WR)
            assert asking.recv(100) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass
    outcomes = asyncio.run(asked.profiles(worker, "deploy", NODES[:1]))
    assert outcomes[NODES[0]].verdict is Verdict.OK


def test_without_a_worker_nobody_is_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(asked.VARIABLE, raising=False)
    assert asked.place() is None
