"""Claims: whose they are, and how those of dead controllers are freed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kadeploy.config.site import Site
from kadeploy.errors import NodeHeldError, NothingChangedError
from kadeploy.operations import claims
from kadeploy.operations.work import run_folder
from kadeploy.runner import player
from kadeploy.state import controllers, journal, nodes, watch
from kadeploy.state.tables import Workflow

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

NAMES = ["gdx-2.site", "gdx-10.site"]
DEAD = """
from kadeploy.config.folder import load_site
from kadeploy.state import journal, nodes
site, names = load_site(), ["gdx-2.site", "gdx-10.site"]
nodes.claim(site, names, "D-dead", "bob", parts={"gdx-2.site": "/dev/sda3"})
journal.begin(site, "D-dead", "deploy", "bob", None, {"gdx": names})
nodes.set_state(names, "deploying", None, "bob")
"""
"""A controller that has ended in the middle of its work."""


@pytest.fixture
def dead(site: Site) -> Site:
    subprocess.run([sys.executable, "-c", DEAD], check=True)
    nodes.claim(site, ["gdx-1.site"], "D-1", "alice", parts={"gdx-1.site": "/dev/sda5"})
    journal.begin(site, "D-1", "deploy", "alice", None, {"gdx": ["gdx-1.site"]})
    return site


def test_claims_are_told_with_whose_they_are_and_whether_they_are_left(dead: Site) -> None:
    found = nodes.claims(dead)
    assert [(each.node, each.wid, each.user, each.part, each.is_left) for each in found] == [
        ("gdx-1.site", "D-1", "alice", "/dev/sda5", False),
        ("gdx-2.site", "D-dead", "bob", "/dev/sda3", True),
        ("gdx-10.site", "D-dead", "bob", "", True),
    ]
    assert [each.node for each in nodes.claims(dead, ["gdx-10.site", "gdx-3.site"])] == ["gdx-10.site"]


def test_to_free_a_node_is_to_end_the_dead_workflow_and_its_processes(dead: Site) -> None:
    mark = {player.MARK: str(run_folder(dead, "D-dead") / "01-A")}
    orphan = subprocess.Popen(["sleep", "1000"], env=os.environ | mark)
    try:
        assert sorted(claims.free(dead, "gdx-2.site")) == sorted(NAMES)
        assert orphan.wait(timeout=30) == -9
    finally:
        orphan.kill()
    assert [each.node for each in nodes.claims(dead)] == ["gdx-1.site"]
    assert {row.state for row in nodes.states(dead)} == {"aborted"}
    assert Workflow.get_by_id("D-dead").state == "aborted"


def test_the_node_of_a_workflow_that_runs_is_not_freed(dead: Site) -> None:
    with pytest.raises(NodeHeldError, match=r"D-1 of alice, .*kadeploy3 --cancel D-1"):
        claims.free(dead, "gdx-1.site")
    assert len(nodes.claims(dead)) == 3


def test_nor_that_of_one_that_is_about_to_go_on(dead: Site) -> None:
    folder = run_folder(dead, "D-dead")
    folder.mkdir(parents=True)
    (folder / controllers.RECORD).write_text("{}")
    with watch.watching(dead), pytest.raises(NodeHeldError):
        claims.free(dead, "gdx-2.site")


def test_a_node_that_nobody_holds_is_not_freed_either(dead: Site) -> None:
    with pytest.raises(NothingChangedError, match="no workflow holds it"):
        claims.free(dead, "gdx-3.site")


def test_to_end_one_dead_workflow_leaves_the_others_alone(dead: Site) -> None:
    subprocess.run([sys.executable, "-c", DEAD.replace("D-dead", "D-too").replace("gdx-", "gdx-1")], check=True)
    assert list(claims.reap(dead, "D-too")) == ["D-too"]
    assert {each.wid for each in nodes.claims(dead)} == {"D-1", "D-dead"}
