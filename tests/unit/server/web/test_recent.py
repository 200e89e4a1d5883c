"""What many watch: made once for all, bounded, and gone when nobody asks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kadeploy.server.web.recent import Recent
from tests.unit.server.conftest import Clock


def count(before: int | None) -> int:
    return (before or 0) + 1


def test_a_hundred_who_ask_at_once_are_told_one_thing_that_was_made_once(clock: Clock) -> None:
    recent: Recent[int] = Recent(clock=clock)
    start, made = threading.Barrier(20), []

    def renew(before: int | None) -> int:
        made.append(before)
        threading.Event().wait(0.05)
        return count(before)

    def ask(number: int) -> list[int]:
        start.wait()
        return [recent.get("run", renew) for _ in range(5)]

    with ThreadPoolExecutor(20) as pool:
        told = [each for answers in pool.map(ask, range(20)) for each in answers]
    assert (told, made) == ([1] * 100, [None])


def test_after_a_second_it_is_made_anew_of_what_it_was(clock: Clock) -> None:
    recent: Recent[int] = Recent(clock=clock)
    told = []
    for seconds in (0, 0.9, 0.1, 0.5, 1):
        clock.now += seconds
        told.append(recent.get("run", count))
    assert told == [1, 1, 2, 2, 3]


def test_what_was_asked_for_least_recently_makes_room(clock: Clock) -> None:
    recent: Recent[int] = Recent(most=2, clock=clock)
    for key in ("a", "b", "a", "c"):
        recent.get(key, count)
        clock.now += 1
    assert len(recent) == 2
    assert (recent.get("a", count), recent.get("b", count)) == (3, 1)


def test_what_nobody_asks_for_is_dropped_by_itself_and_the_rest_stays(clock: Clock) -> None:
    recent: Recent[int] = Recent(idle=10, clock=clock)
    recent.get("left", count)
    clock.now += 9
    recent.get("watched", count)
    clock.now += 2
    recent.drop_idle()
    assert (len(recent), recent.get("watched", count)) == (1, 2)


def test_nobody_who_watches_costs_no_thread_and_no_memory() -> None:
    recent: Recent[int] = Recent(idle=0.1)
    before = threading.active_count()
    for key in range(20):
        recent.get(key, count)
    assert threading.active_count() == before + 1
    for _ in range(100):
        if not len(recent) and threading.active_count() <= before:
            break
        threading.Event().wait(0.05)
    assert (len(recent), threading.active_count()) == (0, before)


def test_what_cannot_be_made_is_said_to_who_asks_and_tried_again(clock: Clock) -> None:
    recent: Recent[int] = Recent(clock=clock)

    def fail(before: int | None) -> int:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        recent.get("run", fail)
    assert recent.get("run", count) == 1
