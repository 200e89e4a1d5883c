"""The Debian package on a fresh Debian 12: installed, used, upgraded, removed, purged."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kadeploy import __version__
from kadeploy.lab.lab import CACHE
from kadeploy.state.database import SCHEMA_VERSION
from tests import container
from tests.container import Container
from tests.packaging import machine
from tests.packaging.machine import Machine
from tests.packaging.package import shared_folder

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
def shared(tmp_path_factory: pytest.TempPathFactory, debian_package: Path) -> Path:
    """The folder of a machine on which the package is installed, for all processes that test at a time."""
    with shared_folder(tmp_path_factory, "machine-with-package") as folder:
        if not (folder / "done").exists():
            computer = _installed(folder)
            computer.run("apt-get", "update", "-qq")
            shutil.copyfile(debian_package, computer.upper / "package.deb")
            computer.run("apt-get", "install", "-qq", "--no-install-recommends", "/package.deb")
            (folder / "done").touch()
    return folder


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
    extras = (
        "import asyncssh, argon2, litestar, procrastinate, psycopg, pymysql, sushy, uvicorn, kadeploy.server.daemon"
    )
    computer.run(f"{HOME}/bin/python3", "-c", extras, user="nobody")


def test_no_file_has_a_name_that_a_package_of_debian_has(computer: Machine) -> None:
    """Libraries bring pages and commands of their own, such as clush(1)."""
    listed = 'dpkg -L kadeploy | while read -r path; do [ -d "$path" ] || echo "$path"; done'
    own = (f"{HOME}/", "/usr/share/kadeploy/", "/usr/share/doc/kadeploy/")
    outside = [Path(path) for path in computer.run("sh", "-c", listed).splitlines() if not path.startswith(own)]
    assert len(outside) > len(SCRIPTS)
    assert [path for path in outside if not re.match(rf"_?({'|'.join(SCRIPTS)}|kadeploy)", path.name)] == []


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
            *("kadeploy-bootserver.service", "kadeploy-backup.timer", "kadeploy-worker.service"),
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


# --- under systemd ----------------------------------------------------------------------------------------------


@contextmanager
def booted(computer: Machine, folder: Path) -> Iterator[Container]:
    """The machine with systemd, in a network of its own."""
    network = f"deb-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", network], check=True)
    try:
        subprocess.run(["ip", "-n", network, "link", "set", "lo", "up"], check=True)
        with container.started(computer, network, folder / "container.log") as running:
            yield running
    finally:
        subprocess.run(["ip", "netns", "delete", network], check=True)


FETCH = """\
import urllib.request
from kadeploy.boot import tftp_client
print(urllib.request.urlopen("http://127.0.0.1/file").read(), tftp_client.fetch("127.0.0.1", "file"))
"""


def test_each_unit_does_its_work_in_its_sandbox_and_ends_with_the_package(computer: Machine, tmp_path: Path) -> None:
    begun(computer)
    computer.run("useradd", "--create-home", "alice")
    computer.run("sh", "-c", "for name in tftp http; do echo by $name > /srv/kadeploy/$name/file; done")
    with booted(computer, tmp_path) as running:
        assert running.output("kanodes3", "-d", account="alice") == "No information concerning these nodes\n"
        running.output("systemctl", "enable", "--now", "kadeploy-bootserver", "kadeploy-backup.timer")
        assert "b'by http\\n' b'by tftp\\n'" in _patiently(running, f"{HOME}/bin/python3", "-c", FETCH)
        assert "GET /file" in running.output("cat", "/var/log/kadeploy/bootserver.log")
        running.output("systemctl", "start", "kadeploy-purge.service", "kadeploy-backup.service")
        assert running.output("ls", "/var/backups/kadeploy").startswith("paris-")
        assert "0 fail, 0 warn" in running.output("kadeploy-site", "check", "--topic", "service")
        running.output("dpkg", "--remove", "kadeploy")
        left = running.output("systemctl", "list-units", "--plain", "--legend=no", "--state=active,failed", "kadeploy*")
        assert left == ""


WORKER = """\
url: https://127.0.0.1:25300
token_file: /etc/kadeploy/worker-token
database_file: /etc/kadeploy/worker-database
clusters: [gdx]
"""
SECRETS = """\
for name in token database; do install -o kadeploy -m 0600 /dev/null /etc/kadeploy/worker-$name; done
echo kd3_abc_def > /etc/kadeploy/worker-token
"""


def test_a_worker_looks_for_its_controller_in_its_sandbox_and_an_upgrade_starts_again_what_ran(
    computer: Machine, tmp_path: Path
) -> None:
    computer.run("sh", "-c", SECRETS + "cat > /etc/kadeploy/worker.yml", stdin=WORKER)
    enabled = ("kadeploy-worker.service", "kadeploy-backup.timer")
    with booted(computer, tmp_path) as running:
        # It is ready once it has found its controller; there is none.
        running.output("systemctl", "enable", "--now", "--no-block", *enabled)
        assert "700 kadeploy" in _patiently(
            running, "stat", "--format=%a %U", "/var/lib/kadeploy-worker/images", "/run/kadeploy-worker"
        )
        told = _patiently(running, "sh", "-c", "journalctl -u kadeploy-worker | grep 127.0.0.1:25300")
        assert "nobody listens there" in told
        running.output("dpkg", "--install", "/package.deb")
        states = running.output("systemctl", "show", "--property=ActiveState", "--value", *enabled).split()
        assert set(states) <= {"active", "activating"}, states


def _patiently(running: Container, *command: str) -> str:
    """The output of a command once it succeeds: a service has just been started."""
    for _ in range(30):
        if (done := running.run(*command)).returncode == 0:
            break
        time.sleep(1)
    return done.stdout + done.stderr


RUNNING = """\
import subprocess
from kadeploy.admin import keeper
from kadeploy.caller import as_user
from kadeploy.config.folder import load_site
from kadeploy.state import journal
site = load_site()
with as_user(keeper.of(site)):
    journal.begin(site, "D-1", "deploy", "root", None, {"gdx": ["gdx-1"]})
