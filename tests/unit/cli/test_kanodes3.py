"""kanodes3: every use case of the wiki page, as a process, to the letter."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pexpect
import pytest
import yaml

from kadeploy.caller import caller
from kadeploy.cli import kanodes3, shell
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.state import journal, nodes, quarantine, rights
from kadeploy.state.database import connect
from kadeploy.state.nodes import NO_ENVIRONMENT

pytestmark = pytest.mark.usefixtures("way")

DEBIAN = Environment(name="débian, small", version=12, image=Image(file="/srv/debian.tgz", kind="tgz"), user="root")


@pytest.fixture
def busy_site(site: Site) -> Site:
    """Nodes in several states, one workflow that runs and one that has ended."""
    connect(site)
    nodes.set_state(["gdx-10.site", "gdx-2.site"], "deployed", DEBIAN, "alice", date=1600000000)
    nodes.set_state(["gdx-1.site"], "deploy_env", NO_ENVIRONMENT, "bob", date=1600000000)
    nodes.set_state(["nvm-1.site"], "deploying", NO_ENVIRONMENT, "alice", date=1600000000)
    journal.begin(site, "D-ended", "deploy", "bob", DEBIAN, {"gdx": ["gdx-2.site"]})
    journal.end("D-ended", [])
    journal.begin(
        site, "D-running", "deploy", "alice", DEBIAN, {"gdx": ["gdx-10.site", "gdx-2.site"], "nvm": ["nvm-1.site"]}
    )
    journal.micro_step("D-running", ["gdx-2.site", "gdx-10.site"], "BroadcastEnvChain", "send_environment")
    journal.micro_step("D-running", ["nvm-1.site"], "BootNewEnvClassical", "reboot")
    journal.node_state("D-running", ["nvm-1.site"], "reboot_in_progress")
    return site


def test_states_are_six_columns_sorted_by_node(tool: Any, busy_site: Site, golden: Callable[[str], str]) -> None:
    done = tool("kanodes3", "-d")
    assert (done.returncode, done.stdout, done.stderr) == (0, golden("kanodes3-d.txt"), "")


def test_states_of_named_nodes(tool: Any, busy_site: Site, tmp_path: Path) -> None:
    (tmp_path / "machine_file").write_text("nvm-1.site\n", encoding="utf-8")
    done = tool("kanodes3", "-d", "-m", "gdx-1.site", "-m", "gdx-[2-5].site", "-f", str(tmp_path / "machine_file"))
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["gdx-1.site", "gdx-2.site", "nvm-1.site"]


def test_nothing_recorded_is_said_and_no_error(tool: Any, site: Site) -> None:
    done = tool("kanodes3", "-d")
    assert (done.returncode, done.stdout) == (0, "No information concerning these nodes\n")


@pytest.mark.parametrize("option", ["-y", "--get-yaml-dump"])
def test_running_workflows_as_yaml(tool: Any, busy_site: Site, golden: Callable[[str], str], option: str) -> None:
    done = tool("kanodes3", option)
    shown = re.sub(r"(began|seconds): \d+", lambda found: f"{found[1]}: {found[1].upper()}", done.stdout)
    assert (done.returncode, shown, done.stderr) == (0, golden("kanodes3-y.yml"), "")


def test_one_workflow_even_when_it_has_ended(tool: Any, busy_site: Site) -> None:
    done = tool("kanodes3", "-y", "-w", "D-ended")
    assert list(yaml.safe_load(done.stdout)) == ["D-ended"]


def test_an_unknown_workflow_is_an_error(tool: Any, busy_site: Site) -> None:
    done = tool("kanodes3", "-y", "-w", "78")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No workflow is called '78'" in done.stderr


def test_other_formats_hold_the_same(busy_site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run(kanodes3.app, "kanodes3", ["-d", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {
        "hostname": "gdx-1.site",
        "state": "deploy_env",
        "user": "bob",
        "env_name": "",
        "env_version": None,
        "env_owner": "",
        "date": 1600000000,
        "env_arch": "",
        "quarantine": None,
    }
    assert shell.run(kanodes3.app, "kanodes3", ["-d", "--format", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == rows
    assert shell.run(kanodes3.app, "kanodes3", ["-y", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == ["D-running"]
    assert shown["D-running"]["nodes"]["nvm-1.site"] == {
        "macro-step": "BootNewEnvClassical",
        "micro-step": "reboot",
        "state": "reboot_in_progress",
    }


def test_nodes_in_quarantine_are_told_beside_lists_that_stay_as_they_are(
    busy_site: Site, tool: Any, golden: Callable[[str], str]
) -> None:
    quarantine.put(busy_site, ["gdx-2.site", "gdx-10.site"], "ada", "too hot")
    done = tool("kanodes3", "-d")
    assert (done.returncode, done.stdout) == (0, golden("kanodes3-d.txt"))
    assert re.fullmatch(r"gdx-\[2,10\].site: in quarantine since \S+ \S+ by ada: too hot\n", done.stderr)
    listed = tool("kanodes3", "-l", "-m", "gdx-[1-2]")
    assert (listed.stdout, listed.stderr.partition(": ")[0]) == ("gdx-1.site,gdx,\ngdx-2.site,gdx,\n", "gdx-2.site")
    rows = json.loads(tool("kanodes3", "-l", "-m", "gdx-[1-2]", "--format", "json").stdout)
    assert [(row["quarantine"] or "").endswith("by ada: too hot") for row in rows] == [False, True]
    states = json.loads(tool("kanodes3", "-d", "-m", "gdx-[1-2]", "--format", "json").stdout)
    assert [row["quarantine"] is None for row in states] == [True, False]


def test_all_nodes_of_the_site_are_listed_with_who_has_rights(
    site: Site, tool: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rights.add(site, "alice", ["gdx-2.site", "nvm-1.site"], ["/dev/sda3"])
    rights.add(site, "bob", ["*"], ["*"])
    done = tool("kanodes3", "-l")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 24
    assert lines[:2] == ["gdx-1.site,gdx,bob:*", "gdx-2.site,gdx,alice:/dev/sda3 bob:*"]
    assert shell.run(kanodes3.app, "kanodes3", ["-l", "-m", "gdx-2.site", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "hostname": "gdx-2.site",
            "cluster": "gdx",
            "rights": [
                {"user": "alice", "part": "/dev/sda3", "until": None},
                {"user": "bob", "part": "*", "until": None},
            ],
            "quarantine": None,
        }
    ]


def test_rights_of_others_are_listed_for_administrators_alone(site: Site, site_folder: Path, tool: Any) -> None:
    rights.add(site, "alice", ["gdx-2.site"], ["/dev/sda3"])
    rights.add(site, caller().name, ["*"], ["*"])
    path = site_folder / "site.yml"
    path.write_text(re.sub("almighty_users: .*", "almighty_users: [boss]", path.read_text()))
    assert tool("kanodes3", "-l", "-m", "gdx-2.site").stdout == f"gdx-2.site,gdx,{caller().name}:*\n"


def test_every_state_is_described_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "commands.md").read_text(encoding="utf-8")
    missing = [state for state in get_args(nodes.State) if f"`{state}`" not in text]
    assert not missing


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "Choose one of -d"),
        (["-d", "-y"], "Choose one of -d"),
        (["-d", "-w", "D-1"], "-w goes with -y"),
        (["-d", "-m", "gdx-99.site"], "Unknown node: gdx-99.site"),
        (["-d", "-m", "gdx-[9-2].site"], "Invalid node range"),
        (["-d", "--format", "xml"], "--format xml: expected one of text, json, yaml."),
    ],
)
def test_senseless_requests_are_refused(
    site: Site, argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell.run(kanodes3.app, "kanodes3", argv) == 1
    assert reason in capsys.readouterr().err


def test_watching_shows_again_until_ctrl_c(busy_site: Site) -> None:
    command = [str(Path(sys.executable).parent / "kanodes3"), "-d", "--watch", "-m", "gdx-1.site"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ, text=True) as process:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
    assert shown == ["\n", "gdx-1.site,deploy_env,bob,,,\n"] * 2
    assert process.returncode == 0


def test_watching_on_a_terminal_stays_on_its_screen(busy_site: Site) -> None:
    """A list that is longer than the screen would scroll away at each turn."""
    command = str(Path(sys.executable).parent / "kanodes3")
    env = dict(os.environ) | {"TERM": "xterm", "LINES": "40", "COLUMNS": "100"}
    options = {"timeout": 60, "encoding": "utf-8", "env": env}
    terminal = pexpect.spawn(command, ["-d", "--watch"], dimensions=(4, 30), **options)
    screens = []
    for _ in range(2):
        terminal.expect_exact("\x1b[J")
        screens.append(terminal.before)
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    first, *rest = screens[0].split("\x1b[K")
    assert first == "\x1b[H"
    assert [line.rstrip("\r\n") for line in rest] == [
        "gdx-1.site,deploy_env,bob,,,",
        "gdx-2.site,deployed,alice,débi",
        "(2 more lines: name fewer node",
    ]
    assert screens[1] == screens[0]
    assert terminal.exitstatus == 0
