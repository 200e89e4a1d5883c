"""Deployments on simulated nodes whose controllers are killed at any moment, and which go on to their end."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy import events, process
from kadeploy.caller import Account
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.environments import description
from kadeploy.events import AttemptStarted, Ended
from kadeploy.lab.lab import Lab, saved
from kadeploy.operations import background, resume
from kadeploy.operations.follow import follow
from kadeploy.operations.requests import DeployRequest, Described
from kadeploy.operations.work import run_folder
from kadeploy.runner import player
from kadeploy.state import controllers, nodes, rights
from kadeploy.state.database import connect, disconnect, fetch
from kadeploy.state.tables import Claim, Log, Workflow
from tests.light.conftest import lab_command

NAME = "kadeploy-resume"
NODES = 4
ROOT = Account("root", 0, 0, Path("/root"))
STEPS = {
    "SetDeploymentEnv": (Implementation(name="SetDeploymentEnvUntrusted", timeout=300),),
    "BroadcastEnv": (Implementation(name="BroadcastEnvChain", timeout=300),),
    "BootNewEnv": (Implementation(name="BootNewEnvClassical", timeout=300),),
}
"""Each is tried once: an attempt that was interrupted has to count as the same try."""
KILLS = int(os.environ.get("KADEPLOY_TEST_KILLS", "6"))
MOMENTS = 14.0
"""Seconds within which a deployment is killed: about as long as it takes."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab_command("down", "--name", NAME)
    lab_command("up", "--kind", "sim", "--nodes", str(NODES), "--name", NAME, "--boot-delay", "1")
    try:
        made = saved(NAME)
        assert made is not None
        yield made
    finally:
        disconnect()
        lab_command("down", "--name", NAME)


@pytest.fixture(scope="module")
def configuration(lab: Lab) -> Configuration:
    found = load_configuration(lab.config)
    rights.add(found.site, "root", ["*"], ["*"])
    return found


def start(lab: Lab, configuration: Configuration) -> str:
    [environment] = description.load(str(lab.environments_folder / "sim.dsc"), ROOT, lambda _warning: None)
    request = DeployRequest(
        user="root", nodes=tuple(lab.members), environment=Described(environment=environment), force_steps=STEPS
    )
    return background.start(request, configuration.folder, ROOT)


def kill(pid: int, folder: Path, *, all_of_it: bool) -> None:
    """Kill a controller alone, or with it its process group and what has left the group: `ansible-playbook`."""
    (os.killpg if all_of_it else os.kill)(pid, signal.SIGKILL)
    if all_of_it:
        player.end_processes(folder)
    while process.find(pid):
        time.sleep(0.01)


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_deployment_that_is_killed_at_any_moment_goes_on_to_its_end(
    lab: Lab, configuration: Configuration, seed: int
) -> None:
    """Once or twice, with `ansible-playbook` left behind or without."""
    moments, site = random.Random(seed), configuration.site
    wid = start(lab, configuration)
    connect(site)
    path = run_folder(site, wid) / events.FILE_NAME
    for _ in range(moments.choice([1, 1, 2])):
        time.sleep(moments.uniform(0, MOMENTS))
        if Workflow.get_by_id(wid).ended is not None:
            break
        kill(Workflow.get_by_id(wid).pid, path.parent, all_of_it=moments.random() < 0.5)
        if wid in resume.resumable(site):
            background.resume(wid, configuration.folder)
    told = [event for _, event in follow(path, is_alive=lambda: controllers.goes_on(site, wid))]
    nodes.reap(site)  # one that was killed after it had closed its journal leaves claims
    assert Workflow.get_by_id(wid).state == "ended"
    if isinstance(told[-1], Ended):
        assert sorted(told[-1].report.ok) == sorted(lab.members), told[-1].report
    assert {row.state for row in nodes.states(site)} == {"deployed"}
    while Claim.select().where(Claim.wid == wid).exists():
        time.sleep(0.05)
    rows = fetch(Log.select(Log.hostname, Log.success, Log.retry_step3).where(Log.wid == wid))
    assert sorted(rows) == [(name, True, 0) for name in sorted(lab.members)]
    numbers = [event.attempt.number for event in told if isinstance(event, AttemptStarted)]
    assert len(numbers) == len(set(numbers))
    while process.marked(player.MARK, lambda value: value.startswith(str(run_folder(site, wid)))):
        time.sleep(0.05)
