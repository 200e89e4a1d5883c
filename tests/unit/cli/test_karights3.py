"""karights3: every use case of the wiki page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kadeploy.cli import karights3, shell
from kadeploy.config.site import Site
from kadeploy.state import rights
from kadeploy.state.tables import Right

pytestmark = pytest.mark.usefixtures("way")

JOHN = ("-u", "johnsmith")


def run(*argv: str) -> int:
    return shell.run(karights3.app, "karights3", argv)


def all_rights() -> set[tuple[str, str, str]]:
    return {(row.user, row.node, row.part) for row in Right.select()}


UNKNOWN = "WARNING: johnsmith has no account on this machine: see that the name is right.\n"


def test_give_show_and_take_back_as_processes(tool: Any, site: Site, golden: Callable[[str], str]) -> None:
    given = tool("karights3", "-a", "-m", "gdx-[2,10].site", "-p", "/dev/sda3", "-p", "/dev/sda5", *JOHN)
    assert (given.returncode, given.stdout, given.stderr) == (0, "", UNKNOWN)
    assert tool("karights3", "-a", "-m", "*", "-p", "*", *JOHN).returncode == 0
    shown = tool("karights3", "-s", *JOHN)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, golden("karights3-s.txt"), "")
    taken = tool("karights3", "-d", "-m", "*", "-p", "*", *JOHN)
    assert (taken.returncode, taken.stdout, taken.stderr) == (0, "", "")
    assert "*" not in tool("karights3", "-s", *JOHN).stdout


def test_what_is_rarely_meant_is_told_and_done(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-a", "-m", "gdx-1.site", "-p", "/dev/sda33", "-p", "/dev/sdb7", "-u", "root") == 0
    told = capsys.readouterr().err
    assert told == (
        "WARNING: /dev/sda33 is not a partition of gdx: there are /dev/sda1, /dev/sda2, /dev/sda3, /dev/sda5. "
        "Did you mean /dev/sda3?\n"
    )
    assert {part for _, _, part in all_rights()} == {"/dev/sda33", "/dev/sdb7"}


@pytest.mark.parametrize("option", ["-s", "-l", "--list"])
def test_an_administrator_sees_the_rights_of_all_users(
    option: str, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(option) == 1
    rights.add(site, "johnsmith", ["gdx-1.site"], ["/dev/sda3", "/dev/sda5"])
    rights.add(site, "alice", ["*"], ["*"])
    assert run(option) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["alice", "*", "*"],
        ["johnsmith", "gdx-1.site", "/dev/sda3,/dev/sda5"],
    ]


def test_a_user_without_rights_is_said_to_have_none(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-s", *JOHN) == 1
    assert capsys.readouterr().out == "No rights have been given for the user johnsmith\n"


def test_taken_nodes_are_skipped_and_named(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    rights.add(site, "alice", ["gdx-1.site"], ["/dev/sda3"])
    assert run("-a", "-m", "gdx-[1-2].site", "-p", "/dev/sda3", *JOHN) == 0
    assert "node gdx-1.site: skipped. Use -o" in capsys.readouterr().out
    assert all_rights() == {("alice", "gdx-1.site", "/dev/sda3"), ("johnsmith", "gdx-2.site", "/dev/sda3")}


def test_when_nothing_was_added_it_is_said_and_an_error(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    run("-a", "-m", "gdx-1.site", "-p", "/dev/sda3", *JOHN)
    assert run("-a", "-m", "gdx-1.site", "-p", "/dev/sda5", *JOHN) == 1
    assert capsys.readouterr().out.endswith("No rights added\n")


def test_a_right_that_is_there_already_is_said_to_be(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-a", "-m", "*", "-p", "*", *JOHN) == 0
    assert run("-a", "-m", "*", "-p", "*", *JOHN, "--until", "2199-12-31") == 1
    assert capsys.readouterr().out == (
        "The user johnsmith has these rights already. To change their end, delete them (-d) first.\nNo rights added\n"
    )
    assert [right.until for right in rights.show(site, "johnsmith")] == [None]


def test_overwriting_replaces_the_rights_on_a_node(site: Site) -> None:
    rights.add(site, "alice", ["gdx-1.site"], ["/dev/sda3"])
    assert run("-a", "-m", "gdx-1.site", "-p", "/dev/sda5", *JOHN, "-o") == 0
    assert all_rights() == {("johnsmith", "gdx-1.site", "/dev/sda5")}


def test_deleting_what_is_not_there_is_said_and_the_rest_is_deleted(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    rights.add(site, "johnsmith", ["gdx-1.site"], ["/dev/sda3"])
    assert run("-d", "-m", "gdx-[1-2].site", "-p", "/dev/sda3", *JOHN) == 1
    assert "no right on /dev/sda3 of gdx-2.site" in capsys.readouterr().out
    assert all_rights() == set()


def test_nodes_come_from_files_too(site: Site, tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("gdx-[1-2].site\n", encoding="utf-8")
    assert run("-a", "-f", str(tmp_path / "nodes"), "-p", "/dev/sda3", *JOHN) == 0
    assert {node for _, node, _ in all_rights()} == {"gdx-1.site", "gdx-2.site"}


def test_a_right_may_end_with_a_day(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-a", "-m", "gdx-1.site", "-p", "/dev/sda3", *JOHN, "--until", "2199-12-31") == 0
    assert run("-s", *JOHN) == 0
    assert "### gdx-1.site:/dev/sda3 (until 2199-12-31 23:59:59)" in capsys.readouterr().out
    [right] = rights.show(site, "johnsmith")
    assert right.until is not None
    assert right.until > time.time()


def test_a_right_may_end_with_a_moment_after_which_it_is_gone(tool: Any, site: Site) -> None:
    soon = int(time.time()) + 5
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(soon))
    given = tool("karights3", "-a", "-m", "gdx-1.site", "-p", "/dev/sda3", *JOHN, "--until", until)
    assert (given.returncode, given.stdout, given.stderr) == (0, "", UNKNOWN)
    [right] = rights.show(site, "johnsmith")
    assert right.until == soon
    time.sleep(max(0, soon - time.time()))
    shown = tool("karights3", "-s", *JOHN)
    assert (shown.returncode, shown.stdout) == (1, "No rights have been given for the user johnsmith\n")
    assert tool("karights3", "-a", "-m", "gdx-1.site", "-p", "/dev/sda3", "-u", "alice").returncode == 0


def test_other_formats_hold_the_same(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    rights.add(site, "johnsmith", ["gdx-1.site"], ["/dev/sda3"])
    expected = [{"node": "gdx-1.site", "part": "/dev/sda3", "until": None}]
    assert run("-s", *JOHN, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert run("-s", *JOHN, "--format", "yaml") == 0
    assert yaml.safe_load(capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["-a"], "-a needs a user: -u USERNAME"),
        ([*JOHN], "Choose one of -a"),
        (["-a", "-d", *JOHN], "Choose one of -a"),
        (["-a", "-p", "/dev/sda3", *JOHN], "at least one node"),
        (["-a", "-m", "gdx-1.site", *JOHN], "at least one partition"),
        (["-d", "-m", "gdx-1.site", *JOHN], "at least one partition"),
        (["-a", "-m", "gdx-1.site", "-p", "sda3", *JOHN], "'sda3' is not a partition"),
        (["-a", "-m", "gdx-99.site", "-p", "/dev/sda3", *JOHN], "Unknown node: gdx-99.site"),
        (["-a", "-m", "gdx-1.site", "-p", "/dev/sda3", "-u", ""], "not a user name"),
        (["-s", "-o", *JOHN], "go with -a"),
        (["-d", "--until", "2199-01-01", *JOHN], "go with -a"),
        (["-a", "-m", "gdx-1.site", "-p", "/dev/sda3", "--until", "2001-01-01", *JOHN], "this date is over"),
        (["-a", "-m", "gdx-1.site", "-p", "/dev/sda3", "--until", "soon", *JOHN], "not a date"),
    ],
)
def test_senseless_requests_are_refused(
    site: Site, argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("operation", ["-a", "-d", "-s"])
def test_only_administrators_may(tool: Any, site_folder: Path, operation: str) -> None:
    text = (site_folder / "site.yml").read_text(encoding="utf-8")
    changed = "\n".join(line for line in text.splitlines() if not line.startswith("almighty_users"))
    (site_folder / "site.yml").write_text(f"{changed}\nalmighty_users: [god]\n", encoding="utf-8")
    done = tool("karights3", operation, "-m", "gdx-1.site", "-p", "/dev/sda3", *JOHN)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Only administrators may do this (god: almighty_users in site.yml)" in done.stderr


def test_everybody_may_look_at_their_own_rights(tool: Any, site: Site) -> None:
    """Under sudo that is the user who called it."""
    user = "nobody" if os.getuid() == 0 else Path.home().owner()
    rights.add(site, user, ["gdx-1.site"], ["/dev/sda3"])
    done = tool("karights3", "-s", "-u", user, SUDO_UID="65534")
    assert (done.returncode, done.stderr) == (0, "")
    assert "### gdx-1.site:/dev/sda3" in done.stdout
