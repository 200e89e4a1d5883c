"""kadeploy-site upgrade, as an administrator runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kadeploy.config.site import Site
from kadeploy.state import database
from kadeploy.state.database import SCHEMA_VERSION
from tests.unit.admin import keeping
from tests.unit.conftest import Tool
from tests.unit.state.test_database import make_version

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_it_tells_what_there_is_and_what_it_did(site: Site, site_folder: Path, tool: Tool) -> None:
    make_version(site, 4)
    shown = tool("kadeploy-site", "upgrade", "--dry-run")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"has schema version 4: it would be brought to {SCHEMA_VERSION}.\n" in shown.stdout
    with database.as_it_is(site) as version:
        assert version == 4
    done = tool("kadeploy-site", "upgrade")
    (path,) = (site.state / "backups").iterdir()
    assert done.stdout.splitlines()[1:] == [
        f"What was there is in {path}",
        f"The database sqlite://{site.state}/kadeploy.db was brought from schema version 4 to {SCHEMA_VERSION}.",
    ]
    again = json.loads(tool("kadeploy-site", "upgrade", "--format", "json").stdout)
    assert (again["schema"], again["known"], again["backup"]) == (SCHEMA_VERSION, SCHEMA_VERSION, "")
    back = tool("kadeploy-site", "restore", str(path), "--replace", "--without-backup")
    assert back.returncode == 0, back.stderr


def test_a_wrong_configuration_is_one_line(site: Site, site_folder: Path, tool: Tool) -> None:
    with (site_folder / "site.yml").open("a") as file:
        file.write("gone: 1\n")
    done = tool("kadeploy-site", "upgrade")
    assert (done.returncode, done.stdout) == (1, "")
    assert "none for this version" in done.stderr
    assert "gone" in done.stderr
    assert done.stderr.count("\n") == 1


def test_whether_the_site_stands_still_is_told_alone(site: Site, site_folder: Path, tool: Tool) -> None:
    make_version(site, 4)
    still = tool("kadeploy-site", "upgrade", "--stands-still")
    assert (still.returncode, still.stdout, still.stderr) == (0, "", "")
    with database.as_it_is(site) as version:
        assert version == 4
    keeping.begin(site, "D-runs")
    runs = tool("kadeploy-site", "upgrade", "--stands-still")
    assert (runs.returncode, runs.stdout) == (1, "")
    assert "D-runs" in runs.stderr
