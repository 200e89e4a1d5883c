"""An exchange of files that happens as a whole or not at all, whatever ends the process that makes it.

New files wait beside the old ones under names of their own, complete and on the disk. A note in the configuration
folder tells which. As long as it says that they are prepared, everything can be undone; once it says that they are put
in place, that is carried to its end. While it is there, ``site.yml`` is none: no tool works for half a site.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from kadeploy.admin import keeper
from kadeploy.admin.backup import TEMPORARY
from kadeploy.caller import Account, as_user, numbered
from kadeploy.config.site import Site
from kadeploy.errors import FileError
from kadeploy.state import database, dump

NOTE = f"{TEMPORARY}restore.json"
"""In the configuration folder."""
_BESIDE = f"{TEMPORARY}new"
"""What is to be the note, or else."""
_STOPPER = """\
# kadeploy-site restore was interrupted here. Run it again, without a file: it finishes or undoes what it had begun.
restore_is_half_way: run kadeploy-site restore
"""
_JOURNALS = ("-wal", "-shm", "-journal")
"""What SQLite has beside its file."""

Phase = Literal["prepared", "loading", "changing"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A file that takes its place."""

    waiting: str
    """Where it waits."""
    target: str
    is_database: bool = False


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is being exchanged."""

    mark: str
    phase: Phase = "prepared"
    """Everything can be undone; the database of a server is being loaded; it is carried to its end."""
    what: str
    """In words: the backup."""
    site: Site
    """As it will be."""
    keeper_uid: int
    steps: tuple[Step, ...]
    """``site.yml`` is the last of them."""
    removed: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    """Folders, outermost first, and files in them that go with them."""
    saved: str = ""
    """Where the old ``site.yml`` waits; empty where there was none."""


def new_mark() -> str:
    """What an exchange is called."""
    return secrets.token_hex(8)


def waiting_name(mark: str, number: int) -> str:
    """Name of a file that waits."""
    return f"{TEMPORARY}{mark}-{number}"


# --- the note ---------------------------------------------------------------------------------------------------


def noted(folder: Path) -> Note | None:
    """The exchange that is half-way at the site whose configuration is in *folder*; mostly none.

    Raises:
        FileError: the note of it cannot be read.
    """
    path = folder / NOTE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Note)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise FileError(f"{path}: {error}. Look what is in it, and put the site in order by hand.") from error


def _write_note(folder: Path, note: Note) -> Note:
    _replace(folder / NOTE, msgspec.json.format(msgspec.json.encode(note), indent=1), 0o600)
    return note


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file of the configuration folder, whole or not at all; what is left by a kill has a name that we know."""
    beside = path.with_name(_BESIDE)
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    beside.replace(path)
    _sync([path])


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it, nobody else exchanges files of the site whose configuration is in *folder*.

    Raises:
        FileError: somebody else does.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileError(f"{folder}: a restore is under way there. Wait for its end.") from error
        yield
    finally:
        os.close(descriptor)


# --- the exchange -----------------------------------------------------------------------------------------------


def begin(folder: Path, note: Note) -> Note:
    """Note what is going to wait where, before anything does."""
    return _write_note(folder, note)


def stop_tools(folder: Path, note: Note) -> None:
    """From here on no tool takes the configuration in *folder* for one, until the exchange has ended or is undone."""
    if note.saved:
        os.link(folder / "site.yml", note.saved)
        _replace(folder / "site.yml", _STOPPER.encode(), 0o644)


def enter(folder: Path, note: Note, phase: Phase) -> Note:
    """Note that the exchange is in another phase."""
    return _write_note(folder, msgspec.structs.replace(note, phase=phase))


def finish(folder: Path, note: Note) -> None:
    """Put all that waits in its place; what is there already stays. It may be done again after whatever happened."""
    who = numbered(note.keeper_uid)
    *others, last = note.steps
    for step in others:
        _put(step, note.site, who)
    for name in note.removed:
        Path(name).unlink(missing_ok=True)
    _put(last, note.site, who)  # with site.yml tools are let in again
    if note.saved:
        Path(note.saved).unlink(missing_ok=True)
    _sync([Path(step.target) for step in note.steps] + [Path(name) for name in note.removed])
    _forget(folder)


def _put(step: Step, site: Site, who: Account) -> None:
    waiting, target = Path(step.waiting), Path(step.target)
    with as_user(who if is_state(target, site) else keeper.own()):
        if not waiting.exists():
            return
        if step.is_database:
            for suffix in _JOURNALS:
                target.with_name(f"{target.name}{suffix}").unlink(missing_ok=True)
        waiting.replace(target)


def undo(folder: Path, note: Note) -> None:
    """Have everything as it was before the exchange."""
    who = numbered(note.keeper_uid)
    for step in note.steps:
        with as_user(who if is_state(Path(step.target), note.site) else keeper.own()):
            for path in _traces(step):
                path.unlink(missing_ok=True)
    if note.saved and (saved := Path(note.saved)).exists():
        saved.replace(folder / "site.yml")
        saved.unlink(missing_ok=True)  # rename(2) leaves it when both are links to one file
        _sync([folder / "site.yml"])
    _forget(folder)
    for path in map(Path, reversed(note.made)):
        with suppress(OSError), as_user(who if is_state(path, note.site) else keeper.own()):
            path.rmdir() if path.is_dir() else path.unlink()  # what somebody has put there meanwhile keeps a folder


def _traces(step: Step) -> list[Path]:
    """Files that are there because of one that waits."""
    waiting = Path(step.waiting)
    if not step.is_database:
        return [waiting]
    return [waiting, database.marker_of(waiting), *(Path(f"{waiting}{suffix}") for suffix in _JOURNALS)]


def resume(folder: Path) -> str:
    """End an exchange that was broken off, one way or the other: what was done, in words; empty when there was none.

    Raises:
        KadeployError: it cannot be ended now, because its database does not answer for instance.
    """
    if (note := noted(folder)) is None:
        (folder / _BESIDE).unlink(missing_ok=True)
        return ""
    who = numbered(note.keeper_uid)
    if note.phase == "loading" and dump.kind_of(note.site) == "mysql":
        dump.unload(note.site, who)
    elif note.phase == "loading" and dump.loaded(note.site, who) == note.mark:
        note = enter(folder, note, "changing")
    if note.phase == "changing":
        finish(folder, note)
        return f"The restore of {note.what}, which was interrupted, is finished: the site is as in this backup."
    undo(folder, note)
    return f"The restore of {note.what}, which was interrupted, is undone: the site is as it was before."


def _forget(folder: Path) -> None:
    (folder / _BESIDE).unlink(missing_ok=True)
    (folder / NOTE).unlink(missing_ok=True)
    _sync([folder / NOTE])


def is_state(path: Path, site: Site) -> bool:
    """Whether *path* is below the state folder, in which its keeper may have put links, and root goes as the keeper."""
    return path.is_relative_to(site.state.absolute()) and path != site.state.absolute()


def _sync(paths: Iterable[Path]) -> None:
    """Have files and their names on the disk."""
    wanted = dict.fromkeys(paths)
    for each in (*wanted, *dict.fromkeys(path.parent for path in wanted)):
        with suppress(FileNotFoundError):
            descriptor = os.open(each, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
