"""The scenarios of ``molecule/`` as an Ansible person runs them, in one lab: the first makes it, the last ends it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kadeploy.lab import network

LAB = "kadeploy-molecule"
PROJECT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
SCENARIOS = {"boot_profile", "default", "disk", "estate", "failing_node", "inventory", "post_install", "power"}


@dataclass(frozen=True)
class Molecule:
    """The command, with a folder of its own for what it remembers."""

    memory: Path

    def __call__(self, *words: str, folder: Path = PROJECT) -> str:
        """What it says, once it has ended well."""
        own = {
            "PATH": f"{TOOLS}:{os.environ['PATH']}",
            "MOLECULE_EPHEMERAL_DIRECTORY": str(self.memory),
            "NO_COLOR": "1",
        }
        done = subprocess.run(
            [TOOLS / "molecule", words[0], "--no-command-borders", *words[1:]],
            cwd=folder,
            env=os.environ | own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-8000:]}{done.stderr[-8000:]}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def molecule(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Molecule]:
    command = Molecule(tmp_path_factory.mktemp("molecule"))
    yield command
    if network.exists(LAB):
        command("destroy")


def test_options_reach_the_plays_and_the_lab_is_made_whatever_they_are(molecule: Molecule) -> None:
    """From the folder where collections have their scenarios."""
    options = ["--tags=partitions", "--limit=node-3", "--check", "--diff"]
    said = molecule("converge", "-s", "disk", "--", *options, folder=PROJECT / "extensions")
    assert network.exists(LAB)
    assert re.search(r"^\+2: start=", said, re.M), said
    assert re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+) .* failed=0", said, re.M)[-1] == ("node-3", "1"), said
    assert "node-4" not in said
    assert "Format the swap partition" not in said


def test_all_scenarios_change_nothing_the_second_time_and_leave_no_lab_behind(molecule: Molecule) -> None:
    said = molecule("test", "--all")
    for name in sorted(SCENARIOS):
        for step in ("converge", "idempotence", "verify"):
            assert f"[{name} > {step}] Executed: Successful" in said, said
    assert not network.exists(LAB)
    assert not Path("/var/lib/kadeploy-lab", LAB).exists()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.9.9", 623))  # where a BMC was
