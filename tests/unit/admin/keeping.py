"""A site with something in all its places, and what is looked at of it before and after."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.operations import kept_events
from kadeploy.state import database, journal, nodes, rights, tokens
from kadeploy.state.database import DB
from kadeploy.state.tables import TABLES, EnvironmentRow, environment_columns

POWER = "power: {driver: ipmi, user: admin, password_file: %s}\n"
SECRETS = {"deployment_key": "the site's key", "deployment_key.pub": "public", "htpasswd": "alice:hash\n"}
NOBODY = 65534
DAY = 86_400


def furnish(site: Site, folder: Path) -> Site:
    """Give *site*, whose configuration is in *folder*, keys, passwords, rights, tokens, runs and an audit log."""
    keys = site.state / "keys"
    keys.mkdir(mode=0o700)
    for name, text in SECRETS.items():
        _write(folder / name, text, 0o600)
    _write(keys / "bmc-gdx", "bmc's password\n", 0o600)
    _write(keys / "deployment_host_ed25519", "host key\n", 0o600)
    _write(site.state / "audit.jsonl", '{"what": "POST /v1/deployments"}\n', 0o600)
    with (folder / "clusters" / "gdx.yml").open("a") as file:
        file.write(POWER % (keys / "bmc-gdx"))
    with (folder / "site.yml").open("a") as file:
        file.write(f"service: {{htpasswd: {folder}/htpasswd}}\n")
    (folder / "playbooks").mkdir()
    _write(folder / "playbooks" / f"{'Own' * 40}.yml", "[]\n", 0o644)
    rights.add(site, "alice", ["gdx-1.site"], ["*"])
    tokens.create(site, "alice", 4_000_000_000, "CI")
    tiny = Environment(name="tiny", user="root", image=Image(file="/tiny.tgz", kind="tgz"), filesystem="ext4")
    DB.execute(EnvironmentRow.insert(**environment_columns(tiny)))
    finished(site, "D-ended")
    site.kept_events.mkdir()
    _write(site.kept_events / f"D-gone{kept_events.SUFFIX}", "behind xz\n", 0o600)
    database.disconnect()
    return load_site(folder)


def _write(path: Path, text: str, mode: int) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def finished(site: Site, wid: str) -> Path:
    """The run folder of a workflow that has ended."""
    journal.begin(site, wid, "deploy", "alice", None, {"gdx": ["gdx-2.site"]})
    journal.end(wid, [])
    folder = site.run_folders / wid / "01-SetDeploymentEnv"
    folder.mkdir(parents=True)
    _write(folder / "output", "it went well\n", 0o644)
    return site.run_folders / wid


def begin(site: Site, wid: str, node: str = "gdx-1.site") -> None:
    """Have this process carry out a workflow."""
    journal.begin(site, wid, "deploy", "alice", None, {"gdx": [node]})
    nodes.claim(site, [node], wid, "alice")
    nodes.set_state([node], "deploying", None, "alice", held_by=wid)


def rows(site: Site) -> dict[str, list[tuple[object, ...]]]:
    """All that is in the database, by table."""
    database.disconnect()
    database.connect(site)
    found = {}
    for table in TABLES:
        name = table._meta.table_name
        found[name] = sorted(map(tuple, DB.execute_sql(f"SELECT * FROM {name}").fetchall()), key=repr)
    database.disconnect()
    return found


def tree(folder: Path, *without: str) -> dict[str, tuple[int, int, bytes]]:
    """Mode, owner and content of each file below *folder*; those of SQLite's database are told by `rows`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and "kadeploy.db" not in name and not name.startswith(without):
            status = path.stat()
            found[name] = (status.st_mode & 0o777, status.st_uid, path.read_bytes())
    return found


def integrity(path: Path) -> str:
    """What SQLite says of a file."""
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


KILLED = """
import os, signal, sys
at = int(sys.argv.pop(1))
count = 0
def hook(event, arguments):
    global count
    if event in {"os.rename", "os.remove", "os.mkdir", "os.link", "os.chmod", "os.chown", "os.rmdir"}:
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from kadeploy.cli.kadeploy_site import main
status = main()
sys.stdout.flush()
os._exit(status)
"""


def killed_at(change: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``kadeploy-site`` with *words*, and kill it in front of its change number *change* to a file system."""
    command = [sys.executable, "-c", KILLED, str(change), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def is_killed_at(change: int, work: Callable[[], object]) -> bool:
    """Do *work* in a process of its own that is killed in front of that change to a file system; False: it was done."""
    database.disconnect()
    pid = os.fork()
    if pid == 0:
        seen = itertools.count(1)

        def hook(event: str, _: object) -> None:
            if event in CHANGES and next(seen) == change:
                os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(hook)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.link", "os.chmod", "os.chown", "os.rmdir"}
"""Events of Python's audit hooks."""


def in_full_disk(folder: Path, options: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``kadeploy-site`` with *words* where *folder* is a file system of its own that has little room.

    What was in the folder is there too; its listing at the end is the last lines of the output, behind a line ``--``.
    """
    tool = Path(sys.executable).parent / "kadeploy-site"
    script = (
        'aside=$(mktemp -d) && cp -a "$1/." "$aside" && mount -t tmpfs -o "$2" small "$1" && cp -a "$aside/." "$1" && '
        'rm -r "$aside"; folder=$1; shift 2; "$@"; status=$?; echo --; cd "$folder"; '
        'find . -type f ! -name "kadeploy.db*" | sort | xargs -r sha256sum; exit $status'
    )
    command = ["unshare", "--mount", "sh", "-c", script, "sh", folder, options, tool, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def given_away(folder: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move the site whose configuration is in *folder* and give its state to another account than root's."""
    database.disconnect()
    moved = Path(shutil.move(folder, into / "site"))
    moved.chmod(0o755)
    for path in (moved / "site.yml", *(moved / "clusters").iterdir()):
        path.write_text(path.read_text().replace(str(folder), str(moved)))
    for path in (moved / "state", *(moved / "state").rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    monkeypatch.setenv("KADEPLOY_CONFIG_DIR", str(moved))
    return moved
