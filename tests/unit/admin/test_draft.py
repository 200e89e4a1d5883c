"""Files that come into being together or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kadeploy.admin.draft import HIDDEN, Draft
from kadeploy.caller import account, own
from kadeploy.errors import FileError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files are given to another account")
NOBODY = "nobody"


def listed(folder: Path) -> dict[str, str]:
    """Every file of *folder* with what is in it, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8") if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def test_files_and_folders_have_the_owners_and_modes_that_were_asked_for(open_folder: Path) -> None:
    nobody = account(NOBODY)
    with Draft() as draft:
        assert draft.folder(open_folder / "a" / "state", 0o700, nobody)
        draft.file(open_folder / "a" / "state" / "secret", b"1", 0o600, nobody)
        draft.file(open_folder / "a" / "plain", b"2", 0o644, own())
        draft.commit()
    found = {
        path: ((open_folder / path).stat().st_uid, stat.S_IMODE((open_folder / path).stat().st_mode))
        for path in ("a", "a/state", "a/state/secret", "a/plain")
    }
    assert found == {
        "a": (0, 0o755),
        "a/state": (nobody.uid, 0o700),
        "a/state/secret": (nobody.uid, 0o600),
        "a/plain": (0, 0o644),
    }


def test_nothing_is_in_its_place_before_the_commit_and_nothing_is_left_without_it(open_folder: Path) -> None:
    (open_folder / "old").write_text("old")
    with Draft() as draft:
        draft.folder(open_folder / "a" / "b", 0o755, own())
        draft.file(open_folder / "a" / "new", b"1", 0o644, own())
        draft.file(open_folder / "old", b"2", 0o644, own())
        assert (open_folder / "old").read_text() == "old"
        assert not (open_folder / "a" / "new").exists()
    assert listed(open_folder) == {"old": "old"}


def test_a_commit_that_fails_half_way_is_undone(open_folder: Path) -> None:
    (open_folder / "old").write_text("old")
    with Draft() as draft:
        draft.folder(open_folder / "a", 0o755, own())
        draft.file(open_folder / "a" / "first", b"1", 0o644, own())
        draft.file(open_folder / "old", b"2", 0o644, own())
        draft.file(open_folder / "last", b"3", 0o644, own())
        (open_folder / "last").write_text("somebody else's")
        with pytest.raises(FileExistsError):
            draft.commit()
        assert (open_folder / "a" / "first").exists()
    assert listed(open_folder) == {"old": "old", "last": "somebody else's"}


def test_ctrl_c_during_the_commit_undoes_it(open_folder: Path) -> None:
    (open_folder / "old").write_text("old")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    with Draft() as draft:
        draft.file(open_folder / "old", b"2", 0o644, own())
        draft.file(open_folder / "new", b"3", 0o644, own())
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # other threads of the tests do not hold it back
        draft.commit()
        assert listed(open_folder)["old"] == "2"
        with pytest.raises(KeyboardInterrupt):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert listed(open_folder) == {"old": "old"}


def test_what_is_replaced_stays_beside(open_folder: Path) -> None:
    (open_folder / "old").write_text("1")
    for content in (b"2", b"3"):
        with Draft() as draft:
            draft.file(open_folder / "old", content, 0o644, own())
            draft.commit()
        assert draft.kept[open_folder / "old"].name.startswith("old.before-2")
    assert sorted(listed(open_folder).values()) == ["1", "2", "3"]
    assert (open_folder / "old").read_text() == "3"


def test_what_a_killed_process_has_left_is_cleared_away(open_folder: Path) -> None:
    left = open_folder / HIDDEN / "clusters"
    left.mkdir(parents=True)
    (left / "gdx.yml").write_text("left")
    with Draft() as draft:
        draft.file(open_folder / "new", b"1", 0o644, own())
        draft.commit()
    assert listed(open_folder) == {"new": "1"}


def test_two_at_a_time_are_refused(open_folder: Path) -> None:
    with Draft() as draft:
        draft.file(open_folder / "new", b"1", 0o644, own())
        with pytest.raises(FileError, match="is at work in"), Draft() as other:
            other.file(open_folder / "new", b"2", 0o644, own())
        draft.commit()
    assert listed(open_folder) == {"new": "1"}


def test_links_of_an_account_are_not_followed_with_roots_rights(open_folder: Path) -> None:
    nobody = account(NOBODY)
    with Draft() as draft:
        draft.folder(open_folder / "state", 0o700, nobody)
        draft.commit()
    roots = open_folder / "roots"
    roots.mkdir(mode=0o700)
    (open_folder / "state" / HIDDEN).symlink_to(roots)
    with Draft() as draft, pytest.raises(OSError, match=r"Not a directory|symbolic links|Permission"):
        draft.file(open_folder / "state" / "secret", b"1", 0o600, nobody)
    assert listed(roots) == {}


def test_a_link_of_an_account_is_no_folder(open_folder: Path) -> None:
    nobody = account(NOBODY)
    with Draft() as draft:
        draft.folder(open_folder / "state", 0o700, nobody)
        draft.commit()
    (open_folder / "state" / "keys").symlink_to("/etc")
    with Draft() as draft, pytest.raises(FileError, match="is a link in a folder that is not root's"):
        draft.folder(open_folder / "state" / "keys", 0o700, nobody)


def test_in_the_folder_of_an_account_nothing_is_done_that_the_account_may_not_do(open_folder: Path) -> None:
    nobody = account(NOBODY)
    with Draft() as draft:
        draft.folder(open_folder / "state", 0o500, nobody)
        draft.commit()
    with Draft() as draft, pytest.raises(PermissionError):
        draft.file(open_folder / "state" / "secret", b"1", 0o600, nobody)


def test_a_folder_that_is_a_file_is_refused(open_folder: Path) -> None:
    (open_folder / "state").write_text("")
    with pytest.raises(FileError, match="is there and no folder"), Draft() as draft:
        draft.folder(open_folder / "state", 0o700, own())


KILLED = """
import os, signal, sys
from pathlib import Path
from kadeploy.admin.draft import Draft
from kadeploy.caller import own
folder, point = Path(sys.argv[1]), int(sys.argv[2])
def reached(number):
    if number == point:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
signal.signal(signal.SIGTERM, signal.default_int_handler)
with Draft() as draft:
    reached(0)
    draft.folder(folder / "a" / "b", 0o755, own())
    reached(1)
    draft.file(folder / "a" / "b" / "first", b"1" * 100, 0o644, own())
    reached(2)
    draft.file(folder / "a" / "last", b"2" * 100, 0o644, own())
    reached(3)
    draft.commit()
    reached(4)
"""


@pytest.mark.parametrize("point", range(4))
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_process_that_ends_at_any_point_leaves_nothing_half_done(point: int, name: str, open_folder: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(open_folder), str(point), name]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    visible = {path: text for path, text in listed(open_folder).items() if HIDDEN not in path and text != "folder"}
    assert visible == {}
    if name != "SIGKILL":
        assert listed(open_folder) == {}
    again = subprocess.run([*command[:4], "9", name], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    files = {path: text for path, text in listed(open_folder).items() if text != "folder"}
    assert files == {"a/b/first": "1" * 100, "a/last": "2" * 100}
