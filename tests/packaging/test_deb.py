"""The Debian package on a fresh Debian 12: installed, used, upgraded, removed, purged."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sqlite3
import subprocess
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

from kadeploy import __version__
from kadeploy.lab.lab import CACHE
from kadeploy.state.database import SCHEMA_VERSION
from tests.packaging import machine
from tests.packaging.machine import Machine

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs"
SCRIPTS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
HOME = "/usr/lib/kadeploy"
OLD_SCHEMA = 5
pytestmark = [
    pytest.mark.timeout(1800),  # the first test builds the package, and the machine if it is not there yet
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can install a package"),
]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes that test at a time, in the hands of one while it is filled."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "debian-package"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _build(folder / "built")
            _install(folder)
            _live(folder)
            (folder / "done").touch()
    return folder


def _build(folder: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "build-deb", "--output", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _install(folder: Path) -> None:
    computer = _installed(folder)
    computer.run("apt-get", "update", "-qq")
    _bring(computer, package(folder))
    computer.run("apt-get", "install", "-qq", "--no-install-recommends", "/package.deb")


def package(folder: Path) -> Path:
    (found,) = (folder / "built").glob("kadeploy_*.deb")
    return found


def _bring(computer: Machine, file: Path) -> None:
    shutil.copyfile(file, computer.upper / "package.deb")


@pytest.fixture
def computer(shared: Path, tmp_path: Path) -> Machine:
    """A machine on which the package is installed, and nothing else was done."""
    return Machine(tmp_path, (), CACHE / "archives").with_state_of(_installed(shared))


def _installed(folder: Path) -> Machine:
    return machine.bare(CACHE, folder / "machine")


def begun(computer: Machine) -> Machine:
    """The same with a site."""
    cluster = ("--cluster", "gdx", "--nodes", "gdx-[1-2]", "--addresses", "127.0.1.[1-2]", "--bmcs", "127.0.2.[1-2]")
    bmcs = ("--bmc-user", "ADMIN", "--bmc-password-file", "-")
    site = ("--name", "paris", "--address", "127.0.0.1", "--yes")
    computer.run("kadeploy-site", "init", *site, *cluster, *bmcs, stdin="secret\n")
    return computer


# --- what is in it ----------------------------------------------------------------------------------------------


def test_each_command_is_in_the_path_of_everybody(computer: Machine) -> None:
    script = "for tool; do $tool --version || exit; done"
    told = computer.run("sh", "-c", script, "sh", *SCRIPTS, user="nobody").splitlines()
    assert told == [f"{name} {__version__}" for name in SCRIPTS] or set(told) == {told[0]}, told
    assert __version__ in told[0]


def test_no_file_names_the_folder_in_which_it_was_built_and_no_library_is_missing(computer: Machine) -> None:
    found = computer.tried("grep", "-rlE", r"kadeploy-deb-\w{6}|build-environment", HOME, "/usr/share/kadeploy")
    assert found.stdout == ""
    missing = computer.run(
        "sh", "-c", f"find {HOME} -name '*.so*' -type f -exec ldd {{}} + 2>/dev/null | grep 'not found' || true"
    )
    assert set(re.findall(r"(\S+) => not found", missing)) == set()
    extras = "import asyncssh, argon2, litestar, psycopg, pymysql, sushy, uvicorn, kadeploy.server.daemon"
    computer.run(f"{HOME}/bin/python3", "-c", extras, user="nobody")


def test_what_is_compiled_counts(computer: Machine) -> None:
    script = "import kadeploy.workflow as w; print(w.__cached__, __import__('os').path.exists(w.__cached__))"
    verbose = computer.tried(f"{HOME}/bin/python3", "-v", "-c", script)
    assert verbose.stdout.endswith("True\n")
    assert not re.search(r"code object from '[^']*\.py'", verbose.stderr)
    assert re.search(r"# .*kadeploy/__pycache__/workflow\.cpython-311\.pyc matches", verbose.stderr)


def test_each_command_has_its_page_and_so_has_each_kind_of_file(computer: Machine) -> None:
    for section, folder in ((1, "man"), (5, "man5")):
        names = sorted(path.stem for path in (PAGES / folder).glob(f"*.{section}"))
        assert names
        found = computer.run("man", "-w", str(section), *names).splitlines()
        assert found == [f"/usr/share/man/man{section}/{name}.{section}.gz" for name in names]


def test_the_tab_key_completes_in_each_shell(computer: Machine) -> None:
    bash = "source /usr/share/bash-completion/bash_completion; _completion_loader $0; complete -p $0"
    for name in SCRIPTS:
        assert f"-F _kadeploy {name}\n" in computer.run("bash", "-c", bash, name)
    zsh = "autoload -Uz compinit; compinit -u -D; for tool; do print $_comps[$tool]; done"
    assert computer.run("zsh", "-fc", zsh, "zsh", *SCRIPTS).split() == ["_kadeploy"] * len(SCRIPTS)
    assert "--reformat-tmp" in computer.run("fish", "-c", "complete -C 'kadeploy3 --reformat'")


def test_systemd_finds_no_fault_in_the_units_and_knows_their_pages(computer: Machine) -> None:
    units = sorted(
        path.name for path in (ROOT / "contrib/systemd").iterdir() if path.suffix not in (".sysusers", ".tmpfiles")
    )
    done = computer.tried("systemd-analyze", "verify", *(f"/lib/systemd/system/{name}" for name in units))
    assert (done.returncode, done.stderr) == (0, "")
    for name in units:
        assert "/opt" not in computer.run("cat", f"/lib/systemd/system/{name}")


def test_what_begins_by_itself_is_enabled_and_nothing_else(computer: Machine) -> None:
    enabled = {
        name: computer.tried("systemctl", "is-enabled", name).stdout.strip()
        for name in (
            *("kadeploy3d.socket", "kadeploy3d.service", "kadeploy3d-consoles.socket", "kadeploy-purge.timer"),
            *("kadeploy-bootserver.service", "kadeploy-backup.timer"),
        )
    }
    assert [name for name, word in enabled.items() if word == "enabled"] == list(enabled)[:4]
    assert set(enabled.values()) == {"enabled", "disabled"}


def test_accounts_and_folders_are_there_each_with_its_mode(computer: Machine) -> None:
    folders = {
        "/etc/kadeploy": "root 755",
        "/var/lib/kadeploy": "kadeploy 700",
        "/var/lib/kadeploy-console": "root 750",
        "/var/backups/kadeploy": "root 700",
        "/srv/kadeploy/tftp": "kadeploy 755",
        "/srv/kadeploy/http": "kadeploy 755",
    }
    told = computer.run("stat", "--format=%U %a", *folders).splitlines()
    assert dict(zip(folders, told, strict=True)) == folders
    for account in ("kadeploy", "kadeploy-console", "kadeploy-boot"):
        assert computer.run("getent", "passwd", account).endswith(":/usr/sbin/nologin\n")
    assert computer.run("find", "/etc/kadeploy", "-mindepth", "1") == ""


# --- a site on it -----------------------------------------------------------------------------------------------


def test_a_site_begins_and_its_check_finds_nothing_wrong_with_what_was_installed(computer: Machine) -> None:
    begun(computer)
    assert computer.run("stat", "--format=%U %a", "/var/lib/kadeploy/keys/site_ed25519") == "kadeploy 600\n"
    topics = [f"--topic={topic}" for topic in ("configuration", "files", "programs", "keys", "database")]
    found = json.loads(computer.tried("kadeploy-site", "check", *topics, "--format", "json").stdout)
    assert {each["level"] for each in found if each["topic"] == "programs"} == {"ok"}
    assert f"{HOME}/bin/ansible-playbook is there" in str(found)
    assert [each for each in found if each["level"] == "fail"] == []
    assert {each["topic"] for each in found} == {"configuration", "files", "programs", "keys", "database"}


# --- upgraded ---------------------------------------------------------------------------------------------------


@pytest.fixture
def earlier(shared: Path, tmp_path: Path) -> Machine:
    """A machine with an earlier version and its site, which has lived; the present version is /package.deb."""
    return Machine(tmp_path, (), CACHE / "archives").with_state_of(_lived(shared))


def _lived(folder: Path) -> Machine:
    return Machine(folder / "earlier", (), CACHE / "archives").with_state_of(_installed(folder))


def _live(folder: Path) -> None:
    computer = begun(_lived(folder))
    _bring(computer, _called(package(folder), "0.0.9", folder / "earlier" / "package"))
    computer.run("dpkg", "--install", "--force-downgrade", "/package.deb")
    assert computer.run("dpkg-query", "-W", "-f", "${Version}", "kadeploy") == "0.0.9"
    computer.run("sh", "-c", "echo '# ours' >> /etc/kadeploy/site.yml; echo kept > /var/lib/kadeploy/audit.jsonl")
    database = computer.upper / "var/lib/kadeploy/kadeploy.db"
    database.unlink(missing_ok=True)
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript((ROOT / f"tests/golden/schema-{OLD_SCHEMA}.sql").read_text())
    computer.run("chown", "kadeploy:kadeploy", "/var/lib/kadeploy/kadeploy.db")
    _bring(computer, package(folder))


def _called(file: Path, version: str, folder: Path) -> Path:
    """The package *file* as another version: its control file says so, and all else is the same."""
    folder.mkdir()
    other = folder / "other.deb"
    shutil.copyfile(file, other)
    subprocess.run(["dpkg-deb", "--control", other, "DEBIAN"], cwd=folder, check=True)
    control = folder / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
    members = subprocess.run(["ar", "t", other], check=True, capture_output=True, text=True).stdout.split()
    member = next(name for name in members if name.startswith("control.tar"))
    subprocess.run(
        ["tar", "--create", "--auto-compress", "--file", folder / member, "-C", "DEBIAN", "."], cwd=folder, check=True
    )
    subprocess.run(["ar", "r", other, member], cwd=folder, check=True, capture_output=True)
    return other


def test_an_upgrade_keeps_the_configuration_and_brings_the_database_along(earlier: Machine) -> None:
    before = earlier.run("cat", "/etc/kadeploy/site.yml")
    told = earlier.run("dpkg", "--install", "/package.deb")
    assert f"was brought from schema version {OLD_SCHEMA} to {SCHEMA_VERSION}." in told
    assert earlier.run("cat", "/etc/kadeploy/site.yml") == before
    assert earlier.run("cat", "/var/lib/kadeploy/audit.jsonl") == "kept\n"
    assert earlier.run("sh", "-c", "ls /var/lib/kadeploy/backups").startswith("paris-")
    assert "which this Kadeploy knows" in earlier.run("kadeploy-site", "upgrade")


def test_an_upgrade_that_the_site_refuses_is_told_and_leaves_a_package_that_works(earlier: Machine) -> None:
    earlier.run("sh", "-c", "echo 'gone: 1' >> /etc/kadeploy/site.yml")
    done = earlier.tried("env", "KADEPLOY_UPGRADE=anyway", "dpkg", "--install", "/package.deb")
    assert done.returncode == 0, done.stderr
    assert "gone" in done.stderr
    assert "kadeploy-site upgrade && systemctl start" in done.stderr
    earlier.run("sed", "-i", "/^gone/d", "/etc/kadeploy/site.yml")
    assert f"to {SCHEMA_VERSION}." in earlier.run("kadeploy-site", "upgrade")


RUNNING = """\
import subprocess
from kadeploy.config.folder import load_site
from kadeploy.state import journal
journal.begin(load_site(), "D-1", "deploy", "root", None, {"gdx": ["gdx-1"]})
print(subprocess.run(["dpkg", "--install", "/package.deb"], capture_output=True, text=True, check=False).stderr)
"""


def test_no_file_is_replaced_while_an_operation_runs(earlier: Machine) -> None:
    earlier.run("rm", "/var/lib/kadeploy/kadeploy.db")
    told = earlier.run(f"{HOME}/bin/python3", "-c", RUNNING)
    assert "D-1" in told
    assert "kadeploy is not upgraded, and nothing was changed." in told
    assert earlier.run("dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "kadeploy") == "0.0.9 installed"


# --- removed ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_made_anew_outlives_even_a_purge(computer: Machine) -> None:
    begun(computer)
    computer.run("dpkg", "--remove", "kadeploy")
    assert not computer.has(HOME)
    assert not computer.has("/usr/bin/kadeploy3")
    told = computer.run("dpkg", "--purge", "kadeploy")
    assert "If it is gone for good: rm -r /etc/kadeploy /var/lib/kadeploy" in told
    for path in ("/etc/kadeploy/site.yml", "/var/lib/kadeploy/keys/site_ed25519"):
        assert computer.has(path), path
    assert not computer.has("/etc/logrotate.d/kadeploy")


def test_a_package_that_was_never_used_leaves_no_folder(computer: Machine) -> None:
    told = computer.run("dpkg", "--purge", "kadeploy")
    assert "rm -r" not in told
    for path in ("/etc/kadeploy", "/var/lib/kadeploy", "/srv/kadeploy", "/var/backups/kadeploy", HOME):
        assert not computer.has(path), path


# --- what it is made of -----------------------------------------------------------------------------------------


def test_the_lock_file_pins_all_that_the_project_requires_and_names_no_registry() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in ("server", "postgresql", "mysql", "redfish"):
        wanted += project["optional-dependencies"][extra]
    text = (ROOT / "debian/environment.lock").read_text()
    pinned = set(re.findall(r"(?m)^([\w.-]+)==", text))
    names = {re.split(r"[\[<>=;]", each)[0].lower().replace("_", "-") for each in wanted}
    assert names <= pinned, "run scripts/lock"
    assert "://" not in text + (ROOT / "debian/build.lock").read_text()
    blocks = re.split(r"(?m)^(?=[\w.-]+==)", text)[1:]
    assert all("--hash=sha256:" in block for block in blocks)
