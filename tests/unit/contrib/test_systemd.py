"""The units of the service, as far as systemd looks at them without running: `contrib/systemd`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kadeploy.config import service
from kadeploy.workers import settings as worker
from kadeploy.workers.worker import LEAVE
from tests.accounts import Installation

UNITS = Path(__file__).parents[3] / "contrib" / "systemd"
PREFIX = "/opt/kadeploy"
"""Where docs/service.md installs the package."""
SERVICE, CONSOLES = "kadeploy3d.service", "kadeploy3d-consoles.service"
BOOT, PURGE, BACKUP = "kadeploy-bootserver.service", "kadeploy-purge.service", "kadeploy-backup.service"
WORKER = "kadeploy-worker.service"
TOLERATED = {SERVICE: 21, CONSOLES: 15, BOOT: 15, PURGE: 16, BACKUP: 29, WORKER: 14}
"""Tenths of the exposure that systemd-analyze finds; each that is left has its reason in the unit."""

SERVER = """\
import argon2, socket, litestar, threading, uvicorn
hasher = argon2.PasswordHasher()
@litestar.get("/")
async def page() -> bool:
    return hasher.verify(hasher.hash("x"), "x")
app = litestar.Litestar([page])
class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        threading.Thread(target=ask, args=[self]).start()
def ask(server):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("server.sock")
        client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        print(client.makefile().read().splitlines()[0])
    server.should_exit = True
Server(uvicorn.Config(app, uds="server.sock", log_level="error")).run()
"""
"""A web server on a socket that answers one request."""

FILTER = """\
import ctypes, os, sys
allowed = sys.stdin.read().split()
lib = ctypes.CDLL("libseccomp.so.2")
lib.seccomp_init.restype = ctypes.c_void_p
context = ctypes.c_void_p(lib.seccomp_init(0x00050000 | 1))  # EPERM
for name in allowed:
    number = lib.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert lib.seccomp_rule_add(context, 0x7fff0000, number, 0) == 0, name
assert lib.seccomp_load(context) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Runs a command with the system calls alone that standard input names (seccomp_init(3))."""


KINDS = ("service", "socket", "timer")


def settings(unit: str) -> dict[str, list[str]]:
    """Key → its values, in order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_systemd_finds_no_fault_in_the_units(installation: Installation, tmp_path: Path) -> None:
    for unit in (each for kind in KINDS for each in UNITS.glob(f"*.{kind}")):
        (tmp_path / unit.name).write_text(unit.read_text().replace(f"{PREFIX}/bin", str(installation.tools)))
    done = _analyze("verify", "--man=no", *tmp_path.iterdir())
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", TOLERATED)
def test_the_sandbox_leaves_no_more_open_than_the_service_needs(unit: str) -> None:
    done = _analyze("security", "--offline=true", f"--threshold={TOLERATED[unit]}", UNITS / unit)
    assert done.returncode == 0, done.stdout


def test_nothing_begins_before_the_site_has_a_configuration() -> None:
    named = {path.name for kind in KINDS for path in UNITS.glob(f"*.{kind}")}
    begun_by_others = {CONSOLES, *(name for name in named if name.endswith(".timer"))}
    for unit in named - begun_by_others:
        expected = str(worker.PATH) if unit == WORKER else "/etc/kadeploy/site.yml"
        assert settings(unit)["ConditionPathExists"] == [expected], unit


def test_each_timer_starts_a_service_of_its_name() -> None:
    timers = [path.stem for path in UNITS.glob("*.timer")]
    assert len(timers) == 2
    for name in timers:
        assert settings(f"{name}.service")["Type"] == ["oneshot"]


def test_units_account_and_folders_agree() -> None:
    unit = settings("kadeploy3d.service")
    account, consoles = map(str.split, (UNITS / "kadeploy.sysusers").read_text().splitlines()[-2:])
    folders = [line.split() for line in (UNITS / "kadeploy.tmpfiles").read_text().splitlines() if line[0] == "d"]
    owned = {path: mode for _, path, mode, user, *_ in folders if user == account[1]}
    assert unit["User"] == [account[1]]
    assert settings("kadeploy3d.socket")["ListenStream"] == [service.SOCKET]
    assert str(Path(service.SOCKET).parent) in owned
    boot = (UNITS / "kadeploy.sysusers").read_text().splitlines()[1].split()
    assert settings(BOOT)["User"] == [boot[1]]
    assert settings(PURGE)["User"] == unit["User"]
    assert settings(PURGE)["ReadWritePaths"] == [f"-/var/lib/kadeploy {unit['ReadWritePaths'][0]}"]
    kept = settings(BACKUP)["ReadWritePaths"][0].split()[0]
    assert ["d", kept, "0700", "root", "root", "-"] in folders
    assert f" {kept} " in settings(BACKUP)["ExecStart"][0]
    state = f"/var/lib/{unit['StateDirectory'][0]}"
    assert (account[-2], owned[state]) == (state, unit["StateDirectoryMode"][0])
    assert {path.removeprefix("-") for path in unit["ReadWritePaths"][0].split()} <= set(owned)
    apart = settings("kadeploy3d-consoles.socket")
    assert apart["ListenSequentialPacket"] == [service.CONSOLE_SOCKET]
    assert (apart["SocketUser"], apart["SocketMode"]) == (unit["User"], ["0600"])
    assert settings(CONSOLES)["User"] == [consoles[1]]
    assert [words for words in folders if words[1] == consoles[-2]] == [
        ["d", "/var/lib/kadeploy-console", "0750", "root", consoles[1], "-"]
    ]


