"""kadeploy-site nodes and rights: how the nodes of a site stand, and who may use them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from kadeploy.config.site import Site
from kadeploy.errors import RightsError
from kadeploy.state import controllers, nodes, rights
from kadeploy.state.nodes import Recorded

if TYPE_CHECKING:
    from tests.unit.conftest import Tool

UNTIL = int(time.time()) + 3600
ENDS = time.strftime("%Y-%m-%d %H:%M", time.gmtime(UNTIL))


@pytest.fixture
def used(site: Site) -> Site:
    """A site whose nodes are deployed, held and given to people."""
    nodes.connect(site)
    nodes.set_state(["gdx-1.site", "gdx-2.site"], "deployed", Recorded("debian12", 3, "deploy", "x86_64"), "ada")
    nodes.claim(site, ["gdx-2.site"], "R-1", "bob")
    rights.add(site, "ada", ["gdx-1.site", "gdx-2.site"], ["/dev/sda3"], until=UNTIL)
    rights.add(site, "ada", ["gdx-3.site"], ["/dev/sda3"])
    rights.add(site, "root", ["*"], ["*"])
    return site


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each node; a table for people has two blanks at least between them."""
    lines = text.splitlines()
    starts = [
        lines[0].index(word) for word in ("NODE", "CLUSTER", "ADDRESS", "BMC", "STATE", "HELD", "ENVIRON", "RIGHTS")
    ]
    ends = [*starts[1:], None]
    cells = [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines[1:]]
    return {row[0]: row[1:] for row in cells}


def test_a_table_tells_all_that_is_known_of_each_node(used: Site, tool: Tool) -> None:
    found = rows(tool("kadeploy-site", "nodes").stdout)
    assert len(found) == 24
    ada = f"ada:/dev/sda3 until {ENDS}, root:*"
    assert found["gdx-1.site"] == ["gdx", "127.9.1.1", "-", "deployed", "-", "debian12@deploy:3%x86_64", ada]
    assert found["gdx-2.site"][4].startswith("bob (R-1 since 20")
    assert found["gdx-3.site"][6] == "ada:/dev/sda3, root:*"
    assert found["nvm-4.site"] == ["nvm", "127.9.2.4", "-", "-", "-", "-", "root:*"]


def test_some_nodes_alone_are_shown_in_the_order_that_was_asked_for(used: Site, tool: Tool) -> None:
    assert list(rows(tool("kadeploy-site", "nodes", "-m", "gdx-[2-3]", "-m", "nvm-1").stdout)) == [
        "gdx-2.site",
        "gdx-3.site",
        "nvm-1.site",
    ]
    assert set(rows(tool("kadeploy-site", "nodes", "--cluster", "nvm").stdout)) == {
        f"nvm-{i}.site" for i in range(1, 5)
    }
    assert list(rows(tool("kadeploy-site", "nodes", "--held").stdout)) == ["gdx-2.site"]


def test_nothing_that_is_held_is_said_and_not_shown_as_an_empty_table(used: Site, tool: Tool) -> None:
    done = tool("kadeploy-site", "nodes", "--held", "-m", "gdx-5")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "No operation holds a node of these.\n")


def test_a_claim_that_a_dead_controller_has_left_is_told_as_such(used: Site, tool: Tool) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    database = nodes.connect(used)
    database.execute_sql(f"UPDATE claims SET pid = {gone.pid}")
    assert controllers.left(used)
    assert "left behind" in rows(tool("kadeploy-site", "nodes").stdout)["gdx-2.site"][4]


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_nodes_with_seconds_and_nothing_folded(used: Site, tool: Tool, form: str, read: type) -> None:
    (one,) = read(tool("kadeploy-site", "nodes", "-m", "gdx-2", "--format", form).stdout)  # type: ignore[misc,call-arg]
    held = one.pop("held")
    assert (held["workflow"], held["user"], held["is_left"]) == ("R-1", "bob", False)
    assert one.pop("since") > UNTIL - 7200
    assert one == {
        "node": "gdx-2.site",
        "cluster": "gdx",
        "address": "127.9.1.2",
        "bmc": "",
        "state": "deployed",
        "user": "ada",
        "environment": "debian12@deploy:3%x86_64",
        "rights": [
            {"user": "ada", "part": "/dev/sda3", "until": UNTIL},
            {"user": "root", "part": "*", "until": None},
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nodes", "-m", "gxd-1.site"], "Did you mean gdx-1.site?"),
        (["nodes", "--cluster", "nmv"], "The clusters are gdx, nvm. Did you mean nvm?"),
        (["rights", "gxd-1.site"], "Did you mean gdx-1.site?"),
    ],
)
def test_what_the_site_has_not_is_refused(used: Site, tool: Tool, arguments: list[str], said: str) -> None:
    done = tool("kadeploy-site", *arguments)
    assert said in done.stderr
    assert (done.returncode, done.stdout) == (1, "")


