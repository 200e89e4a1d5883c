"""``auto`` in ``macro_steps`` on simulated nodes: kexec is tried, then used, then left to those on which it works."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy.lab.lab import Lab, saved
from tests.light.conftest import TOOLS, lab_command

NAME = "kadeploy-boots"
NODES = 10
KEXEC, CLASSICAL, HARD = "BootNewEnvKexec", "BootNewEnvClassical", "BootNewEnvHardReboot"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab in which one node hangs in kernels that kexec starts, and whose cluster leaves the boots to us."""
    lab_command("down", "--name", NAME)
    options = ("--backend", "light", "--boot-delay", "6", "--faults", "no-kexec=1")
    lab_command("up", "--kind", "sim", "--nodes", str(NODES), "--name", NAME, *options)
    try:
        made = saved(NAME)
        assert made is not None
        cluster = made.config / "clusters" / "lab.yml"
        text = cluster.read_text()
        for way in ("SetDeploymentEnvUntrusted", CLASSICAL):
            text = text.replace(
                f"    - {{implementation: {way},", f"    - {{implementation: auto}}\n    - {{implementation: {way},"
            )
        cluster.write_text(text)
        tool(made, "karights3", "-a", "-m", made.column("node-"), "-p", "*", "-u", "root")
        yield made
    finally:
        lab_command("down", "--name", NAME)


def tool(lab: Lab, name: str, *arguments: str | Path) -> str:
    """What one of the tools says, which ends well."""
    environment = os.environ | {"KADEPLOY_CONFIG_DIR": str(lab.config)}
    done = subprocess.run(
        [TOOLS / name, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def deploy(lab: Lab, nodes: list[str], *more: str) -> str:
    request = [word for node in nodes for word in ("-m", node)]
    request += ["-a", str(lab.environments_folder / "sim.dsc"), "-k", str(lab.public_key)]
    return tool(lab, "kadeploy3", *request, "--reboot-kexec-timeout", "15", *more)


def last(lab: Lab) -> dict[str, dict[str, str]]:
    """The last row of the log of each node."""
    rows = json.loads(tool(lab, "kastat3", "-d", "-F", "hostname,start,step1,step3,given_up", "--format", "json"))
    return {row["hostname"]: row for row in sorted(rows, key=lambda row: row["start"])}


def test_kexec_is_explored_on_one_node_then_used_and_given_up_where_it_fails(lab: Lab) -> None:
    (faulty,) = lab.faults
    healthy = [node for node in lab.members if node != faulty]
    said = deploy(lab, healthy[:2])
    assert f"lab: BootNewEnv: {KEXEC} for {healthy[0]}: a try, with the firmware behind it" in said
    assert {node: row["step3"] for node, row in last(lab).items()} == {healthy[0]: KEXEC, healthy[1]: CLASSICAL}
    for _ in range(2):
        deploy(lab, healthy[:1])

    plan = deploy(lab, [*healthy, faulty], "--dry-run")
    assert f"BootNewEnv: {KEXEC} (1 try, no time limit), then {CLASSICAL}" in plan
    assert "3 of 3 tries within 90 days went well" in plan
    deploy(lab, [*healthy, faulty])
    rows = last(lab)
    assert {rows[node]["step3"] for node in healthy} == {KEXEC}
    assert (rows[faulty]["step3"], rows[faulty]["given_up"]) == (HARD, f"{KEXEC},{CLASSICAL}")

    said = deploy(lab, [faulty, healthy[0]])
    assert f"lab: BootNewEnv: {CLASSICAL} for {faulty}: the last try by kexec failed there" in said
    rows = last(lab)
    assert (rows[faulty]["step3"], rows[faulty]["given_up"]) == (CLASSICAL, "")
    assert rows[healthy[0]]["step3"] == KEXEC


def test_a_node_in_the_deployment_system_may_jump_into_it_again(lab: Lab) -> None:
    node = next(node for node in lab.members if node not in lab.faults)
    assert "in the state deployed, and kexec starts from deploy_env" in deploy(lab, [node], "--dry-run")
    tool(lab, "kareboot3", "-m", node, "-r", "deploy_env")
    deploy(lab, [node])
    assert last(lab)[node]["step1"] == "SetDeploymentEnvKexec"
