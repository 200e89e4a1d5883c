"""Light nodes for the tests of this folder, and what they run there: our playbooks, started as the controller does."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kadeploy.config import cluster as clusters
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.lab import disk, network
from kadeploy.lab.lab import Lab, saved
from kadeploy.lab.light import loop
from kadeploy.remote import namespace
from kadeploy.runner.player import Player
from kadeploy.runner.request import RequestNode
from kadeploy.workflow import Attempt, Outcome, Verdict
from tests.unit import build

LIMIT = 1800
"""Seconds for one test of this folder, the start of its lab included."""
NAME = "kadeploy-roles"
TOOLS = Path(sys.executable).parent
DISK_PLAY = "SetDeploymentEnvDisk"
"""A site's own implementation: what `SetDeploymentEnvUntrusted` does once the nodes are in the deployment system."""

_DISK_PLAYBOOK = f"""\
- name: {DISK_PLAY}
  hosts: kadeploy_nodes
  gather_facts: false
  roles:
    - {{ role: manage_admin_pre_install, when: kadeploy_wants.manage_admin_pre_install }}
    - {{ role: create_partition_table, when: kadeploy_wants.create_partition_table }}
    - {{ role: format_deploy_part, when: kadeploy_wants.format_deploy_part }}
    - {{ role: mount_deploy_part, when: kadeploy_wants.mount_deploy_part }}
    - {{ role: format_tmp_part, when: kadeploy_wants.format_tmp_part }}
    - {{ role: format_swap_part, when: kadeploy_wants.format_swap_part }}
    - {{ role: finish }}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of this folder their own limit."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(LIMIT))


def lab_command(*arguments: str) -> str:
    """Output of ``kadeploy-lab``. The labs of these tests have no service: root does the work in the process."""
    verb, *others = arguments
    words = [TOOLS / "kadeploy-lab", verb, *(["--no-service"] if verb == "up" else []), *others]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ssh(lab: Lab, node: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run *script* on a node as root, with the lab's key."""
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5"]
    words = ["ssh", "-i", str(lab.private_key), *(word for option in options for word in ("-o", option))]
    words = network.inside(lab.name, [*words, f"root@{lab.members[node].address}", "sh -s"])
    return subprocess.run(words, input=script, capture_output=True, text=True, timeout=60, check=False)


def wait_ssh(lab: Lab, node: str, script: str = "true") -> str:
    """Output of *script*, tried until it succeeds."""
    for _ in range(150):
        done = ssh(lab, node, script)
        if done.returncode == 0:
            return done.stdout
        threading.Event().wait(0.1)
    log = lab.serial_log(node)
    raise AssertionError(f"{node}: {done.stderr}{log.read_text() if log.exists() else ''}")


def deploy_profile(lab: Lab, node: str) -> None:
    """Have *node* boot the deployment system, as `switch_pxe` does."""
    folder = lab.tftp / "pxelinux.cfg"
    folder.mkdir(exist_ok=True)
    octets = lab.members[node].address.split(".")
    name = "".join(f"{int(octet):02X}" for octet in octets)
    (folder / name).write_text("KERNEL http://10.177.0.1/deploy-vmlinuz\n")


@dataclass
class Cluster:
    """Nodes that are in the deployment system."""

    lab: Lab
    configuration: Configuration
    folder: Path
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(self.lab.members)

    def play(self, implementation: str, **asked: Any) -> dict[str, Outcome]:
        """Run one implementation on all nodes; *asked* are fields of the request."""
        number = next(self.numbers)
        work = self.folder / f"W-{number}"
        work.mkdir()
        macro_step = next(name for name in ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv") if name in implementation)
        assignment = build.assignment(
            work,
            wid=f"W-{number}",
            user="root",
            config_dir=str(self.lab.config),
            **{"site": self.configuration.site, "cluster": self.configuration.clusters["lab"], **asked},
        )
        members = {name: RequestNode(name=name, address=node.address) for name, node in self.lab.members.items()}
        player = Player(assignment, members, lambda _event: None, threading.Event())
        with namespace.inside(self.lab.name):
            return player.perform(Attempt(macro_step, implementation, 0, 300, 1), self.nodes)

    def on(self, node: str, script: str) -> str:
        """Output of *script* on a node, which succeeds there."""
        done = ssh(self.lab, node, f"set -eu\n{script}")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def everywhere(self, script: str) -> set[str]:
        """The different outputs of *script* on all nodes."""
        return {self.on(node, script) for node in self.nodes}

    def device(self, node: str, number: int | str = "") -> Path:
        """This machine's own device file of a node's disk, or of a partition on it."""
        (name,) = loop.attached(disk.path(self.lab, self.lab.members[node]))
        return Path(f"/dev/{name}p{number}" if number else f"/dev/{name}")

    def reset(self, node: str) -> None:
        """Boot a node anew, as it was."""
        lab_command("power", "--name", self.lab.name, "reset", node)
        wait_ssh(self.lab, node, "test -b /dev/sda")

    def with_cluster(self, **changed: Any) -> clusters.Cluster:
        """The cluster's configuration with other settings."""
        return msgspec.structs.replace(self.configuration.clusters["lab"], **changed)


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two light nodes, in the deployment system."""
    lab_command("down", "--name", NAME)
    lab_command("up", "--kind", "light", "--nodes", "2", "--name", NAME, "--environments", "")
    try:
        lab = saved(NAME)
        assert lab is not None
        playbooks = lab.config / "playbooks"
        playbooks.mkdir()
        (playbooks / f"{DISK_PLAY}.yml").write_text(_DISK_PLAYBOOK)
        for node in lab.members:
            deploy_profile(lab, node)
            lab_command("power", "--name", NAME, "on", node)
        for node in lab.members:
            wait_ssh(lab, node)
        yield Cluster(lab, load_configuration(lab.config), tmp_path_factory.mktemp("roles"))
    finally:
        lab_command("down", "--name", NAME)


def verdicts(outcomes: Mapping[str, Outcome]) -> dict[str, Verdict]:
    """Verdicts alone."""
    return {node: outcome.verdict for node, outcome in outcomes.items()}


def all_ok(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether every node is OK; shows the messages otherwise."""
    messages = {node: outcome.message for node, outcome in outcomes.items() if outcome.verdict is not Verdict.OK}
    assert not messages
    return True
