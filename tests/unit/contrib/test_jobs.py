"""Rights from a batch scheduler: the scripts of `contrib`, called as Slurm and OAR call them, with the real tools."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kadeploy.config.site import Site
from kadeploy.state import nodes, rights
from kadeploy.state.database import connect
from kadeploy.state.rights import Given

CONTRIB = Path(__file__).parents[3] / "contrib"
GRACE = 600
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def conf(site: Site, site_folder: Path, tmp_path: Path) -> Path:
    """A site's jobs.conf; folder ``bin`` beside it comes first in the path."""
    path = tmp_path / "jobs.conf"
    path.write_text(
        f"export KADEPLOY_CONFIG_DIR={site_folder}\n"
        f"tools={tmp_path}/bin:{Path(sys.executable).parent}\n"
        'partitions="/dev/sda3 /dev/sda5"\nenvironment=production\nproduction=2\nfree_limit=2\n'
    )
    (tmp_path / "bin").mkdir()
    return path


@pytest.fixture
def slurm(conf: Path) -> Script:
    """Calls a script as slurmctld does: there is nothing in the environment but what tells of the job.

    `scontrol` writes down what it is told.
    """
    _program(conf.parent / "bin" / "scontrol", f'[ "$1" != show ] && echo "$*" >> {conf.parent}/scontrol')

    def run(name: str, **given: str) -> subprocess.CompletedProcess[str]:
        job = {
            "SLURM_JOB_ID": "42",
            "SLURM_JOB_USER": "johnsmith",
            "SLURM_JOB_NODELIST": "gdx-[5-6,14]",
            "SLURM_JOB_PARTITION": "deploy",
            "KADEPLOY_JOBS_CONF": str(conf),
        }
        script = CONTRIB / "slurm" / f"{name}-slurmctld"
        return subprocess.run([script], env=job | given, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture
def oar(conf: Path) -> Script:
    """Calls a script as OAR's server does, with the number of the job; `oarstat` answers as OAR 2.5 does."""

    def run(script: str, *arguments: str, **job: object) -> subprocess.CompletedProcess[str]:
        known = {
            "owner": "johnsmith",
            "types": ["deploy"],
            "startTime": int(time.time()),
            "walltime": 3600,
            "assigned_network_address": ["gdx-6.site", "gdx-5.site", "gdx-6.site"],
        }
        _program(conf.parent / "bin" / "oarstat", f"cat <<'TEXT'\n{json.dumps({'42': known | job})}\nTEXT")
        _program(conf.parent / "bin" / "oarnodesetting", f'echo "$*" >> {conf.parent}/oarnodesetting')
        words, env = [CONTRIB / "oar" / script, *(arguments or ("42",))], {"KADEPLOY_JOBS_CONF": str(conf)}
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)

    return run


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def given(nodes: str, until: int | None, parts: tuple[str, ...] = ("/dev/sda3", "/dev/sda5")) -> list[Given]:
    return [Given(f"gdx-{number}.site", part, until) for number in nodes.split() for part in parts]


def test_a_job_gives_its_user_rights_on_its_nodes_until_its_end_and_takes_them_back(slurm: Script, site: Site) -> None:
    end = int(time.time()) + 3600
    begun = slurm("prolog", SLURM_JOB_END_TIME=str(end))
    assert begun.returncode == 0, begun.stderr
    assert rights.show(site, "johnsmith") == given("5 6 14", end + GRACE)
    ended = slurm("epilog")
    assert "johnsmith has no rights on gdx-[5-6,14] any more" in ended.stderr
    assert rights.show(site, "johnsmith") == []


def test_a_job_that_is_prepared_again_has_the_end_of_the_last_time(slurm: Script, site: Site, conf: Path) -> None:
    now = int(time.time())
    for parts in (("/dev/sda3", "/dev/sda5"), ("*",)):
        conf.write_text(f'{conf.read_text()}partitions="{" ".join(parts)}"\n')
        for end in (now + 100, now + 50):
            assert slurm("prolog", SLURM_JOB_END_TIME=str(end)).returncode == 0
            assert given("5 6 14", end + GRACE, parts)[0] in rights.show(site, "johnsmith")
        rights.delete(site, "johnsmith", ["gdx-5.site", "gdx-6.site", "gdx-14.site"], parts)


def test_a_job_without_an_end_has_rights_without_one(slurm: Script, site: Site) -> None:
    assert slurm("prolog").returncode == 0
    assert rights.show(site, "johnsmith") == given("5 6 14", None)


def test_rights_that_an_earlier_job_has_left_on_the_nodes_are_gone(slurm: Script, site: Site) -> None:
    rights.add(site, "eve", ["gdx-5.site", "gdx-7.site"], ["/dev/sda3"])
    rights.add(site, "slurm", ["*"], ["*"])
    assert slurm("prolog").returncode == 0
    assert [right.node for right in rights.show(site, "eve")] == ["gdx-7.site"]
    assert rights.show(site, "slurm") == [Given("*", "*")]


def test_the_log_of_the_system_tells_what_was_done_for_a_job(slurm: Script, conf: Path) -> None:
    _program(conf.parent / "bin" / "logger", f'printf "%s\\n" "$*" >> {conf.parent}/log')
    slurm("prolog")
    slurm("epilog")
    begun, ended, *_ = (conf.parent / "log").read_text().splitlines()
    assert begun == "-t kadeploy-prolog -- job 42: rights for johnsmith on gdx-[5-6,14]"
    assert ended == "-t kadeploy-epilog -- job 42: johnsmith has no rights on gdx-[5-6,14] any more"


