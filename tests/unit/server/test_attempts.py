"""Back-off: who fails waits, who does not fail is let in, and memory has bounds."""

from __future__ import annotations

import pytest

from kadeploy.errors import TooManyAttemptsError
from kadeploy.server import attempts
from kadeploy.server.attempts import Attempts
from tests.unit.server.conftest import Clock

HOME, ELSEWHERE = "10.0.0.1", "10.0.0.2"


@pytest.fixture
def tried(clock: Clock) -> Attempts:
    return Attempts(clock)


def wait(tried: Attempts, address: str, user: str = "") -> int:
    """Seconds that the next attempt has to wait; 0 when it need not."""
    try:
        tried.require_patience(address, user)
    except TooManyAttemptsError as error:
        return error.seconds
    return 0


def fail(tried: Attempts, times: int, address: str, user: str = "") -> None:
    for _ in range(times):
        tried.failed(address, user)


def test_the_first_slips_are_free_then_each_doubles_the_wait_up_to_a_quarter_of_an_hour(
    tried: Attempts, clock: Clock
) -> None:
    waits = []
    for _ in range(20):
        tried.failed(HOME, "alice")
        waits.append(wait(tried, HOME, "alice"))
    assert waits[:9] == [0, 0, 0, 0, 0, 1, 2, 4, 8]
    assert waits[-1] == attempts.LONGEST == 900
    clock.now += 899.5
    assert wait(tried, HOME, "alice") == 1
    clock.now += 0.5
    assert wait(tried, HOME, "alice") == 0


def test_the_refusal_says_for_how_long(tried: Attempts) -> None:
    fail(tried, 8, HOME, "alice")
    with pytest.raises(TooManyAttemptsError, match=f"failed attempts from {HOME}: wait 4 s and try again"):
        tried.require_patience(HOME, "alice")


def test_a_success_forgives_what_this_address_failed_for_this_user_and_nothing_else(tried: Attempts) -> None:
    fail(tried, 10, HOME, "alice")
    fail(tried, 12, HOME, "mallory")
    assert wait(tried, HOME, "carol") > 0
    tried.succeeded(HOME, "mallory")
    assert wait(tried, HOME, "mallory") == 0
    assert wait(tried, HOME, "carol") == 0, "ten are left, which an address may have"
    assert wait(tried, HOME, "alice") > 0, "mallory's own password does not wipe out what was tried on alice"


def test_nobody_is_locked_out_by_failures_from_elsewhere(tried: Attempts) -> None:
    for rank in range(1000):
        fail(tried, 3, f"192.0.2.{rank % 250}", "alice")
    assert wait(tried, HOME, "alice") == 0


def test_a_user_under_attack_gives_each_address_one_chance_and_those_that_are_known_more(tried: Attempts) -> None:
    tried.succeeded(HOME, "alice")
    for rank in range(30):
        tried.failed(f"192.0.2.{rank}", "alice")
    for address, expected in ((ELSEWHERE, 64), (HOME, 0)):
        assert wait(tried, address, "alice") == 0
        tried.failed(address, "alice")
        assert wait(tried, address, "alice") == expected


def test_an_address_that_fails_for_many_waits_but_not_those_who_came_in_from_there(tried: Attempts) -> None:
    tried.succeeded(HOME, "alice")
    for rank in range(25):
        tried.failed(HOME, f"user{rank}")
    assert wait(tried, HOME, "somebody") > 0
    assert wait(tried, HOME) > 0
    assert wait(tried, HOME, "alice") == 0
    assert wait(tried, ELSEWHERE, "somebody") == 0


def test_a_line_with_ipv6_counts_as_one_address(tried: Attempts) -> None:
    for rank in range(30):
        tried.failed(f"2001:db8::{rank:x}", "")
    assert wait(tried, "2001:db8::ffff%eth0") > 0
    assert wait(tried, "2001:db8:0:1::1") == 0


def test_after_an_hour_without_failures_all_is_forgotten(tried: Attempts, clock: Clock) -> None:
    fail(tried, 30, HOME, "alice")
    clock.now += 3600
    tried.failed(HOME, "alice")
    assert wait(tried, HOME, "alice") == 0


def test_memory_has_bounds_and_who_fails_most_lately_is_remembered(tried: Attempts) -> None:
    for rank in range(3 * attempts.MOST):
        tried.failed(f"10.{rank >> 16}.{rank >> 8 & 255}.{rank & 255}", f"user{rank}")
        tried.succeeded(f"11.{rank >> 16}.{rank >> 8 & 255}.{rank & 255}", "alice")
        if rank % 1000 == 0:
            tried.failed(HOME, "alice")
    assert len(tried) <= 4 * attempts.MOST
    assert wait(tried, HOME, "alice") > 0
