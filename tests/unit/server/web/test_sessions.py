"""Sessions of browsers last while they are used and what was shown holds, and are no more than there is room for."""

from __future__ import annotations

from kadeploy.server.web import sessions
from kadeploy.server.web.sessions import Sessions
from tests.unit.server.conftest import Clock


def test_a_cookie_leads_to_its_session_until_nobody_has_come_for_hours(clock: Clock) -> None:
    found = Sessions(clock)
    cookie = found.begin("bob", "token", "id")
    for _ in range(5):
        clock.now += sessions.IDLE - 1
        session = found.find(cookie)
        assert session
        assert (session.user, session.how, session.proof) == ("bob", "token", "id")
    clock.now += sessions.IDLE + 1
    assert found.find(cookie) is None
    assert found.find(cookie) is None


def test_a_session_ends_after_a_week_however_much_it_is_used(clock: Clock) -> None:
    found = Sessions(clock)
    cookie = found.begin("bob", "token", "id")
    for _ in range(int(sessions.LONGEST // sessions.IDLE)):
        clock.now += sessions.IDLE
        assert found.find(cookie)
    clock.now += sessions.IDLE
    assert found.find(cookie) is None


def test_two_sessions_of_a_user_have_nothing_in_common(clock: Clock) -> None:
    found = Sessions(clock)
    one, other = (found.begin("bob", "token", "id") for _ in range(2))
    first, second = found.find(one), found.find(other)
    assert first
    assert second
    assert one != other
    assert first.csrf != second.csrf
    found.end(one)
    assert found.find(one) is None
    assert found.find(other) == second


def test_the_oldest_of_a_user_make_room_and_those_of_others_stay(clock: Clock) -> None:
    found = Sessions(clock)
    hers = found.begin("alice", "token", "id")
    his = [found.begin("bob", "token", "id") for _ in range(sessions.OF_ONE_USER + 2)]
    assert found.find(hers)
    assert [bool(found.find(cookie)) for cookie in his] == [False] * 2 + [True] * sessions.OF_ONE_USER


def test_what_is_no_cookie_of_ours_leads_nowhere(clock: Clock) -> None:
    found = Sessions(clock)
    found.begin("bob", "token", "id")
    for text in ("", "x", "\udcff", "é" * 5000):
        assert found.find(text) is None