done = subprocess.run(["dpkg", "--install", "/package.deb"], capture_output=True, text=True, check=False)
print(done.returncode, done.stderr)
"""
"""An operation that runs while the package is upgraded."""
BEFORE = "/^Package: kadeploy$/,/^$/s/^Version: .*/Version: 0.0.9/"


def test_an_upgrade_waits_for_operations_and_then_brings_the_site_along(computer: Machine, tmp_path: Path) -> None:
    begun(computer)
    computer.run("sed", "-i", BEFORE, "/var/lib/dpkg/status")
    computer.run("sh", "-c", "echo '# ours' >> /etc/kadeploy/site.yml; echo kept > /var/lib/kadeploy/audit.jsonl")
    with closing(sqlite3.connect(computer.upper / "old.db")) as connection:
        connection.executescript((ROOT / f"tests/golden/schema-{OLD_SCHEMA}.sql").read_text())
    before = computer.run("cat", "/etc/kadeploy/site.yml")
    with booted(computer, tmp_path) as running:
        refused = running.output(f"{HOME}/bin/python3", "-c", RUNNING)
        assert "D-1" in refused
        assert "kadeploy is not upgraded, and nothing was changed." in refused
        assert version(running) == "0.0.9 installed"
        assert running.output("systemctl", "is-active", "kadeploy3d.service") == "active\n"

        running.output("systemctl", "stop", "kadeploy3d.socket", "kadeploy3d.service")
        running.output("install", "-o", "kadeploy", "-m", "600", "/old.db", "/var/lib/kadeploy/kadeploy.db")
        running.output("systemctl", "start", "kadeploy3d.socket")
        told = running.output("dpkg", "--install", "/package.deb")
        assert f"was brought from schema version {OLD_SCHEMA} to {SCHEMA_VERSION}." in told
        assert version(running) != "0.0.9 installed"
        assert running.output("cat", "/etc/kadeploy/site.yml") == before
        assert running.output("cat", "/var/lib/kadeploy/audit.jsonl") == "kept\n"
        assert running.output("ls", "/var/lib/kadeploy/backups").startswith("paris-")
        assert running.output("systemctl", "is-active", "kadeploy3d.service") == "active\n"


def version(running: Container) -> str:
    return running.output("dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "kadeploy")


def test_an_upgrade_that_the_site_refuses_says_what_to_do_and_leaves_a_package_that_works(computer: Machine) -> None:
    begun(computer)
    computer.run("sh", "-c", "echo 'gone: 1' >> /etc/kadeploy/site.yml")
    done = computer.tried("/var/lib/dpkg/info/kadeploy.postinst", "configure", "0.0.9")
    assert done.returncode == 0, done.stderr
    assert "gone" in done.stderr
    assert "kadeploy-site upgrade && systemctl start" in done.stderr


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
    for extra in ("server", "postgresql", "mysql", "redfish", "workers"):
        wanted += project["optional-dependencies"][extra]
    text = (ROOT / "debian/environment.lock").read_text()
    pinned = set(re.findall(r"(?m)^([\w.-]+)==", text))
    names = {re.split(r"[\[<>=;]", each)[0].lower().replace("_", "-") for each in wanted}
    assert names <= pinned, "run scripts/lock"
    assert "://" not in text + (ROOT / "debian/build.lock").read_text()
    blocks = re.split(r"(?m)^(?=[\w.-]+==)", text)[1:]
    assert all("--hash=sha256:" in block for block in blocks)