# --- rights -------------------------------------------------------------------------------------------------------


def test_nodes_with_the_same_rights_are_together_and_what_a_star_gives_is_told_apart(used: Site, tool: Tool) -> None:
    assert tool("kadeploy-site", "rights").stdout == (
        "gdx-[1-2].site\n"
        f"  ada   /dev/sda3 until {ENDS}\n"
        "  root  all partitions (*)  given for all nodes (*)\n"
        "gdx-3.site\n"
        "  ada   /dev/sda3\n"
        "  root  all partitions (*)  given for all nodes (*)\n"
        "gdx-[4-20].site,nvm-[1-4].site\n"
        "  root  all partitions (*)  given for all nodes (*)\n"
    )


def test_rights_of_some_nodes_are_shown_by_range_or_star(used: Site, tool: Tool) -> None:
    assert tool("kadeploy-site", "rights", "gdx-[3-4]", "nvm-1").stdout.splitlines()[0] == "gdx-3.site"
    assert tool("kadeploy-site", "rights", "*").stdout == tool("kadeploy-site", "rights").stdout


def test_rights_that_are_over_are_not_shown(used: Site, tool: Tool) -> None:
    nodes.connect(used).execute_sql("UPDATE rights SET until = 1 WHERE until IS NOT NULL")
    assert f"until {ENDS}" not in tool("kadeploy-site", "rights").stdout


def test_nodes_that_nobody_may_use_are_told_with_what_to_do(site: Site, tool: Tool) -> None:
    nodes.connect(site)
    assert "nobody has a right here: karights3 -a gives one" in tool("kadeploy-site", "rights", "gdx-1").stdout


def test_programs_get_groups_of_nodes(used: Site, tool: Tool) -> None:
    found = json.loads(tool("kadeploy-site", "rights", "gdx-[1-3]", "--format", "json").stdout)
    assert [each["nodes"] for each in found] == [["gdx-1.site", "gdx-2.site"], ["gdx-3.site"]]
    assert found[1] == {
        "nodes": ["gdx-3.site"],
        "rights": [{"user": "ada", "part": "/dev/sda3", "until": None}],
        "everywhere": [{"user": "root", "part": "*", "until": None}],
    }


def test_a_site_where_rights_do_not_count_says_so(used: Site, tool: Tool, site_folder: Path) -> None:
    path = site_folder / "site.yml"
    path.write_text(path.read_text() + "rights: dummy\n")
    assert "everybody may use all nodes" in tool("kadeploy-site", "rights", "gdx-1").stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another account")
@pytest.mark.parametrize(("command", "instead"), [("nodes", "kanodes3"), ("rights", "karights3 -s")])
def test_an_ordinary_account_is_sent_to_its_own_tools(
    site: Site, site_folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, instead: str
) -> None:
    from kadeploy.cli.site.nodes import nodes as show_nodes
    from kadeploy.cli.site.rights import rights as show_rights

    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setenv("KADEPLOY_CONFIG_DIR", str(site_folder))
    with pytest.raises(RightsError, match=instead):
        {"nodes": show_nodes, "rights": show_rights}[command]()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another account")
def test_root_leaves_nothing_of_its_own_in_the_state_of_the_service(
    site: Site, site_folder: Path, tool: Tool, open_folder: Path
) -> None:
    if not site.database.startswith("sqlite"):
        return
    state = open_folder / "state"
    state.mkdir(mode=0o700)
    os.chown(state, 65534, 65534)
    path = site_folder / "site.yml"
    text = path.read_text().replace(f"state_dir: {site_folder}/state", f"state_dir: {state}")
    path.write_text(text.replace(f"database: {site.database}", f"database: sqlite://{state}/kadeploy.db"))
    for command in ("nodes", "rights"):
        done = tool("kadeploy-site", command)
        assert (done.returncode, done.stderr) == (0, "")
    assert {each.stat().st_uid for each in state.iterdir()} == {65534}


def test_a_table_of_a_thousand_nodes_takes_a_moment(site: Site, site_folder: Path, tool: Tool) -> None:
    path = site_folder / "clusters/gdx.yml"
    path.write_text(
        path.read_text()
        .replace('"gdx-[1-20].site"', '"gdx-[1-1000].site"')
        .replace('address: "127.9.1.[1-20]"', 'mac: ""')
    )
    nodes.connect(site)
    names = [f"gdx-{number}.site" for number in range(1, 1001)]
    rights.add(site, "ada", names, ["/dev/sda3"])
    begun = time.monotonic()
    assert tool("kadeploy-site", "rights").stdout.startswith("gdx-[1-1000].site\n  ada  /dev/sda3\n")
    assert len(rows(tool("kadeploy-site", "nodes").stdout)) == 1004
    assert time.monotonic() - begun < 20
