"""The virtual cluster behaves like machines in a rack, and goes without a trace."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kadeploy.lab import control, network
from kadeploy.lab.lab import RUN_ROOT, STATE_ROOT, Lab, saved
from tests.vm.conftest import Cluster, tool

PROFILE = """\
SERIAL 0 115200
DEFAULT deploy
LABEL deploy
KERNEL http://10.177.0.1/deploy-vmlinuz
APPEND initrd=http://10.177.0.1/deploy-initrd console=ttyS0,115200
IPAPPEND 2
"""

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def another_boot(cluster: Cluster, node: str, before: str) -> str:
    """Boot id of *node* once it is not *before* any more."""
    limit = time.monotonic() + 240
    while time.monotonic() < limit:
        found = cluster.ssh(node, BOOT_ID, pinned=True).stdout
        if found not in {"", before}:
            return found
        time.sleep(1)
    raise AssertionError(f"{node} did not boot again")


def fetched_loaders(cluster: Cluster) -> int:
    """How often a machine has fetched its first loader over TFTP."""
    return cluster.lab.log("boot server").read_text().count("'pxelinux.0' sent")


# --- the machines of the shared cluster -------------------------------------------------------------------------


def test_a_bmc_switches_a_process_and_tells_the_truth(cold: Cluster) -> None:
    assert "is off" in cold.ipmi("node-1", "status").stdout
    assert cold.ipmi("node-1", "on").returncode == 0
    assert "is on" in cold.ipmi("node-1", "status").stdout
    assert cold.is_on("node-1")
    assert not cold.is_on("node-2")
    assert cold.ipmi("node-1", "off").returncode == 0
    assert "is off" in cold.ipmi("node-1", "status").stdout
    commands = [Path(f"/proc/{found.pid}/cmdline").read_bytes() for found in network.processes(cold.lab.name)]
    assert not any(command.startswith(b"qemu") for command in commands)


def test_a_bmc_refuses_to_reset_a_machine_that_is_off(cold: Cluster) -> None:
    assert cold.ipmi("node-1", "reset").returncode != 0
    assert not cold.is_on("node-1")


def test_a_bmc_wants_its_password(cold: Cluster) -> None:
    target = ["-I", "lanplus", "-C", "3", "-N", "1", "-R", "1", "-H", cold.lab.members["node-1"].bmc]
    done = cold.inside("ipmitool", *target, "-U", "kadeploy", "-P", "wrong", "chassis", "power", "on")
    assert done.returncode != 0
    assert not cold.is_on("node-1")


def test_a_dead_bmc_answers_nothing(cold: Cluster) -> None:
    assert cold.ipmi(cold.faulty("dead"), "status").returncode != 0


def test_a_mute_machine_is_on_and_says_nothing(cold: Cluster) -> None:
    node = cold.faulty("mute")
    assert cold.ipmi(node, "on").returncode == 0
    assert "is on" in cold.ipmi(node, "status").stdout
    assert not [line for line in cold.serial(node).splitlines() if line and "power on" not in line]


def test_every_way_to_reboot_goes_through_the_network_again(cold: Cluster) -> None:
    """Switched on, the node boots what its profile says; so it does after a reset and after its own ``reboot -f``."""
    (cold.lab.tftp / "pxelinux.cfg" / "0AB10101").write_text(PROFILE)
    begun = fetched_loaders(cold)
    cold.ipmi("node-1", "on")
    first = cold.wait_ssh("node-1", command=BOOT_ID, pinned=True)
    assert cold.ssh("node-1", "hostname").stdout == "node-1\n"
    assert cold.ssh("node-1", "blockdev --getsize64 /dev/sda").stdout == f"{8 << 30}\n"
    cold.ipmi("node-1", "reset")
    second = another_boot(cold, "node-1", first)
    cold.ssh("node-1", "(sleep 1; reboot -f) >/dev/null 2>&1 &")
    another_boot(cold, "node-1", second)
    assert fetched_loaders(cold) - begun >= 3
    cold.ssh("node-1", "(sleep 1; poweroff -f) >/dev/null 2>&1 &")
    limit = time.monotonic() + 120
    while cold.is_on("node-1") and time.monotonic() < limit:
        time.sleep(0.5)
    assert "is off" in cold.ipmi("node-1", "status").stdout


def test_the_console_shows_the_serial_line_and_is_open_once(cold: Cluster) -> None:
    """A user sees the loader; a second user is told; Ctrl-] leaves."""
    command = [str(Path(sys.executable).with_name("kadeploy-lab")), "console", "--name", cold.lab.name, "node-2"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    read_until(terminal, b"waiting until it is switched on", 30)
    refused = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "open elsewhere" in refused.stderr
    cold.ipmi("node-2", "on")
    read_until(terminal, b"PXELINUX", 90)
    os.write(terminal, b"\x1d")
    read_until(terminal, b"", 10)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def read_until(terminal: int, text: bytes, seconds: float) -> bytes:
    """What the terminal shows until *text* (empty: its end) came; raises AssertionError when it did not."""
    seen = b""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if select.select([terminal], [], [], 0.2)[0]:
            with suppress(OSError):
                received = os.read(terminal, 4096)
                seen += received
            if not received:
                break
        if text and text in seen:
            return seen
    if text:
        raise AssertionError(f"{text!r} did not come, but {seen!r}")
    return seen


# --- labs that come and go --------------------------------------------------------------------------------------

OTHER = "kadeploy-test-other"


def lab_command(verb: str, *options: str) -> subprocess.CompletedProcess[str]:
    return tool("kadeploy-lab", verb, "--name", OTHER, *options)


def up(*options: str) -> Lab:
    done = lab_command("up", "--environments", "", *options)
    assert done.returncode == 0, done.stderr
    lab = saved(OTHER)
    assert lab is not None
    return lab


def traces() -> list[str]:
    """What is left of the lab on this machine."""
    places = [RUN_ROOT / OTHER, RUN_ROOT / f"{OTHER}.lock", STATE_ROOT / OTHER, Path("/run/netns") / OTHER]
    running = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if OTHER.encode() in _read(path) and int(path.parent.name) not in {os.getpid(), os.getppid()}
    ]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if OTHER in line]
    return [str(place) for place in places if place.exists()] + running + mounts


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """Tests that use it leave no lab behind."""
    lab_command("down")
    yield
    lab_command("down")


@pytest.mark.usefixtures("elsewhere")
class TestLifecycle:
    """``up`` and ``down``, whatever happens in between."""

    def test_down_leaves_no_trace(self) -> None:
        lab = up()
        control.ask(lab, "on", "node-1")
        assert lab_command("down").returncode == 0
        assert traces() == []

    def test_up_again_changes_nothing(self) -> None:
        lab = up()
        control.ask(lab, "on", "node-1")
        assert up() == lab
        assert control.ask(lab, "status", "node-1")["on"]

    def test_up_with_other_settings_is_refused(self) -> None:
        up()
        refused = lab_command("up", "--environments", "", "--nodes", "3")
        assert refused.returncode == 1
        assert "other settings" in refused.stderr

    def test_everything_ends_with_a_killed_supervisor_and_up_goes_on_with_the_disks(self) -> None:
        lab = up()
        control.ask(lab, "on", "node-1")
        (lab.disks / "node-1.raw").open("r+b").write(b"written by the node")
        supervisor = control.running(lab)
        assert supervisor is not None
        supervisor.send(signal.SIGKILL)
        limit = time.monotonic() + 20
        while network.processes(OTHER) and time.monotonic() < limit:
            time.sleep(0.1)
        assert network.processes(OTHER) == []
        again = up()
        assert (again.disks / "node-1.raw").open("rb").read(19) == b"written by the node"

    @pytest.mark.parametrize("moment", ["run", "namespace", "supervisor"])
    def test_down_cleans_up_after_a_killed_up(self, moment: str) -> None:
        """Killed as soon as its first, its second or its last work shows."""
        shown = {
            "run": RUN_ROOT / OTHER,
            "namespace": Path("/run/netns") / OTHER,
            "supervisor": RUN_ROOT / OTHER / "supervisor.pid",
        }[moment]
        command = [str(Path(sys.executable).with_name("kadeploy-lab")), "up", "--name", OTHER, "--environments", ""]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
            while not shown.exists() and started.poll() is None:
                pass
            started.kill()
        assert lab_command("down").returncode == 0
        assert traces() == []

    def test_down_cleans_up_after_an_up_that_was_killed_before_it_marked_its_folder(self) -> None:
        for folder in (RUN_ROOT / OTHER, STATE_ROOT / OTHER):
            folder.mkdir(parents=True)
        assert lab_command("down").returncode == 0
        assert traces() == []

    def test_an_empty_folder_that_no_up_has_made_is_left_alone(self, tmp_path: Path) -> None:
        assert lab_command("down", "--folder", str(tmp_path)).returncode == 0
        assert tmp_path.is_dir()

    def test_an_interrupted_up_takes_itself_down(self) -> None:
        command = [str(Path(sys.executable).with_name("kadeploy-lab")), "up", "--name", OTHER, "--environments", ""]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
            while not (Path("/run/netns") / OTHER).exists() and started.poll() is None:
                pass
            started.send_signal(signal.SIGINT)
        assert started.returncode in {0, 130}  # 0: it had just finished
        if started.returncode == 130:
            assert traces() == []

    def test_disks_are_kept_when_asked(self) -> None:
        lab = up()
        (lab.disks / "node-2.raw").open("r+b").write(b"keep me")
        assert lab_command("down", "--keep-disks").returncode == 0
        assert sorted(path.name for path in lab.root.iterdir()) == ["disks", "lab.json"]
        again = up()
        assert (again.disks / "node-2.raw").open("rb").read(7) == b"keep me"

    def test_a_folder_of_somebody_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        refused = lab_command("up", "--environments", "", "--folder", str(tmp_path))
        assert refused.returncode == 1
        lab_command("down", "--folder", str(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_secrets_are_for_root_and_the_service(self) -> None:
        lab = up()
        secret = [lab.private_key, lab.bmc_password, *lab.run.glob("*.bmc/lan.conf"), *lab.disks.iterdir()]
        assert {path.name: path.stat().st_mode & 0o077 for path in secret if path.stat().st_mode & 0o077} == {}
        password = lab.bmc_password.read_text().strip().encode()
        assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if password in _read(path)]
