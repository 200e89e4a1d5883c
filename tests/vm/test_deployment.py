"""Deployments on machines that really boot over PXE, are partitioned, filled and booted from their disk."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest
import yaml

from kadeploy.lab import control
from tests.vm.conftest import BIG_SECTORS, NVME, Cluster

ONE_TRY = (
    "SetDeploymentEnv|SetDeploymentEnvUntrusted:0:900&"
    "BroadcastEnv|BroadcastEnvChain:0:900&"
    "BootNewEnv|BootNewEnvClassical:0:900"
)
PATIENCE = 420
"""Seconds that a machine may take to boot: several share two cores, or fewer."""


@dataclass(frozen=True)
class Ended:
    """A deployment that has ended, and its files."""

    status: int
    output: str
    ok: list[str]
    ko: list[str]
    wid: str


def deploy(cluster: Cluster, folder: Path, *arguments: str) -> Ended:
    """Deploy ``tiny``, each macro-step tried once; *folder* is the user's."""
    files = {name: folder / name for name in ("ok", "ko", "wid")}
    done = cluster.run("kadeploy3", *request(cluster), "-o", f"{files['ok']}", "-n", f"{files['ko']}",
                       "--write-workflow-id", f"{files['wid']}", *arguments)  # fmt: skip
    output = done.stdout + done.stderr
    assert files["wid"].exists(), output
    names = {name: path.read_text().split() for name, path in files.items()}
    return Ended(done.returncode, output, names["ok"], names["ko"], names["wid"][0])


def request(cluster: Cluster) -> list[str]:
    words = ["-a", str(cluster.environment("tiny")), "-k", str(cluster.public_key), "--force-steps", ONE_TRY]
    return [*words, "--reboot-classical-timeout", str(PATIENCE), "-V", "3"]


# --- two healthy machines, and those with special disks and faults --------------------------------------------------


@pytest.fixture(scope="module")
def mixed(cluster: Cluster) -> Ended:
    """All deployed by one request: two healthy, one with an NVMe disk, one with big sectors, two with a fault."""
    cluster.power_off_all()
    nodes = ["node-1", "node-2", NVME, BIG_SECTORS, cluster.faulty("dead"), cluster.faulty("bad-disk")]
    return deploy(cluster, cluster.user.home, *(word for node in nodes for word in ("-m", node)))


def test_the_healthy_nodes_are_deployed_and_the_others_are_in_the_ko_file(cluster: Cluster, mixed: Ended) -> None:
    assert mixed.ok == ["node-1", "node-2", NVME], mixed.output
    assert sorted(mixed.ko) == sorted([cluster.faulty("dead"), cluster.faulty("bad-disk"), BIG_SECTORS])
    assert mixed.status == 3


def test_a_node_that_fails_is_reported_with_the_step_and_what_to_look_at(cluster: Cluster, mixed: Ended) -> None:
    dead, bad = cluster.faulty("dead"), cluster.faulty("bad-disk")
    assert re.search(rf"{dead} \(SetDeploymentEnvUntrusted-reboot: .*BMC", mixed.output), mixed.output
    assert re.search(rf"{bad} \(SetDeploymentEnvUntrusted-(create_partition_table|format_deploy_part): ", mixed.output)


def test_a_disk_of_big_sectors_is_refused_under_bios_when_it_is_cut(mixed: Ended) -> None:
    refusal = "SetDeploymentEnvUntrusted-create_partition_table: BIOS cannot boot /dev/sda"
    assert re.search(rf"{BIG_SECTORS} \({refusal}, whose sectors have 4096 bytes: .* UEFI", mixed.output), mixed.output


@pytest.mark.parametrize(
    ("node", "partition"), [("node-1", "/dev/sda3"), ("node-2", "/dev/sda3"), (NVME, "/dev/nvme0n1p3")]
)
def test_the_users_key_opens_a_system_that_runs_from_the_deployed_partition(
    cluster: Cluster, mixed: Ended, node: str, partition: str
) -> None:
    assert node in mixed.ok, mixed.output
    said = cluster.wait_ssh(node, command="hostname; mount | grep ' on / '; cat /proc/cmdline")
    assert said.splitlines()[0] == node
    assert f"{partition} on / type ext4" in said
    # GRUB says so on the kernel's command line; the network loader would not.
    assert "BOOT_IMAGE=" in said


def test_the_deployed_system_has_a_host_key_of_its_own(cluster: Cluster, mixed: Ended) -> None:
    assert "node-1" in mixed.ok, mixed.output
    assert cluster.ssh("node-1", "true", pinned=True).returncode != 0


