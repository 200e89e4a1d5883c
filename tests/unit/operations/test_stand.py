"""What ``kanodes3 -y`` shows of workflows, by the events of their runs: of one's own more than of others'."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kadeploy import events
from kadeploy.caller import Account
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.events import Began, Event, EventFile, Finished, StepResult, StepStarted, Taken
from kadeploy.operations import stand
from kadeploy.operations.launch import carry_out
from kadeploy.operations.local import Local
from kadeploy.operations.requests import DeployRequest, PowerRequest, Wish
from kadeploy.operations.work import run_folder
from kadeploy.state import nodes
from kadeploy.state.tables import Workflow
from kadeploy.workflow import Attempt, Final, Outcome, Verdict
from tests.unit import build
from tests.unit.build import NAMES
from tests.unit.plays import batch, write_play

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

KO, HELD, WELL = NAMES
ALICE = Account("alice", 0, 0, Path("/nonexistent"))
FOR_ALL = {"macro-step", "micro-step", "state", "progress"}
"""What everybody sees of a node."""
REASON = "SetDeploymentEnvBad-format_deploy_part: exit status unknown"


@pytest.fixture
def half_failing(configuration: Configuration, environment: Environment, site_folder: Path) -> DeployRequest:
    """A deployment that fails on one node, does not get another, and is well on the third."""
    nodes.claim(configuration.site, [HELD], "D-other", "bob")
    write_play(site_folder, "SetDeploymentEnvBad", f"  tasks:\n{batch('format_deploy_part', gdx_1__site='ko')}")
    steps = build.DUMMIES | {"SetDeploymentEnv": (Implementation(name="SetDeploymentEnvBad"),)}
    return build.deploy_request(force_steps=steps)


def run(configuration: Configuration, request: Wish, listener: Callable[[Event], None] = lambda _: None) -> str:
    """Carry it out as root: the workflow id."""
    account = Account("root", 0, 0, Path("/root"))
    return carry_out(request, configuration, account, listener, threading.Event()).wid


def joined(flow: dict[str, Any], node: str) -> dict[str, Any]:
    return {key: value for each in flow["nodes"][node] for key, value in each.items()}


def test_of_an_ended_workflow_the_user_sees_reasons_times_and_counts(
    configuration: Configuration, half_failing: DeployRequest, root: Account
) -> None:
    begun = int(time.time())
    wid = run(configuration, half_failing)
    flow = Local(root).workflows(wid)[wid]
    assert (flow["operation"], flow["state"], flow["counts"]) == (
        "deploy",
        "ended",
        {"ok": 1, "ko": 2, "processing": 0},
    )
    assert list(flow)[-2:] == ["counts", "nodes"]
    assert begun <= flow["began"] <= flow["ended"] <= time.time()
    assert flow["seconds"] == flow["ended"] - flow["began"]
    failed, held, well = (joined(flow, node) for node in NAMES)
    assert (failed["macro-step"], failed["micro-step"], failed["state"], failed["out"]) == (
        "SetDeploymentEnvBad",
        "format_deploy_part",
        "ko",
        REASON,
    )
    assert (held["state"], "already used by bob" in held["out"]) == ("discarded", True)
    assert (well["state"], "out" in well, "bytes" in well) == ("ok", False, False)
    for node in (failed, well):
        assert flow["began"] <= node["since"] <= node["ended"] <= flow["ended"]
        assert 0 <= node["seconds"] <= flow["seconds"] + 1


def test_while_it_runs_times_pass_and_nodes_are_processing(
    configuration: Configuration, half_failing: DeployRequest, root: Account
) -> None:
    seen: list[dict[str, Any]] = []

    def look(event: Event) -> None:
        if isinstance(event, StepStarted) and WELL in event.nodes:
            for _ in range(2):
                seen.extend(Local(root).workflows().values())
                time.sleep(0.2)

    run(configuration, half_failing, look)
    first, second = seen[0], seen[1]
    assert (first["state"], first["ended"]) == ("running", None)
    assert sum(first["counts"].values()) == len(NAMES)
    assert first["counts"]["processing"] >= 1
    nodes = [joined(flow, WELL) for flow in (first, second)]
    assert "ended" not in nodes[0]
    assert nodes[1]["seconds"] >= nodes[0]["seconds"] + 0.1


def test_others_see_what_they_always_saw_and_no_reasons(
    configuration: Configuration, half_failing: DeployRequest, root: Account
) -> None:
    wid = run(configuration, half_failing)
    flow = Local(ALICE).workflows(wid)[wid]
    assert "counts" not in flow
    assert HELD not in flow["nodes"]
    assert all(set(joined(flow, node)) <= FOR_ALL for node in flow["nodes"])
    assert "exit status" not in str(flow)
    theirs = {**Local(root).workflows(wid)[wid], "nodes": flow["nodes"]}
    theirs.pop("counts")
    assert flow == theirs


def test_of_one_that_only_looks_at_nodes_the_same_is_shown_by_the_same_rule(
    configuration: Configuration, site_folder: Path, root: Account
) -> None:
    write_play(site_folder, "PowerStatus", f"  tasks:\n{batch('power', gdx_1__site='ok')}")
    wid = run(configuration, PowerRequest(user="root", nodes=(KO,), operation="status"))
    assert not Workflow.select().where(Workflow.wid == wid).exists()
    mine, theirs = (Local(who).workflows(wid)[wid] for who in (root, ALICE))
    assert (mine["operation"], mine["state"], mine["counts"]["ok"]) == ("power", "ended", 1)
    assert set(joined(mine, KO)) > set(joined(theirs, KO)) == FOR_ALL - {"progress"}
    assert set(mine) - set(theirs) == {"counts"}


def test_some_nodes_alone_are_shown_with_the_counts_of_all(
    configuration: Configuration, half_failing: DeployRequest, root: Account
) -> None:
    wid = run(configuration, half_failing)
    flow = Local(root).workflows(wid, [KO])[wid]
    assert (list(flow["nodes"]), flow["counts"]["ko"]) == ([KO], 2)


def test_where_no_events_are_kept_the_journal_is_shown(
    configuration: Configuration, half_failing: DeployRequest, root: Account
) -> None:
    wid = run(configuration, half_failing)
    (run_folder(configuration.site, wid) / events.FILE_NAME).unlink()
    assert Local(root).workflows(wid) == Local(ALICE).workflows(wid)


# --- reading --------------------------------------------------------------------------------------------------------

ATTEMPT = Attempt("BroadcastEnv", "BroadcastEnvChain")


def told(site: Site, *heard: Event) -> stand.Run:
    folder = run_folder(site, "D-1")
    folder.mkdir(parents=True, exist_ok=True)
    with closing(EventFile(folder / events.FILE_NAME)) as file:
        for event in heard:
            file(event)
    return stand.find(site, "D-1")


def began() -> Began:
    return Began(wid="D-1", operation="deploy", user="root", groups={"gdx": NAMES}, plans={})


def test_a_node_that_is_tried_again_has_no_reason_any_more(site: Site) -> None:
    step = StepStarted(attempt=ATTEMPT, micro_step="send_environment", nodes=NAMES)
    bad = StepResult(attempt=ATTEMPT, micro_step="send_environment", outcomes={KO: Outcome(Verdict.KO, "no route")})
    failed = told(site, began(), step, bad).states[KO]
    assert (failed.state, failed.out, failed.ended) == ("ko", "no route", None)
    again = told(site, msgspec.structs.replace(step, at=step.at + 5)).states[KO]
    assert (again.state, again.out, again.since) == ("ok", "", step.at + 5)


def test_what_is_told_of_a_node_after_its_end_does_not_count(site: Site) -> None:
    killed = StepResult(attempt=ATTEMPT, micro_step="sync", outcomes={KO: Outcome(Verdict.KO, "killed")})
    aborted = Finished(finals={KO: Final(Verdict.KO, "aborted: taken by D-2", aborted=True)})
    lost = Taken(reasons={KO: "taken by D-2"})
    node = told(site, began(), lost, killed, msgspec.structs.replace(aborted, at=lost.at + 5)).states[KO]
    assert (node.state, node.out, node.ended) == ("ko", "aborted: taken by D-2", lost.at)


def test_nodes_of_a_workflow_whose_controller_died_count_as_ko_and_stand_still(site: Site) -> None:
    step = StepStarted(attempt=ATTEMPT, micro_step="sync", nodes=(KO,), at=1000.0)
    found = told(site, began(), step)
    flow = {"state": "aborted", "nodes": {KO: []}}
    shown = stand.detailed(found, flow, [KO])
    assert shown["counts"] == {"ok": 0, "ko": len(NAMES), "processing": 0}
    assert joined(shown, KO)["seconds"] == 0.0


def test_a_thousand_nodes_are_shown_quickly_and_only_what_is_new_is_read(site: Site) -> None:
    names = tuple(f"n-{rank}" for rank in range(1000))
    steps = [StepStarted(attempt=ATTEMPT, micro_step=f"step_{rank}", nodes=names) for rank in range(40)]
    results = [
        StepResult(attempt=ATTEMPT, micro_step=step.micro_step, outcomes=dict.fromkeys(names, Outcome(Verdict.OK)))
        for step in steps
    ]
    first = msgspec.structs.replace(began(), groups={"big": names})
    told(site, first, *(event for pair in zip(steps, results, strict=True) for event in pair))
    begun = time.process_time()
    for _ in range(20):
        stand.detailed(stand.find(site, "D-1"), {"state": "running", "nodes": {name: [] for name in names}})
    assert time.process_time() - begun < 20 * 0.1
