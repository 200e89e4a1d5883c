"""What unit tests share: a site in a folder of its own, on SQLite and on PostgreSQL, and the tools as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, settings

from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.state import database
from tests import postgresql as postgresql_server
from tests.unit import forks
from tests.unit.forks import Forks

settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")
"""The same examples at each run, on a machine of any speed; ``--hypothesis-profile default`` looks for new ones."""

signal.signal(signal.SIGINT, signal.default_int_handler)
"""Tests press Ctrl-C: what a script starts in the background ignores it, and so would everything that we start."""

GOLDEN = Path(__file__).parents[1] / "golden"

SITE = """\
name: paris
state_dir: {folder}/state
database: {database}
server_address: 127.0.0.1
ssh:
  private_key: {folder}/deployment_key
  host_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq7bhOPDK1mHvvcHQ0LvgcVxuPyG2ja9pXQQ8UIwPf
boot:
  tftp_root: {folder}/tftp
  http_root: {folder}/http
  http_url: http://127.0.0.1/
almighty_users: {almighty}
"""
STRANGE = ("SUDO_UID", "NO_COLOR", "COLUMNS", "LINES", "KADEPLOY_CLIENT", "KADEPLOY_SERVER")
"""Variables of whoever runs the tests that the tools would mind."""
CLUSTERS = {
    "gdx": """\
nodes:
  - {name: "gdx-[1-20].site", address: "127.9.1.[1-20]"}
disk:
  device: /dev/sda
  table: msdos
  partitions:
    - {number: 1, size: 1GiB, role: swap}
    - {number: 2, size: 4GiB, role: prod}
    - {number: 3, size: 4GiB, role: deploy}
    - {number: 5, role: tmp}
""",
    "nvm": """\
nodes:
  - {name: "nvm-[1-4].site", address: "127.9.2.[1-4]"}
disk:
  device: /dev/nvme0n1
  table: gpt
  partitions:
    - {number: 1, size: 4GiB, role: deploy}
    - {number: 2, role: tmp}
""",
}


# --- databases --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL database: ``$KADEPLOY_TEST_POSTGRESQL``, or a server of our own on a unix socket."""
    given = os.environ.get("KADEPLOY_TEST_POSTGRESQL")
    if given:
        yield given
        return
    with postgresql_server.running() as server:
        yield server.url


@contextmanager
def _schema(server: str) -> Iterator[str]:
    """URL of an empty schema of its own."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
        yield f"{server}{'&' if '?' in server else '?'}options={quote(f'-csearch_path={name}')}"
        database.disconnect()
        connection.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database for one test: a file, or a schema of its own."""
    if request.param == "sqlite":
        yield f"sqlite://{tmp_path}/site/state/kadeploy.db"
        return
    with _schema(request.getfixturevalue("postgresql")) as url:
        yield url


# --- sites ------------------------------------------------------------------------------------------------------


@pytest.fixture
def site_folder(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete configuration folder, which ``KADEPLOY_CONFIG_DIR`` names for this process and its children."""
    folder = tmp_path / "site"
    (folder / "clusters").mkdir(parents=True)
    (folder / "state").mkdir()
    almighty = "[root]" if os.geteuid() == 0 else f"[{Path.home().owner()}]"
    (folder / "site.yml").write_text(
        SITE.format(folder=folder, database=database_url, almighty=almighty), encoding="utf-8"
    )
    for name, text in CLUSTERS.items():
        (folder / "clusters" / f"{name}.yml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("KADEPLOY_CONFIG_DIR", str(folder))
    monkeypatch.setenv("TZ", "UTC")
    for name in STRANGE:
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def site(site_folder: Path) -> Iterator[Site]:
    """The site of *site_folder*; its database is not there yet."""
    yield load_site(site_folder)
    database.disconnect()


@pytest.fixture
def other_site(site: Site, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Another site, whose database is of the same kind as that of *site*."""
    if site.database.startswith("sqlite"):
        yield msgspec.structs.replace(site, name="lyon", database=f"sqlite://{tmp_path}/lyon.db")
        return
    with _schema(request.getfixturevalue("postgresql")) as url:
        yield msgspec.structs.replace(site, name="lyon", database=url)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account may pass through; those of pytest are root's alone."""
    with tempfile.TemporaryDirectory(prefix="kadeploy-open-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


# --- tools ------------------------------------------------------------------------------------------------------

Tool = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def forking() -> Iterator[Forks]:
    """What tools are forked off from."""
    with tempfile.TemporaryDirectory(prefix="kadeploy-forks-") as folder:
        found, process = forks.start(Path(folder))
        with process:
            yield found


@pytest.fixture
def tool(forking: Forks) -> Tool:
    """Runs a tool as a process: ``tool("kanodes3", "-d")``; its output is captured.

    One that is told of variables of Python's is the installed script in an interpreter of its own.
    """

    def run(name: str, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / name), *arguments]
        variables = os.environ | environment
        if any(each.startswith("PYTHON") for each in environment):
            return subprocess.run(command, input=stdin, capture_output=True, text=True, env=variables, check=False)
        return subprocess.CompletedProcess(command, *forking.run(command, stdin, variables))

    return run


@pytest.fixture
def golden() -> Callable[[str], str]:
    """Text of a file in ``tests/golden``: what a tool has to print, to the letter."""
    return lambda name: (GOLDEN / name).read_text(encoding="utf-8")
