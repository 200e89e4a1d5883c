"""Sums of days are those of the rows of the log, whatever is written, comes late or goes between two looks."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError
from kadeploy.state import database, days, history, journal, kept_days
from kadeploy.state.damage import sparing
from kadeploy.state.days import Sums
from kadeploy.state.journal import LogRow
from kadeploy.state.load import DAY, HOUR
from kadeploy.state.tables import DayRow, Log, Workflow

FIRST = 20_000 * DAY
"""The history goes on for some days from here on."""
LENGTH = 4 * DAY
FIELDS = ("operation", "hostname", "start", "env", "md5", "anonymous_env", "success", "error")
ERRORS = ("", "aborted", "aborted: by its user", "BootNewEnvKexec-wait_reboot: no answer", "BootNewEnvKexec: é", "late")


def plain(site: Site, since: int, until: int) -> Sums:
    """The same, row by row in the order of their start, second by second."""
    database.connect(site)
    sums, hours = Sums(), Counter[int]()
    for row in Log.select().where(Log.start >= since, Log.start <= until).order_by(Log.start):
        steps = [row.step1_duration, row.step2_duration, row.step3_duration]
        hours.update(second // HOUR for second in range(row.start, row.start + sum(steps)))
        if row.operation != "deploy" or (not row.success and row.error.startswith("aborted")):
            continue
        image = (row.env, row.md5)
        used, slot = (*image, row.anonymous_env), (*image, row.start // HOUR)
        sums.deployments[row.hostname] += 1
        sums.uses[used] += 1
        sums.last[used] = row.start
        numbers = [1, *steps, *(int(each > 0) for each in steps)]
        known = sums.means.get(slot, (0,) * 7)
        sums.means[slot] = days.Means(*(mine + more for mine, more in zip(known, numbers, strict=True)))
        if row.success:
            sums.successes[row.hostname] += 1
            sums.good[used] += 1
            sums.lengths.update((*image, rank, each) for rank, each in enumerate(steps, 1) if each)
        else:
            sums.reasons[days.step_of(row.error)] += 1
    for hour, seconds in hours.items():
        sums.load[hour] += seconds
        sums.load[hour + 1] -= seconds
    return sums


def figures(sums: Sums) -> dict[str, dict[Any, Any]]:
    """Without zeroes."""
    return {name: {key: number for key, number in each.items() if number} for name, each in vars(sums).items()}


def ended(site: Site, wid: str, operation: Any, start: int, rows: list[LogRow], env: str = "debian") -> None:
    """An operation that began then, through the journal."""
    journal.begin(site, wid, operation, "alice", None, {"gdx": []})
    Workflow.update(started=start, env_name=env, env_version=1).where(Workflow.wid == wid).execute()
    assert journal.end(wid, rows)


ROWS = st.builds(
    LogRow,
    hostname=st.sampled_from(["gdx-1.site", "gdx-2.site", "é"]),
    step1_duration=st.sampled_from([0, 1, 60, 3600, 9000]),
    step2_duration=st.sampled_from([0, 59]),
    step3_duration=st.integers(0, 4000),
    md5=st.sampled_from(["", "aa"]),
    success=st.booleans(),
    error=st.sampled_from(ERRORS),
)
MOMENTS = st.integers(FIRST, FIRST + LENGTH) | st.sampled_from(
    [FIRST, FIRST + DAY - 1, FIRST + DAY, FIRST + DAY + HOUR]
)
ENDS = st.tuples(
    st.sampled_from(["deploy", "reboot"]), MOMENTS, st.lists(ROWS, max_size=3), st.sampled_from(["debian", "tiny", ""])
)
ACTS = {"end": ENDS, "look": st.tuples(MOMENTS, MOMENTS), "forget": MOMENTS}
STEPS = st.lists(st.one_of([st.tuples(st.just(name), what) for name, what in ACTS.items()]))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(STEPS)
def test_sums_of_any_period_are_those_of_its_rows_whatever_came_before(
    site: Site, steps: list[tuple[str, Any]]
) -> None:
    database.connect(site)
    for table in (Log, Workflow, DayRow):
        table.delete().execute()
    days.forget()
    for rank, (kind, what) in enumerate([*steps, ("look", (FIRST, FIRST + LENGTH))]):
        if kind == "end":
            operation, start, rows, env = what
            ended(site, f"D-{rank}", operation, start, rows, env)
        elif kind == "forget":
            history.forget(site, what)
        else:
            since, until = sorted(what)
            assert figures(days.summed(since, until)) == figures(plain(site, since, until))


def test_days_are_summed_up_once_and_late_rows_and_purges_are_seen(site: Site) -> None:
    row = LogRow(hostname="gdx-1.site", success=True)
    for day in range(3):
        ended(site, f"D-{day}", "deploy", FIRST + day * DAY, [row])
    assert days.summed(FIRST, FIRST + 3 * DAY - 1).deployments == {"gdx-1.site": 3}
    kept = dict(database.fetch(DayRow.select(DayRow.day, DayRow.sums)))
    assert len(kept) == 3
    assert all(kept.values())
    days.forget()
    Log.delete().execute()  # as nothing of ours does it: the sums are read, not the rows
    assert days.summed(FIRST, FIRST + 3 * DAY - 1).deployments == {"gdx-1.site": 3}
    ended(site, "D-late", "deploy", FIRST + DAY, [row])
    assert days.summed(FIRST, FIRST + 3 * DAY - 1).deployments == {"gdx-1.site": 3}
    history.forget(site, FIRST + 2 * DAY)
    assert days.summed(FIRST, FIRST + 3 * DAY - 1).deployments == {"gdx-1.site": 1}


def test_sums_of_rows_that_changed_meanwhile_are_not_kept(site: Site) -> None:
    database.connect(site)
    day = FIRST // DAY
    kept_days.expect([day])
    version = kept_days.versions(day, day + 1)[day]
    kept_days.changed([FIRST])
    kept_days.keep(day, version, "[]")
    assert kept_days.kept(day) is None


@pytest.mark.parametrize("damaged", ["nonsense", "[]", "{}", '["x"]'])
def test_sums_that_cannot_be_read_are_made_anew(site: Site, damaged: str) -> None:
    ended(site, "D-1", "deploy", FIRST, [LogRow(hostname="gdx-1.site", success=True)])
    kept_days.keep(FIRST // DAY, 1, damaged)
    assert days.summed(FIRST, FIRST + DAY - 1).deployments == {"gdx-1.site": 1}
    assert kept_days.kept(FIRST // DAY) != (1, damaged)


def test_old_sums_go(site: Site) -> None:
    database.connect(site)
    kept_days.expect([1, 2, 1000])
    kept_days.keep(1000, 0, "[]")
    assert kept_days.versions(0, 2000) == {1000: 0}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_damaged_rows_are_told_at_each_look_and_the_others_count(site: Site) -> None:
    ended(site, "D-1", "deploy", FIRST, [LogRow(hostname=f"gdx-{rank}.site", success=True) for rank in (1, 2)])
    database.connect(site).execute_sql("UPDATE log SET step1_duration = 'soon' WHERE hostname = 'gdx-2.site'")
    for _ in range(2):
        with pytest.raises(DatabaseError, match="step1_duration is 'soon'"):
            days.summed(FIRST, FIRST + DAY - 1)
        with pytest.raises(DatabaseError, match="step1_duration is 'soon'"), sparing():
            assert days.summed(FIRST, FIRST + DAY - 1).deployments == {"gdx-1.site": 1}


def test_a_long_operation_counts_in_all_its_hours(site: Site) -> None:
    ended(site, "D-1", "power", FIRST + 1800, [LogRow(hostname="x", success=True, step1_duration=3 * HOUR)])
    load = days.summed(FIRST, FIRST + HOUR).load
    begin = FIRST // HOUR
    assert [sum(load[begin + each] for each in range(rank + 1)) for rank in range(5)] == [1800, 3600, 3600, 1800, 0]
    assert time.gmtime(FIRST).tm_hour == 0
