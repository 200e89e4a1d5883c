"""Simulated nodes under whole deployments: the tools run as processes, and a fault costs only the node it is on."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from kadeploy.lab import network
from kadeploy.lab.lab import Lab, saved
from kadeploy.lab.sim import BACKENDS
from tests.light.conftest import TOOLS, lab_command

NAME = "kadeploy-sim"
NODES = 20
STEPS = (
    "SetDeploymentEnv|SetDeploymentEnvUntrusted:0:300&"
    "BroadcastEnv|BroadcastEnvChain:0:300&"
    "BootNewEnv|BootNewEnvClassical:0:300"
)
BOOT = 3
"""Seconds that nodes are away when they boot: long enough to be seen, as a real node's boot is."""
SHARD = 8
"""Nodes of one run of ansible-playbook, with light nodes: the first test's are more, and are parted in shards."""
PATIENCE = 15
"""Seconds after which a node that has not come back is given up, here and for a command that never ends."""

UNREACHED = {
    "dead": "does not answer",
    "mute": "refuses port 25300",
    "refuse-ssh": "refuses port 22",
    "wrong-key": "its host key is not the known one",
}
"""Faults that keep a node from being reached → words of the reason."""
FAILING = {
    "small-disk": "create_partition_table: sfdisk: /dev/sda: not enough space",
    "hang": "Timeout in the create_partition_table step",
    "bad-disk": "format_deploy_part: ",
    "die": "BroadcastEnvChain-send_environment: ",
}
"""Faults that a deployment meets on a node it has reached."""
LYING = {
    "impostor": "SetDeploymentEnvUntrusted-wait_reboot: .*did not boot by the profile of this try",
    "lie-bytes": "BroadcastEnvChain-send_environment: it tells of 1 bytes, the image has [0-9]+",
    "lie-digest": "BroadcastEnvChain-send_environment: wrong sha256: e3b0[0-9a-f]{60} received",
    "stay": "BootNewEnvClassical-wait_reboot: .*still in the deployment system",
}
"""Faults of nodes that claim what is not so: what they boot, what they got, that they have rebooted."""


@dataclass(frozen=True)
class Ended:
    """A deployment that has ended: nodes that are OK, and why the others are not."""

    status: int
    output: str
    ok: set[str]
    reasons: dict[str, str]


@pytest.fixture(scope="module", params=list(BACKENDS))
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab in which each fault has one node."""
    faults = ",".join(f"{fault}=1" for fault in (*UNREACHED, *FAILING, *LYING, "slow", "spoil"))
    options = ("--backend", request.param, "--boot-delay", str(BOOT), "--faults", faults)
    lab_command("down", "--name", NAME)
    lab_command("up", "--kind", "sim", "--nodes", str(NODES), "--name", NAME, *options)
    try:
        made = saved(NAME)
        assert made is not None
        cluster = made.config / "clusters" / "lab.yml"
        cluster.write_text(f"{cluster.read_text()}\nmicro_timeouts: {{create_partition_table: {PATIENCE}}}\n")
        if request.param == "light":
            site = made.config / "site.yml"
            site.write_text(f"{site.read_text()}\nshard: {SHARD}\n")
        done = tool(made, "karights3", "-a", "-m", made.column("node-"), "-p", "*", "-u", "root")
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        lab_command("down", "--name", NAME)


def tool(lab: Lab, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the tools as a user would."""
    environment = os.environ | {"KADEPLOY_CONFIG_DIR": str(lab.config)}
    words = [TOOLS / name, *arguments]
    return subprocess.run(
        words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )


