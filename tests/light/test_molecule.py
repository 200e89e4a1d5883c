"""``molecule test`` deploys two light nodes with the real playbooks, twice, and finds what a deployment shall leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kadeploy.lab import network

PROJECT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent


def test_the_scenario_passes_and_leaves_no_lab_behind() -> None:
    done = subprocess.run(
        [TOOLS / "molecule", "test"],
        cwd=PROJECT,
        env=os.environ | {"PATH": f"{TOOLS}:{os.environ['PATH']}", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}{done.stderr[-8000:]}"
    assert not network.exists("kadeploy-molecule")
    assert not Path("/var/lib/kadeploy-lab/kadeploy-molecule").exists()
