"""Operations in a process and a session of their own, as ``--no-wait`` starts them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy import events
from kadeploy.caller import Account
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import Configuration
from kadeploy.environments.environment import Environment
from kadeploy.errors import KadeployError
from kadeploy.events import Ended, Event
from kadeploy.operations import background
from kadeploy.operations.work import run_folder
from kadeploy.state import nodes
from kadeploy.state.tables import Workflow
from tests.unit import build
from tests.unit.plays import write_play

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

SLEEPS = build.DUMMIES | {"SetDeploymentEnv": (Implementation(name="SetDeploymentEnvSleep"),)}


def heard(configuration: Configuration, wid: str) -> Iterator[Event]:
    """Everything that happens in a run, until it ends."""
    path, seen = run_folder(configuration.site, wid) / events.FILE_NAME, 0
    while True:
        for event in list(events.read(path))[seen:]:
            seen += 1
            yield event
            if isinstance(event, Ended):
                return
        time.sleep(0.05)


def last(configuration: Configuration, wid: str) -> Ended:
    *_, event = heard(configuration, wid)
    assert isinstance(event, Ended)
    return event


def test_it_goes_on_in_a_session_of_its_own(
    configuration: Configuration, environment: Environment, root: Account, site_folder: Path
) -> None:
    write_play(site_folder, "SetDeploymentEnvSleep", "  tasks:\n    - ansible.builtin.command: sleep 2\n")
    wid = background.start(build.deploy_request(force_steps=SLEEPS), configuration.folder, root)
    process = Workflow.get_by_id(wid).pid
    assert os.getsid(process) == process != os.getsid(0)
    assert Path(f"/proc/{process}/fd/0").readlink() == Path(f"/proc/{process}/fd/1").readlink() == Path(os.devnull)
    assert sorted(last(configuration, wid).report.ok) == sorted(build.NAMES)


def test_a_request_that_is_refused_raises_what_the_process_said(
    configuration: Configuration, environment: Environment, root: Account
) -> None:
    with pytest.raises(KadeployError, match="Unknown node: gdx-99"):
        background.start(build.deploy_request(nodes=("gdx-99.site",)), configuration.folder, root)


def test_when_nobody_can_take_part_the_reasons_are_told(
    configuration: Configuration, environment: Environment, root: Account
) -> None:
    nodes.claim(configuration.site, list(build.NAMES), "D-other", "bob")
    with pytest.raises(KadeployError, match=r"gdx-1\.site: already used by bob"):
        background.start(build.deploy_request(), configuration.folder, root)


def test_sigterm_ends_it_cleanly(
    configuration: Configuration, environment: Environment, root: Account, site_folder: Path
) -> None:
    write_play(site_folder, "SetDeploymentEnvSleep", "  tasks:\n    - ansible.builtin.command: sleep 1000\n")
    wid = background.start(build.deploy_request(force_steps=SLEEPS), configuration.folder, root)
    os.kill(Workflow.get_by_id(wid).pid, signal.SIGTERM)
    assert sorted(last(configuration, wid).report.aborted) == sorted(build.NAMES)
    assert {row.state for row in nodes.states(configuration.site)} == {"aborted"}
