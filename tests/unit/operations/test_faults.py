"""A failure in every micro-step of every macro-step: the node is KO and says where and why, the others go on.

Playbooks, roles and engines are the real ones, ssh too; the far side takes what it is sent and runs nothing of it.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kadeploy.boot.profile import file_name
from kadeploy.config.cluster import Cluster, Disk, Implementation, Loader, NodeRange, Power, PowerCommands, Timeouts
from kadeploy.config.folder import collection
from kadeploy.config.partition import Partition
from kadeploy.config.site import Site, Ssh, Vlan
from kadeploy.environments.environment import Image
from kadeploy.remote import broker
from kadeploy.runner import playbooks
from kadeploy.runner.player import Player
from kadeploy.runner.request import Assignment, CustomOperation, LocalArchive, NextBoot, Options
from kadeploy.workflow import Final, Verdict, run
from tests.unit import build
from tests.unit.sshd import serve

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

NAMES = tuple(f"node-{number}" for number in range(1, 9))
HEALTHY, *FRAGILE = NAMES
"""In each run one node stays well, and each of the others fails in a micro-step of its own."""

NODE = """\
#!/bin/bash
# Stands in for the commands of a node: takes what arrives, runs nothing of it, and fails in the micro-step that the
# test has chosen. node-N is 127.9.0.N; over ssh the address tells, else the first argument.
cd {folder} || exit
set -- $SSH_CONNECTION "$@"
node=${{3:-$1}}; node=${{node##*[.-]}}
[ -z "$SSH_CONNECTION" ] || text=$(tr -d '\\0')
case $text in
*/proc/1/stat*) echo "1000.00 1.00"; echo "1 (init) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 0 0 1 0 100000 0"; exit ;;
*"enter micro-step "*)
    step=${{text##*enter micro-step }}
    step=${{step%%[!a-z_]*}}
    echo "$step" >"now.$node"
    echo "node-$node $step" >>log
    exit ;;
esac
step=$(cat "now.$node")
[ "$step" = "$(cat "fault.$node" 2>/dev/null)" ] || exit 0
echo "trying" >&2
echo "the $step of node-$node broke" >&2
exit 5
"""

BY_NODE = "the {step} of {node} broke"
BY_US = {"switch_pxe": "No boot profile: ", "wait_reboot": "Unreachable after the reboot: the node is alive"}
"""What is told where no command of the node says what broke."""


class Stage:
    """A site with eight nodes that act, and the faults they are told to have."""

    def __init__(self, folder: Path, nodes: Nodes) -> None:
        self.folder = folder
        self.nodes = nodes
        self.acts = nodes.log.parent / "acts"
        for path in self.acts.iterdir():
            path.unlink()
        for name in ("tftp", "http", "state"):
            (folder / name).mkdir()
        for name in ("http/deploy-vmlinuz", "http/deploy-initrd", "archive.tgz"):
            (folder / name).write_bytes(b"content")
        with socket.create_server(("127.9.0.1", 0)) as free:
            self.marker_port = free.getsockname()[1]

    def perform(self, playbook: str, faults: dict[str, str]) -> dict[str, Final]:
        """Run an implementation on all nodes; *faults* are micro-steps by node."""
        request = self.request(playbook)
        for node, step in faults.items():
            (self.acts / f"fault.{node[-1]}").write_text(f"{step}\n")
            if step == "switch_pxe":  # something is in the way of its profile
                (self.folder / "tftp" / file_name("pxelinux", self.nodes.target(node).address) / "x").mkdir(
                    parents=True
                )
        members = {node.name: node for node in request.nodes}
        player = Player(request, members, lambda _event: None, threading.Event())
        keeper = broker.Broker(Path(request.workflow_dir), self.nodes.credentials)
        with ExitStack() as stack:
            for node in NAMES:
                if faults.get(node) != "wait_reboot":
                    address = (self.nodes.target(node).address, self.marker_port)
                    stack.enter_context(socket.create_server(address, backlog=64))
            keeper.start()
            stack.callback(keeper.stop)
            plan = [(operation(playbook), [Implementation(name=playbook, retries=0, timeout=300)])]
            return run(NAMES, plan, player.perform, Silence(), threading.Event())

    def entered(self) -> dict[str, list[str]]:
        """Micro-steps that each node was in, in order."""
        found: dict[str, list[str]] = {}
        for line in (self.acts / "log").read_text().splitlines():
            node, step = line.split()
            found.setdefault(node, []).append(step)
        return found

    def request(self, playbook: str) -> Assignment:
        """A request that wants every micro-step of *playbook*."""
        folder = self.folder
        macro_step = operation(playbook)
        archive = LocalArchive(path=str(folder / "archive.tgz"), kind="tgz", script="run.sh")
        workflow = folder / "runs" / "D-1"
        workflow.mkdir(parents=True)
        return build.assignment(
            folder,
            operation="deploy"
            if playbooks.generic(playbook)
            else "power"
            if playbook.startswith("Power")
            else "reboot",
            workflow_dir=str(workflow),
            site=self.site(),
            cluster=self.cluster(playbook),
            environment=build.environment(
                image=Image(file="/image", kind="ddgz" if macro_step == "BroadcastEnv" else "tgz")
            ),
            preinstall=archive,
            postinstalls=(archive,),
            admin_postinstalls=(archive,),
            boot=NextBoot(kind="deploy", target="deploy" if playbook == "RebootDeployEnv" else "user"),
            power=playbook.removeprefix("Power").lower() if playbook.startswith("Power") else "",
            options=Options(
                authorized_keys="ssh-ed25519 AAAA alice",
                reformat_tmp="ext4",
                partition=2 if playbook.startswith("Reboot") else 3,
                vlan="7",
                pxe_profile="DEFAULT mine\n",
                custom_operations=tuple(operations(playbook, folder)),
            ),
        )

    def site(self) -> Site:
        return build.site(
            self.folder,
            marker_port=self.marker_port,
            ssh=Ssh(
                private_key=str(self.nodes.credentials.private_key),
                host_key=self.nodes.known_key,
                port=self.nodes.port,
            ),
            vlan=Vlan(hostname_suffix="-vlan-VLAN_ID", set_command=str(self.folder / "set_vlan")),
        )

    def cluster(self, playbook: str) -> Cluster:
        command = f"{self.acts.parent}/node HOSTNAME_FQDN"
        return build.cluster(
            name="node",
            nodes=(NodeRange(name="node-[1-8]", address="127.9.0.[1-8]"),),
            disk=Disk(
                partitions=(
                    Partition(number=1, size="1GiB", role="swap"),
                    Partition(number=2, size="4GiB", role="prod"),
                    Partition(number=3, size="4GiB", role="deploy"),
                    Partition(number=5, role="tmp"),
                )
            ),
            loader=Loader(nfsroot_kernel="nfs-vmlinuz", show_secret=False),  # they boot nothing: sim nodes show it
            power=Power(
                driver="command",
                commands=PowerCommands(
                    **{f"{level}_{what}": command for level in LEVELS for what in ("reboot", "on", "off")},
                    status=command if playbook == "PowerStatus" else "",  # which node is on, it cannot tell
                ),
            ),
            timeouts=Timeouts(reboot="25", kexec="25"),  # nodes that are sound take a second on a quiet machine
        )

    def move_by(self, command: str) -> None:
        """The site's command that moves nodes into a VLAN."""
        path = self.folder / "set_vlan"
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)


LEVELS = ("soft", "hard", "very_hard")
OF_REBOOTS = {
    name: name.removeprefix("Reboot").removeprefix("Power")
    for name in (
        *("RebootSimple", "RebootSetPxe", "RebootDeployEnv", "RebootRecordedEnv"),
        *("PowerOn", "PowerOff", "PowerStatus"),
    )
}


class Silence:
    """An observer to whom it is all the same."""

    def started(self, *_: Any) -> None:
        """Nothing."""

    ended = finished = started


def acted(playbook: str, step: str) -> bool:
    """Whether the engine itself is at work; a custom operation takes its place otherwise.

    A broadcast needs relays on the nodes (it has tests of its own), and a user's system cannot be asked whether it has
    just come: it must answer for a while.
    """
    to_user = step == "wait_reboot" and not playbook.startswith(("SetDeploymentEnv", "RebootDeployEnv"))
    return step != "send_environment" and not to_user


def operations(playbook: str, site: Path) -> Iterator[CustomOperation]:
    """What tells the nodes in which micro-step they are, and takes the place of what is not `acted`."""
    own = site / "playbooks" / f"{playbook}.yml"
    for step in playbooks.micro_steps(own, site) if own.is_file() else PLAYBOOKS[playbook]:
        where = {"implementation": playbook, "micro_step": step, "action": "exec"}
        yield CustomOperation(**where, command=f": enter micro-step {step}")
        if not acted(playbook, step):
            yield CustomOperation(**where, when="substitute", command="true")


PLAYBOOKS = {
    path.stem: playbooks.micro_steps(path, Path("/nonexistent"))
    for path in sorted((collection() / "playbooks").glob("*.yml"))
    if path.stem != "deploy"
}
"""Micro-steps of each of our playbooks."""
FOR_ALL = {"dummy", "set_vlan"}
"""Micro-steps in which no single node can fail: nothing is done, or one command is run for all nodes together."""


def operation(playbook: str) -> str:
    """The macro-step that a playbook implements, or what kind of operation it is."""
    return playbooks.generic(playbook) or playbook.removesuffix(OF_REBOOTS.get(playbook, ""))


def cases() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Playbooks, and as many of their micro-steps as there are nodes to fail in them.

    A micro-step fails once for each macro-step that it is part of, and every playbook has a micro-step that fails.
    """
    seen: set[tuple[str, str]] = set()
    for name, steps in sorted(PLAYBOOKS.items(), key=lambda item: -len(item[1])):
        fallible = [step for step in steps if step not in FOR_ALL]
        failing = [step for step in fallible if (operation(name), step) not in seen] or fallible[:1]
        seen |= {(operation(name), step) for step in failing}
        for first in range(0, len(failing), len(FRAGILE)):
            yield name, tuple(failing[first : first + len(FRAGILE)])


@pytest.fixture(scope="module")
def acting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """An sshd whose every command is `NODE`."""
    folder = tmp_path_factory.mktemp("acting")
    (folder / "acts").mkdir()
    program = folder / "node"
    program.write_text(NODE.format(folder=folder / "acts"))
    program.chmod(0o755)
    with serve(folder, f"ForceCommand {program}\n") as nodes:
        yield nodes


@pytest.fixture
def stage(tmp_path: Path, acting: Nodes) -> Stage:
    made = Stage(tmp_path, acting)
    made.move_by("true")
    return made


@pytest.mark.parametrize(("playbook", "failing"), list(cases()))
def test_a_node_that_fails_in_a_micro_step_says_so_and_the_others_go_on(
    playbook: str, failing: tuple[str, ...], stage: Stage
) -> None:
    faults = dict(zip(FRAGILE, failing, strict=False))
    outcomes = stage.perform(playbook, faults)
    for node, step in faults.items():
        assert outcomes[node].verdict is Verdict.KO, (node, step)
        said = BY_US.get(step) if acted(playbook, step) else None
        assert outcomes[node].message.startswith(f"{playbook}-{step}: ")
        assert (said or BY_NODE.format(step=step, node=node)) in outcomes[node].message
    assert {node for node, outcome in outcomes.items() if outcome.verdict is Verdict.OK} == set(NAMES) - set(faults)
    wanted = list(PLAYBOOKS[playbook])
    entered = stage.entered()
    assert entered[HEALTHY] == wanted
    for node, step in faults.items():
        assert entered[node] == wanted[: wanted.index(step) + 1]


EXAMPLE = re.compile(r"^```\w+\n# /etc/kadeploy/(\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""A file of the documentation's example: where it lies in the site's folder, and what is in it."""


def test_the_documentations_own_implementation_runs_with_roles_of_ours(stage: Stage) -> None:
    """Copied into a site's folder, word for word: scripts of our roles are found although the playbook is not ours."""
    files = dict(EXAMPLE.findall((collection() / "docs" / "workflow.md").read_text()))
    for name, text in files.items():
        path = stage.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    outcomes = stage.perform("SetDeploymentEnvBurnIn", {"node-2": "burn_in"})
    assert {node for node, outcome in outcomes.items() if outcome.verdict is Verdict.OK} == set(NAMES) - {"node-2"}
    assert outcomes["node-2"].message == "SetDeploymentEnvBurnIn-burn_in: the burn_in of node-2 broke"
    entered = stage.entered()
    assert entered[HEALTHY] == [
        *("switch_pxe", "reboot", "wait_reboot", "burn_in"),
        *("create_partition_table", "format_deploy_part", "mount_deploy_part"),
    ]
    assert entered["node-2"][-1] == "burn_in"


WITH_VLAN = {operation(name): name for name, steps in PLAYBOOKS.items() if "set_vlan" in steps}


@pytest.mark.parametrize("playbook", WITH_VLAN.values())
def test_a_vlan_command_that_fails_is_every_nodes_failure(playbook: str, stage: Stage) -> None:
    """The site's command moves all nodes at once: it cannot tell which of them it has moved."""
    stage.move_by("echo no such VLAN >&2; exit 4")
    outcomes = stage.perform(playbook, {})
    assert {outcome.message for outcome in outcomes.values()} == {
        f"{playbook}-set_vlan: {stage.folder}/set_vlan: no such VLAN"
    }


def test_every_role_of_ours_that_is_a_micro_step_has_its_fault() -> None:
    roles = {path.name for path in (collection() / "roles").iterdir()} - {
        "finish",
        "drop_failed_nodes",
        "dummy",
    }
    assert roles == {step for _, failing in cases() for step in failing} | {"set_vlan"}
