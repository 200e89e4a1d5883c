"""Operations that lose nodes while they run, with real playbooks and the real database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kadeploy.caller import Account
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.environments.environment import Environment
from kadeploy.errors import LimitError
from kadeploy.events import AttemptEnded, AttemptStarted, Event, LetGo, Taken
from kadeploy.operations import admission, guard, launch
from kadeploy.operations.guard import Guard
from kadeploy.operations.requests import PowerRequest, Recorded
from kadeploy.operations.sources import OfAccount
from kadeploy.operations.work import Work
from kadeploy.remote.brokers import Brokers
from kadeploy.remote.fanout import Credentials
from kadeploy.state import database, nodes, rights
from kadeploy.state.tables import Claim, Log, NodeState, Workflow
from tests.unit import build
from tests.unit.plays import write_play

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ROOT = Account("root", 0, 0, Path("/root"))
KEPT, LOST = "gdx-1.site", "gdx-2.site"
SLOW = "SetDeploymentEnvSlow"
SECONDS = 8
_THINK = f"""\
  tasks:
    - name: Think
      ansible.builtin.wait_for:
        timeout: {SECONDS}
      delegate_to: localhost
      connection: local
      run_once: true
"""
"""What Ansible does by itself, where no broker is asked."""


@pytest.fixture
def work(configuration: Configuration, environment: Environment, site_folder: Path) -> Work:
    """A deployment of two nodes that takes some seconds; root has a right on each of them, and on nothing else."""
    site = configuration.site
    rights.delete(site, "root", ["*"], ["*"])
    rights.add(site, "root", [KEPT, LOST], ["*"])
    write_play(site_folder, SLOW, _THINK)
    steps = build.DUMMIES | {"SetDeploymentEnv": (Implementation(name=SLOW, retries=1, timeout=60),)}
    request = build.deploy_request(environment=Recorded(name=environment.name), nodes=(KEPT, LOST), force_steps=steps)
    return admission.deploy(request, configuration)


def losing(work: Work, take: Callable[[], object]) -> tuple[object, list[Event]]:
    """Launch *work* and call *take* when its first attempt begins: the report, and what was heard."""
    heard: list[Event] = []

    def listen(event: Event) -> None:
        heard.append(event)
        if isinstance(event, AttemptStarted) and event.attempt.number == 1:
            take()

    return launch.launch(work, OfAccount(work.site, ROOT), listen, threading.Event()), heard


def test_a_lost_node_is_freed_only_when_a_playbook_of_the_sites_own_has_ended(work: Work) -> None:
    """Its tasks may reach nodes in any way; the node is aborted before that, and tried no further."""
    report, heard = losing(work, lambda: rights.delete(work.site, "root", [LOST], ["*"]))
    reason = f"aborted: root does not have the right to use /dev/sda3 of {LOST} any more"
    assert (report.ok, dict(report.ko), report.taken, report.aborted) == ((KEPT,), {LOST: reason}, (LOST,), ())
    at = {type(event): event.at for event in reversed(heard)}
    assert at[Taken] - at[AttemptStarted] < SECONDS / 2
    assert at[LetGo] - at[AttemptStarted] > SECONDS
    assert [set(event.outcomes) for event in heard if isinstance(event, AttemptEnded)] == [{KEPT}] * 3
    row = Log.get(Log.hostname == LOST)
    assert (row.success, row.error, row.step1, row.step2) == (False, reason, SLOW, "")
    assert NodeState.get_by_id(LOST).state == "aborted"
    assert Workflow.get_by_id(work.wid).state == "ended", "nobody has stopped it"
    assert Claim.select().count() == 0


def test_a_node_that_was_lost_before_the_first_attempt_is_not_touched(work: Work) -> None:
    """Its right ended between the check of the request and the beginning; the play is for the others alone."""
    rights.delete(work.site, "root", [LOST], ["*"])
    report, heard = losing(work, lambda: None)
    assert (report.ok, report.taken) == ((KEPT,), (LOST,))
    inventories = [path.read_text() for path in work.folder.glob("*/inventory.kadeploy.yml")]
    assert len(inventories) == 3
    assert not [text for text in inventories if LOST in text]
    assert next(event for event in heard if isinstance(event, LetGo)).nodes == (LOST,)


def test_what_the_next_holder_of_a_node_records_is_not_written_over(work: Work) -> None:
    def take() -> None:
        nodes.claim(work.site, [LOST], "R-9", "bob", force=True)
        nodes.set_state([LOST], "rebooting", None, None, held_by="R-9")

    report, _ = losing(work, take)
    assert report.taken == (LOST,)
    assert report.ko[LOST] == "aborted: taken by workflow R-9 of bob (--ignore-nodes-deploying)"
    assert NodeState.get_by_id(LOST).state == "rebooting"
    assert [(row.node, row.wid) for row in Claim.select()] == [(LOST, "R-9")]


def test_a_database_that_is_away_for_a_moment_takes_nothing_and_is_asked_again(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PERIOD", 0.05)
    nodes.claim(work.site, work.names, work.wid, "root")
    database.disconnect()
    heard: list[Event] = []
    state, away = work.site.state, tmp_path / "away"
    keeper = Brokers(tmp_path, Credentials.of(work.site))
    keeper.start()
    try:
        state.rename(away)
        watcher = Guard(work, heard.append)
        with watcher.watching(keeper):
            time.sleep(1)
            away.rename(state)
            time.sleep(1)
            assert heard == []
            rights.delete(work.site, "root", [LOST], ["*"])
            rights.add(work.site, "root", [LOST], ["*"], until=int(time.time()) + 3)
            time.sleep(1)
            assert heard == [], "the right has an end that has not come"
            deadline = time.monotonic() + 10
            while len(heard) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        keeper.stop()
    assert [type(event) for event in heard] == [Taken, LetGo]
    assert list(watcher.taken) == [LOST]


def test_a_request_beyond_the_limit_leaves_no_folder_and_one_that_only_looks_has_no_limit(
    configuration: Configuration, site_folder: Path
) -> None:
    text = (site_folder / "site.yml").read_text()
    (site_folder / "site.yml").write_text(f"{text}\nservice: {{quota: {{workflows: 1}}}}\n")
    site = configuration.site
    rights.add(site, "alice", ["*"], ["*"])
    nodes.claim(site, [KEPT], "D-1", "alice")
    limited = load_configuration(site_folder)
    asked = PowerRequest(user="alice", nodes=(LOST,), operation="on")
    with pytest.raises(LimitError, match=r"alice has 1 operation running \(D-1\)"):
        launch.carry_out(asked, limited, ROOT, lambda _: None, threading.Event())
    assert not list(site.run_folders.glob("*"))
    assert [row.node for row in Claim.select()] == [KEPT]
    looks = PowerRequest(user="alice", nodes=(KEPT, LOST), operation="status")
    assert set(launch.carry_out(looks, limited, ROOT, lambda _: None, threading.Event()).ko) == {KEPT, LOST}
