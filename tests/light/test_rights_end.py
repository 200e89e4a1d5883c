"""Nodes that a running operation loses: the user's right ends, or another operation takes them by force.

The tools run as processes on simulated nodes whose systems are real OpenSSH servers. What the lab's logs say of a node
tells who has touched it, and when.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from kadeploy import events
from kadeploy.config.folder import load_site
from kadeploy.events import Began, Ended, Event, LetGo, StepStarted, Taken
from kadeploy.lab.lab import Lab, saved
from kadeploy.lab.sim.machine import CONNECTIONS_LOG
from kadeploy.state import database, nodes, rights
from tests.light.conftest import TOOLS, lab_command

NAME = "kadeploy-lose"
BOOT = 8
"""Seconds that nodes are away when they boot: long enough to lose one meanwhile."""
SOON = 5.0
"""Seconds within which a node is aborted and free."""
LOST, OTHERS = "node-3", ("node-1", "node-2", "node-4")
NOBODY = "65534"
STEPS = (
    "SetDeploymentEnv|SetDeploymentEnvUntrusted:1:300&"
    "BroadcastEnv|BroadcastEnvChain:1:300&"
    "BootNewEnv|BootNewEnvClassical:1:300"
)
SLEEP = """\
BroadcastEnvChain:
  send_environment:
    pre-ops:
      - {name: think, action: exec, command: "sleep 12"}
