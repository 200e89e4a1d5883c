"""kadeploy-site backup, as an administrator runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from kadeploy.config.site import Site
from kadeploy.state.database import SCHEMA_VERSION
from tests.accounts import Installation
from tests.unit.admin import keeping
from tests.unit.conftest import Tool

sqlite_alone = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def lived(site: Site, site_folder: Path) -> Site:
    return keeping.furnish(site, site_folder)


def test_it_tells_what_is_in_the_backup(lived: Site, tool: Tool, tmp_path: Path) -> None:
    done = tool("kadeploy-site", "backup", str(tmp_path / "b.tar.zst"), "--runs")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/b.tar.zst: ")
    kind = lived.database.partition(":")[0]
    assert [line.split("  ")[-1] for line in lines] == [
        f"configuration ({tmp_path}/site)",
        "keys, password files and other files that it names",
        f"database ({kind}, schema {SCHEMA_VERSION})",
        "audit log",
        "run folders",
        "events of runs whose folders are gone",
    ]


@sqlite_alone
def test_programs_read_it_and_a_timer_sees_nothing(lived: Site, tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "site" / "playbooks" / "elsewhere").symlink_to(tmp_path)
    done = tool("kadeploy-site", "backup", str(tmp_path), "--format", "json", "--keep", "1")
    told = json.loads(done.stdout)
    assert told["manifest"]["left_out"] == [f"{tmp_path}/site/playbooks/elsewhere: a link to a folder"]
    assert Path(told["path"]).stat().st_size == told["size"]
    done = tool("kadeploy-site", "backup", str(tmp_path), "--quiet", "--keep", "1")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"WARNING: left out: {tmp_path}/site/playbooks/elsewhere: a link to a folder.\n"
    assert len(list(tmp_path.glob("paris-*"))) == 1
    assert not Path(told["path"]).exists()
    both = tool("kadeploy-site", "backup", str(tmp_path), "--quiet", "--format", "json")
    assert both.stderr == "ERROR: --quiet and --format json contradict each other: choose one.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_that_is_interrupted_leaves_nothing_and_says_nothing(
    lived: Site, tmp_path: Path, database_url: str, number: signal.Signals
) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("one cannot hold a copy of SQLite's database up")
    folder = tmp_path / "backups"
    folder.mkdir()
    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE rights IN ACCESS EXCLUSIVE MODE")
        command = [str(Path(sys.executable).parent / "kadeploy-site"), "backup", str(folder)]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        limit = time.monotonic() + 30
        while not children.read_text():
            assert time.monotonic() < limit
            time.sleep(0.05)
        time.sleep(0.3)
        running.send_signal(number)
        output = running.communicate(timeout=20)
    assert (running.returncode, *output) == (130, "", "")
    assert not list(folder.iterdir())


@sqlite_alone
def test_ordinary_accounts_are_refused(
    lived: Site, site_folder: Path, open_folder: Path, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keeping.given_away(site_folder, open_folder, monkeypatch)
    variables = {"KADEPLOY_CONFIG_DIR": str(kept)}
    home = installation.alice.home
    done = installation.tool("kadeploy-site", "backup", home, account=installation.alice, env=variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert "run it as root (sudo)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(home.glob("paris*"))


def test_a_link_is_no_way_to_write_elsewhere(lived: Site, tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "b.tar.zst").symlink_to("/etc/hostname")
    before = Path("/etc/hostname").read_bytes()
    done = tool("kadeploy-site", "backup", str(tmp_path / "b.tar.zst"))
    assert done.returncode == 1
    assert "is there and is no backup: name another file" in done.stderr
    assert Path("/etc/hostname").read_bytes() == before
    assert (tmp_path / "b.tar.zst").readlink() == Path("/etc/hostname")
