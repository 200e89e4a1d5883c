"""The bound that all processes share: never exceeded, given back by the dead, open to whoever waits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.remote.window import used, window
from tests.descriptors import descriptors

WORKER = """\
import asyncio, os, sys
from pathlib import Path
from kadeploy.remote.window import window

folder, log, size, tasks = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

async def one():
    async with window(folder, size):
        os.write(out, b"+")
        await asyncio.sleep(0.003)
        os.write(out, b"-")

async def main():
    await asyncio.gather(*(one() for _ in range(tasks)))

asyncio.run(main())
"""

WAITER = """\
import asyncio, sys
from pathlib import Path
from kadeploy.remote.window import window

log = Path(sys.argv[2])
log.touch()

async def one():
    async with window(Path(sys.argv[1]), 1):
        log.write_bytes(b"+")
        await asyncio.sleep(0.003)
        log.write_bytes(b"+-")

async def main():
    waiting = asyncio.create_task(one())
    await asyncio.sleep(0)  # it has found the slot taken
    print("waiting", flush=True)
    await waiting

asyncio.run(main())
"""

HOLDER = """\
import asyncio, sys
from pathlib import Path
from kadeploy.remote.window import window

async def main():
    async with window(Path(sys.argv[1]), 1):
        print("held", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def worker(folder: Path, log: Path, size: int, tasks: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, folder, log, str(size), str(tasks)])


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the only slot."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def most_at_a_time(marks: bytes) -> int:
    """How many were inside at the same time; entering is written after the slot is taken, leaving before it goes."""
    inside = most = 0
    for mark in marks.decode():
        inside += 1 if mark == "+" else -1
        most = max(most, inside)
    assert inside == 0
    return most


def test_several_processes_never_exceed_the_bound_and_all_get_through(tmp_path: Path) -> None:
    processes = [worker(tmp_path / "w", tmp_path / "log", 3, 12) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    marks = (tmp_path / "log").read_bytes()
    assert marks.count(b"+") == 36
    assert most_at_a_time(marks) <= 3


@given(size=st.integers(1, 5), tasks=st.integers(1, 12))
def test_within_a_process_as_many_are_inside_as_the_bound_allows(
    tmp_path_factory: pytest.TempPathFactory, size: int, tasks: int
) -> None:
    folder = tmp_path_factory.mktemp("w")
    inside = most = 0
    full = asyncio.Event()

    async def one() -> None:
        nonlocal inside, most
        async with window(folder, size):
            inside += 1
            most = max(most, inside)
            if inside == min(size, tasks):
                full.set()
            await full.wait()  # nobody leaves before the window was full once
            inside -= 1

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(one() for _ in range(tasks))), 60)

    asyncio.run(main())
    assert most == min(size, tasks)


def test_the_slot_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

        async def main() -> str:
            async with asyncio.timeout(60), window(tmp_path, 1):
                return "inside"

        assert asyncio.run(main()) == "inside"


def test_who_waits_in_vain_can_be_cancelled_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with holder(tmp_path):

        async def enter() -> None:
            async with window(tmp_path, 1):
                raise AssertionError("the slot is held by another process")

        async def main() -> None:
            waiting = [asyncio.create_task(enter()) for _ in range(3)]
            await asyncio.sleep(0.1)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert all(task.cancelled() for task in waiting)

        before = descriptors()
        asyncio.run(main())
        assert descriptors() <= before


def test_a_neighbour_that_waits_comes_before_who_had_the_slot_and_wants_it_again(tmp_path: Path) -> None:
    async def main() -> bytes:
        async with window(tmp_path / "w", 1):
            command = [sys.executable, "-c", WAITER, tmp_path / "w", tmp_path / "log"]
            other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert other.stdout is not None
            assert other.stdout.readline() == "waiting\n"
        with other:
            async with asyncio.timeout(60), window(tmp_path / "w", 1):
                return (tmp_path / "log").read_bytes()

    assert asyncio.run(main()) == b"+-"


def test_a_program_started_inside_does_not_keep_the_slot(tmp_path: Path) -> None:
    async def main() -> None:
        async with window(tmp_path, 1):
            child = await asyncio.create_subprocess_exec("sleep", "600")
        try:
            async with asyncio.timeout(60), window(tmp_path, 1):
                pass
        finally:
            child.kill()
            await child.wait()

    asyncio.run(main())


def test_slots_are_counted_while_they_are_held_and_to_count_holds_none(tmp_path: Path) -> None:
    async def main() -> list[int]:
        counted = [used(tmp_path / "missing")]
        async with window(tmp_path, 3), window(tmp_path, 3):
            counted += [used(tmp_path), used(tmp_path)]
            async with asyncio.timeout(10), window(tmp_path, 3):
                counted.append(used(tmp_path))
        return [*counted, used(tmp_path)]

    assert asyncio.run(main()) == [0, 2, 2, 3, 0]