@pytest.mark.parametrize("user", ["-x", "--help", "a b", "$(touch bad)`touch bad`;touch bad", "müller", "*", "o'neil"])
def test_the_name_of_a_user_is_a_name_whatever_is_in_it(user: str, slurm: Script, site: Site, conf: Path) -> None:
    assert slurm("prolog", SLURM_JOB_USER=user).returncode == 0
    assert rights.users(site) == [user]
    slurm("epilog", SLURM_JOB_USER=user)
    assert rights.users(site) == []
    assert not list(Path.cwd().glob("bad"))


def test_jobs_of_other_partitions_of_slurm_are_left_alone(slurm: Script, site: Site) -> None:
    rights.add(site, "johnsmith", ["gdx-5.site"], ["/dev/sda3"])
    for name in ("prolog", "epilog"):
        done = slurm(name, SLURM_JOB_PARTITION="batch")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert rights.show(site, "johnsmith") == given("5", None, ("/dev/sda3",))


def test_a_job_does_not_start_without_its_rights_and_the_log_says_why(slurm: Script, conf: Path) -> None:
    done = slurm("prolog", SLURM_JOB_NODELIST="xyz-[1-3]")
    assert done.returncode == 1
    assert "kadeploy-prolog: job 42: karights3 ended with status 1: " in done.stderr
    assert "Unknown node: xyz-[1-3]" in done.stderr
    assert (conf.parent / "scontrol").read_text().split("\n")[1] == "delete reservationname=kadeploy-42"


def test_a_job_does_not_start_on_nodes_that_slurm_might_give_to_others_before_production_is_back(
    slurm: Script, site: Site, conf: Path
) -> None:
    _program(conf.parent / "bin" / "scontrol", "exit 1")
    done = slurm("prolog")
    assert done.returncode == 1
    assert "scontrol ended with status 1" in done.stderr
    assert rights.users(site) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("environment=", "partitions, environment and production are needed"),
        (None, "cannot be read: nothing is done"),
    ],
)
def test_without_settings_nothing_is_done(settings: str | None, told: str, slurm: Script, conf: Path) -> None:
    if settings is None:
        conf.unlink()
    else:
        conf.write_text(f"{conf.read_text()}{settings}\n")
    for name in ("prolog", "epilog"):
        done = slurm(name)
        assert done.returncode == 1
        assert told in done.stderr


def test_called_by_hand_the_script_says_who_has_to_call_it(slurm: Script, oar: Script) -> None:
    assert "slurmctld has to call this script" in slurm("prolog", SLURM_JOB_USER="").stderr
    assert "OAR has to call this script" in oar("prologue", "x; y").stderr


def test_a_step_that_hangs_is_given_up_and_the_next_are_tried(slurm: Script, site: Site, conf: Path) -> None:
    """Somebody holds the database: no tool gets on."""
    assert slurm("prolog").returncode == 0
    conf.write_text(f"{conf.read_text()}rights_limit=1\nreboot_limit=1\ndeploy_limit=1\nfree_limit=1\n")
    holder = sqlite3.connect(site.database.removeprefix("sqlite://"))
    holder.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    done = slurm("epilog")
    holder.rollback()
    assert time.monotonic() - began < 50
    assert done.returncode == 1
    assert "karights3 ended with status 124: it took longer than 1 s" in done.stderr
    told = [done.stderr.index(f"{step} ended with status") for step in ("karights3", "kareboot3", "kadeploy3")]
    assert told == sorted(told)
    told = (conf.parent / "scontrol").read_text().splitlines()
    assert told[-2:] == [
        "update nodename=gdx-[5-6,14] state=drain reason=Kadeploy: not on the production system after job 42",
        "delete reservationname=kadeploy-42",
    ]


@pytest.mark.parametrize(("number", "waits"), [(6, True), (7, False)])
def test_what_the_user_still_does_on_the_nodes_is_waited_for_and_not_for_ever(
    number: int, waits: bool, slurm: Script, site: Site
) -> None:
    names = [f"gdx-{number}.site"]
    connect(site)
    nodes.claim(site, names, "D-1", "johnsmith")
    nodes.set_state(names, "deploying", nodes.NO_ENVIRONMENT, "johnsmith")
    assert ("an operation is still running there after 2 s" in slurm("epilog").stderr) == waits


def test_a_deploy_job_of_oar_gives_and_takes_back_rights(oar: Script, site: Site, conf: Path) -> None:
    start = int(time.time())
    begun = oar("prologue", startTime=start)
    assert begun.returncode == 0, begun.stderr
    assert rights.show(site, "johnsmith") == given("5 6", start + 3600 + GRACE)
    ended = oar("epilogue")
    assert rights.show(site, "johnsmith") == []
    assert "the production system is not on gdx-5.site,gdx-6.site" in ended.stderr, "it was never recorded"
    assert (conf.parent / "oarnodesetting").read_text() == "-h gdx-5.site -m on\n-h gdx-6.site -m on\n"


def test_other_jobs_of_oar_are_left_alone(oar: Script, site: Site) -> None:
    for script in ("prologue", "epilogue"):
        done = oar(script, types=["besteffort"], name="x\n    types = deploy")
        assert (done.returncode, done.stderr) == (0, "")
    assert rights.users(site) == []


def test_a_job_that_oar_does_not_tell_of_gets_no_rights(oar: Script, site: Site) -> None:
    done = oar("prologue", assigned_network_address=[])
    assert done.returncode == 1
    assert "tells nothing of this job" in done.stderr
    assert rights.users(site) == []
