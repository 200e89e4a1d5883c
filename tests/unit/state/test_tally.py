"""Counts of what runs and has ended: by workflow, with cluster and step, on each database."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pytest

from kadeploy.config.site import Site
from kadeploy.state import database, journal, tally
from kadeploy.state.journal import LogRow
from kadeploy.state.tables import Log
from kadeploy.state.tally import Closed, Nodes, Took
from kadeploy.workflow import ABORTED

GROUPS = {"gdx": ["gdx-1", "gdx-2"], "nvm": ["nvm-1"]}
CHAIN = "BroadcastEnvChain"
SILENT = "the BMC at 10.0.2.1 did not do it within 60 s"


def begun(site: Site, wid: str, groups: Mapping[str, Sequence[str]] = GROUPS) -> None:
    journal.begin(site, wid, "deploy", "alice", None, groups)
    journal.micro_step(wid, [name for names in groups.values() for name in names], CHAIN, "send_environment")


def row(name: str, error: str = "", seconds: int = 90) -> LogRow:
    return LogRow(hostname=name, step2=CHAIN, step2_duration=seconds, success=not error, error=error)


@pytest.fixture
def ended(site: Site) -> str:
    begun(site, "D-1")
    journal.end("D-1", [row("gdx-1"), row("gdx-2", f"soft: {SILENT}"), row("nvm-1", f"{ABORTED}: taken by D-2", 20)])
    return "D-1"


def test_ends_tell_cluster_verdict_and_the_step_in_which_nodes_were(site: Site, ended: str) -> None:
    at = (CHAIN, "send_environment", 1)
    assert sorted(tally.ends(site, [ended], ["did not do it within", "nobody answers"])) == [
        Nodes(ended, "deploy", "gdx", "ko", True, *at),
        Nodes(ended, "deploy", "gdx", "ok", False, *at),
        Nodes(ended, "deploy", "nvm", "aborted", False, *at),
    ]


def test_nodes_with_the_same_end_are_one_row(site: Site) -> None:
    names = [f"gdx-{number}" for number in range(1, 1201)]
    begun(site, "D-3", {"gdx": names})
    journal.end("D-3", [row(name, "no answer") for name in names])
    [found] = tally.ends(site, ["D-3"], ["did not do it within"])
    assert (found.verdict, found.told, found.number) == ("ko", False, 1200)


def test_durations_leave_out_who_was_stopped_and_steps_that_did_not_run(site: Site, ended: str) -> None:
    assert tally.durations(site, [ended]) == [Took("gdx", CHAIN, 90, 2)]


def test_nothing_is_counted_of_workflows_that_are_not_asked_for(site: Site, ended: str) -> None:
    assert (tally.ends(site, [], ["x"]), tally.ends(site, ["D-9"], ["x"]), tally.durations(site, [])) == ([], [], [])


def test_a_node_of_which_the_journal_knows_nothing_has_no_cluster(site: Site, ended: str) -> None:
    database.insert(
        Log,
        [{"wid": "D-7", "operation": "power", "user": "bob", "hostname": "old", "start": 1, "success": True}],
    )
    assert tally.ends(site, ["D-7"], ["x"]) == [Nodes("D-7", "power", "", "ok", False, "", "", 1)]


def test_what_runs_and_what_has_ended_since_then_are_told_apart(site: Site, ended: str) -> None:
    begun(site, "D-2")
    now = int(time.time())
    assert [(each.wid, each.operation, each.is_left) for each in tally.running(site)] == [("D-2", "deploy", False)]
    [closed] = tally.closed(site, now - 100)
    assert closed == Closed(ended, "deploy", "ended", closed.ended)
    assert tally.closed(site, now + 100) == []
