"""One virtual cluster for all tests of this folder: healthy machines, one with an NVMe disk, and one with each fault.

Its service runs under an account of its own, and an ordinary account uses it: what needs root is asked of `admin`.

It is started once, and powered on node by node as tests need; what the machines wrote to their serial lines is part of
the report of a failed test. These tests share it: run them in one process (no ``-n``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kadeploy.caller import Account
from kadeploy.lab import control, daemon, network
from kadeploy.lab.lab import Lab, saved
from tests.accounts import Installation

LIMIT = 7200
"""Seconds for one test of this folder; the first one builds images and starts the cluster."""
NAME = "kadeploy-test"
HEALTHY = ["node-1", "node-2", "node-3", "node-4"]
FAULTY = {"dead": "node-5", "mute": "node-6", "bad-disk": "node-7", "small-disk": "node-8"}
NVME = "node-9"
BIG_SECTORS = "node-10"
"""Its disk has sectors of 4096 bytes, which BIOS cannot boot."""
STARTS = 3
"""How often the start is tried: the machine may be busy with something else."""

ROOT = Account("root", 0, 0, Path("/root"))
_TOOLS = Path(sys.executable).parent
_LINES_SHOWN = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder their own limit."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(LIMIT))


def tool(name: str, *arguments: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a console script as a user would; exit status, output and errors are in the answer."""
    return subprocess.run(
        [str(_TOOLS / name), *arguments],
        env={**os.environ, "PATH": f"{_TOOLS}:{os.environ['PATH']}", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@dataclass(frozen=True)
class Cluster:
    """The running lab, and who uses it."""

    lab: Lab
    installation: Installation

    @property
    def config_dir(self) -> Path:
        """``KADEPLOY_CONFIG_DIR``."""
        return self.lab.config

    @property
    def nodes(self) -> list[str]:
        """The healthy nodes."""
        return HEALTHY

    def faulty(self, fault: str) -> str:
        """The node with this fault (see `kadeploy.lab.lab.FAULTS`)."""
        return FAULTY[fault]

    @property
    def variables(self) -> dict[str, str]:
        """What points the tools at this cluster."""
        return {"KADEPLOY_CONFIG_DIR": str(self.config_dir)}

    @property
    def user(self) -> Account:
        """Who deploys: an ordinary account."""
        return self.installation.alice

    def run(self, name: str, *arguments: str, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
        """Run one of the tools (``kadeploy3`` …) on this cluster, as its user."""
        return self.installation.tool(name, *arguments, account=self.user, env=self.variables, timeout=timeout)

    def admin(self, name: str, *arguments: str) -> str:
        """Output of one of the tools, run as root, which succeeds."""
        done = self.installation.tool(name, *arguments, account=ROOT, env=self.variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def inside(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's network."""
        return subprocess.run(
            network.inside(self.lab.name, command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def environment(self, name: str) -> Path:
        """Description of a built environment: ``tiny``, ``debian12-min``."""
        return self.lab.environments_folder / f"{name}.dsc"

    @property
    def public_key(self) -> Path:
        """For ``kadeploy3 -k``: `ssh` then enters the deployed node."""
        return self.lab.public_key

    def ssh(self, node: str, command: str, *, pinned: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a node as root; *pinned*: only if it has the deployment system's host key."""
        address = self.lab.members[node].address
        known = self.lab.root / f"known-{node}"
        host_key = next(
            line.split(": ", 1)[1]
            for line in (self.config_dir / "site.yml").read_text().splitlines()
            if line.startswith("  host_key: ")
        )
        known.write_text(f"{address} {host_key}\n" if pinned else "")
        options = [f"UserKnownHostsFile={known}", f"StrictHostKeyChecking={'yes' if pinned else 'no'}"]
        options += ["LogLevel=ERROR", "BatchMode=yes", "ConnectTimeout=5", "ServerAliveInterval=10"]
        words = [word for option in options for word in ("-o", option)]
        return self.inside("ssh", "-i", str(self.lab.private_key), *words, f"root@{address}", command, timeout=120)

    def wait_ssh(self, node: str, seconds: float = 240, command: str = "true", *, pinned: bool = False) -> str:
        """Output of *command* once the node answers by ssh and the command succeeds."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            done = self.ssh(node, command, pinned=pinned)
            if done.returncode == 0:
                return done.stdout
            time.sleep(1)
        raise AssertionError(f"{node} did not answer within {seconds:.0f} s: {done.stderr}")

    def ipmi(self, node: str, *words: str) -> subprocess.CompletedProcess[str]:
        """``ipmitool … chassis power WORDS`` on a node's BMC."""
        target = ["-I", "lanplus", "-C", "3", "-N", "1", "-R", "2", "-H", self.lab.members[node].bmc]
        login = ["-U", "kadeploy", "-f", str(self.lab.bmc_password)]
        return self.inside("ipmitool", *target, *login, "chassis", "power", *words)

    def is_on(self, node: str) -> bool:
        """Whether a machine is on, asked without its BMC."""
        return bool(control.ask(self.lab, "status", node)["on"])

    def power_off_all(self) -> None:
        """Switch every machine off."""
        for node in self.lab.members:
            control.ask(self.lab, "off", node)

    def serial(self, node: str) -> str:
        """What a node wrote to its serial line so far."""
        path = self.lab.serial_log(node)
        return path.read_text(errors="replace") if path.exists() else ""


@contextmanager
def started(installation: Installation, name: str, *options: str) -> Iterator[Cluster]:
    """A cluster of that name, whose user may deploy everywhere."""

    def lab_command(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        return installation.tool("kadeploy-lab", verb, "--name", name, *words, account=ROOT, timeout=1800)

    for _ in range(STARTS):
        lab_command("down")
        done = lab_command("up", *options)
        lab = saved(name)
        if done.returncode == 0 and lab is not None:
            break
    else:
        raise AssertionError(f"The lab did not start:\n{done.stdout}{done.stderr}")
    try:
        assert f"the service runs as {daemon.ACCOUNT}" in done.stdout
        made = Cluster(lab, installation)
        made.admin("karights3", "-a", "-m", f"node-[1-{lab.nodes}]", "-p", "*", "-u", made.user.name)
        yield made
    finally:
        logs = os.environ.get("KADEPLOY_TEST_LOGS")
        if logs:  # kept for a continuous integration server
            shutil.copytree(lab.logs, Path(logs) / name, dirs_exist_ok=True)
        lab_command("down")


@pytest.fixture(scope="session")
def cluster(installation: Installation) -> Iterator[Cluster]:
    """The cluster, all machines off at first."""
    faults = [word for fault, node in FAULTY.items() for word in (f"--{fault}", node)]
    disks = ["--nvme", NVME, "--big-sectors", BIG_SECTORS]
    with started(installation, NAME, "--nodes", "10", *faults, *disks) as found:
        yield found


@pytest.fixture
def own_path(cluster: Cluster) -> Iterator[Path]:
    """A new folder of the user's."""
    path = Path(tempfile.mkdtemp(dir=cluster.user.home))
    os.chown(path, cluster.user.uid, cluster.user.gid)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def cold(cluster: Cluster) -> Cluster:
    """The cluster as it was started: all machines off, and no boot profile for any of them."""
    cluster.power_off_all()
    for profile in (cluster.lab.tftp / "pxelinux.cfg").iterdir():
        if profile.name != "default":
            profile.unlink()
    return cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the ends of the serial lines to the report of a failed test."""
    report = yield
    found = getattr(item, "funcargs", {}).get("cluster") or getattr(item, "funcargs", {}).get("cold")
    if report.failed and isinstance(found, Cluster):
        for node in found.lab.members:
            lines = found.serial(node).replace("\r", "").splitlines()
            if lines:
                report.sections.append((f"serial line of {node}", "\n".join(lines[-_LINES_SHOWN:])))
    return report
