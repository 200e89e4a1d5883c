"""Nodes that are put aside and let out, and which ones fail so often that they belong there."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from kadeploy.config.site import Quarantine, Site
from kadeploy.state import database, failing, quarantine
from kadeploy.state.failing import Failing
from kadeploy.state.tables import Log, QuarantineRow

NODE, OTHER = "gdx-2.site", "gdx-10.site"
END = 4_000_000_000
FAILED = {"success": False, "error": "BootNewEnvKexec-wait_reboot: no answer"}


# --- stays -----------------------------------------------------------------------------------------------------------


def test_nodes_are_in_quarantine_from_when_they_are_put_there_until_they_are_released(site: Site) -> None:
    before = int(time.time())
    quarantine.put(site, [OTHER, NODE], "ada", "its disk")
    [first, second] = quarantine.current(site)
    assert (first.node, first.put_by, first.reason, first.until) == (NODE, "ada", "its disk", None)
    assert before <= first.since <= time.time()
    assert second.node == OTHER
    assert quarantine.release(site, [NODE], "bob") == [NODE]
    assert [stay.node for stay in quarantine.current(site)] == [OTHER]
    row = QuarantineRow.get(QuarantineRow.node == NODE)
    assert (row.put_by, row.reason, row.released_by) == ("ada", "its disk", "bob")
    assert quarantine.ends(site, [NODE, OTHER]) == {NODE: row.released}


def test_some_nodes_alone_are_asked_for(site: Site) -> None:
    quarantine.put(site, [NODE, OTHER], "ada", "")
    assert [stay.node for stay in quarantine.current(site, [OTHER, "gdx-3.site"])] == [OTHER]


def test_a_stay_with_an_end_is_over_then(site: Site) -> None:
    quarantine.put(site, [NODE], "ada", "", int(time.time()) + 3600)
    quarantine.put(site, [OTHER], "ada", "", int(time.time()) - 1)
    assert [stay.node for stay in quarantine.current(site)] == [NODE]
    assert list(quarantine.ends(site, [NODE, OTHER])) == [OTHER]


def test_who_puts_a_node_there_again_changes_all_but_the_beginning(site: Site) -> None:
    quarantine.put_by_rule(site, {NODE: "5 of its last 10 deployments failed"})
    QuarantineRow.update(since=1000).execute()
    quarantine.put(site, [NODE], "ada", "no memory")
    [stay] = quarantine.current(site)
    assert (stay.since, stay.put_by, stay.reason) == (1000, "ada", "no memory")
    quarantine.put(site, [NODE], "bob", "", END)
    [stay] = quarantine.current(site)
    assert (stay.since, stay.put_by, stay.reason, stay.until) == (1000, "bob", "no memory", END)


def test_the_rule_leaves_alone_what_an_administrator_has_said_and_begins_anew_after_a_release(site: Site) -> None:
    quarantine.put(site, [NODE], "ada", "its disk")
    assert quarantine.put_by_rule(site, {NODE: "figures", OTHER: "figures"}) == [OTHER]
    assert [stay.reason for stay in quarantine.current(site)] == ["its disk", "figures"]
    quarantine.release(site, [NODE], "ada")
    assert quarantine.put_by_rule(site, {NODE: "figures"}) == [NODE]
    stay = quarantine.current(site)[0]
    assert (stay.put_by, stay.told.partition(": ")[2]) == (quarantine.RULE, "figures")


def test_many_nodes_are_put_there_and_released_at_once(site: Site) -> None:
    names = [f"n-{number}" for number in range(1, 2001)]
    quarantine.put(site, names, "ada", "the room is too hot")
    assert [stay.node for stay in quarantine.current(site)] == names
    assert quarantine.release(site, names, "ada") == names
    assert quarantine.current(site) == []


# --- the rule --------------------------------------------------------------------------------------------------------


def ruled(site: Site, **rule: Any) -> Site:
    """The site with a rule: half of the last four deployments, unless *rule* says something else."""
    usual = {"operations": 4, "failures": 0.5, "days": 7}
    return msgspec.structs.replace(site, quarantine=Quarantine(**usual | rule))


def deployed(site: Site, *wids: str, node: str = NODE, ago: int = 3600, **changes: Any) -> None:
    """*node* was deployed in these operations, well unless *changes* say something else."""
    usual = {"operation": "deploy", "user": "alice", "env": "debian:12", "md5": "aa", "success": True}
    database.connect(site)
    rows = [usual | {"wid": wid, "hostname": node, "start": int(time.time()) - ago} | changes for wid in wids]
    database.insert(Log, rows)


def half(site: Site, **changes: Any) -> None:
    """Of four operations, `NODE` failed in two; `OTHER`, which was in all of them, in none."""
    deployed(site, "D-1", "D-2", **changes)
    deployed(site, "D-3", "D-4", **FAILED | changes)
    deployed(site, "D-1", "D-2", "D-3", "D-4", node=OTHER, **changes)


def test_a_node_that_reaches_the_share_fails_too_often_and_is_told_with_figures(site: Site) -> None:
    half(site)
    found = failing.failing(ruled(site))
    assert found == [Failing(NODE, 2, 4)] == failing.failing(ruled(site), [NODE, OTHER])
    assert found[0].told == "2 of its last 4 deployments failed"
    assert failing.failing(ruled(site, failures=0.51)) == []


def test_without_a_rule_no_node_does(site: Site) -> None:
    half(site)
    assert failing.failing(site) == []


def test_of_a_node_with_too_few_deployments_nothing_is_said(site: Site) -> None:
    half(site)
    assert failing.failing(ruled(site, operations=5), [NODE]) == []


def test_the_last_deployments_count_and_only_of_the_last_days(site: Site) -> None:
    half(site)
    deployed(site, "D-5", "D-6", "D-7", ago=60)
    assert failing.failing(ruled(site), [NODE]) == []
    assert failing.failing(ruled(site, operations=7, failures=0.2), [NODE]) == [Failing(NODE, 2, 7)]
    Log.update(start=Log.start - 8 * 86400).execute()
    assert failing.failing(ruled(site, operations=7, failures=0.2), [NODE]) == []


def test_an_operation_that_was_stopped_counts_neither_way(site: Site) -> None:
    half(site, success=False, error="aborted")
    assert failing.failing(ruled(site), [NODE]) == []
    half(site)
    deployed(site, "D-8", "D-9", ago=60, success=False, error="aborted: its controller is gone")
    assert failing.failing(ruled(site), [NODE]) == [Failing(NODE, 2, 4)]


def test_reboots_do_not_count(site: Site) -> None:
    half(site, operation="reboot")
    assert failing.failing(ruled(site), [NODE]) == []
    assert failing.failing(ruled(site)) == []


def test_an_operation_that_failed_on_all_of_its_nodes_is_no_nodes_failure(site: Site) -> None:
    """The image may be bad, or a server of the site be down."""
    deployed(site, "D-1", "D-2", "D-3", "D-4", **FAILED)
    deployed(site, "D-1", "D-2", "D-3", "D-4", node=OTHER, **FAILED)
    deployed(site, "D-5", node="gdx-3.site")
    assert failing.failing(ruled(site)) == []


def test_a_failure_of_a_node_alone_counts_where_its_image_went_well_elsewhere(site: Site) -> None:
    deployed(site, "D-1", "D-2", "D-3", "D-4", **FAILED)
    deployed(site, "D-5", ago=7200)
    assert failing.failing(ruled(site)) == []
    deployed(site, "D-6", node=OTHER, md5="bb")
    assert failing.failing(ruled(site)) == []
    deployed(site, "D-7", node=OTHER)
    assert failing.failing(ruled(site)) == [Failing(NODE, 4, 4)]


def test_an_image_of_which_nothing_is_known_is_like_no_other(site: Site) -> None:
    deployed(site, "D-1", "D-2", "D-3", "D-4", env="", md5="", **FAILED)
    deployed(site, "D-7", node=OTHER, env="", md5="")
    assert failing.failing(ruled(site)) == []


def test_failures_that_say_nothing_of_the_node_make_room_for_older_ones(site: Site) -> None:
    half(site)
    deployed(site, "D-8", "D-9", ago=60, env="broken:1", **FAILED)
    assert failing.failing(ruled(site)) == [Failing(NODE, 2, 4)]


def test_a_node_that_was_released_begins_anew(site: Site) -> None:
    half(site)
    quarantine.put_by_rule(site, {NODE: "figures"})
    quarantine.release(site, [NODE], "ada")
    assert failing.failing(ruled(site)) == []
    QuarantineRow.update(released=int(time.time()) - 7200).execute()
    assert failing.failing(ruled(site)) == [Failing(NODE, 2, 4)]


def test_a_proposal_that_is_turned_down_is_forgotten_like_a_stay(site: Site) -> None:
    half(site)
    assert quarantine.release(site, [NODE], "ada") == []
    assert failing.failing(ruled(site)) == []
    assert quarantine.current(site) == []


def test_of_a_long_log_the_newest_rows_alone_are_looked_at(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    half(site)
    for rank in range(20):
        deployed(site, f"D-more-{rank}", node="gdx-3.site", ago=60 - rank)
    monkeypatch.setattr(failing, "MOST", 10)
    assert failing.failing(ruled(site)) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_question_to_the_log_reads_more_of_it_than_the_days_of_the_rule(site: Site) -> None:
    half(site)
    asked: list[str] = []
    connection = database.connect(site).connection()
    connection.set_trace_callback(asked.append)
    try:
        failing.failing(ruled(site))
    finally:
        connection.set_trace_callback(None)
    # how others plan depends on what is in their tables
    questions = [text for text in asked if 'FROM "log"' in text]
    assert len(questions) > 2
    for text in questions:
        plans = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}")]
        assert any(plan.startswith("SEARCH") for plan in plans), (text, plans)
        assert not any(plan.startswith("SCAN") for plan in plans), (text, plans)
