"""The events of runs whose folders are gone: nothing is lost or half there, and they go when their days are over."""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from kadeploy import events
from kadeploy.config.site import Runs, Site
from kadeploy.errors import BrokenOffError, UnknownWorkflowError
from kadeploy.events import Began, Ended, Event, EventFile, Note, Report
from kadeploy.operations import follow, kept_events, runs, stand
from kadeploy.operations.follow import events_of, opened
from kadeploy.operations.work import run_folder
from kadeploy.state import journal
from tests.unit.server.test_feed import looked

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

DAY = 86_400.0
NODES = {"gdx": ("gdx-1.site",)}


def write(site: Site, wid: str, days: float = 40, *, end: bool = True, notes: int = 50) -> list[Event]:
    """A run that alice began and that was over so many days ago; its events."""
    journal.begin(site, wid, "deploy", "alice", None, {"gdx": ["gdx-1.site"]})
    journal.end(wid, [])
    at, folder = time.time() - days * DAY, run_folder(site, wid)
    told: list[Event] = [Began(at=at, wid=wid, operation="deploy", user="alice", groups=NODES, plans={})]
    told += [Note(at=at, text=f"{number} ü {os.urandom(20).hex()}") for number in range(notes)]
    if end:
        told.append(Ended(at=at, operation="deploy", groups=NODES, report=Report(wid, ok=("gdx-1.site",))))
    folder.mkdir(parents=True, mode=0o700)
    with closing(EventFile(folder / events.FILE_NAME)) as file:
        for event in told:
            file(event)
    (folder / "workflow.json").write_text("{}", encoding="utf-8")
    (folder / "01-SetDeploymentEnv").mkdir()
    (folder / "01-SetDeploymentEnv" / "output").write_bytes(bytes(1000))
    for path in (folder / events.FILE_NAME, folder):
        os.utime(path, (at, at))
    return told


def heard(site: Site, wid: str) -> list[Event]:
    told: list[Event] = []
    follow.attach(site, wid, told.append, threading.Event())
    return told


def with_runs(site: Site, **keys: int) -> Site:
    return msgspec.structs.replace(site, runs=Runs(**keys))


def kept(site: Site) -> list[str]:
    return sorted(path.name for path in site.kept_events.iterdir())


# --- keeping --------------------------------------------------------------------------------------------------------


def test_what_is_told_of_a_run_is_the_same_when_its_folder_is_gone(site: Site) -> None:
    told = write(site, "D-1")
    before = [*opened(site, "D-1").read()]
    stood = stand.find(site, "D-1").states
    runs.purge(site)
    assert not run_folder(site, "D-1").exists()
    assert heard(site, "D-1") == told
    assert stand.find(site, "D-1").states == stood
    assert follow.begun_by(site, "D-1") == "alice"
    tail = opened(site, "D-1")
    assert [*tail.read()] == before
    assert tail.is_complete()
    assert [*tail.read()] == [], "it does not grow"


def test_from_the_offset_of_any_event_on_the_later_ones_come_as_before(site: Site) -> None:
    write(site, "D-1", notes=5)
    whole = [*opened(site, "D-1").lines()]
    runs.purge(site)
    for rank, (offset, _) in enumerate(whole, start=1):
        tail = opened(site, "D-1", offset)
        assert [*tail.lines()] == whole[rank:]
        assert tail.is_complete()
    assert [*opened(site, "D-1", 10**9).lines()] == []


def test_a_line_that_its_writer_did_not_finish_moves_no_offset(site: Site) -> None:
    write(site, "D-1", notes=3, end=False)
    path = run_folder(site, "D-1") / events.FILE_NAME
    status = path.stat()
    os.truncate(path, status.st_size - 7)
    with closing(EventFile(path)) as file:
        file(Note(text="it goes on"))
    os.utime(path, (status.st_mtime, status.st_mtime))
    os.utime(path.parent, (status.st_mtime, status.st_mtime))
    whole = [*opened(site, "D-1").read()]
    runs.purge(site)
    assert [*opened(site, "D-1").read()] == whole
    with pytest.raises(BrokenOffError, match=r"D-1 was not brought to an end"):
        heard(site, "D-1")


def test_it_is_for_whom_the_run_was_and_as_old(site: Site) -> None:
    write(site, "D-1")
    folder, file = run_folder(site, "D-1"), run_folder(site, "D-1") / events.FILE_NAME
    if os.geteuid() == 0:
        for path in (folder, file, site.run_folders):
            os.chown(path, 65534, 65534)
    before, above = file.stat(), site.run_folders.stat()
    runs.purge(site)
    path = events_of(site, "D-1")
    now, folder_now = path.stat(), path.parent.stat()
    assert now.st_mode & 0o777 == 0o600
    assert (now.st_uid, now.st_gid, now.st_mtime_ns) == (before.st_uid, before.st_gid, before.st_mtime_ns)
    assert (folder_now.st_mode, folder_now.st_uid) == (above.st_mode, above.st_uid)
    assert now.st_size < before.st_size


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_another_account_has_put_in_place_of_the_events_is_not_kept(site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"the root's own\n")
    write(site, "D-1")
    path = run_folder(site, "D-1") / events.FILE_NAME
    path.unlink()
    path.symlink_to(secret)
    os.utime(path.parent, (0, 0))
    runs.purge(site)
    assert not site.kept_events.exists()
    assert secret.read_bytes() == b"the root's own\n"


