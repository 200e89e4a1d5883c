"""Operations leave nodes in quarantine out, and lose those to it that keep failing, if that is the site's rule."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kadeploy.caller import Account
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Quarantine, Site
from kadeploy.environments.environment import Environment
from kadeploy.errors import QuarantineError
from kadeploy.events import Ended, Event, LeftOut, Note, Report
from kadeploy.operations import admission, dry_run, launch, quarantine, record, sources
from kadeploy.operations.requests import PowerRequest, Recorded
from kadeploy.operations.work import Work, run_folder
from kadeploy.state import database, rights
from kadeploy.state import quarantine as stays
from kadeploy.state.tables import Claim, Log
from tests.unit import build
from tests.unit.build import DUMMIES, NAMES
from tests.unit.plays import batch, write_play

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

NODE = NAMES[1]
REFUSED = r"gdx-2.site: in quarantine since \S+ \S+ by ada: its disk\. Ask an administrator, or take other nodes\."


@pytest.fixture
def aside(site: Site) -> Site:
    """A site of which one node is in quarantine, and on which alice may do everything."""
    rights.add(site, "alice", ["*"], ["*"])
    stays.put(site, [NODE], "ada", "its disk")
    return site


def deployment(configuration: Configuration, user: str = "alice", **changes: Any) -> Work:
    usual = {"user": user, "environment": Recorded(name="tiny", owner="root")}
    return admission.admit(build.deploy_request(**usual | changes), configuration)


def carried_out(work: Work, account: Account) -> tuple[Report, list[Event]]:
    heard: list[Event] = []
    return launch.launch(work, sources.of(work, account), heard.append, threading.Event()), heard


@pytest.fixture
def shared(environment: Environment, site: Site) -> Environment:
    """The recorded environment, for all users."""
    from kadeploy.environments.reference import Reference
    from kadeploy.state import environments

    return environments.set_visibility(site, "root", Reference(environment.name), "public")


# --- who takes part --------------------------------------------------------------------------------------------------


def test_others_are_done_and_the_node_is_left_out_with_what_to_do(
    aside: Site, configuration: Configuration, shared: Environment, root: Account
) -> None:
    report, heard = carried_out(deployment(configuration), root)
    assert report.ok == (NAMES[0], NAMES[2])
    assert list(report.ko) == [NODE]
    assert report.ko[NODE].endswith("by ada: its disk. Ask an administrator, or take other nodes")
    [left_out] = [event for event in heard if isinstance(event, LeftOut)]
    assert left_out.reasons == report.ko
    [ended] = [event for event in heard if isinstance(event, Ended)]
    assert NODE in ended.groups["gdx"]
    assert not Log.select().where(Log.hostname == NODE).exists()
    kept = record.read(run_folder(aside, report.wid))
    assert (set(kept.left_out), set(kept.taken)) == ({NODE}, {NAMES[0], NAMES[2]})


def test_a_request_for_such_nodes_alone_is_refused(
    aside: Site, configuration: Configuration, shared: Environment
) -> None:
    with pytest.raises(QuarantineError, match=f"No node is left to work on. {REFUSED}"):
        deployment(configuration, nodes=(NODE,))
    with pytest.raises(QuarantineError, match=REFUSED):
        admission.admit(PowerRequest(user="alice", nodes=(NODE,), operation="off"), configuration)
    assert not Claim.select().exists()


def test_whoever_holds_the_other_nodes_is_told_beside_it(
    aside: Site, configuration: Configuration, shared: Environment, root: Account
) -> None:
    work = deployment(configuration)
    launch.nodes.claim(aside, NAMES, "D-other", "bob")
    report, _ = carried_out(work, root)
    assert report.ok == ()
    assert "in quarantine" in report.ko[NODE]
    assert "already used by bob" in report.ko[NAMES[0]]


def test_administrators_may_try_the_repair_and_are_told(
    aside: Site, configuration: Configuration, environment: Environment, root: Account
) -> None:
    work = deployment(configuration, "root", nodes=(NODE,))
    assert work.notes[-1].endswith("by ada: its disk; administrators may use them all the same")
    assert carried_out(work, root)[0].ok == (NODE,)


def test_who_only_looks_may_look(aside: Site, configuration: Configuration) -> None:
    work = admission.admit(PowerRequest(user="alice", nodes=(NODE,), operation="status"), configuration)
    assert work.admitted == [NODE]


def test_a_dry_run_tells_who_would_be_left_out(
    aside: Site, configuration: Configuration, shared: Environment, root: Account
) -> None:
    work = deployment(configuration)
    lines = dry_run.lines(work, sources.of(work, root))
    assert f"cluster gdx: {NAMES[0]}" in lines
    assert any(line.startswith(f"left out: {NODE}: in quarantine since ") for line in lines)


def test_a_node_that_is_released_takes_part_again(
    aside: Site, configuration: Configuration, shared: Environment
) -> None:
    stays.release(aside, [NODE], "ada")
    assert deployment(configuration).admitted == list(NAMES)


# --- the rule --------------------------------------------------------------------------------------------------------


def failed_before(site: Site, times: int) -> None:
    """Of the two nodes of each of these deployments, `NODE` failed."""
    database.connect(site)
    shared = {"operation": "deploy", "user": "alice", "start": int(time.time()) - 600, "env": "tiny:1"}
    for rank in range(times):
        wid = {"wid": f"D-{rank}"}
        database.insert(Log, [shared | wid | {"hostname": NODE, "success": False, "error": "no answer"}])
        database.insert(Log, [shared | wid | {"hostname": NAMES[0], "success": True}])


def ruled(configuration: Configuration, rule: str) -> Configuration:
    wanted = msgspec.convert({"rule": rule, "operations": 3, "failures": 1.0}, Quarantine)
    return msgspec.structs.replace(configuration, site=msgspec.structs.replace(configuration.site, quarantine=wanted))


@pytest.mark.parametrize(
    ("rule", "before", "lost"), [("leave_out", 2, True), ("leave_out", 1, False), ("propose", 2, False)]
)
def test_the_deployment_that_is_one_failure_too_many_puts_its_node_into_quarantine(
    site_folder: Path,
    configuration: Configuration,
    environment: Environment,
    root: Account,
    rule: str,
    before: int,
    lost: bool,
) -> None:
    bad = batch("format_deploy_part", gdx_1__site="ok", gdx_2__site="ko")
    write_play(site_folder, "SetDeploymentEnvBad", f"  tasks:\n{bad}")
    failed_before(configuration.site, before)
    steps = DUMMIES | {"SetDeploymentEnv": (Implementation(name="SetDeploymentEnvBad"),)}
    work = deployment(ruled(configuration, rule), "root", nodes=NAMES[:2], force_steps=steps)
    report, heard = carried_out(work, root)
    assert list(report.ko) == [NODE]
    told = [event.text for event in heard if isinstance(event, Note) and "quarantine" in event.text]
    assert told == [f"{NODE}: in quarantine from now on: 3 of its last 3 deployments failed"] * lost
    assert [stay.node for stay in stays.current(configuration.site)] == [NODE] * lost


def test_a_node_that_was_stopped_or_taken_is_not_judged(configuration: Configuration) -> None:
    failed_before(configuration.site, 3)
    site = ruled(configuration, "leave_out").site
    for changes in ({"aborted": (NODE,)}, {"taken": (NODE,)}):
        assert quarantine.judge(site, Report("D-9", ko={NODE: "aborted"}, **changes)) == ""
    assert "in quarantine from now on" in quarantine.judge(site, Report("D-9", ko={NODE: "no answer"}))
    assert quarantine.judge(site, Report("D-9", ko={NODE: "no answer"})) == "", "it is told once"
