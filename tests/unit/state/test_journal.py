"""The journal: what runs is seen while it runs, and what has ended is in the log once."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.errors import OptionError
from kadeploy.state import journal
from kadeploy.state.database import fetch
from kadeploy.state.journal import LogRow
from kadeploy.state.tables import Log, Progress, Workflow

NAMES = ["gdx-1.site", "gdx-2.site", "gdx-10.site"]
DEBIAN = Environment(name="debian", version=12, image=Image(file="/srv/debian.tgz", kind="tgz"), user="root")


def begin(site: Site, wid: str = "D-1", environment: Environment | None = DEBIAN) -> None:
    journal.begin(site, wid, "deploy", "alice", environment, {"gdx": NAMES, "nvm": ["nvm-1.site"]})


def test_a_running_workflow_is_shown_as_the_wiki_page_says(site: Site) -> None:
    begin(site)
    journal.micro_step("D-1", NAMES[1:], "BroadcastEnvChain", "send_environment")
    journal.node_state("D-1", NAMES[:1], "discarded")
    found = journal.workflows(site)
    assert 0 <= time.time() - found["D-1"].pop("began") < 60
    assert 0 <= found["D-1"].pop("seconds") < 60
    assert found == {
        "D-1": {
            "user": "alice",
            "deploy_id": "D-1",
            "environment_name": "debian",
            "environment_version": 12,
            "environment_user": "root",
            "anonymous_environment": False,
            "operation": "deploy",
            "state": "running",
            "ended": None,
            "nodes": {
                "gdx-1.site": [{"macro-step": ""}, {"micro-step": ""}, {"state": "discarded"}],
                "gdx-2.site": [
                    {"macro-step": "BroadcastEnvChain"},
                    {"micro-step": "send_environment"},
                    {"state": "ok"},
                ],
                "gdx-10.site": [
                    {"macro-step": "BroadcastEnvChain"},
                    {"micro-step": "send_environment"},
                    {"state": "ok"},
                ],
                "nvm-1.site": [{"macro-step": ""}, {"micro-step": ""}, {"state": "ok"}],
            },
        }
    }


def test_a_micro_step_is_visible_from_another_process_at_once(site: Site) -> None:
    begin(site)
    journal.micro_step("D-1", NAMES[:1], "SetDeploymentEnvUntrusted", "switch_pxe")
    code = (
        "from kadeploy.config.folder import load_site; from kadeploy.state import journal\n"
        "print(journal.workflows(load_site())['D-1'])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "switch_pxe" in seen


def test_a_state_keeps_the_step_and_a_new_step_makes_the_node_ok_again(site: Site) -> None:
    begin(site)
    journal.micro_step("D-1", NAMES, "BootNewEnvClassical", "reboot")
    journal.node_state("D-1", NAMES, "reboot_in_progress")
    query = Progress.select(Progress.micro_step, Progress.state).where(Progress.node == NAMES[0])
    assert fetch(query) == [("reboot", "reboot_in_progress")]
    journal.micro_step("D-1", NAMES, "BootNewEnvClassical", "wait_reboot")
    assert fetch(query) == [("wait_reboot", "ok")]


def shown(site: Site, node: str) -> list[dict[str, str]]:
    """What ``kanodes3 -y`` shows of a node, after the three words that it shows of all nodes."""
    found: list[dict[str, str]] = journal.workflows(site)["D-1"]["nodes"][node]
    return found[3:]


def test_how_far_the_image_is_is_shown_for_the_nodes_it_was_told_of_until_the_next_micro_step(site: Site) -> None:
    begin(site)
    journal.micro_step("D-1", NAMES, "BroadcastEnvChain", "send_environment")
    journal.told("D-1", NAMES[:2], "42 %, 118 MB/s, 12 s left")
    journal.node_state("D-1", NAMES[:1], "ko")
    assert [shown(site, name) for name in NAMES] == [[{"progress": "42 %, 118 MB/s, 12 s left"}]] * 2 + [[]]
    journal.micro_step("D-1", NAMES, "BroadcastEnvChain", "manage_user_post_install")
    assert [shown(site, name) for name in NAMES] == [[], [], []]


def test_of_a_long_tale_of_progress_what_fits_is_kept(site: Site) -> None:
    begin(site)
    journal.told("D-1", NAMES[:1], "x" * 65)
    assert shown(site, NAMES[0]) == [{"progress": "x" * 64}]


def test_thousands_of_nodes_advance_in_one_call(site: Site) -> None:
    names = [f"n-{rank}" for rank in range(6001)]
    journal.begin(site, "D-1", "deploy", "alice", DEBIAN, {"big": names})
    journal.micro_step("D-1", names, "SetDeploymentEnvUntrusted", "reboot")
    assert Progress.select().where(Progress.micro_step == "reboot").count() == 6001


def test_an_ended_workflow_is_in_the_log_with_everything_kastat3_wants(site: Site) -> None:
    begin(site)
    row = LogRow(
        hostname=NAMES[0],
        step1="SetDeploymentEnvUntrusted",
        retry_step1=2,
        step1_duration=80,
        success=False,
        error="no ssh",
    )
    assert journal.end("D-1", [row])
    [logged] = Log.select()
    expected = (
        "D-1",
        "deploy",
        "alice",
        NAMES[0],
        "SetDeploymentEnvUntrusted",
        2,
        80,
        "debian:12",
        False,
        False,
        "no ssh",
    )
    assert expected == (
        logged.wid, logged.operation, logged.user, logged.hostname, logged.step1, logged.retry_step1,
        logged.step1_duration, logged.env, logged.anonymous_env, logged.success, logged.error,
    )  # fmt: skip
    assert logged.start == Workflow.get_by_id("D-1").started


def test_an_end_counts_once(site: Site) -> None:
    begin(site)
    rows = [LogRow(hostname=name, success=True) for name in NAMES]
    assert [journal.end("D-1", rows), journal.end("D-1", rows)] == [True, False]
    assert Log.select().count() == len(NAMES)


def test_an_ended_workflow_is_shown_only_by_name(site: Site) -> None:
    begin(site)
    journal.end("D-1", [])
    assert journal.workflows(site) == {}
    assert list(journal.workflows(site, "D-1")) == ["D-1"]


def test_an_unknown_workflow_is_refused(site: Site) -> None:
    with pytest.raises(OptionError, match="'D-none'"):
        journal.workflows(site, "D-none")


def test_workflows_ended_long_ago_are_forgotten_with_their_progress_but_not_their_log(site: Site) -> None:
    begin(site, "D-old")
    journal.end("D-old", [LogRow(hostname=NAMES[0], success=True)])
    Workflow.update(ended=int(time.time()) - (journal.KEPT_DAYS + 1) * 86400).execute()
    begin(site, "D-new")
    journal.end("D-new", [])
    assert [flow.wid for flow in Workflow.select()] == ["D-new"]
    assert Progress.select().where(Progress.workflow == "D-old").count() == 0
    assert Log.select().count() == 1


def test_an_environment_without_owner_is_anonymous_unless_said_otherwise(site: Site) -> None:
    mine = Environment(name="test", image=DEBIAN.image)
    begin(site, "D-1", mine)
    journal.begin(site, "D-2", "deploy", "alice", mine, {"gdx": NAMES}, anonymous=False)
    begin(site, "D-3", None)
    assert {wid: flow["anonymous_environment"] for wid, flow in journal.workflows(site).items()} == {
        "D-1": True,
        "D-2": False,
        "D-3": False,
    }


def test_workflows_of_some_nodes_only(site: Site) -> None:
    begin(site, "D-1")
    journal.begin(site, "D-2", "deploy", "alice", DEBIAN, {"nvm": ["nvm-2.site"]})
    shown = journal.workflows(site, nodes=["nvm-1.site"])
    assert {wid: list(flow["nodes"]) for wid, flow in shown.items()} == {"D-1": ["nvm-1.site"]}


def test_workflow_names_are_short_unique_and_tell_the_operation() -> None:
    names = [journal.new_workflow_id(operation) for operation in ("deploy", "reboot", "power") for _ in range(200)]
    assert len(set(names)) == 600
    assert all(re.fullmatch(r"[DRP]-[0-9a-z]{10}", name) for name in names)
    assert [name[0] for name in names[::200]] == ["D", "R", "P"]
