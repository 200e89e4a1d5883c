"""Jobs of a batch scheduler from their beginning to their end: the scripts of `contrib/slurm` on simulated nodes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy.lab.lab import Lab, saved
from kadeploy.nodeset import fold
from tests.light.conftest import TOOLS, lab_command
from tests.light.test_sim import tool

NAME = "kadeploy-jobs"
NODES = 4
BOOT = 1
"""Seconds that a boot takes: a node is given up some twenty seconds later."""
CONTRIB = Path(__file__).parents[2] / "contrib"
EVERYWHERE = f"node-[1-{NODES}]"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with a production system and an environment that may destroy it; one of its nodes is dead."""
    lab_command("down", "--name", NAME)
    options = ("--backend", "light", "--boot-delay", str(BOOT), "--faults", "dead=1")
    lab_command("up", "--kind", "sim", "--nodes", str(NODES), "--name", NAME, *options)
    try:
        made = saved(NAME)
        assert made is not None
        _must(tool(made, "karights3", "-a", "-m", "*", "-p", "*", "-u", "root"))
        sim = (made.environments_folder / "sim.dsc").read_text()
        folder = tmp_path_factory.mktemp("environments")
        for name, demolishing in (("production", 0), ("wild", 1)):
            own = {"name": name, "demolishing_env": demolishing}
            lines = [line for line in sim.splitlines() if line.split(":")[0].strip() not in own]
            lines += [f"{key} : {value}" for key, value in own.items()]
            (folder / f"{name}.dsc").write_text("\n".join(lines))
            _must(tool(made, "kaenv3", "-a", folder / f"{name}.dsc"))
        yield made
    finally:
        lab_command("down", "--name", NAME)


def _must(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def job(lab: Lab, name: str, nodes: str, conf: Path) -> subprocess.CompletedProcess[str]:
    """Call a script for a job of John's on *nodes*; `scontrol` beside *conf* writes down what it is told."""
    scontrol = conf.parent / "scontrol"
    scontrol.write_text(f'#!/bin/sh\n[ "$1" != show ] && echo "$*" >> {conf.parent}/told\n')
    scontrol.chmod(0o755)
    conf.write_text(
        f"export KADEPLOY_CONFIG_DIR={lab.config}\ntools={conf.parent}:{TOOLS}\n"
        "partitions=/dev/sda3\nenvironment=production\nproduction=2\nfree_limit=10\n"
    )
    told = {"JOB_ID": "7", "JOB_USER": "johnsmith", "JOB_NODELIST": nodes, "JOB_PARTITION": "deploy"}
    env = {f"SLURM_{key}": value for key, value in told.items()} | {"KADEPLOY_JOBS_CONF": str(conf)}
    script = CONTRIB / "slurm" / f"{name}-slurmctld"
    return subprocess.run([script], env=env, capture_output=True, text=True, timeout=600, check=False)


def systems(lab: Lab, nodes: str) -> set[str]:
    """State and environment of *nodes*, without what is the same for all."""
    rows = (line.split(",") for line in _must(tool(lab, "kanodes3", "-d", "-m", nodes)).splitlines())
    return {f"{row[1]} {row[3]}" for row in rows}


def test_the_production_system_is_back_after_a_job_whatever_its_user_has_deployed(lab: Lab, tmp_path: Path) -> None:
    """By a reboot where it has survived, by a deployment where it has not; a node that is lost costs no other."""
    (dead,) = lab.faults
    healthy = fold(node for node in lab.members if node != dead)
    assert job(lab, "prolog", EVERYWHERE, tmp_path / "jobs.conf").returncode == 0
    assert "### " in _must(tool(lab, "karights3", "-s", "-u", "johnsmith"))
    _must(tool(lab, "kadeploy3", "-m", healthy, "-e", "wild"))
    assert systems(lab, healthy) == {"deployed wild"}

    ended = job(lab, "epilog", EVERYWHERE, tmp_path / "jobs.conf")
    assert "kareboot3 ended with status 2" in ended.stderr
    assert systems(lab, healthy) == {"deployed production"}
    assert f"an administrator is needed: the production system is not on {dead}" in ended.stderr
    assert f"update nodename={dead} state=drain" in (tmp_path / "told").read_text()
    assert ended.returncode == 1
    assert tool(lab, "karights3", "-s", "-u", "johnsmith").returncode == 1

    assert job(lab, "prolog", healthy, tmp_path / "jobs.conf").returncode == 0
    again = job(lab, "epilog", healthy, tmp_path / "jobs.conf")
    assert again.returncode == 0, again.stderr
    assert "ended with status" not in again.stderr
    assert systems(lab, healthy) == {"prod_env production"}