def test_a_worker_has_the_folders_of_its_settings_and_time_to_end() -> None:
    unit = settings(WORKER)
    defaults = {field.name: field.default for field in msgspec.structs.fields(worker.Worker)}
    assert [f"/var/lib/{unit['StateDirectory'][0]}", f"/run/{unit['RuntimeDirectory'][0]}"] == [
        defaults["folder"],
        defaults["secrets"],
    ]
    assert unit["User"] == settings(SERVICE)["User"]
    assert int(unit["TimeoutStopSec"][0]) > LEAVE + 10


def test_systemd_can_make_the_account_and_the_folders(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    root = f"--root={tmp_path}"
    for program, file in (("systemd-sysusers", "kadeploy.sysusers"), ("systemd-tmpfiles", "kadeploy.tmpfiles")):
        create = ("--create",) if program == "systemd-tmpfiles" else ()
        done = subprocess.run([program, root, *create, UNITS / file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    entry = next(line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("kadeploy:"))
    state = tmp_path / "var/lib/kadeploy"
    assert entry.endswith(":/var/lib/kadeploy:/usr/sbin/nologin")
    assert (state.stat().st_uid, state.stat().st_mode & 0o777) == (int(entry.split(":")[2]), 0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make accounts")
@pytest.mark.parametrize(
    "command",
    [
        ["ansible-playbook", "-i", "one,two,", "-c", "local", "play.yml"],
        ["kadeploy3", "--version"],
        ["python", "-c", SERVER],
        ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-p", "9", "127.0.0.1"],
        ["sh", "-c", "cp -a $0 copy; chmod 600 copy; tar -cf - copy | gzip | tar -tzf -", "/etc/hostname"],
    ],
    ids=lambda command: command[0],
)
def test_what_a_workflow_runs_finds_its_system_calls_allowed(
    command: list[str], installation: Installation, allowed: str
) -> None:
    """With the filter and without it, a program of the service's account does and says the same."""
    (installation.service.home / "play.yml").write_text(PLAY)
    free, filtered = (
        installation.tool(*words, account=installation.service, stdin=allowed)
        for words in (command, ["/usr/bin/python3", "-c", FILTER, *command])
    )
    assert (filtered.returncode, _steady(filtered.stdout)) == (free.returncode, _steady(free.stdout)), filtered.stderr
    assert "not permitted" not in filtered.stdout + filtered.stderr
    assert command[0] == "ssh" or free.returncode == 0, free.stdout + free.stderr


def test_the_filter_of_that_test_does_hold_back(installation: Installation, allowed: str) -> None:
    command = ["/usr/bin/python3", "-c", FILTER, "/usr/bin/python3", "-c", "import os; os.chroot('/')"]
    done = installation.tool(*command, account=installation.service, stdin=allowed)
    assert "Operation not permitted" in done.stderr


CONSOLE = """\
import os, socket
from pathlib import Path
from kadeploy.remote.console_account import KIND, Hosted, serve
path = Path.home() / "consoles.sock"
listener = socket.socket(socket.AF_UNIX, KIND)
listener.bind(str(path))
listener.listen()
helper = os.fork()
if helper == 0:
    serve(listener)
listener.close()
program = Hosted(path, ["sh", "-c", "stty size; ssh -V; exit 7"], dict(os.environ), (24, 80))
print(os.read(program.line, 5), program.end())
os.kill(helper, 15)
"""


def test_a_console_finds_its_system_calls_allowed(installation: Installation) -> None:
    command = ["/usr/bin/python3", "-c", FILTER, str(installation.tools / "python"), "-c", CONSOLE]
    done = installation.tool(*command, account=installation.consoles, stdin=_allowed_by(CONSOLES))
    assert (done.stdout, done.stderr) == ("b'24 80' 7\n", "")


PLAY = """\
- hosts: all
  gather_facts: true
  vars: {ansible_python_interpreter: /usr/bin/python3}
  tasks:
    - ansible.builtin.command: {cmd: hostname}
    - ansible.builtin.copy: {content: text, dest: "{{ ansible_env.HOME }}/{{ inventory_hostname }}", mode: "0600"}
"""


@pytest.fixture(scope="module")
def allowed() -> str:
    """The system calls that the service's unit allows, by name."""
    return _allowed_by(SERVICE)


def _allowed_by(unit: str) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.fail("no systemd-analyze: install Debian's systemd")
    names: set[str] = set()
    for setting in settings(unit)["SystemCallFilter"]:
        group = {name for word in setting.lstrip("~").split() for name in _members(word)}
        names = names - group if setting.startswith("~") else names | group
    return "\n".join(names)


def _members(group: str) -> Iterator[str]:
    if not group.startswith("@"):
        yield group
        return
    for word in _analyze("syscall-filter", group).stdout.split("\n")[1:]:
        name = word.strip()
        if name.startswith("@"):
            yield from _members(name)
        elif name and not name.startswith("#"):
            yield name


def _analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def _steady(text: str) -> list[str]:
    """Its lines without what differs from one run to the next: whose turn it was, and whether a file was changed."""
    return sorted(re.sub(r"(changed|ok)(: \[|=\d+ *)", "", line) for line in text.splitlines())
