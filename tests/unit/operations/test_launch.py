"""Operations from beginning to end: real playbooks that act nothing, the real database."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kadeploy import files
from kadeploy.caller import Account
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.site import Hooks, Site
from kadeploy.environments.environment import Environment
from kadeploy.errors import BrokenOffError, EnvironmentRefusedError, UserInterruptError
from kadeploy.events import (
    AttemptEnded,
    AttemptStarted,
    Began,
    Ended,
    Event,
    Finished,
    LeftOut,
    Listener,
    Note,
    Report,
    StepResult,
    StepStarted,
)
from kadeploy.operations import admission, launch, sources
from kadeploy.operations.requests import PowerRequest, RebootRequest, Recorded
from kadeploy.operations.work import Work, run_folder
from kadeploy.runner import player, request
from kadeploy.runner.request import CustomOperation, Options
from kadeploy.state import journal, nodes, rights
from kadeploy.state.tables import Claim, Log, Workflow
from kadeploy.workflow import Attempt
from tests.unit import build
from tests.unit.build import DUMMIES as FORCED
from tests.unit.build import NAMES
from tests.unit.plays import batch, write_play, write_role

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ALICE = Account("root", 0, 0, Path("/root"))


@dataclass
class Ear:
    """A listener that remembers what it heard, in one line each; *then* is called at the first micro-step."""

    then: Callable[[], None] = lambda: None
    lines: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if type(event) in HEARD:
            self.lines.append(HEARD[type(event)](event))
        if isinstance(event, StepStarted):
            self.then()


HEARD: dict[type, Callable[[Any], str]] = {
    Began: lambda e: f"began {sorted(name for names in e.groups.values() for name in names)}",
    LeftOut: lambda e: f"left out {sorted(e.reasons)}",
    AttemptStarted: lambda e: f"{e.attempt.implementation} started {sorted(e.nodes)}",
    AttemptEnded: lambda e: f"{e.attempt.implementation} ended {sorted(e.outcomes)}",
    StepStarted: lambda e: f"step {e.micro_step}",
    Finished: lambda e: f"finished {sorted(e.finals)}",
    Note: lambda e: f"note {e.text}",
    Ended: lambda e: f"over {len(e.report.ok)}",
}


def deployment(configuration: Configuration, environment: Environment, **changes: object) -> Work:
    request = build.deploy_request(environment=Recorded(name=environment.name), **changes)
    return admission.deploy(request, configuration)


def go(
    work: Work, stop: threading.Event | None = None, ear: Ear | None = None, listener: Listener | None = None
) -> tuple[Report, Ear]:
    ear = ear or Ear()
    return launch.launch(work, sources.of(work, ALICE), listener or ear, stop or threading.Event()), ear


def states(site: Site) -> dict[str, tuple[str, str]]:
    return {row.hostname: (row.state, row.env_name) for row in nodes.states(site)}


def test_a_deployment_over_two_clusters_leaves_states_log_and_no_claim(
    configuration: Configuration, environment: Environment
) -> None:
    work = deployment(configuration, environment)
    report, ear = go(work)
    assert (sorted(report.ok), dict(report.ko), report.aborted) == (sorted(NAMES), {}, ())
    assert states(configuration.site) == dict.fromkeys(NAMES, ("deployed", "tiny"))
    assert Claim.select().count() == 0
    row = Log.get(Log.hostname == "nvm-1.site")
    assert (row.wid, row.step1, row.step2, row.step3, row.success) == (
        work.wid,
        "SetDeploymentEnvDummy",
        "BroadcastEnvDummy",
        "BootNewEnvDummy",
        True,
    )
    assert Workflow.get_by_id(work.wid).state == "ended"
    gdx = [line for line in ear.lines if "gdx" in line]
    assert gdx[1:] == [
        f"{step}Dummy {what} ['gdx-1.site', 'gdx-2.site']" for step in FORCED for what in ("started", "ended")
    ] + ["finished ['gdx-1.site', 'gdx-2.site']"]


def test_failures_are_retried_fall_back_and_end_up_in_report_and_log(
    configuration: Configuration, environment: Environment, site_folder: Path
) -> None:
    """gdx-2 fails both ways of preparing its disk, gdx-1 the first try of the first way only."""
    bad = batch("format_deploy_part", gdx_1__site="ko", gdx_2__site="ko")
    write_play(site_folder, "SetDeploymentEnvFirst", f"  tasks:\n{bad}")
    worse = batch("switch_pxe", gdx_1__site="ok", gdx_2__site="ko")
    write_play(site_folder, "SetDeploymentEnvSecond", f"  tasks:\n{worse}")
    forced = FORCED | {
        "SetDeploymentEnv": (
            Implementation(name="SetDeploymentEnvFirst", retries=1, timeout=60),
            Implementation(name="SetDeploymentEnvSecond", timeout=50),
        )
    }
    report, _ = go(deployment(configuration, environment, force_steps=forced))
    assert sorted(report.ok) == ["gdx-1.site", "nvm-1.site"]
    assert dict(report.ko) == {"gdx-2.site": "SetDeploymentEnvSecond-switch_pxe: exit status unknown"}
    assert states(configuration.site)["gdx-2.site"] == ("deploy_failed", "tiny")
    row = Log.get(Log.hostname == "gdx-2.site")
    assert (row.step1, row.retry_step1, row.timeout_step1, row.step2) == ("SetDeploymentEnvSecond", 2, 50, "")
    assert row.error.startswith("SetDeploymentEnvSecond-switch_pxe")


def test_while_it_runs_its_claims_tell_the_partition_of_each_node(
    configuration: Configuration, environment: Environment
) -> None:
    held: list[nodes.Held] = []
    work = deployment(configuration, environment)
    go(work, ear=Ear(then=lambda: held.extend(nodes.claims(configuration.site, ["gdx-1.site", "nvm-1.site"]))))
    assert {(each.node, each.wid, each.user, each.part) for each in held} == {
        ("gdx-1.site", work.wid, "root", "/dev/sda3"),
        ("nvm-1.site", work.wid, "root", "/dev/nvme0n1p1"),
    }


def test_nodes_that_another_workflow_holds_are_left_out_and_named(
    configuration: Configuration, environment: Environment
) -> None:
    nodes.claim(configuration.site, ["gdx-2.site"], "D-other", "bob")
    report, ear = go(deployment(configuration, environment, nodes=NAMES[:2]))
    assert report.ok == ("gdx-1.site",)
    assert "already used by bob" in report.ko["gdx-2.site"]
    assert ear.lines[0] == "left out ['gdx-2.site']"
    assert [row.node for row in Claim.select()] == ["gdx-2.site"]


def test_when_all_nodes_are_held_nothing_begins(configuration: Configuration, environment: Environment) -> None:
    nodes.claim(configuration.site, list(NAMES), "D-other", "bob")
    work = deployment(configuration, environment)
    report, ear = go(work)
    assert (report.ok, sorted(report.ko)) == ((), sorted(NAMES))
    assert ear.lines == [f"left out {sorted(NAMES)}", "over 0"]
    assert not Workflow.select().where(Workflow.wid == work.wid).exists()


def test_ignoring_deploying_nodes_takes_them(configuration: Configuration, environment: Environment) -> None:
    nodes.claim(configuration.site, ["gdx-2.site"], "D-other", "bob")
    report, _ = go(deployment(configuration, environment, nodes=("gdx-2.site",), ignore_nodes_deploying=True))
    assert report.ok == ("gdx-2.site",)


def test_a_breakpoint_leaves_its_nodes_in_the_deployment_system(
    configuration: Configuration, environment: Environment
) -> None:
    options = Options(breakpoint="BroadcastEnvDummy")
    report, _ = go(deployment(configuration, environment, nodes=("gdx-1.site",), options=options))
    assert (report.ok, report.at_breakpoint) == (("gdx-1.site",), ("gdx-1.site",))
    assert states(configuration.site) == {"gdx-1.site": ("deploy_env", "")}


def test_stop_aborts_frees_and_writes_it_down(configuration: Configuration, environment: Environment) -> None:
    stop = threading.Event()

    work = deployment(configuration, environment)
    report, _ = go(work, stop, Ear(stop.set))
    assert set(report.aborted) == set(report.ko) == set(NAMES)
    assert set(states(configuration.site).values()) == {("aborted", "")}
    assert Claim.select().count() == 0
    assert Workflow.get_by_id(work.wid).state == "aborted"
    assert {row.error for row in Log.select()} == {"aborted"}


def test_a_listener_that_breaks_leaves_no_claim_no_thread_and_a_closed_journal(
    configuration: Configuration, environment: Environment
) -> None:
    def broken() -> None:
        raise OSError("the terminal is gone")

    work = deployment(configuration, environment)
    before = threading.active_count()
    with pytest.raises(BrokenOffError, match="nodes may be in any state: the terminal is gone"):
        go(work, ear=Ear(broken))
    assert Claim.select().count() == 0
    assert Workflow.get_by_id(work.wid).state == "aborted"
    assert set(states(configuration.site).values()) == {("aborted", "")}
    assert threading.active_count() == before


def test_what_is_refused_after_all_leaves_no_folder_no_claim_and_no_state(
    configuration: Configuration, environment: Environment
) -> None:
    """The image has changed since it was recorded."""
    Path(environment.image.file).write_bytes(build.packed("another image"))
    work = deployment(configuration, environment)
    with pytest.raises(EnvironmentRefusedError, match="--update-tarball-md5"):
        go(work)
    assert not work.folder.exists()
    assert (Claim.select().count(), states(configuration.site)) == (0, {})


def test_the_hook_gets_the_workflow_once_it_is_closed(
    configuration: Configuration, environment: Environment, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    hooks = Hooks(end_of_deployment=f"touch {told}-WORKFLOW_ID")
    site = msgspec.structs.replace(configuration.site, hooks=hooks)
    work = deployment(msgspec.structs.replace(configuration, site=site), environment, nodes=("gdx-1.site",))
    go(work)
    assert Path(f"{told}-{work.wid}").exists()


def test_a_dead_controllers_processes_are_ended_before_its_nodes_are_used_again(
    configuration: Configuration, environment: Environment
) -> None:
    """A process that has ended holds a claim and has left a child behind."""
    script = (
        "from kadeploy.config.folder import load_site; from kadeploy.state import journal, nodes; site = load_site();"
        "nodes.claim(site, ['gdx-1.site'], 'D-dead', 'bob');"
        "journal.begin(site, 'D-dead', 'deploy', 'bob', None, {'gdx': ['gdx-1.site']})"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    mark = {player.MARK: str(run_folder(configuration.site, "D-dead") / "01-A")}
    orphan = subprocess.Popen(["sleep", "1000"], env=os.environ | mark)
    try:
        report, ear = go(deployment(configuration, environment, nodes=("gdx-1.site",)))
        assert orphan.wait() == -9
    finally:
        orphan.kill()
    assert report.ok == ("gdx-1.site",)
    assert "D-dead" in ear.lines[0]


REAPER = """\
import socket, sys, time
from pathlib import Path

