"""What the log says about durations over time; rows and rates are tested through kastat3."""

from __future__ import annotations

from typing import Any

from kadeploy.config.site import Site
from kadeploy.state import database, history
from kadeploy.state.history import Durations, Rate, Selection
from kadeploy.state.tables import Log


def record(start: int, first: int, second: int = 0) -> dict[str, Any]:
    return {
        "wid": "D-1",
        "operation": "deploy",
        "user": "alice",
        "hostname": "gdx-1.site",
        "start": start,
        "step1_duration": first,
        "step2_duration": second,
        "success": True,
    }


def test_durations_are_means_per_slice_and_steps_that_did_not_run_do_not_count(site: Site) -> None:
    database.connect(site)
    database.insert(Log, [record(1000, 10), record(1001, 20, 7), record(2999, 50)])
    assert history.durations(site, Selection(), slices=2) == [
        Durations(1000, 15.0, 7.0, None),
        Durations(1000 + 1024, 50.0, None, None),
    ]


def test_there_are_about_as_many_slices_as_asked_for(site: Site) -> None:
    database.connect(site)
    database.insert(Log, [record(1000 + 7 * rank, 10) for rank in range(3000)])
    assert 30 <= len(history.durations(site, Selection(), slices=60)) <= 61


def test_operations_at_one_moment_are_one_slice(site: Site) -> None:
    database.connect(site)
    database.insert(Log, [record(1000, 10), record(1000, 30)])
    assert history.durations(site, Selection()) == [Durations(1000, 20.0, None, None)]


def test_no_operation_has_no_duration(site: Site) -> None:
    assert history.durations(site, Selection()) == []


def test_a_failure_rate_is_rounded_up_as_it_always_was() -> None:
    assert [Rate("n", 3, good).failures for good in (0, 1, 2, 3)] == [100, 67, 34, 0]
