"""kadeploy-site restore, as an administrator runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kadeploy.config.site import Site
from kadeploy.state import database
from tests.accounts import Installation
from tests.unit.admin import keeping
from tests.unit.conftest import Tool

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def made(site: Site, site_folder: Path, tool: Tool, tmp_path: Path) -> str:
    """A backup of a site on which an operation runs."""
    keeping.begin(keeping.furnish(site, site_folder), "D-runs")
    database.disconnect()
    path = str(tmp_path / "b.tar.zst")
    assert tool("kadeploy-site", "backup", path).returncode == 0
    return path


def test_a_new_machine_gets_the_site_and_is_told_what_to_do_next(made: str, site_folder: Path, tool: Tool) -> None:
    shutil.rmtree(site_folder)
    shown = tool("kadeploy-site", "restore", made, "--dry-run")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "would be put in place:\n" in shown.stdout
    assert f"      new  {site_folder}/site.yml\n" in shown.stdout
    assert not site_folder.exists()
    done = tool("kadeploy-site", "restore", made)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(
        "D-runs ran when the backup was made, and is aborted: gdx-1.site.\n"
        "The site is put back. Look it over before its service starts: kadeploy-site check\n"
    )
    assert "tiny" in tool("kaenv3", "-l").stdout
    again = tool("kadeploy-site", "restore", made)
    assert again.returncode == 1
    assert again.stderr.startswith(f"ERROR: There is a site already: {site_folder}/state/kadeploy.db would be replaced")
    told = json.loads(tool("kadeploy-site", "restore", made, "--replace", "--format", "json").stdout)
    assert Path(told["before"]).parent == site_folder / "state" / "backups"
    assert told["aborted"] == {"D-runs": ["gdx-1.site"]}


def test_another_folder_for_the_configuration(made: str, site_folder: Path, tool: Tool, tmp_path: Path) -> None:
    shutil.rmtree(site_folder)
    other = tmp_path / "elsewhere"
    done = tool("kadeploy-site", "restore", made, "--config", str(other))
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in other.iterdir()) == ["clusters", "playbooks", "site.yml"]
    assert (site_folder / "deployment_key").read_text() == keeping.SECRETS["deployment_key"]
    assert tool("kanodes3", "-l", KADEPLOY_CONFIG_DIR=str(other)).returncode == 0


def test_no_tool_works_for_half_a_site_and_a_restore_without_a_file_ends_it(
    made: str, site_folder: Path, tool: Tool
) -> None:
    keys = site_folder / "deployment_key"
    keys.write_text("another")
    shutil.copy(made, f"{made}.copy")
    tool("kadeploy-site", "restore", made, "--replace", "--without-backup")  # the operation of this process runs
    assert keys.read_text() == "another"
    shutil.rmtree(site_folder / "state")
    for at in range(1, 100):
        done = keeping.killed_at(at, "restore", made, "--replace", "--without-backup")
        assert done.returncode == -9, done.stderr
        if "half_way" in (site_folder / "site.yml").read_text():
            break
        tool("kadeploy-site", "restore")
    for command in (("kanodes3", "-l"), ("kaenv3", "-l"), ("kadeploy3d", "token", "list")):
        refused = tool(*command)
        assert refused.returncode == 1
        assert "restore_is_half_way" in refused.stderr
    checked = tool("kadeploy-site", "check", "-q")
    assert checked.returncode == 1
    (line,) = checked.stdout.splitlines()
    assert "a restore of b.tar.zst was interrupted half-way → kadeploy-site restore" in line
    done = tool("kadeploy-site", "restore")
    assert done.returncode == 0
    assert done.stdout == "The restore of b.tar.zst, which was interrupted, is undone: the site is as it was before.\n"
    assert keys.read_text() == "another"
    nothing = tool("kadeploy-site", "restore")
    assert nothing.returncode == 1
    assert nothing.stderr == (f"ERROR: No restore was interrupted in {site_folder}: name the backup to put back.\n")


def test_what_is_no_backup_is_refused_in_a_line(made: str, site_folder: Path, tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no backup")
    for name, said in (
        ("text", "is no sound backup of a site"),
        ("nothing", "No such file or directory"),
        ("", "such as"),
    ):
        done = tool("kadeploy-site", "restore", str(tmp_path / name), "--replace")
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    both = tool("kadeploy-site", "restore", made, "--backup", str(tmp_path), "--without-backup")
    assert both.stderr == "ERROR: --backup and --without-backup contradict each other: choose one.\n"


def test_ordinary_accounts_are_refused(
    made: str, site_folder: Path, open_folder: Path, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keeping.given_away(site_folder, open_folder, monkeypatch)
    copy = installation.alice.home / "b.tar.zst"
    shutil.copy(made, copy)
    shutil.chown(copy, installation.alice.uid)
    before = keeping.tree(kept)
    variables = {"KADEPLOY_CONFIG_DIR": str(kept)}
    done = installation.tool("kadeploy-site", "restore", copy, "--replace", account=installation.alice, env=variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert keeping.tree(kept) == before