def test_a_run_that_has_told_nothing_leaves_nothing(site: Site) -> None:
    write(site, "D-1")
    (run_folder(site, "D-1") / events.FILE_NAME).unlink()
    os.utime(run_folder(site, "D-1"), (0, 0))
    runs.purge(site)
    assert not site.kept_events.exists()
    with pytest.raises(UnknownWorkflowError, match="not kept any more"):
        events_of(site, "D-1")


def test_when_they_cannot_be_kept_they_stay_and_the_rest_makes_room(site: Site) -> None:
    """Such as on a disk that is full."""
    told = write(site, "D-1")
    site.kept_events.write_bytes(b"in the way")
    runs.purge(site)
    assert [path.name for path in run_folder(site, "D-1").iterdir()] == [events.FILE_NAME]
    assert heard(site, "D-1") == told
    site.kept_events.unlink()
    runs.purge(site)
    assert not run_folder(site, "D-1").exists()
    assert heard(site, "D-1") == told


DIES = """\
import os, sys
from pathlib import Path
from kadeploy.config.folder import load_site
from kadeploy.operations import runs

left = int(sys.argv[1])

def count(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.chown", "shutil.rmtree"):
        if any(site.state_dir in str(each) for each in arguments if each):
            left -= 1
            if not left:
                os._exit(9)

site = load_site(Path(os.environ["KADEPLOY_CONFIG_DIR"]))
sys.addaudithook(count)
runs.purge(site)
"""


def test_whenever_the_process_dies_nothing_is_lost_and_the_next_one_ends_the_work(site: Site, tmp_path: Path) -> None:
    status, steps = 9, 0
    while status == 9:
        steps += 1
        wid = f"D-{steps}"
        told = write(site, wid)
        status = subprocess.run([sys.executable, "-c", DIES, str(steps)], check=False).returncode
        assert heard(site, wid) == told, f"dead at step {steps}"
        assert all(name.endswith(kept_events.SUFFIX) or name.startswith(".new-") for name in _names(site))
        runs.purge(site)
        assert heard(site, wid) == told
        assert not run_folder(site, wid).exists()
    assert status == 0
    assert steps > 5
    for path in site.kept_events.glob(".new-*"):
        os.utime(path, (0, 0))
    runs.purge(site)
    assert kept(site) == sorted(f"D-{number}.jsonl.xz" for number in range(1, steps + 1))


def _names(site: Site) -> list[str]:
    return kept(site) if site.kept_events.is_dir() else []


# --- removing -------------------------------------------------------------------------------------------------------


def test_they_go_when_their_days_are_over(site: Site) -> None:
    for days in (31, 40, 91):
        write(site, f"D-{days}", days)
    runs.purge(site)
    assert kept(site) == ["D-31.jsonl.xz", "D-40.jsonl.xz"]
    runs.purge(with_runs(site, events_days=35))
    assert kept(site) == ["D-31.jsonl.xz"]
    with pytest.raises(UnknownWorkflowError, match="not kept any more"):
        events_of(site, "D-40")


def test_with_no_days_none_are_kept(site: Site) -> None:
    write(site, "D-1")
    runs.purge(with_runs(site, events_days=0))
    assert not run_folder(site, "D-1").exists()
    assert _names(site) == []


def test_when_there_is_no_room_the_oldest_go(site: Site) -> None:
    for days in (31, 33, 32):
        write(site, f"D-{days}", days)
    runs.purge(site)
    for name in kept(site):
        path = site.kept_events / name
        last = path.stat().st_mtime
        path.write_bytes(os.urandom(600_000))
        os.utime(path, (last, last))
    runs.purge(with_runs(site, events_max_mb=1))
    assert kept(site) == ["D-31.jsonl.xz"]


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(site: Site, request: pytest.FixtureRequest) -> list[Event]:
    """Events of which a part cannot be read any more."""
    told = write(site, "D-1", notes=20_000)
    runs.purge(site)
    path = events_of(site, "D-1")
    content = path.read_bytes()
    half = len(content) // 2
    cut = {
        "cut": content[:half],
        "changed": content[:half] + bytes(byte ^ 0xFF for byte in content[half : half + 40]) + content[half + 40 :],
        "nonsense": os.urandom(1000),
        "empty": b"",
        "another format": lzma.compress(b"{}\n", format=lzma.FORMAT_ALONE),
    }
    path.write_bytes(cut[request.param])
    return told


@pytest.mark.parametrize("damaged", ["cut", "changed", "nonsense", "empty", "another format"], indirect=True)
def test_damage_is_told_behind_what_can_be_read(site: Site, damaged: list[Event]) -> None:
    found: list[Event] = []
    with pytest.raises(UnknownWorkflowError, match=r"D-1: what was kept of its events is damaged .* kastat3 -d -w D-1"):
        follow.attach(site, "D-1", found.append, threading.Event())
    assert found == damaged[: len(found)]
    assert stand.kept(site, "D-1") is None
    assert stand.workflows(site, "D-1", None, lambda _: True)["D-1"]["user"] == "alice", "as the journal has it"


@pytest.mark.parametrize("damaged", ["cut"], indirect=True)
def test_who_follows_all_workflows_is_told_of_the_damage_and_of_the_others(site: Site, damaged: list[Event]) -> None:
    write(site, "D-2")
    since = f"{int(time.time()) - 60}"
    found = looked(site, "alice", since)
    assert [event for _, wid, event in found if wid == "D-1"][-1] == "gone"
    assert [event["event"] for _, wid, event in found if wid == "D-2"][-1] == "ended"
    assert [wid for _, wid, _ in looked(site, "alice", found[-1][0])] == []
