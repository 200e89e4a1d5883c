"""The rehearsal: from an empty Debian and two machines of which the BMCs alone are known to users who deploy.

The administrator has the Debian package and docs/first-node.md: what is typed here stands there. The machines are those
of a bare lab; the controller is a Debian under systemd in the lab's network; the user's shell is in another network.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kadeploy.lab.lab import CACHE, CONTROLLER, Lab, saved
from kadeploy.lab.network import BRIDGE
from tests import container
from tests.accounts import Installation
from tests.container import Container
from tests.packaging import machine
from tests.vm.conftest import ROOT, STARTS

NAME = "kadeploy-rehearsal"
ELSEWHERE = f"{NAME}-user"
USER = "alice"
GUIDE = (Path(__file__).parents[2] / "docs" / "first-node.md").read_text()
NODES = ("node-1", "node-2")
LAYOUT = "swap:512MiB,prod:1GiB,deploy:5GiB,tmp"
"""Of a disk of 8 GiB."""
SLOWLY = (
    *("-e", "s/^#timeouts:/timeouts:/; s/^#  reboot: .*/  reboot: '900'/"),
    *("-e", "/^#macro_steps/,/^$/s/^#//; s/timeout: [69]00}/timeout: 1800}/"),
)
"""For sed(1), in the cluster file: machines that are emulated boot as slowly as some servers do."""
SMALL = ("--kernel", "linux-image-cloud-amd64")
"""Without the drivers of real hardware, which an emulated machine takes minutes to unpack (see test_administrator)."""
PATIENCE = 1800.0
"""Seconds that one command may take."""


@dataclass(frozen=True)
class Controller:
    """The machine on which the administrator types, and users do."""

    container: Container
    lab: Lab

    def types(self, *command: str, stdin: str = "", online: bool = False, status: int = 0) -> str:
        """Output of a command of the guide, typed as root."""
        told = " ".join(command[:2])
        assert told in GUIDE, f"first-node.md does not tell the administrator: {told}"
        done = self.container.run(*command, stdin=stdin, online=online, timeout=PATIENCE)
        assert done.returncode == status, f"{' '.join(command)}\n{done.stdout}{done.stderr}{self.consoles()}"
        return done.stdout

    def types_as_user(self, *command: str) -> str:
        """Output of a command of an ordinary account, whose network is another."""
        done = self.container.run(*command, account=USER, network=ELSEWHERE, timeout=PATIENCE)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}{self.consoles()}"
        return done.stdout

    def consoles(self) -> str:
        """The ends of what the machines wrote to their serial lines."""
        logs = [path for name in NODES if (path := self.lab.serial_log(name)).exists()]
        return "".join(f"\n--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)


@pytest.fixture
def controller(installation: Installation, debian_package: Path, tmp_path: Path) -> Iterator[Controller]:
    """A Debian with the package, in a network of two machines that are off."""
    computer = machine.bare(CACHE, tmp_path / "machine")
    shutil.copyfile(debian_package, computer.upper / "package.deb")
    with bare_lab(installation) as lab, another_network(), ExitStack() as stack:
        running = stack.enter_context(container.started(computer, NAME, tmp_path / "container.log"))
        running.output("apt-get", "update", "-qq", online=True)
        install = ("apt-get", "install", "-qq", "-o", "Dpkg::Use-Pty=0")
        running.output(*install, "/package.deb", "dnsmasq", "openssh-client", online=True, timeout=PATIENCE)
        running.output("useradd", "--create-home", "--shell", "/bin/bash", USER)
        yield Controller(running, lab)


@contextmanager
def bare_lab(installation: Installation) -> Iterator[Lab]:
    """Two machines, their BMCs, and a network with nobody else in it."""

    def lab_command(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        return installation.tool("kadeploy-lab", verb, "--name", NAME, *words, account=ROOT, timeout=600)

    for _ in range(STARTS):
        lab_command("down")
        done = lab_command("up", "--bare", "--nodes", str(len(NODES)))
        if done.returncode == 0 and (lab := saved(NAME)):
            break
    else:
        raise AssertionError(f"The lab did not start:\n{done.stdout}{done.stderr}")
    try:
        yield lab
    finally:
        lab_command("down")


@contextmanager
def another_network() -> Iterator[None]:
    """A network namespace whose one way out leads to the lab's bridge, as a user's own machine would be reached."""
    device, peer = "rehearsal0", "rehearsal1"
    subprocess.run(["ip", "netns", "delete", ELSEWHERE], capture_output=True, check=False)  # of a run that was killed
    for words in (
        ("netns", "add", ELSEWHERE),
        ("-n", ELSEWHERE, "link", "add", device, "type", "veth", "peer", "name", peer, "netns", NAME),
        ("-n", ELSEWHERE, "address", "add", "10.177.3.1/16", "dev", device),
        ("-n", ELSEWHERE, "link", "set", device, "up"),
        ("-n", NAME, "link", "set", peer, "master", BRIDGE, "up"),
    ):
        subprocess.run(["ip", *words], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", ELSEWHERE], check=True)


def test_with_a_package_and_the_guide_a_site_begins_and_its_users_deploy_what_they_captured(
    controller: Controller,
) -> None:
    configure(controller)
    serve(controller)
    learn(controller)
    check_and_try(controller)
    deploy_and_capture(controller)


def configure(controller: Controller) -> None:
    """From nothing to a configuration."""
    bmcs = [node.bmc for node in controller.lab.members.values()]
    addresses = [node.address for node in controller.lab.members.values()]
    controller.types("kadeploy-site", "init", "--name", "paris", "--address", CONTROLLER, "--yes")
    words = ("--cluster", "lab", "--nodes", "node-[1-2]", "--bmc-user", "kadeploy", "--bmc-password-file", "-")
    password = controller.lab.bmc_password.read_text()
    both = ("--addresses", ",".join(addresses), "--bmcs", ",".join(bmcs), "--partitions", LAYOUT)
    controller.types("kadeploy-site", "init", *words, *both, "--yes", stdin=password)
    controller.container.output("sed", "-i", *SLOWLY, "/etc/kadeploy/clusters/lab.yml")
    controller.types("systemctl", "start", "kadeploy3d.socket", "kadeploy3d-consoles.socket", "kadeploy3d")


def serve(controller: Controller) -> None:
    """What the nodes boot; packages of Debian are all that is fetched from elsewhere."""
    controller.types("kadeploy-site", "build", *SMALL, online=True)
    controller.types("kadeploy-site", "loaders")
    controller.types("systemctl", "enable", "--now", "kadeploy-bootserver")
    controller.types("karights3", "-a", "-m", "node-[1-2]", "-p", "*", "-u", "root")
    controller.types("kadeploy-site", "inspect", "--macs", "node-[1-2]", "--yes")
    controller.types("kadeploy-site", "dhcp", "--server", "dnsmasq", "--output", "/etc/dnsmasq.d/kadeploy.conf")
    network = f"interface={BRIDGE}\nport=0\ndhcp-range=10.177.1.0,static,255.255.0.0\n"
    controller.container.run("tee", "/etc/dnsmasq.d/network.conf", stdin=network)
    controller.container.output("systemctl", "restart", "dnsmasq")


def learn(controller: Controller) -> None:
    """The machines tell what they are."""
    controller.types("kadeploy-site", "inspect", "node-[1-2]", "--yes")
    written = controller.container.output("cat", "/etc/kadeploy/clusters/lab.yml")
    for node in controller.lab.members.values():
        assert node.mac in written
    assert f"mib: {controller.lab.disk << 10}" in written


def check_and_try(controller: Controller) -> None:
    """Before a node is lost; and the whole way of the first one."""
    done = controller.container.run("kadeploy-site", "check", "--format", "json", timeout=PATIENCE)
    failed = [each for each in json.loads(done.stdout) if each["level"] == "fail"]
    assert (done.returncode, failed) == (0, [])
    tried = json.loads(controller.types("kadeploy-site", "try", "node-1", "--stay", "--format", "json"))
    reached = [each["rung"] for each in tried["rungs"] if each["reached"]]
    assert reached == ["bmc", "power", "loader", "profile", "kernel", "initrd", "system", "ssh", "disk"]


def deploy_and_capture(controller: Controller) -> None:
    """Its users: an ordinary account deploys, captures what runs, and deploys that on the other node."""
    controller.types("kadeploy-site", "build", "env", "debian12", *SMALL, online=True)
    controller.types("kaenv3", "-a", "/srv/kadeploy/images/debian12-1.dsc")
    controller.types("kaenv3", "--set-visibility-tag", "debian12", "--env-version", "1", "-t", "public")
    controller.types("karights3", "-a", "-m", "node-[1-2]", "-p", "*", "-u", USER)

    controller.types_as_user("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"/home/{USER}/.ssh/id_ed25519")
    controller.types_as_user("sh", "-c", "cp ~/.ssh/id_ed25519.pub ~/.ssh/authorized_keys")
    controller.types_as_user("kadeploy3", "-m", "node-1", "-e", "debian12", "-k")
    address, other = (controller.lab.members[name].address for name in NODES)
    ssh = "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    controller.types_as_user(*ssh.split(), f"root@{address}", "echo of alice > /usr/local/share/team")
    controller.types_as_user("kadeploy-site", "capture", address, "mine", "--ssh", ssh)
    controller.types_as_user("kadeploy3", "-m", "node-2", "-e", "mine", "-k")
    said = controller.types_as_user(*ssh.split(), f"root@{other}", "cat /usr/local/share/team; hostname")
    assert said.splitlines()[0] == "of alice"
    assert controller.types_as_user("kanodes3", "-d").count("deployed") == len(NODES)
