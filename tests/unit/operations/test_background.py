"""Operations in a process and a session of their own, as ``--no-wait`` starts them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy import events
from kadeploy.caller import Account
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import Configuration
from kadeploy.environments.environment import Environment
from kadeploy.errors import KadeployError, LimitError, NodeListError
from kadeploy.events import Ended, Event
from kadeploy.operations import background, follow
from kadeploy.operations.requests import PowerRequest
from kadeploy.operations.work import run_folder
from kadeploy.runner import player
from kadeploy.state import controllers, database, history, journal, nodes, rights
from kadeploy.state.database import DB
from kadeploy.state.tables import Workflow
from tests.unit import build
from tests.unit.plays import write_play

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

SLEEPS = build.DUMMIES | {"SetDeploymentEnv": (Implementation(name="SetDeploymentEnvSleep"),)}
GDX = build.NAMES[:2]
"""Nodes of one cluster: each more is three more runs of ansible-playbook."""


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
    wid = background.start(build.deploy_request(nodes=GDX, force_steps=SLEEPS), configuration.folder, root)
    process = Workflow.get_by_id(wid).pid
    assert os.getsid(process) == process != os.getsid(0)
    assert Path(f"/proc/{process}/fd/0").readlink() == Path(f"/proc/{process}/fd/1").readlink() == Path(os.devnull)
    assert sorted(last(configuration, wid).report.ok) == sorted(GDX)


def test_a_request_that_is_refused_raises_what_the_process_said(
    configuration: Configuration, environment: Environment, root: Account
) -> None:
    with pytest.raises(NodeListError, match="Unknown node: gdx-99"):
        background.start(build.deploy_request(nodes=("gdx-99.site",)), configuration.folder, root)


def test_a_limit_that_is_met_once_the_process_claims_nodes_is_told_as_one(
    configuration: Configuration, root: Account, site_folder: Path
) -> None:
    """It decides about the exit status, the status in HTTP and the number that clients of the original get."""
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write("service: {quota: {nodes: 1}}\n")
    database.connect(configuration.site)
    rights.add(configuration.site, "alice", ["*"], ["*"])
    request = PowerRequest(user="alice", nodes=build.NAMES[:2], operation="on")
    with pytest.raises(LimitError, match="one user may have 1"):
        background.start(request, configuration.folder, root)


def test_when_nobody_can_take_part_the_reasons_are_told(
    configuration: Configuration, environment: Environment, root: Account
) -> None:
    nodes.claim(configuration.site, list(build.NAMES), "D-other", "bob")
    with pytest.raises(KadeployError, match=r"gdx-1\.site: already used by bob"):
        background.start(build.deploy_request(), configuration.folder, root)


def test_who_follows_it_waits_for_the_hook_at_its_end(
    configuration: Configuration, environment: Environment, root: Account, site_folder: Path
) -> None:
    """The journal tells the end before the hook is run, and the events after it."""
    word = site_folder / "done"
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write(f"hooks: {{end_of_deployment: sh -c 'sleep 3; touch {word}'}}\n")
    wid = background.start(build.deploy_request(nodes=GDX), configuration.folder, root)
    report = follow.attach(configuration.site, wid, lambda _: None, threading.Event())
    assert report is not None
    assert sorted(report.ok) == sorted(GDX)
    assert word.exists()


def test_sigterm_ends_it_cleanly(
    configuration: Configuration, environment: Environment, root: Account, site_folder: Path
) -> None:
    write_play(site_folder, "SetDeploymentEnvSleep", "  tasks:\n    - ansible.builtin.command: sleep 1000\n")
    wid = background.start(build.deploy_request(nodes=GDX, force_steps=SLEEPS), configuration.folder, root)
    os.kill(Workflow.get_by_id(wid).pid, signal.SIGTERM)
    assert sorted(last(configuration, wid).report.aborted) == sorted(GDX)
    assert {row.state for row in nodes.states(configuration.site)} == {"aborted"}


def wait(process: int) -> None:
    while Path(f"/proc/{process}").exists():
        time.sleep(0.05)


@pytest.fixture
def broken_off(
    configuration: Configuration, environment: Environment, root: Account, site_folder: Path, tmp_path: Path
) -> str:
    """The id of a workflow whose process has ended by an error of its own: the database took no more of it."""
    word = tmp_path / "go-on"
    task = f"  tasks:\n    - ansible.builtin.shell: until test -e {word}; do sleep 0.1; done\n"
    write_play(site_folder, "SetDeploymentEnvSleep", task)
    wid = background.start(build.deploy_request(nodes=GDX, force_steps=SLEEPS), configuration.folder, root)
    process = Workflow.get_by_id(wid).pid
    for name, what in (("one", "UPDATE ON progress"), ("two", "UPDATE ON workflows"), ("three", "INSERT ON log")):
        DB.execute_sql(f"CREATE TRIGGER {name} BEFORE {what} BEGIN SELECT RAISE(ABORT, 'out of order'); END")
    word.touch()
    wait(process)
    for name in ("one", "two", "three"):
        DB.execute_sql(f"DROP TRIGGER {name}")
    return wid


def test_what_ended_the_process_is_the_reason_that_people_are_told(
    configuration: Configuration, broken_off: str
) -> None:
    file = run_folder(configuration.site, broken_off) / controllers.ERRORS
    assert "Traceback (most recent call last)" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    shown = journal.workflows(configuration.site, broken_off)[broken_off]
    assert shown["aborted"].endswith("is gone: IntegrityError: out of order")
    nodes.reap(configuration.site)
    rows = history.rows(configuration.site, history.Selection(wid=broken_off), ("error",))
    assert all(error.endswith("is gone: IntegrityError: out of order") for (error,) in rows)


def test_errors_are_kept_up_to_some_size_and_their_end_counts(
    configuration: Configuration, environment: Environment, root: Account, site_folder: Path
) -> None:
    write_play(site_folder, "SetDeploymentEnvSleep", "  tasks:\n    - ansible.builtin.command: sleep 1000\n")
    wid = background.start(build.deploy_request(nodes=GDX, force_steps=SLEEPS), configuration.folder, root)
    file, process = run_folder(configuration.site, wid) / controllers.ERRORS, Workflow.get_by_id(wid).pid
    assert Path(f"/proc/{process}/fd/2").readlink() == file
    with file.open("ab") as stream:
        stream.write(b"a line\n" * background.ERRORS_BYTES + b"the \x1b[31mlast one\n\n")
    while file.stat().st_size > background.ERRORS_BYTES:
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)
    wait(process)
    player.end_processes(run_folder(configuration.site, wid))
    assert journal.workflows(configuration.site, wid)[wid]["aborted"].endswith("is gone: the \ufffd[31mlast one")
    nodes.reap(configuration.site)
