"""Who is better off with the head: said by what nodes tell and by what the head has given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.broadcast.pace import GAIN, LEAST, RECENT, Best, Complaint, Complaints

NOW = 1000.0
MANY = 10**12


def complain(complaints: Complaints, pace: float, *pairs: tuple[int, int], left: int = MANY, told: float = NOW) -> None:
    for member, by in pairs:
        complaints.note(member, Complaint(told, by, left, pace))


def test_the_first_of_those_that_are_held_up_is_helped_and_the_others_by_it() -> None:
    complaints = Complaints()
    complain(complaints, 1e6, (5, 4), (6, 5), (7, 6))
    assert list(complaints.heeded(NOW, 50e6)) == [5]
    assert list(complaints.heeded(NOW, 50e6)) == []
    complain(complaints, 1e6, (6, 5), (7, 6), told=NOW + RECENT)
    assert list(complaints.heeded(NOW + RECENT, 50e6)) == [6]


def test_one_that_says_that_it_is_held_up_keeps_others_waiting_only_once() -> None:
    """It says so again and again, to be taken for a victim."""
    complaints = Complaints()
    helped: list[int] = []
    for second in range(10):
        complain(complaints, 0, (5, 4), (6, 5), told=NOW + second)
        helped += complaints.heeded(NOW + second, 50e6)
    assert helped == [5, 6]


@pytest.mark.parametrize(
    ("pace", "left", "told"),
    [(40e6, MANY, NOW), (1e6, 1_000_000, NOW), (1e6, MANY, NOW - RECENT)],
    ids=["fast enough", "nearly done", "long ago"],
)
def test_what_is_not_worth_it_is_passed_over(pace: float, left: int, told: float) -> None:
    complaints = Complaints()
    complain(complaints, pace, (5, 4), left=left, told=told)
    assert complaints.heeded(NOW, 50e6) == {}


@given(st.floats(0, 1e10), st.integers(2, 300))
def test_where_the_head_is_the_slow_one_nobody_is_helped(pace: float, nodes: int) -> None:
    """All get what it gives, or a part of it, since it gives to several already."""
    best, complaints = Best(), Complaints()
    for second in range(5):
        best.note(NOW + second, int(second * max(pace, LEAST)))
    complain(complaints, best.pace / 2, *((member, member - 1) for member in range(2, nodes)), told=NOW + 5)
    assert complaints.heeded(NOW + 5, best.share(1)) == {}


@given(st.lists(st.floats(1e5, 1e9), min_size=5, max_size=50))
def test_so_many_are_helped_as_the_head_can_bear(paces: list[float]) -> None:
    """None of them gets less than what it had, when all share the head's best."""
    best, complaints, streams = Best(), Complaints(), 1
    best.note(NOW, 0)
    best.note(NOW + 1, 10**9)
    for member, pace in enumerate(paces):
        complain(complaints, pace, (2 * member + 3, 2 * member + 2))
        helped = complaints.heeded(NOW, best.share(streams))
        streams += len(helped)
        assert all(one.pace * GAIN <= best.pace / streams for one in helped.values())