def test_everybody_can_read_afterwards_what_happened(cluster: Cluster, mixed: Ended) -> None:
    states = dict(line.split(",")[:2] for line in cluster.run("kanodes3", "-d").stdout.split())
    assert states["node-1"] == "deployed", mixed.output
    assert states[cluster.faulty("dead")] == "deploy_failed"
    rows = cluster.run("kastat3", "-d", "-f", "hostname", "-f", "success").stdout.split()
    assert {"node-1,true", f"{cluster.faulty('dead')},false"} <= set(rows)
    nodes = yaml.safe_load(cluster.run("kanodes3", "-y", "-w", mixed.wid).stdout)[mixed.wid]["nodes"]
    told = {name: ChainMap(*entry) for name, entry in nodes.items()}
    assert told["node-2"]["state"] == "ok"
    assert (told[cluster.faulty("dead")]["state"], "BMC" in told[cluster.faulty("dead")]["out"]) == ("ko", True)


def test_the_console_logs_in_on_the_serial_line_and_four_escapes_leave(cluster: Cluster, mixed: Ended) -> None:
    assert "node-2" in mixed.ok, mixed.output
    who = ["--reuid", str(cluster.user.uid), "--regid", str(cluster.user.gid), "--init-groups"]
    words = [*who, str(cluster.installation.tools / "kaconsole3")]
    variables = cluster.installation.environment(cluster.user) | cluster.variables | {"TERM": "xterm"}
    console = pexpect.spawn("setpriv", [*words, "-m", "node-2"], env=variables, encoding="utf-8", timeout=120)
    console.expect("Ctrl-] leaves")
    console.send("\r")
    console.expect("login: ")
    console.send("root\r")
    console.expect("Password: ")
    console.send("kadeploy\r")
    console.expect("# ")
    console.send("echo on $(hostname)\r")
    console.expect("on node-2")
    console.send("exit\r\x1b\x1b\x1b\x1b")
    console.expect("Console closed")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0


def test_a_deployed_node_reboots_into_its_system_even_when_it_is_reset(cluster: Cluster, mixed: Ended) -> None:
    assert "node-1" in mixed.ok, mixed.output
    before = cluster.wait_ssh("node-1", command="cat /proc/sys/kernel/random/boot_id")
    done = cluster.run(
        "kareboot3", "-m", "node-1", "-r", "simple_reboot", "-l", "hard", "--reboot-classical-timeout", str(PATIENCE)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.wait_ssh("node-1", command="cat /proc/sys/kernel/random/boot_id") != before


# --- by hand -------------------------------------------------------------------------------------------------------


def test_a_macro_step_can_be_repeated_by_hand(cluster: Cluster, own_path: Path) -> None:
    stopped = deploy(cluster, own_path, "-m", "node-3", "--breakpoint", "BootNewEnv:switch_pxe")
    assert (stopped.status, stopped.ok) == (0, ["node-3"]), stopped.output
    assert cluster.ssh("node-3", "rm -r /mnt/dest/boot", pinned=True).returncode == 0
    attempt = next((cluster.lab.state / "runs" / stopped.wid).glob("02-*"))
    done = subprocess.run([attempt / "command"], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node-3: ok" in done.stderr, done.stdout
    assert cluster.ssh("node-3", "ls /mnt/dest/boot/grub/grub.cfg", pinned=True).returncode == 0


# --- interrupted ---------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(cluster: Cluster) -> Iterator[subprocess.Popen[str]]:
    """A deployment of node-4 that waits for its machine to boot, which takes a while."""
    words = ["kadeploy3", "-m", "node-4", *request(cluster)]
    with cluster.installation.start(*words, account=cluster.user, env=cluster.variables) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "wait_reboot" in line:
                break
        try:
            yield process
        finally:
            process.kill()
            control.ask(cluster.lab, "off", "node-4")  # it would go on booting, for nobody


def players(wid_folder: Path) -> list[str]:
    """Command lines of processes that still work for a workflow."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(wid_folder).encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def newest_run(cluster: Cluster) -> Path:
    runs = (cluster.lab.state / "runs").iterdir()
    return max((run for run in runs if run.name.startswith("D-")), key=lambda run: run.stat().st_mtime)


def soon_empty(wid_folder: Path) -> list[str]:
    limit = time.monotonic() + 30
    while (left := players(wid_folder)) and time.monotonic() < limit:
        time.sleep(0.5)
    return left


def state(cluster: Cluster, node: str) -> str:
    return cluster.run("kanodes3", "-d", "-m", node).stdout.split(",")[1]


def test_one_ctrl_c_ends_cleanly(cluster: Cluster, waiting: subprocess.Popen[str]) -> None:
    assert state(cluster, "node-4") == "deploying"
    run = newest_run(cluster)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(60) == 130
    assert state(cluster, "node-4") == "aborted"
    assert soon_empty(run) == []


def test_after_a_kill_of_the_tool_it_goes_on_until_its_user_ends_it(
    cluster: Cluster, waiting: subprocess.Popen[str]
) -> None:
    run = newest_run(cluster)
    waiting.kill()
    waiting.wait(60)
    assert players(run) != []
    assert state(cluster, "node-4") == "deploying"
    done = cluster.run("kadeploy3", "--cancel", run.name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert soon_empty(run) == []
    assert state(cluster, "node-4") == "aborted"