def deploy(lab: Lab, nodes: list[str], folder: Path) -> Ended:
    """Deploy the small environment on *nodes*, each macro-step tried once."""
    folder.mkdir()
    request = [word for node in nodes for word in ("-m", node)]
    request += ["-a", str(lab.environments_folder / "sim.dsc"), "-k", str(lab.public_key), "--force-steps", STEPS]
    lists = ["-o", folder / "ok", "-n", folder / "ko", "--reboot-classical-timeout", str(PATIENCE)]
    done = tool(lab, "kadeploy3", *request, *lists)
    assert (folder / "ok").exists(), done.stdout + done.stderr
    lines = [line.rstrip(")").split(" (", 1) for line in done.stdout.splitlines() if line.endswith(")")]
    told = {line[0]: line[1] for line in lines if line[0] in lab.members}
    reasons = {node: told.get(node, "") for node in (folder / "ko").read_text().split()}
    return Ended(done.returncode, done.stdout + done.stderr, set((folder / "ok").read_text().split()), reasons)


def test_each_fault_costs_its_own_node_alone_and_tells_its_reason(lab: Lab, tmp_path: Path) -> None:
    """Two deployments at the same time: one that meets faults on the way, one with nodes that cannot be reached."""
    faulty = {fault: node for node, fault in lab.faults.items()}
    unreached = [faulty[fault] for fault in UNREACHED]
    healthy = [node for node in lab.members if node not in lab.faults]
    groups = [[faulty["slow"], *(faulty[fault] for fault in FAILING), *healthy[1:]], [*unreached, healthy[0]]]
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda rank: deploy(lab, groups[rank], tmp_path / str(rank)), range(len(groups))))
    failing, unreachable = ended

    assert failing.ok == {*healthy[1:], faulty["slow"]}, failing.output
    assert unreachable.ok == {healthy[0]}, unreachable.output
    reasons = failing.reasons | unreachable.reasons
    assert len(reasons) == len(UNREACHED | FAILING)
    for fault, words in (UNREACHED | FAILING).items():
        assert words in reasons[faulty[fault]], fault
    assert [end.status for end in ended] == [3, 3], "some nodes are KO"
    shards = {path.name for path in (lab.root / "state" / "runs").glob("*/*.0??")}
    assert bool(shards) == (lab.backend == "light")
    assert not shards or {"01-SetDeploymentEnvUntrusted.001", "01-SetDeploymentEnvUntrusted.002"} <= shards


def test_a_node_is_ok_only_where_the_controller_has_proof(lab: Lab, tmp_path: Path) -> None:
    """The secret of the try, the bytes, the digest and the boot: a node that lies about one of them is KO, alone.

    One that passes on other bytes than the image's is OK, and so are those to which it gave them.
    """
    faulty = {fault: node for node, fault in lab.faults.items()}
    healthy = [node for node in lab.members if node not in lab.faults]
    honest = [faulty["spoil"], *healthy[:2]]
    ended = deploy(lab, [*(faulty[fault] for fault in LYING), *honest], tmp_path / "lying")
    assert ended.ok == set(honest), ended.output
    for fault, words in LYING.items():
        assert re.search(words, ended.reasons[faulty[fault]]), (fault, ended.reasons)


def test_a_node_that_never_boots_is_waited_for_while_the_others_are_deployed(lab: Lab, tmp_path: Path) -> None:
    (mute,) = (node for node, fault in lab.faults.items() if fault == "mute")
    healthy = [node for node in lab.members if node not in lab.faults][:4]
    ended = deploy(lab, [mute, *healthy], tmp_path / "late")
    assert ended.ok == set(healthy), ended.output
    assert "refuses port 25300" in ended.reasons[mute]
    late = ended.output.index(f"is late on {mute}: the other nodes go on")
    assert late < ended.output.index("BootNewEnvClassical done") < ended.output.index("Untrusted failed on")


def test_down_leaves_no_process_and_no_file(lab: Lab) -> None:
    processes = network.processes(NAME)
    assert processes, "the supervisor and the BMCs run"
    lab_command("down", "--name", NAME)
    assert not network.exists(NAME)
    assert not [process for process in processes if process.alive()]
    assert not lab.root.exists()
    assert not lab.run.exists()
    assert NAME not in Path("/proc/mounts").read_text()
