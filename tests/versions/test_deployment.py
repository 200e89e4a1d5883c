"""One whole deployment under the running Python and its ansible-core; `scripts/versions` runs it on every other one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy.lab.lab import Lab, saved

TOOLS = Path(sys.executable).parent
NAME = "kadeploy-py{}{}".format(*sys.version_info)
"""Several versions may be tried at a time."""
NODES = 3
pytestmark = [
    pytest.mark.versions,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a lab"),
]


def tool(name: str, *arguments: str | Path, **variables: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        [TOOLS / name, *arguments],
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def lab() -> Iterator[Lab]:
    tool("kadeploy-lab", "down", "--name", NAME)
    tool("kadeploy-lab", "up", "--no-service", "--kind", "sim", "--nodes", str(NODES), "--name", NAME)
    try:
        made = saved(NAME)
        assert made is not None
        yield made
    finally:
        tool("kadeploy-lab", "down", "--name", NAME)


def test_simulated_nodes_are_deployed_by_all_three_macro_steps(lab: Lab, tmp_path: Path) -> None:
    site = {"KADEPLOY_CONFIG_DIR": str(lab.config)}
    nodes = lab.column("node-")
    tool("karights3", "-a", "-m", nodes, "-p", "*", "-u", "root", **site)
    environment = lab.environments_folder / "sim.dsc"
    said = tool("kadeploy3", "-m", nodes, "-a", environment, "-k", lab.public_key, "-o", tmp_path / "ok", **site)
    assert set((tmp_path / "ok").read_text().split()) == set(lab.members), said