"""
E = TypeVar("E", bound=Event)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab_command("down", "--name", NAME)
    options = ("--boot-delay", str(BOOT), "--faults", "hang=1", "--seed", "5", "--backend", "openssh")
    lab_command("up", "--kind", "sim", "--nodes", "5", "--name", NAME, *options)
    try:
        made = saved(NAME)
        assert made is not None
        yield made
    finally:
        database.disconnect()
        lab_command("down", "--name", NAME)


@pytest.fixture(autouse=True)
def _rights(lab: Lab) -> None:
    for user in ("root", "nobody"):
        rights.add(load_site(lab.config), user, list(lab.members), ["*"])


def words(lab: Lab, name: str, *arguments: str | Path, **variables: str) -> tuple[list[str | Path], dict[str, str]]:
    return [TOOLS / name, *arguments], os.environ | {"KADEPLOY_CONFIG_DIR": str(lab.config)} | variables


def tool(lab: Lab, name: str, *arguments: str | Path, **variables: str) -> str:
    """Output of a tool that must succeed."""
    argv, environment = words(lab, name, *arguments, **variables)
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Running:
    """A deployment that runs in a process of its own."""

    lab: Lab
    folder: Path
    process: subprocess.Popen[str]
    before: set[str]

    @property
    def run(self) -> Path | None:
        """Its run folder, once there is one."""
        runs = load_site(self.lab.config).run_folders
        return next((each for each in runs.glob("D-*") if each.name not in self.before), None)

    def events(self) -> list[Event]:
        path = self.run and self.run / events.FILE_NAME
        return list(events.read(path)) if path and path.exists() else []

    def heard(self, kind: type[E], which: Callable[[E], bool] = lambda _: True) -> E:
        """Such an event, waited for."""
        deadline = time.monotonic() + 120
        while True:
            for event in self.events():
                if isinstance(event, kind) and which(event):
                    return event
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, kind
            time.sleep(0.1)

    def end(self) -> tuple[int, str]:
        output, errors = self.process.communicate(timeout=300)
        return self.process.returncode, output + errors


def deploy(lab: Lab, folder: Path, *more: str | Path, names: tuple[str, ...] = (*OTHERS, LOST)) -> Running:
    request = [word for node in names for word in ("-m", node)]
    request += ["-a", str(lab.environments_folder / "sim.dsc"), "-k", str(lab.public_key), "--force-steps", STEPS]
    argv, environment = words(lab, "kadeploy3", *request, "-o", folder / "ok", "-n", folder / "ko", *more)
    before = {each.name for each in load_site(lab.config).run_folders.glob("D-*")}
    process = subprocess.Popen(
        argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return Running(lab, folder, process, before)


def touched(lab: Lab, node: str) -> dict[str, object]:
    """All traces of what was done to a node: orders to its BMC and by its system, ssh connections, its boot profile."""
    orders = [line for line in lab.log("supervisor").read_text().splitlines() if f" {node}: " in line]
    path = lab.log(CONNECTIONS_LOG)
    connections = [line for line in path.read_text().splitlines() if f" {node} " in line] if path.exists() else []
    octets = lab.members[node].address.split(".")
    profile = lab.tftp / "pxelinux.cfg" / "".join(f"{int(octet):02X}" for octet in octets)
    written = profile.stat().st_mtime_ns if profile.exists() else 0
    return {
        "orders": orders,
        "connections": connections,
        "serial": lab.serial_log(node).read_text() if lab.serial_log(node).exists() else "",
        "profile": written,
    }


def state(lab: Lab, node: str) -> str:
    site = load_site(lab.config)
    return next(row.state for row in nodes.states(site, [node]))


@pytest.mark.parametrize("micro_step", ["wait_reboot", "send_environment", "BootNewEnv"])
def test_a_node_is_aborted_and_free_when_its_right_ends_and_the_others_are_deployed(
    lab: Lab, tmp_path: Path, micro_step: str
) -> None:
    """In each macro-step; another user switches the node off as soon as it is free, and nobody touches it after."""
    (tmp_path / "custom.yml").write_text(SLEEP)
    slow = ["--set-custom-operations", tmp_path / "custom.yml"] if micro_step == "send_environment" else []
    running = deploy(lab, tmp_path, *slow)
    try:
        if micro_step == "BootNewEnv":
            running.heard(StepStarted, lambda e: (e.attempt.macro_step, e.micro_step) == (micro_step, "wait_reboot"))
        else:
            running.heard(StepStarted, lambda e: e.micro_step == micro_step)
        time.sleep(1)
        begun = time.time()
        tool(lab, "karights3", "-d", "-m", LOST, "-p", "*", "-u", "root")
        taken, let_go = running.heard(Taken), running.heard(LetGo)
        tool(lab, "kapower3", "--off", "-m", LOST, SUDO_UID=NOBODY)
        traces = touched(lab, LOST)
        status, output = running.end()
    finally:
        running.process.kill()
    reason = f"aborted: root does not have the right to use /dev/sda3 of {LOST} any more"
    assert taken.reasons == {LOST: reason}
    assert max(taken.at, let_go.at) - begun < SOON
    assert touched(lab, LOST) == traces
    assert (status, (tmp_path / "ok").read_text().split(), (tmp_path / "ko").read_text().split()) == (
        3,
        sorted(OTHERS),
        [LOST],
    ), output
    assert f"{LOST}: {reason}" in output
    assert f"{LOST} ({reason})" in output
    assert state(lab, LOST) == "powered", "what the other user did is not written over"
    assert running.run
    log = tool(lab, "kastat3", "-d", "-w", running.run.name, "-F", "hostname,error", "-m", LOST)
    assert reason in log


def test_the_state_of_a_node_that_nobody_takes_is_aborted_and_its_claim_gone_while_the_others_go_on(
    lab: Lab, tmp_path: Path
) -> None:
    running = deploy(lab, tmp_path)
    try:
        running.heard(StepStarted, lambda e: e.micro_step == "wait_reboot")
        tool(lab, "karights3", "-d", "-m", LOST, "-p", "*", "-u", "root")
        running.heard(LetGo)
        time.sleep(0.5)
        site = load_site(lab.config)
        assert running.run
        held = nodes.lost(site, running.run.name, [*OTHERS, LOST])
        assert list(held) == [LOST]
        assert state(lab, LOST) == "aborted"
        assert running.process.poll() is None
        assert running.end()[0] == 3
    finally:
        running.process.kill()


def test_a_command_that_never_ends_is_ended_on_a_node_that_is_lost(lab: Lab, tmp_path: Path) -> None:
    """Nothing else would so soon: the micro-step may take two minutes."""
    (hanging,) = lab.faults
    running = deploy(lab, tmp_path, names=(*OTHERS, hanging))
    try:
        running.heard(StepStarted, lambda e: e.micro_step == "create_partition_table")
        time.sleep(2)
        begun = time.time()
        tool(lab, "karights3", "-d", "-m", hanging, "-p", "*", "-u", "root")
        let_go = running.heard(LetGo)
        further = running.heard(StepStarted, lambda e: e.micro_step == "format_deploy_part")
        status, output = running.end()
    finally:
        running.process.kill()
    assert max(let_go.at, further.at) - begun < SOON
    assert hanging not in further.nodes
    assert (status, (tmp_path / "ok").read_text().split()) == (3, sorted(OTHERS)), output


def test_an_operation_all_of_whose_nodes_are_lost_ends_at_once(lab: Lab, tmp_path: Path) -> None:
    running = deploy(lab, tmp_path)
    try:
        running.heard(StepStarted, lambda e: e.micro_step == "wait_reboot")
        begun = time.time()
        tool(lab, "karights3", "-d", "-m", "node-[1-4]", "-p", "*", "-u", "root")
        status, output = running.end()
    finally:
        running.process.kill()
    assert running.heard(Ended).at - begun < SOON + 2
    assert status == 3, output
    assert state(lab, "node-1") == "aborted"


def test_a_node_that_another_operation_takes_by_force_is_let_go_by_the_one_that_held_it(
    lab: Lab, tmp_path: Path
) -> None:
    running = deploy(lab, tmp_path)
    try:
        running.heard(StepStarted, lambda e: e.micro_step == "wait_reboot")
        tool(lab, "kapower3", "--off", "-m", LOST, "--ignore-nodes-deploying", SUDO_UID=NOBODY)
        taken, let_go = running.heard(Taken), running.heard(LetGo)
        traces = touched(lab, LOST)
        status, output = running.end()
    finally:
        running.process.kill()
    assert list(taken.reasons) == [LOST]
    assert "of nobody" in taken.reasons[LOST]
    runs = load_site(lab.config).run_folders.glob("P-*")
    newest = max(runs, key=lambda each: each.stat().st_mtime)
    (began,) = (event for event in events.read(newest / events.FILE_NAME) if isinstance(event, Began))
    assert let_go.at < began.at, "it has begun when nobody else had the node in hand"
    assert touched(lab, LOST) == traces
    assert (status, (tmp_path / "ok").read_text().split()) == (3, sorted(OTHERS)), output
    assert state(lab, LOST) == "powered"


def test_a_site_where_rights_do_not_count_never_loses_a_node(lab: Lab, tmp_path: Path) -> None:
    path = lab.config / "site.yml"
    text = path.read_text()
    path.write_text(text.replace("\nrights: db\n", "\nrights: dummy\n"))
    try:
        running = deploy(lab, tmp_path, names=(LOST,))
        running.heard(StepStarted, lambda e: e.micro_step == "wait_reboot")
        tool(lab, "karights3", "-d", "-m", LOST, "-p", "*", "-u", "root")
        status, output = running.end()
    finally:
        path.write_text(text)
        running.process.kill()
    assert status == 0, output
    assert not [event for event in running.events() if isinstance(event, Taken)]