socket.gethostname = lambda: "another machine"

from kadeploy.config.folder import load_site
from kadeploy.state import database, nodes
from kadeploy.state.tables import Workflow

site = load_site()
database.connect(site)
begun = Workflow.get_by_id(sys.argv[1]).seen
reaped = {}
while not reaped and Workflow.get_by_id(sys.argv[1]).seen <= begun + site.purge_deployment_timer:
    reaped = nodes.reap(site)
    time.sleep(0.1)
Path(sys.argv[2]).touch()
print(reaped)
"""
"""A controller of another machine that reaps, until a workflow has given signs of life for longer than it may rest."""


def test_a_quiet_workflow_is_not_taken_for_dead_by_another_machine(
    site: Site, site_folder: Path, environment: Environment, tmp_path: Path
) -> None:
    """A task takes longer than a controller may be silent, and says nothing meanwhile."""
    file = site_folder / "site.yml"
    file.write_text(file.read_text() + "purge_deployment_timer: 6\n")
    rights.add(site, "root", ["*"], ["*"])
    gate = tmp_path / "gate"
    quiet = f"    - ansible.builtin.wait_for: {{path: {gate}}}\n      run_once: true\n"
    write_play(site_folder, "SetDeploymentEnvQuiet", f"  tasks:\n{batch('first', gdx_1__site='ok')}{quiet}")
    forced = FORCED | {"SetDeploymentEnv": (Implementation(name="SetDeploymentEnvQuiet"),)}
    work = deployment(load_configuration(site_folder), environment, nodes=NAMES[:1], force_steps=forced)
    others: list[subprocess.Popen[str]] = []

    def look() -> None:
        if not others:
            command = [sys.executable, "-c", REAPER, work.wid, gate]
            others.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

    report, _ = go(work, ear=Ear(look))
    assert others[0].communicate(timeout=60)[0] == "{}\n"
    assert report.ok == NAMES[:1]
    assert Workflow.get_by_id(work.wid).state == "ended"


def test_kanodes_sees_the_micro_step_while_it_runs(configuration: Configuration, environment: Environment) -> None:
    seen: list[object] = []

    def look() -> None:
        flows = journal.workflows(configuration.site)
        seen.extend(flow["nodes"]["gdx-1.site"] for flow in flows.values())

    go(deployment(configuration, environment, nodes=("gdx-1.site",)), ear=Ear(look))
    assert seen[0] == [{"macro-step": "SetDeploymentEnvDummy"}, {"micro-step": "dummy"}, {"state": "ok"}]


DAWDLE = '''
import asyncio

from kadeploy.microsteps.action import BatchAction
from kadeploy.workflow import Outcome, Verdict


async def dawdle(step):
    """gdx-1 is done at once, gdx-2 never."""
    step.report("gdx-1.site", Outcome(Verdict.OK))
    await asyncio.sleep(600)


class ActionModule(BatchAction):
    engine = staticmethod(dawdle)
'''


def test_what_a_sites_own_roles_say_of_themselves_counts_as_it_does_for_ours(
    configuration: Configuration, environment: Environment, site_folder: Path
) -> None:
    """A role that reboots nodes and has a time-out, one that sees them back, and one that is no micro-step."""
    says = {"cycle_pdu": "reboots: true\ntimeout: 1", "greet": "booted: true", "tidy": "silent: true"}
    acts = {"cycle_pdu": "dawdle", "greet": "finish_step", "tidy": "finish_step"}
    write_play(site_folder, "SetDeploymentEnvPdu", "  roles: [tidy, cycle_pdu, tidy, greet, finish]\n")
    (site_folder / "action_plugins" / "dawdle.py").write_text(DAWDLE)
    for name, action in acts.items():
        write_role(site_folder, name, f"- {{{action}: , run_once: true}}\n", says.get(name, ""))
    seen: list[tuple[str, list[str]]] = []

    def look(micro_step: str) -> None:
        flow = next(iter(journal.workflows(configuration.site).values()))
        seen.append((micro_step, [flow["nodes"][name][2]["state"] for name in NAMES[:2]]))

    def curious(event: Event) -> None:
        match event:
            case StepStarted(attempt=Attempt(macro_step="SetDeploymentEnv")):
                look(event.micro_step)
            case StepResult(micro_step="greet"):
                look("greeted")

    forced = FORCED | {"SetDeploymentEnv": (Implementation(name="SetDeploymentEnvPdu", timeout=60),)}
    report, _ = go(deployment(configuration, environment, nodes=NAMES[:2], force_steps=forced), listener=curious)
    assert (report.ok, dict(report.ko)) == (
        NAMES[:1],
        {NAMES[1]: "SetDeploymentEnvPdu-cycle_pdu: Timeout in the cycle_pdu step"},
    )
    assert seen == [
        ("cycle_pdu", ["reboot_in_progress", "reboot_in_progress"]),
        ("greet", ["ok", "ko"]),
        ("greeted", ["rebooted", "ko"]),
    ]


def test_reboots_and_power_operations_run_the_playbook_of_their_kind(
    configuration: Configuration, site_folder: Path
) -> None:
    for name in ("RebootDeployEnv", "PowerOff", "PowerStatus"):
        write_play(site_folder, name, "  tasks:\n    - ansible.builtin.meta: noop\n")
    site = configuration.site
    work = admission.reboot(RebootRequest(user=ALICE.name, nodes=NAMES[:1], kind="deploy_env"), configuration)
    assert go(work)[0].ok == NAMES[:1]
    assert states(site)[NAMES[0]] == ("deploy_env", "")
    work = admission.power(PowerRequest(user=ALICE.name, nodes=NAMES[1:2], operation="off"), configuration)
    assert go(work)[0].ok == NAMES[1:2]
    assert states(site)[NAMES[1]] == ("powered", "")
    work = admission.power(PowerRequest(user=ALICE.name, nodes=NAMES[2:], operation="status"), configuration)
    assert go(work)[0].ok == NAMES[2:]
    assert NAMES[2] not in states(site)


def test_a_recorded_environment_on_the_production_partition_is_production(
    configuration: Configuration, environment: Environment, site_folder: Path
) -> None:
    write_play(site_folder, "RebootRecordedEnv", "  tasks:\n    - ansible.builtin.meta: noop\n")
    for partition, state in ((2, "prod_env"), (3, "recorded_env")):
        request = RebootRequest(
            user=ALICE.name,
            nodes=NAMES[:1],
            kind="env_recorded",
            environment=Recorded(name="tiny"),
            options=Options(partition=partition),
        )
        go(admission.reboot(request, configuration))
        assert states(configuration.site)[NAMES[0]] == (state, "tiny")


def test_who_interrupts_while_files_are_read_does_not_wait_for_them(
    configuration: Configuration, environment: Environment
) -> None:
    """A web server that says nothing, as a file system that hangs would: no node is touched, nothing is left."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/vmlinuz"
        work = replace(deployment(configuration, environment), uploads=(url,))
        threading.Timer(0.5, stop.set).start()
        begun = time.monotonic()
        with pytest.raises(UserInterruptError, match="no node was touched"):
            go(work, stop)
        assert time.monotonic() - begun < files.HTTP_TIMEOUT / 3
    assert not work.folder.exists()
    assert Claim.select().count() == 0


def test_nothing_that_follows_knows_a_users_file_by_its_name_alone(
    configuration: Configuration, environment: Environment, tmp_path: Path
) -> None:
    """What the playbooks read: copies in the run folder, and an image that is lent."""
    (tmp_path / "payload").write_text("true")
    operation = CustomOperation(
        implementation="SetDeploymentEnvDummy", micro_step="dummy", action="run", file=str(tmp_path / "payload")
    )
    work = deployment(configuration, environment, options=Options(custom_operations=(operation,)))
    go(work)
    requests = [request.read(path) for path in work.folder.glob("*/inventory.kadeploy.yml")]
    assert requests
    for asked in requests:
        assert asked.image is not None
        assert asked.image.lent
        (found,) = asked.options.custom_operations
        assert Path(found.file).is_relative_to(work.folder)
        assert not Path(found.file).samefile(tmp_path / "payload")
