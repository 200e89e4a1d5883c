"""kadeploy-site purge, as an administrator or a timer runs it, also beside an operation that runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from kadeploy.config.site import Site
from kadeploy.state import database
from tests.accounts import Installation
from tests.unit.admin import keeping
from tests.unit.conftest import Tool

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def lived(site: Site, site_folder: Path) -> Site:
    return keeping.furnish(site, site_folder)


def make_old(site: Site) -> None:
    folder = keeping.finished(site, "D-old")
    database.disconnect()
    os.utime(folder, (time.time() - 40 * keeping.DAY,) * 2)


def test_it_tells_what_would_go_and_what_went(lived: Site, tool: Tool) -> None:
    make_old(lived)
    shown = tool("kadeploy-site", "purge", "--dry-run")
    line = "     1       13 B  run folders beyond runs.days and runs.max_mb\n"
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"{line}13 B would be free.\n", "")
    done = tool("kadeploy-site", "purge")
    assert done.stdout == f"{line}13 B are free.\n"
    assert tool("kadeploy-site", "purge").stdout == "There is nothing to remove.\n"
    told = json.loads(tool("kadeploy-site", "purge", "--statistics-days", "9", "--format", "json").stdout)
    assert {each["kind"] for each in told} >= {"runs", "rights", "tokens", "statistics"}
    assert not any(each["number"] for each in told)


def test_a_timer_hears_nothing(lived: Site, tool: Tool) -> None:
    make_old(lived)
    done = tool("kadeploy-site", "purge", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (lived.run_folders / "D-old").exists()
    wrong = tool("kadeploy-site", "purge", "--days", "0")
    assert wrong.returncode == 1
    assert "--days" in wrong.stderr


def test_ordinary_accounts_are_refused(
    lived: Site, site_folder: Path, open_folder: Path, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keeping.given_away(site_folder, open_folder, monkeypatch)
    for command in ("purge", "upgrade"):
        done = installation.tool(
            "kadeploy-site", command, account=installation.alice, env={"KADEPLOY_CONFIG_DIR": str(kept)}
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert "run it as root (sudo)" in done.stderr
        assert done.stderr.count("\n") == 1
