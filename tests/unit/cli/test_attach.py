"""--attach of runs that have ended, and whose folders are gone: at once, or as they were, N times as fast."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kadeploy import events
from kadeploy.caller import caller
from kadeploy.config.site import Site
from kadeploy.events import Began, Ended, Event, EventFile, Note, Report
from kadeploy.operations import runs
from kadeploy.operations.follow import events_of
from kadeploy.operations.work import run_folder
from kadeploy.state import journal, rights
from kadeploy.state.database import connect
from tests.unit import build

pytestmark = [pytest.mark.parametrize("database_url", ["sqlite"], indirect=True), pytest.mark.usefixtures("way")]

Run = Callable[..., "subprocess.CompletedProcess[str]"]
DAY = 86_400.0
WID = "D-before"
NODE = "gdx-1.site"
STEPS = "SetDeploymentEnv|SetDeploymentEnvDummy:0:0&BroadcastEnv|BroadcastEnvDummy:0:0&BootNewEnv|BootNewEnvDummy:0:0"


def remove(site: Site, wid: str) -> None:
    """Remove the folder of a run that has ended, as is done with all that are old."""
    old = time.time() - 40 * DAY
    for path in (run_folder(site, wid) / events.FILE_NAME, run_folder(site, wid)):
        os.utime(path, (old, old))
    runs.purge(site)
    assert not run_folder(site, wid).exists()


@pytest.fixture
def gone(site: Site) -> Site:
    """A run of the caller whose folder is gone: three notes in four seconds, and its end."""
    connect(site)
    user, at = caller().name, time.time() - 40 * DAY
    journal.begin(site, WID, "deploy", user, None, {"gdx": [NODE]})
    journal.end(WID, [])
    run_folder(site, WID).mkdir(parents=True, mode=0o700)
    groups = {"gdx": (NODE,)}
    told: list[Event] = [Began(at=at, wid=WID, operation="deploy", user=user, groups=groups, plans={})]
    told += [Note(at=at + 2 * number, text=f"note {number}") for number in range(3)]
    told.append(Ended(at=at + 4, operation="deploy", groups=groups, report=Report(WID, ok=(NODE,))))
    with closing(EventFile(run_folder(site, WID) / events.FILE_NAME)) as file:
        for event in told:
            file(event)
    remove(site, WID)
    return site


def test_a_deployment_is_told_again_as_it_was_when_its_folder_is_gone(site: Site, tool: Run, tmp_path: Path) -> None:
    connect(site)
    rights.add(site, caller().name, ["*"], ["*"])
    (tmp_path / "image.tgz").write_bytes(build.packed("image"))
    (tmp_path / "env.dsc").write_text(
        f"name : tiny\nversion : 3\ntarball : {tmp_path}/image.tgz|tgz\nenvironment_kind : linux\nfdisktype : 83\n"
        "filesystem : ext4\nkernel : /boot/vmlinuz\n",
        encoding="utf-8",
    )
    words = ["-m", "gdx-[1-2].site", "-a", str(tmp_path / "env.dsc"), "--force-steps", STEPS, "-V", "4"]
    done = tool("kadeploy3", *words, "--write-workflow-id", str(tmp_path / "wid"))
    assert done.returncode == 0, done.stderr
    wid = (tmp_path / "wid").read_text(encoding="utf-8").strip()
    before = tool("kadeploy3", "--attach", wid, "-V", "4")
    remove(site, wid)
    for more in ([], ["--speed", "0"], ["--speed", "1000"]):
        again = tool("kadeploy3", "--attach", wid, "-V", "4", "-o", str(tmp_path / "ok"), *more)
        assert (again.returncode, again.stdout, again.stderr) == (0, before.stdout, before.stderr)
        assert (tmp_path / "ok").read_text(encoding="utf-8") == "gdx-1.site\ngdx-2.site\n"
    assert before.stdout == done.stdout
    assert tool("kadeploy3", "--wait", wid).returncode == 0
    assert wid in tool("kanodes3", "-y", "-w", wid).stdout


@pytest.mark.parametrize("name", ["kadeploy3", "kareboot3", "kapower3"])
def test_with_a_speed_it_takes_as_long_as_it_did_divided_by_it(gone: Site, tool: Run, name: str) -> None:
    begun = time.monotonic()
    done = tool(name, "--attach", WID, "--speed", "2")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun > 2
    assert done.stdout.count("note") == 3
    assert "ended after 4 s: 1 OK, 0 KO" in done.stdout


def test_ctrl_c_leaves_the_replay(gone: Site) -> None:
    program = str(Path(sys.executable).parent / "kadeploy3")
    words = [program, "--attach", WID, "--speed", "0.01"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert "started on 1 node" in child.stdout.readline()
        assert "note 0" in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=30)
    assert (child.returncode, output) == (130, "")
    assert f"{WID} stays as it is: --attach {WID} tells of it again." in errors


def test_another_users_is_refused(gone: Site, tool: Run) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    for more in ([], ["--speed", "10"]):
        done = tool("kadeploy3", "--attach", WID, *more, SUDO_UID="65534")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{WID} is the workflow of root, and you are nobody." in done.stderr


@pytest.mark.parametrize("wid", ["../events/D-before", "D-before.jsonl.xz", "D-/../before", "D-%2e", "D-nobody"])
def test_what_is_no_id_leads_nowhere(gone: Site, tool: Run, wid: str) -> None:
    done = tool("kadeploy3", "--attach", wid)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr


def test_damage_is_told_behind_what_can_be_read(gone: Site, tool: Run) -> None:
    path = events_of(gone, WID)
    os.truncate(path, path.stat().st_size * 2 // 3)
    done = tool("kadeploy3", "--attach", WID)
    assert done.returncode == 1
    assert f"{WID} started on 1 node" in done.stdout
    assert "ended" not in done.stdout
    assert f"{WID}: what was kept of its events is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    path.write_bytes(b"nonsense")
    done = tool("kadeploy3", "--attach", WID, "--speed", "9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is damaged" in done.stderr


def test_when_its_days_are_over_it_is_told_where_to_ask(gone: Site, site_folder: Path, tool: Run) -> None:
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write("runs: {events_days: 39}\n")
    assert "events of runs" in tool("kadeploy-site", "purge").stdout
    done = tool("kadeploy3", "--attach", WID)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"kastat3 -d -w {WID} tells how it ended" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--speed", "2", "-m", NODE, "-e", "tiny"], "name it with --attach WID"),
        (["--speed", "2", "--wait", WID], "name it with --attach WID"),
        (["--speed", "-1", "--attach", WID], "expected a number from 0.01 to 1000"),
        (["--speed", "nan", "--attach", WID], "expected a number from 0.01 to 1000"),
        (["--speed", "2", "--attach", f"{WID},D-2"], "name one workflow"),
    ],
)
def test_a_speed_of_nothing_or_that_is_none_is_refused(gone: Site, tool: Run, words: list[str], said: str) -> None:
    done = tool("kadeploy3", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
