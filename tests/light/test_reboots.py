"""Reboots of simulated nodes whose BMCs cannot be relied on: a boot is proved, or the node is KO with what was seen."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy.lab.lab import Lab, saved
from tests.light.conftest import TOOLS, lab_command

NAME = "kadeploy-reboots"
FAULTS = ("bmc-idle", "bmc-late", "bmc-says-on", "bmc-says-off")
NODES = 5
BOOT = 2
"""Seconds that a boot takes."""
PATIENCE = 27
"""Seconds for a boot: more than the twenty that a late BMC takes."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab in which each fault of a BMC has one node; all of them are on, and in the deployment system."""
    faults = ",".join(f"{fault}=1" for fault in FAULTS)
    lab_command("down", "--name", NAME)
    lab_command(
        "up", "--kind", "sim", "--nodes", str(NODES), "--name", NAME, "--boot-delay", str(BOOT), "--faults", faults
    )
    try:
        made = saved(NAME)
        assert made is not None
        assert tool(made, "karights3", "-a", "-m", made.column("node-"), "-p", "*", "-u", "root").returncode == 0
        profiles = ("-r", "deploy_env", "-l", "very_hard", "--reboot-classical-timeout", "1")
        tool(made, "kareboot3", *profiles, "-m", made.column("node-"))
        for node in made.members:  # whatever its BMC does
            lab_command("power", "on", node, "--name", NAME)
            lab_command("power", "reset", node, "--name", NAME)
        time.sleep(BOOT + 2)
        yield made
    finally:
        lab_command("down", "--name", NAME)


def tool(lab: Lab, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the tools as a user would."""
    environment = os.environ | {"KADEPLOY_CONFIG_DIR": str(lab.config)}
    return subprocess.run(
        [TOOLS / name, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def rebooted(lab: Lab, folder: Path, *options: str) -> tuple[set[str], str]:
    """The nodes that are OK after a reboot, and what was said."""
    lists = ["-o", folder / "ok", "-n", folder / "ko", "--reboot-classical-timeout", str(PATIENCE)]
    done = tool(lab, "kareboot3", "-m", lab.column("node-"), *lists, *options)
    assert (folder / "ok").exists(), done.stdout + done.stderr
    return set((folder / "ok").read_text().split()), done.stdout


def test_a_reboot_that_did_not_happen_is_never_called_one_and_is_tried_harder(lab: Lab, tmp_path: Path) -> None:
    """The BMC that takes its machine for off does not reset it; switched off and on, it boots.

    All of them are in the deployment system, and come back there.
    """
    faulty = {fault: node for node, fault in lab.faults.items()}
    ok, said = rebooted(lab, tmp_path, "-r", "simple_reboot", "-l", "hard")
    idle, off = faulty["bmc-idle"], faulty["bmc-says-off"]
    assert ok == set(lab.members) - {idle}, said
    assert f"{idle} (RebootSimple-wait_reboot: Not rebooted: it still runs the system from before the reboot" in said
    assert "RebootSimple (retry 1) done in " in said
    supervisor = lab.log("supervisor").read_text()
    assert f"{off}: off (asked by bmc)" in supervisor.rsplit(f"{off}: on (asked by bmc)", 1)[0]
