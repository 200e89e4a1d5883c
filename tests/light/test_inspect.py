"""Many nodes are inspected at once: those that fail cost no other one, and all are left as they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy.config.folder import load_configuration
from kadeploy.lab import control
from kadeploy.lab.lab import Lab, saved
from tests.light.conftest import lab_command

NAME = "kadeploy-inspect"
TOOLS = Path(sys.executable).parent
ON, OFF, DEAD = "node-1", "node-2", "node-3"
FORMER = b"DEFAULT a profile of somebody's\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three simulated nodes; one of them is on, and one has a BMC that does not answer."""
    lab_command("down", "--name", NAME)
    lab_command("up", "--kind", "sim", "--nodes", "3", "--name", NAME, "--boot-delay", "1", "--dead", DEAD)
    try:
        made = saved(NAME)
        assert made is not None
        cluster = made.config / "clusters" / "lab.yml"
        cluster.write_text(cluster.read_text().replace("  timeout: 30 ", "  timeout: 2 "))
        done = run(made, "karights3", "-a", "-m", "node-[1-3]", "-p", "*", "-u", "root")
        assert done.returncode == 0, done.stderr
        control.ask(made, "on", ON)
        yield made
    finally:
        lab_command("down", "--name", NAME)


def run(lab: Lab, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the tools as a user would."""
    return subprocess.run(
        [TOOLS / name, *arguments],
        env=environment(lab),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def environment(lab: Lab) -> dict[str, str]:
    return os.environ | {"KADEPLOY_CONFIG_DIR": str(lab.config)}


def held(lab: Lab) -> list[str]:
    return [
        each["node"] for each in json.loads(run(lab, "kadeploy-site", "nodes", "--held", "--format", "json").stdout)
    ]


def test_good_nodes_are_written_and_all_are_as_they_were(lab: Lab) -> None:
    profile = lab.tftp / "pxelinux.cfg" / "7F010001"
    assert lab.members[ON].address == "127.1.0.1"
    profile.write_bytes(FORMER)
    done = run(lab, "kadeploy-site", "inspect", "node-[1-3]", "--yes", "--format", "json")
    assert done.returncode == 3, done.stderr
    told = json.loads(done.stdout)
    assert (sorted(told["nodes"]), list(told["ko"]), told["written"]) == ([ON, OFF], [DEAD], True)
    assert "did not end within 2 s" in told["ko"][DEAD]
    (part,) = load_configuration(lab.config).clusters["lab"].hardware
    assert (part.nodes, part.arch) == ("node-[1-2]", os.uname().machine)
    assert [bool(control.ask(lab, "status", node)["on"]) for node in (ON, OFF)] == [True, False]
    assert [path.read_bytes() for path in profile.parent.iterdir()] == [FORMER]
    assert held(lab) == []


def test_who_leaves_is_told_which_nodes_are_on_their_way_and_nothing_is_written(lab: Lab) -> None:
    before = (lab.config / "clusters" / "lab.yml").read_bytes()
    command = [TOOLS / "kadeploy-site", "inspect", "node-[1-2]", "--yes"]
    with subprocess.Popen(
        command, env=environment(lab), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as asked:
        assert asked.stderr is not None
        assert "booting into the deployment system" in asked.stderr.readline()
        limit = time.monotonic() + 60
        while not held(lab) and time.monotonic() < limit:
            time.sleep(0.1)
        asked.send_signal(signal.SIGTERM)  # as Ctrl-C does, also where a shell has it ignored
        said = asked.stderr.read()
    assert asked.returncode == 130, said
    assert "node-[1-2] may be in the deployment system" in said
    assert "Traceback" not in said
    assert (lab.config / "clusters" / "lab.yml").read_bytes() == before
    assert held(lab) == []


def test_the_deployment_system_is_no_login_of_a_node_whose_disk_is_empty(lab: Lab) -> None:
    """It boots by its own profile again, which is none: the deployment system would answer by ssh as well."""
    done = run(lab, "kadeploy-site", "try", OFF, "--timeout", "4", "--format", "json")
    *before, broken = json.loads(done.stdout)["rungs"]
    assert [each["rung"] for each in before][-3:] == ["disk", "reboot", "leave"]
    assert (broken["rung"], broken["reached"], done.returncode) == ("login", False, 1)
