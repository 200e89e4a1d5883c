"""The installation that tests with several accounts use."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from kadeploy import process
from tests import accounts
from tests.accounts import Installation

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make accounts")


def test_an_account_runs_the_tools_of_this_checkout_with_an_environment_of_its_own(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KADEPLOY_CONFIG_DIR", "/somewhere")
    shown = installation.tool("kadeploy3", "--version", account=installation.alice)
    assert (shown.returncode, shown.stderr) == (0, ""), shown.stderr
    seen = installation.tool("env", account=installation.alice, env={"MORE": "1"}).stdout.split("\n")
    assert {f"HOME={installation.alice.home}", f"USER={installation.alice.name}", "MORE=1"} <= set(seen)
    assert not [line for line in seen if line.startswith(("KADEPLOY", "PYTHON", "SUDO"))]


def test_an_account_has_ansible_and_the_collection_beside_the_tools(installation: Installation) -> None:
    listed = installation.tool(
        "ansible-playbook", "-i", "localhost,", "kadeploy.core.deploy", "--list-tasks", account=installation.bob
    )
    assert "send_environment" in listed.stdout, listed.stderr


def test_no_account_reads_the_home_of_another_or_the_folder_of_the_service(installation: Installation) -> None:
    for owner in (installation.bob, installation.service):
        secret = owner.home / "secret"
        secret.write_text("hidden")
        refused = installation.tool("cat", secret, account=installation.alice)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "Permission denied" in refused.stderr
        assert installation.tool("cat", secret, account=owner).stdout == "hidden"


def test_a_tool_that_takes_too_long_is_killed_with_all_that_it_started(installation: Installation) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        installation.tool("sh", "-c", "sleep 77 & sleep 77", account=installation.bob, timeout=0.5)
    found = installation.tool("pgrep", "-u", installation.bob.name, account=installation.alice).stdout.split()
    assert all(left.wait(5) for pid in found if (left := process.find(int(pid))))


def test_accounts_of_a_session_that_was_killed_are_removed_by_the_next_and_those_of_others_stay(
    installation: Installation, tmp_path: Path
) -> None:
    name, folder = f"{accounts.PREFIX}a-0", tmp_path / f"{accounts.FOLDER}left"
    folder.mkdir()
    accounts._add(name, folder / name, "1 0")
    with subprocess.Popen(["sleep", "77"], user=name) as left:
        script = (
            "from pathlib import Path; from tests import accounts\n"
            f"with accounts.made(Path({str(tmp_path)!r})) as made: print(*(each.name for each in made))"
        )
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=accounts.ROOT, capture_output=True, text=True, check=True)
        assert left.wait(5) != 0
    names = {entry.pw_name for entry in pwd.getpwall()}
    assert len(done.stdout.split()) == 4, done.stderr
    assert not names & {name, *done.stdout.split()}
    assert not folder.exists()
    assert {installation.alice.name, installation.bob.name, installation.service.name} <= names
