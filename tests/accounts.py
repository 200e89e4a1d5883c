"""Two people and a service on this machine, and the tools where all of them can run them.

`installation` is made once a session: the package as a wheel installs it, in an environment of Debian's Python below a
folder that all may read, and four accounts, which are removed at its end.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kadeploy import caller, process
from kadeploy.caller import Account

ROOT = Path(__file__).parents[1]
PYTHON = "/usr/bin/python3"
"""One that all accounts can run; the running one may be in somebody's home folder."""
EXTRAS = "server,postgresql"
PREFIX = "kd-test-"
FOLDER = "kadeploy-all-"
LOCK = Path(tempfile.gettempdir()) / "kadeploy-test-accounts.lock"
"""Held while accounts are made and removed: several sessions do so at a time."""
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Installation:
    """The tools in a place where every account can run them, and who runs them here."""

    folder: Path
    """All may read it. The home folders are in it, each for its account alone."""
    alice: Account
    bob: Account
    service: Account
    consoles: Account
    """As whom the programs of consoles run."""

    @property
    def tools(self) -> Path:
        """The folder of the commands."""
        return self.folder / "venv" / "bin"

    def tool(
        self,
        name: str,
        *arguments: str | Path,
        account: Account,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, as `start` does; after *timeout* seconds it is killed, and that is an error."""
        with self.start(name, *arguments, account=account, env=env) as running:
            try:
                output, errors = running.communicate(stdin, timeout)
            except BaseException:
                process.end_group(running.pid)
                raise
        return subprocess.CompletedProcess(running.args, running.returncode, output, errors)

    def start(
        self, name: str, *arguments: str | Path, account: Account, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start one of the tools, or another program of the system, as *account* and in its home folder.

        It leads a session of its own, with an environment that a fresh login would have, and *env* besides. Its
        standard streams are pipes unless *options* say otherwise.
        """
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [name, *arguments],
            **pipes | {"cwd": account.home, "text": True, "start_new_session": True} | options,
            env=self.environment(account) | dict(env or {}),
            executable=shutil.which(name, path=f"{self.tools}:{SYSTEM_PATH}"),
            user=account.uid,
            group=account.gid,
            extra_groups=os.getgrouplist(account.name, account.gid),
            umask=0o022,
        )

    def environment(self, account: Account) -> dict[str, str]:
        """What a fresh login has, with the tools in its path."""
        return {
            "HOME": str(account.home),
            "USER": account.name,
            "LOGNAME": account.name,
            "LANG": "C.UTF-8",
            "PATH": f"{self.tools}:{SYSTEM_PATH}",
        }


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """The tools for all, and four accounts. Only root can make any."""
    if os.geteuid() != 0:
        pytest.skip("only root can make accounts")
    folder = Path(tempfile.mkdtemp(prefix=FOLDER))
    try:
        folder.chmod(0o755)
        _install(folder)
        with made(folder) as (alice, bob, service, consoles):
            yield Installation(folder, alice, bob, service, consoles)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- the package ------------------------------------------------------------------------------------------------------


def _install(folder: Path) -> None:
    """Install this checkout as a wheel; what it requires is taken from the running environment where that fits."""
    alike = _run(PYTHON, "-c", "import sys; print(*sys.version_info[:2])") == "{} {}\n".format(*sys.version_info)
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    _run(PYTHON, "-m", "venv", "--without-pip", folder / "venv")
    (wheel,) = folder.glob("*.whl")
    if alike:
        _borrow(folder / "venv")
    wanted = ["--no-deps", wheel] if alike else [f"{wheel}[{EXTRAS}]"]
    quiet = ("--quiet", "--disable-pip-version-check", "--root-user-action=ignore")
    _run(sys.executable, "-m", "pip", "--python", folder / "venv/bin/python", "install", *quiet, *wanted)


def _borrow(venv: Path) -> None:
    """Have the packages of the running environment in *venv*, and their commands; not ours, nor what leads to it."""
    here, there = (_packages(Path(prefix)) for prefix in (sys.prefix, venv))
    for path in here.iterdir():
        if path.name not in {"kadeploy", "__pycache__"} and not path.name.startswith(
            ("kadeploy-", "_editable_", "__ed")
        ):
            _link(path, there)
    shutil.rmtree(there / "ansible_collections" / "kadeploy", ignore_errors=True)
    for path in (Path(sys.prefix) / "bin").iterdir():
        first, _, rest = path.read_bytes().partition(b"\n")
        if first.startswith(f"#!{sys.prefix}/bin/python".encode()) and not (venv / "bin" / path.name).exists():
            (venv / "bin" / path.name).write_bytes(f"#!{venv}/bin/python\n".encode() + rest)
            (venv / "bin" / path.name).chmod(0o755)


_OURS = ("kadeploy", "_editable_impl_kadeploy", "__editable__", "__pycache__")
"""How the names of what is not taken over begin."""


def _link(path: Path, folder: Path) -> None:
    """Let *folder* have *path* too, as a copy where it is on another file system."""
    done = subprocess.run(["cp", "-al", path, folder], capture_output=True, check=False)
    if done.returncode != 0:
        _run("cp", "-a", "--remove-destination", path, folder)


def _packages(prefix: Path) -> Path:
    return prefix / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"


def _run(*words: str | Path) -> str:
    """Output of a command that must succeed, without the checkout's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE", "PYTHON", "KADEPLOY"))}
    done = subprocess.run(words, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- the accounts -----------------------------------------------------------------------------------------------------


_numbers = itertools.count()


@contextmanager
def made(folder: Path) -> Iterator[list[Account]]:
    """Four accounts whose names no other session has, and no process of theirs when it ends."""
    me = process.find(os.getpid())
    assert me is not None
    made = next(_numbers)
    names = [f"{PREFIX}{letter}-{me.pid}{f'-{made}' if made else ''}" for letter in "abdc"]
    with _locked():
        _remove_leftovers()
    try:
        yield [_add(name, folder / name, f"{me.pid} {me.started}") for name in names]
    finally:
        with _locked():
            for name in names:
                _remove(name)


def _add(name: str, home: Path, session: str) -> Account:
    """Make an account that cannot log in; its comment says whose it is."""
    home.mkdir(mode=0o700)
    with _locked():
        _run("useradd", "--no-create-home", "--home-dir", home, "--shell", "/usr/sbin/nologin", "-c", session, name)
    found = caller.account(name)
    os.chown(home, found.uid, found.gid)
    return found


def _remove_leftovers() -> None:
    """Remove what sessions that were killed have left."""
    for entry in pwd.getpwall():
        if entry.pw_name.startswith(PREFIX) and not _lives(entry.pw_gecos):
            _remove(entry.pw_name)
            if (folder := Path(entry.pw_dir).parent).name.startswith(FOLDER):
                shutil.rmtree(folder, ignore_errors=True)


def _lives(session: str) -> bool:
    try:
        pid, started = map(int, session.split())
    except ValueError:
        return False
    return process.find(pid) == process.Process(pid, started)


def _remove(name: str) -> None:
    """End the processes of an account and remove it, if there is one."""
    try:
        uid = pwd.getpwnam(name).pw_uid
    except KeyError:
        return
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid == uid:
                process.kill(int(path.name), signal.SIGKILL)
        except OSError:
            continue
    _run("userdel", "--force", name)


@contextmanager
def _locked() -> Iterator[None]:
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
