"""kadeploy-site quarantine, and what users whose nodes are in quarantine see of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from kadeploy.caller import caller
from kadeploy.config.site import Site
from kadeploy.state import database, quarantine, rights
from kadeploy.state.tables import Log, QuarantineRow
from tests.unit.conftest import Tool
from tests.unit.serving import DUMMY_CLUSTER, PROCESS_ALONE

pytestmark = [pytest.mark.parametrize("database_url", ["sqlite"], indirect=True), pytest.mark.usefixtures("way")]

RULE = "quarantine: {rule: propose, operations: 2}\n"


@pytest.fixture
def used(site: Site, site_folder: Path) -> Site:
    """A site with a rule, on which the caller may switch eight nodes, and of which one keeps failing."""
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write(RULE)
    (site_folder / "clusters/gdx.yml").write_text(DUMMY_CLUSTER, encoding="utf-8")
    rights.add(site, caller().name, ["*"], ["*"])
    shared = {"operation": "deploy", "user": "alice", "start": int(time.time()) - 600}
    rows = [
        shared | {"wid": wid, "hostname": node, "success": node == "gdx-1.site"}
        for wid in ("D-1", "D-2")
        for node in ("gdx-1.site", "gdx-7.site")
    ]
    database.insert(Log, rows)
    return site


def forget_administrators(site_folder: Path) -> None:
    path = site_folder / "site.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"almighty_users": ["ada"]}))


@PROCESS_ALONE
def test_a_node_goes_from_a_proposal_into_quarantine_and_back(used: Site, tool: Tool) -> None:
    said = tool("kadeploy-site", "quarantine").stdout.splitlines()
    assert said[:2] == [
        "No node is in quarantine.",
        "gdx-7.site: proposed: 2 of its last 2 deployments failed",
    ]
    assert "kadeploy-site quarantine add gdx-7.site" in said[2]
    added = tool("kadeploy-site", "quarantine", "add", "gdx-7")
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout.endswith(f" by {caller().name}: 2 of its last 2 deployments failed\n")
    assert tool("kadeploy-site", "quarantine", "list").stdout == added.stdout
    released = tool("kadeploy-site", "quarantine", "release", "gdx-[6-7]")
    assert released.stdout.splitlines() == [
        "gdx-7.site: no longer in quarantine.",
        "gdx-6.site: not in quarantine; what was before does not count any more all the same.",
    ]
    assert tool("kadeploy-site", "quarantine").stdout == "No node is in quarantine.\n"
    assert QuarantineRow.get(QuarantineRow.node == "gdx-7.site").released_by == caller().name


@PROCESS_ALONE
def test_a_reason_and_an_end_can_be_given(used: Site, tool: Tool) -> None:
    words = ("--reason", "its disk", "--until", "2099-12-31")
    assert " until 2099-12-31 23:59 by " in tool("kadeploy-site", "quarantine", "add", "gdx-[1-3]", *words).stdout
    found = json.loads(tool("kadeploy-site", "quarantine", "list", "--format", "json").stdout)
    assert [(stay["node"], stay["reason"]) for stay in found["quarantine"]] == [
        (f"gdx-{rank}.site", "its disk") for rank in (1, 2, 3)
    ]
    assert found["proposals"] == [{"node": "gdx-7.site", "failures": 2, "operations": 2}]


@PROCESS_ALONE
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "gxd-1.site"], "Did you mean gdx-1.site?"),
        (["add", "gdx-1", "--until", "2001-01-01"], "--until 2001-01-01: this date is over."),
        (["add", "gdx-1", "--until", "soon"], "--until soon: not a date."),
        (["add", "gdx-1", "--reason", "a\x1bb"], "--reason is one line of text"),
        (["release", "gxd-1.site"], "Did you mean gdx-1.site?"),
    ],
)
def test_what_makes_no_sense_is_refused(used: Site, tool: Tool, words: list[str], said: str) -> None:
    done = tool("kadeploy-site", "quarantine", *words)
    assert said in done.stderr
    assert (done.returncode, done.stdout) == (1, "")
    assert quarantine.current(used) == []


@PROCESS_ALONE
def test_without_a_rule_the_list_says_that_nobody_looks(site: Site, tool: Tool) -> None:
    said = tool("kadeploy-site", "quarantine").stdout.splitlines()
    assert said[0] == "No node is in quarantine."
    assert "there is no `quarantine` in site.yml" in said[1]


def test_users_do_without_such_nodes_and_administrators_need_not(used: Site, site_folder: Path, tool: Tool) -> None:
    quarantine.put(used, ["gdx-2.site"], "ada", "its disk")
    done = tool("kapower3", "--on", "-m", "gdx-2")
    assert done.returncode == 0, done.stderr
    assert "by ada: its disk; administrators may use them all the same" in done.stdout
    forget_administrators(site_folder)
    done = tool("kapower3", "--on", "-m", "gdx-[1-2]")
    assert done.returncode == 3
    assert "left out: gdx-2.site: in quarantine since " in done.stdout
    assert "by ada: its disk. Ask an administrator, or take other nodes" in done.stdout
    refused = tool("kapower3", "--on", "-m", "gdx-2")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "No node is left to work on. gdx-2.site: in quarantine since " in refused.stderr
    assert tool("kapower3", "--status", "-m", "gdx-2").returncode == 0
