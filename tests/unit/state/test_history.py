"""What the log says about durations over time; rows and rates are tested through kastat3."""

from __future__ import annotations

from typing import Any

import pytest

from kadeploy.config.site import Site
from kadeploy.state import database, history, nodes
from kadeploy.state.history import Durations, Last, Rate, Selection
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
        Durations(1000, 15.0, 7.0, None, operations=2),
        Durations(1000 + 1024, 50.0, None, None),
    ]


def test_there_are_about_as_many_slices_as_asked_for(site: Site) -> None:
    database.connect(site)
    database.insert(Log, [record(1000 + 7 * rank, 10) for rank in range(3000)])
    assert 30 <= len(history.durations(site, Selection(), slices=60)) <= 61


def test_operations_at_one_moment_are_one_slice(site: Site) -> None:
    database.connect(site)
    database.insert(Log, [record(1000, 10), record(1000, 30)])
    assert history.durations(site, Selection()) == [Durations(1000, 20.0, None, None, operations=2)]


def test_no_operation_has_no_duration(site: Site) -> None:
    assert history.durations(site, Selection()) == []


def test_a_failure_rate_is_rounded_up_as_it_always_was() -> None:
    assert [Rate("n", 3, good).failures for good in (0, 1, 2, 3)] == [100, 67, 34, 0]


@pytest.mark.parametrize("error", ["aborted", "aborted: its controller (process 7 on frontend) is gone"])
def test_what_was_aborted_is_no_nodes_failure_and_has_no_duration(site: Site, error: str) -> None:
    database.connect(site)
    stopped = record(1000, 500) | {"success": False, "error": error}
    failed = record(1000, 30) | {"success": False, "error": "aborted by the BMC"}
    database.insert(Log, [record(1000, 10), stopped, failed])
    assert history.failure_rates(site, Selection()) == [Rate("gdx-1.site", 2, 1)]
    assert history.durations(site, Selection()) == [Durations(1000, 20.0, None, None, operations=2)]
    assert len(list(history.rows(site, Selection(), ["error"]))) == 3


def test_durations_of_different_images_are_kept_apart(site: Site) -> None:
    database.connect(site)
    images = [history.Image("debian:12", "aa"), history.Image("debian:12", "bb"), history.Image("tiny:3", "cc")]
    database.insert(Log, [record(1000, 10 * rank) | image._asdict() for rank, image in enumerate(images, 1)])
    assert [(item.image, item.step1) for item in history.durations(site, Selection())] == [
        (images[0], 10.0),
        (images[1], 20.0),
        (images[2], 30.0),
    ]


def test_the_last_operation_of_each_node_is_told_whatever_its_kind(site: Site) -> None:
    """Rows are written when an operation ends: of those that began at one moment the last one written counts."""
    database.connect(site)
    nodes.set_state(["gdx-1.site", "gdx-2.site", "gdx-3.site"], "deployed", None, "alice")
    failed = {"wid": "R-3", "operation": "reboot", "success": False, "error": "time-out"}
    of_second = {"hostname": "gdx-2.site"}
    found = [
        record(3000, 10) | failed,
        record(2000, 10),
        record(1000, 10) | of_second,
        record(1000, 10) | of_second | {"operation": "power", "wid": "P-1"},
    ]
    database.insert(Log, found)
    told = {row.hostname: row for row in history.latest(site)}
    assert told == {
        "gdx-1.site": Last("gdx-1.site", "reboot", "R-3", "alice", "", 3000, False, "time-out"),
        "gdx-2.site": Last("gdx-2.site", "power", "P-1", "alice", "", 1000, True, ""),
    }
    assert [row.hostname for row in history.latest(site, ["gdx-2.site", "gdx-3.site"])] == ["gdx-2.site"]
