"""A Debian machine of its own with systemd as its first process (systemd-nspawn), in a network that is given to it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kadeploy import process
from tests.packaging.machine import Machine

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNTED = 'mount -t overlay overlay -o "$1" "$2"; shift 2; exec "$@"'
_PATIENCE = 120.0
"""Seconds until its services are up."""


@dataclass(frozen=True)
class Container:
    """One that runs."""

    leader: int
    """Process id, outside, of its systemd."""

    def run(
        self,
        *command: str,
        account: str = "root",
        stdin: str = "",
        network: str = "",
        online: bool = False,
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end, as after a login of *account*.

        *network*: the name of another network namespace; *online*: this machine's network, where packages come from.
        """
        net = [] if online else [f"--net=/run/netns/{network}" if network else "--net"]
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--pid", "--root", "--wd=/", *net]
        login = ["runuser", "--login", account, "--command", 'exec "$@"', "--", "sh"]
        return subprocess.run(
            [*enter, "--", "env", "-i", f"PATH={_PATH}", "LANG=C.UTF-8", *login, *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def output(self, *command: str, account: str = "root", online: bool = False, timeout: float = 600) -> str:
        """What a command says on standard output, which succeeds."""
        done = self.run(*command, account=account, online=online, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout


@contextmanager
def started(machine: Machine, network: str, log: Path) -> Iterator[Container]:
    """Boot *machine* in the network namespace called *network*; ended with everything in it."""
    inside = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot", "--console=pipe"]
    inside += ["--capability=CAP_NET_ADMIN"]  # which a DHCP server wants, and a network that is given does not bring
    inside += [f"--machine={network}"]  # else it is called as its folder is, and several would share what goes by name
    inside += [f"--directory={machine.folder / 'root'}", f"--network-namespace-path=/run/netns/{network}"]
    mounted = ["sh", "-c", _MOUNTED, "sh", _overlay(machine), str(machine.folder / "root"), *inside]
    with log.open("ab") as stream:
        running = subprocess.Popen(
            ["unshare", "--mount", "--propagation=private", *mounted],
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": _unified()},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        yield _up(running, log)
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            process.end_group(running.pid)
            running.wait()


def _overlay(machine: Machine) -> str:
    """Options of the mount that lays its files over one another."""
    lower = ":".join(map(str, machine.lower))
    return f"lowerdir={lower},upperdir={machine.upper},workdir={machine.folder / 'work'}"


def _unified() -> str:
    """Whether its systemd finds control groups of the second version alone, as this machine's would."""
    return "1" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "0"


def _up(running: subprocess.Popen[bytes], log: Path) -> Container:
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and running.poll() is None:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        for pid in children:
            found = Container(int(pid))
            state = found.run("systemctl", "is-system-running", "--wait", timeout=_PATIENCE)
            if state.stdout.strip() in {"running", "degraded"}:
                return found
        time.sleep(0.5)
    raise AssertionError(f"The container is not up:\n{log.read_text(errors='replace')}")
