"""The scripts of `contrib/slurm` under a real Slurm: a controller and three nodes, all on this machine."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from kadeploy.config.site import Site
from kadeploy.state import rights
from tests.accounts import Installation

CONTRIB = Path(__file__).parents[3] / "contrib"
NODES = 3
PATIENCE = 60
pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make accounts and start jobs for them"),
]

SLURM_CONF = """\
ClusterName=kadeploy
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
PrologSlurmctld={folder}/prolog
EpilogSlurmctld={folder}/epilog
PrologEpilogTimeout=7200
NodeName=gdx-[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=1
PartitionName=deploy Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=EXCLUSIVE
"""


@dataclass
class Slurm:
    """A batch scheduler whose jobs may deploy on the test's site."""

    folder: Path
    installation: Installation

    def tool(self, *words: str) -> str:
        """Output of one of its commands, called by Alice where it makes a job and by root otherwise."""
        env = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        if words[0] == "salloc":
            done = self.installation.tool(*words, account=self.installation.alice, env=env, timeout=PATIENCE)
        else:
            done = subprocess.run(words, env=os.environ | env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + (self.folder / "controller.log").read_text()
        return done.stdout + done.stderr

    def states(self) -> list[str]:
        """What `sinfo` says of each node."""
        return self.tool("sinfo", "-N", "-h", "-o", "%N %T").splitlines()

    def log(self) -> str:
        """What our scripts said."""
        return (self.folder / "log").read_text()


@pytest.fixture
def slurm(installation: Installation, site: Site, site_folder: Path, open_folder: Path) -> Iterator[Slurm]:
    """A Slurm that was started for the test; all its nodes are idle."""
    open_folder.chmod(0o755)
    _configure(open_folder, site_folder)
    made = Slurm(open_folder, installation)
    munge = [f"--{name}={open_folder}/munge{suffix}" for name, suffix in MUNGE.items()]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SLURM_CONF": str(open_folder / "slurm.conf")}
    commands = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", f"gdx-{number}"] for number in range(1, NODES + 1)]
    with ExitStack() as running, (open_folder / "daemons").open("w") as output:
        for words in commands:
            daemon = running.enter_context(subprocess.Popen(words, env=env, stdout=output, stderr=output))
            running.callback(daemon.kill)
            if words[0] == "munged":
                _await((open_folder / "munge").exists)
        _await(lambda: made.states() == [f"gdx-{number} idle" for number in range(1, NODES + 1)])
        yield made


MUNGE = {"socket": "", "key-file": ".key", "pid-file": ".pid", "log-file": ".log", "seed-file": ".seed"}


def _configure(folder: Path, site_folder: Path) -> None:
    controller, first = _free_ports(1), _free_ports(NODES)
    (folder / "slurm.conf").write_text(
        SLURM_CONF.format(
            folder=folder,
            host=socket.gethostname(),
            nodes=NODES,
            controller=controller,
            first=first,
            last=first + NODES - 1,
        )
    )
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "state").mkdir()
    for number in range(1, NODES + 1):
        (folder / f"gdx-{number}").mkdir()
    (folder / "jobs.conf").write_text(
        f"export KADEPLOY_CONFIG_DIR={site_folder} SLURM_CONF={folder}/slurm.conf\n"
        f"tools={Path(sys.executable).parent}\npartitions=/dev/sda3\nenvironment=production\nproduction=2\n"
    )
    for name in ("prolog", "epilog"):
        script = f"KADEPLOY_JOBS_CONF={folder}/jobs.conf exec {CONTRIB}/slurm/{name}-slurmctld 2>> {folder}/log"
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)


def _free_ports(count: int) -> int:
    """The first of *count* ports in a row on which nobody listens."""
    while True:
        with ExitStack() as taken:
            first = 0
            for rank in range(count):
                each = taken.enter_context(socket.socket())
                try:
                    each.bind(("127.0.0.1", first + rank if first else 0))
                except OSError:
                    break
                first = first or each.getsockname()[1]
            else:
                return first


def _await(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not _holds(holds):
        assert time.monotonic() < limit
        time.sleep(0.1)


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except (AssertionError, OSError):
        return False


def test_a_job_of_slurm_has_rights_on_its_nodes_until_it_ends_and_nodes_without_production_are_drained(
    slurm: Slurm, site: Site
) -> None:
    user = slurm.installation.alice.name
    granted = slurm.tool("salloc", "--no-shell", "-N", "2", "-t", "10")
    given = rights.show(site, user)
    assert [(right.node, right.part) for right in given] == [
        ("gdx-1.site", "/dev/sda3"),
        ("gdx-2.site", "/dev/sda3"),
    ], slurm.log()
    assert {right.until is not None and 0 < right.until - time.time() - 600 <= 660 for right in given} == {True}

    with closing(sqlite3.connect(site.database.removeprefix("sqlite://"))) as holder:
        holder.execute("BEGIN EXCLUSIVE")  # the epilogue gets no further
        slurm.tool("scancel", granted.split("allocation ")[-1].split()[0])
        _await(lambda: slurm.states() == ["gdx-1 reserved", "gdx-2 reserved", "gdx-3 idle"])
        assert slurm.tool("squeue", "-h", "-t", "RUNNING") == ""
    _await(lambda: slurm.states() == ["gdx-1 drained", "gdx-2 drained", "gdx-3 idle"])
    assert rights.show(site, user) == []
    assert "not on the production system after job" in slurm.tool("sinfo", "-R", "-h", "-o", "%E"), slurm.log()
    _await(lambda: "No reservations" in slurm.tool("scontrol", "show", "reservation"))


def test_a_job_of_slurm_whose_user_can_have_no_rights_does_not_start(slurm: Slurm, site_folder: Path) -> None:
    (site_folder / "clusters" / "gdx.yml").unlink()
    with pytest.raises(AssertionError, match="Job allocation"):
        slurm.tool("salloc", "--no-shell", "-N", "1", "-t", "10")
    assert "Unknown node: gdx-" in slurm.log()
