"""What a period of the log tells, and that it stays cheap with a long one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import Any

import pytest

from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError
from kadeploy.state import database, overview
from kadeploy.state.history import Durations, Image, Rate
from kadeploy.state.load import DAY, HOUR
from kadeploy.state.overview import Reason, Usual
from kadeploy.state.tables import Log

NOW = 1_800_000 * HOUR + 1800
DEBIAN = Image("debian:12", "aa")


def row(**changes: Any) -> dict[str, Any]:
    """One deployment that went well within an hour of `NOW`."""
    usual = {
        "wid": "D-1",
        "operation": "deploy",
        "user": "alice",
        "hostname": "gdx-1.site",
        "start": NOW - 600,
        "step1_duration": 60,
        "step2_duration": 30,
        "step3_duration": 10,
        "env": DEBIAN.env,
        "md5": DEBIAN.md5,
        "success": True,
        "error": "",
    }
    return usual | changes


def recorded(site: Site, *rows: dict[str, Any]) -> Site:
    database.connect(site)
    database.insert(Log, rows)
    return site


def test_nodes_that_fail_most_come_first_and_what_a_user_stopped_is_nobodys_failure(site: Site) -> None:
    failed = {"success": False, "error": "BootNewEnvKexec-wait_reboot: no answer"}
    recorded(
        site,
        row(),
        row(hostname="gdx-2.site"),
        row(hostname="gdx-2.site", **failed),
        row(hostname="gdx-10.site", **failed),
        row(hostname="gdx-3.site", success=False, error="aborted"),
        row(hostname="gdx-3.site", success=False, error="aborted: its controller is gone"),
        row(hostname="gdx-4.site", operation="reboot", **failed),
        row(hostname="gdx-5.site", start=NOW - 2 * DAY, **failed),
    )
    found = overview.look(site, 1, NOW)
    assert found.rates == [Rate("gdx-10.site", 1, 0), Rate("gdx-2.site", 2, 1), Rate("gdx-1.site", 1, 1)]
    assert found.deployments == 4
    assert found.period == overview.Period(NOW - DAY, NOW)


def test_reasons_are_counted_by_macro_and_micro_step_whatever_follows(site: Site) -> None:
    def failed(error: str) -> dict[str, Any]:
        return row(success=False, error=error)

    recorded(
        site,
        failed("BootNewEnvKexec-wait_reboot: no answer of gdx-1"),
        failed("BootNewEnvKexec-wait_reboot: no answer of gdx-2"),
        failed("BroadcastEnvChain: no verdict"),
        failed("the node said: é"),
        failed("aborted"),
    )
    assert overview.look(site, 7, NOW).reasons == [
        Reason("BootNewEnvKexec", "wait_reboot", 2),
        Reason("", "", 1),
        Reason("BroadcastEnvChain", "", 1),
    ]


def test_durations_are_told_by_half_and_by_95_percent_of_what_went_well(site: Site) -> None:
    lengths = [*range(1, 20), 500]
    recorded(
        site,
        *(row(step1_duration=length, step3_duration=0) for length in lengths),
        row(step1_duration=9999, success=False, error="SetDeploymentEnvUntrusted: late"),
        row(env="tiny:1", md5="bb"),
    )
    found = overview.look(site, 30, NOW).durations
    assert found[:2] == [Usual(DEBIAN, 1, 20, 10, 19), Usual(DEBIAN, 2, 20, 30, 30)]
    assert [(each.image.env, each.step) for each in found[2:]] == [("tiny:1", 1), ("tiny:1", 2), ("tiny:1", 3)]


def test_load_is_the_mean_number_of_nodes_in_each_hour_over_operations_of_all_kinds(site: Site) -> None:
    """Three hours for an operation: 30 minutes before the first full one, then two full ones, and 30 minutes."""
    begin = NOW - NOW % HOUR - 4 * HOUR
    long = {"step1_duration": HOUR, "step2_duration": HOUR, "step3_duration": HOUR}
    recorded(
        site,
        row(start=begin + 1800, operation="power", **long),
        row(start=begin, step1_duration=900, step2_duration=0, step3_duration=0),
        row(start=begin + 3599, step1_duration=0, step2_duration=0, step3_duration=0),
    )
    found = {each.start: each.nodes for each in overview.look(site, 1, NOW).load}
    assert [found[begin + rank * HOUR] for rank in range(-1, 5)] == [0, 0.75, 1, 1, 0.5, 0]
    assert len(found) == 25
    assert len(overview.look(site, 30, NOW).load) == 121


def test_uses_are_told_by_image_with_the_last_one(site: Site) -> None:
    recorded(
        site,
        row(start=NOW - 900),
        row(start=NOW - 300, success=False, error="x: y"),
        row(start=NOW - 100, success=False, error="aborted"),
        row(anonymous_env=True),
    )
    assert overview.look(site, 1, NOW).uses == [
        overview.Use(DEBIAN, False, 2, 1, NOW - 300),
        overview.Use(DEBIAN, True, 1, 1, NOW - 600),
    ]


def test_the_timeline_has_the_means_of_an_image_in_each_slice(site: Site) -> None:
    begin = NOW - NOW % HOUR
    recorded(
        site,
        row(start=begin, step3_duration=0),
        row(start=begin + 1, step1_duration=90, success=False, error="x: y"),
        row(start=begin + 2, env="tiny:1", step1_duration=0),
        row(start=begin - HOUR),
        row(start=begin - HOUR, success=False, error="aborted"),
    )
    assert overview.look(site, 1, NOW).timeline == [
        Durations(begin - HOUR, 60, 30, 10, DEBIAN, 1),
        Durations(begin, 75, 30, 10, DEBIAN, 2),
        Durations(begin, None, 30, 10, Image("tiny:1", DEBIAN.md5), 1),
    ]
    assert {each.start for each in overview.look(site, 30, NOW).timeline} == {begin - 12 * HOUR, begin}


def test_an_empty_log_tells_nothing(site: Site) -> None:
    found = overview.look(site, 1, NOW)
    assert (found.rates, found.reasons, found.durations, found.uses) == ([], [], [], [])
    assert {each.nodes for each in found.load} == {0}


def test_what_was_found_is_told_again_for_a_minute(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "KEPT", 1000.0)
    recorded(site, row(start=int(time.time()) - 10))
    first = overview.overview(site, 1)
    recorded(site, row(start=int(time.time()) - 10))
    assert overview.overview(site, 1) is first
    assert overview.overview(site, 7).deployments == 2
    monkeypatch.setattr(overview, "KEPT", 0.0)
    assert overview.overview(site, 1).deployments == 2


def test_one_thread_looks_and_few_wait_for_the_first_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are refused at once: threads that wait would be missing for everything else."""
    recorded(site, row(start=int(time.time()) - 10))
    looked, gate = [], threading.Event()
    real = overview.look

    def look(*arguments: Any) -> overview.Overview:
        looked.append(arguments)
        gate.wait()
        return real(*arguments)

    def ask(_: int) -> str:
        try:
            return f"{overview.overview(site, 1).deployments} deployments"
        except DatabaseError as error:
            return str(error)
        finally:
            database.disconnect()

    monkeypatch.setattr(overview, "look", look)
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, rank) for rank in range(8)]
        refused = [each.result() for each in islice(as_completed(asking), 5)]
        gate.set()
        told = [each.result() for each in asking]
    assert len(looked) == 1
    assert all("try again" in each for each in refused)
    assert sorted(told)[:3] == ["1 deployments"] * 3
