"""The events of a run, followed from another process while they come."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from kadeploy import events
from kadeploy.caller import account, as_user
from kadeploy.errors import UnknownWorkflowError
from kadeploy.events import Ended, Event, EventFile, Note, Report
from kadeploy.operations.follow import Tail, events_of, follow
from kadeploy.operations.work import run_folder
from tests.unit import build

END = Ended(operation="deploy", groups={}, report=Report("D-1"))


def note(number: int) -> Note:
    return Note(text=f"{number} ü")


def result(followed: Generator[tuple[int, Event], None, bool]) -> tuple[list[tuple[int, Event]], bool]:
    """All that comes, and whether it came to its end."""
    heard = []
    while True:
        try:
            heard.append(next(followed))
        except StopIteration as end:
            return heard, end.value


def write(path: Path, *told: Event) -> None:
    with closing(EventFile(path)) as file:
        for event in told:
            file(event)


def test_events_come_while_they_are_written_and_end_with_the_operation(tmp_path: Path) -> None:
    path, told = tmp_path / events.FILE_NAME, [*map(note, range(5)), END]
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(result, follow(path, is_alive=lambda: True))
        for event in told:  # the first one makes the file
            write(path, event)
            threading.Event().wait(0.1)
        found, ended = heard.result(timeout=20)
    assert ([event for _, event in found], ended) == (told, True)


def test_from_the_offset_of_any_event_on_exactly_the_later_ones_come(tmp_path: Path) -> None:
    path = tmp_path / events.FILE_NAME
    write(path, *map(note, range(5)), END)
    whole, _ = result(follow(path, is_alive=lambda: True))
    for rank, (offset, _) in enumerate(whole[:-1], start=1):
        assert result(follow(path, offset, is_alive=lambda: True)) == (whole[rank:], True)


def test_when_the_workflow_is_dead_what_is_known_comes_and_then_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / events.FILE_NAME
    said = note(1)
    write(path, said)
    assert result(follow(path, is_alive=lambda: False)) == ([(path.stat().st_size, said)], False)
    assert result(follow(tmp_path / "purged", is_alive=lambda: False)) == ([], False)


def test_a_line_that_a_dead_writer_has_not_finished_is_passed_over_once_another_goes_on(tmp_path: Path) -> None:
    path = tmp_path / events.FILE_NAME
    write(path, note(1), note(2))
    os.truncate(path, path.stat().st_size - 7)
    tail = Tail(path)
    assert [event.text for _, event in tail.read() if isinstance(event, Note)] == ["1 ü"]
    assert list(tail.read()) == [], "the rest of the line may still come"
    write(path, note(3), END)
    assert [getattr(event, "text", "end") for _, event in tail.read()] == ["3 ü", "end"]
    assert [getattr(event, "text", "end") for event in events.read(path)] == ["1 ü", "3 ü", "end"]


def test_a_line_that_comes_in_two_parts_is_one_event(tmp_path: Path) -> None:
    path = tmp_path / events.FILE_NAME
    write(path, note(1))
    line = path.read_bytes()
    path.write_bytes(line[:9])
    tail = Tail(path)
    assert list(tail.read()) == []
    path.write_bytes(line)
    [(offset, _)] = tail.read()
    assert offset == len(line)


def test_a_hundred_followers_of_a_quiet_run_cost_a_few_percent_of_a_core(tmp_path: Path) -> None:
    path, stop = tmp_path / events.FILE_NAME, threading.Event()
    write(path, note(1))
    with ThreadPoolExecutor(100) as pool:
        followers = [pool.submit(result, follow(path, is_alive=lambda: not stop.is_set())) for _ in range(100)]
        threading.Event().wait(0.5)
        before = resource.getrusage(resource.RUSAGE_SELF)
        threading.Event().wait(2)
        after = resource.getrusage(resource.RUSAGE_SELF)
        stop.set()
        assert all(follower.result(timeout=20)[1] is False for follower in followers)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 2 * 0.25, f"{used} s of processor in 2 s"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_run_of_another_account_is_told_as_such(open_folder: Path) -> None:
    site = build.site(open_folder)
    folder = run_folder(site, "D-1")
    folder.mkdir(mode=0o700, parents=True)
    write(folder / events.FILE_NAME, END)
    assert events_of(site, "D-1").name == events.FILE_NAME
    with as_user(account("nobody")), pytest.raises(UnknownWorkflowError, match="for the account alone"):
        events_of(site, "D-1")
    with pytest.raises(UnknownWorkflowError, match="not kept any more"):
        events_of(site, "D-2")
