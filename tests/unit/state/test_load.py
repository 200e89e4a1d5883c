"""How busy operations kept a site, slice of time by slice of time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from kadeploy.config.site import Site
from kadeploy.state import database
from kadeploy.state.history import Selection
from kadeploy.state.load import DAY, HOUR, Load, load, together
from kadeploy.state.tables import Log

NOON = 400_000 * HOUR


@pytest.fixture
def past(site: Site) -> Site:
    """Three operations: within an hour, over the end of one, and one of another kind hours later."""
    database.connect(site)
    database.insert(
        Log,
        [
            row(start=NOON, step1_duration=1800),
            row(hostname="gdx-2.site", start=NOON + 3000, step1_duration=600, step3_duration=900),
            row(operation="reboot", start=NOON + 5 * HOUR, step3_duration=900),
        ],
    )
    return site


def row(**changes: Any) -> dict[str, Any]:
    usual = {"wid": "D-1", "operation": "deploy", "user": "alice", "hostname": "gdx-1.site", "success": True}
    return usual | changes


def test_nodes_are_counted_by_the_seconds_that_operations_took_in_each_hour(past: Site) -> None:
    assert load(past, Selection()) == [Load(NOON, HOUR, 2400 / HOUR), Load(NOON + HOUR, HOUR, 900 / HOUR)]
    everything = load(past, Selection(operation=None))
    assert [each.nodes for each in everything] == [2400 / HOUR, 0.25, 0, 0, 0, 0.25]


def test_only_what_is_selected_counts(past: Site) -> None:
    assert load(past, Selection(nodes=["gdx-1.site"])) == [Load(NOON, HOUR, 0.5)]
    assert load(past, Selection(nodes=["gdx-9.site"])) == []


@pytest.mark.parametrize(
    ("days", "width", "slices"), [(1, HOUR, 25), (7, HOUR, 169), (30, 6 * HOUR, 121), (365, 7 * DAY, 53)]
)
def test_the_dates_that_are_asked_for_are_cut_into_slices_that_can_be_seen(
    past: Site, days: int, width: int, slices: int
) -> None:
    found = load(past, Selection(since=NOON + 2 * HOUR - days * DAY, until=NOON + 2 * HOUR))
    assert len(found) in {slices, slices + 1}
    assert {each.seconds for each in found} == {width}
    assert sum(each.nodes * each.seconds for each in found) == pytest.approx(3300)


def test_dates_far_from_everything_make_no_more_slices_and_none_in_the_future(past: Site) -> None:
    found = load(past, Selection(since=-(10**11), until=10**11))
    assert len(found) <= 170
    assert found[0].start == 0
    assert found[-1].start <= time.time()


def test_the_load_of_two_sites_is_added_up_in_the_wider_slices() -> None:
    hours = [Load(NOON + rank * HOUR, HOUR, 6.0) for rank in range(7)]
    begin = NOON - NOON % (6 * HOUR)
    days = [Load(begin, 6 * HOUR, 1.0), Load(begin + 12 * HOUR, 6 * HOUR, 2.0)]
    found = together([hours, days, []])
    assert [each.start for each in found] == [begin, begin + 6 * HOUR, begin + 12 * HOUR]
    assert sum(each.nodes for each in found) == pytest.approx(10)
    assert {each.seconds for each in found} == {6 * HOUR}
    assert together([[], []]) == []
