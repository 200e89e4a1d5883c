"""Files and folders that come into being together, or not at all.

Everything is written to a hidden folder of the folder that it belongs to, and moved into place file by file when all
of it is there. Whatever goes wrong before the end, or is pressed, is undone. A process that is killed leaves whole
files alone, in the order in which they were given, and a hidden folder that the next one clears away.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kadeploy.caller import Account, as_user, own
from kadeploy.errors import FileError

HIDDEN = ".kadeploy-init"
"""Name of the hidden folders."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class _Move:
    """A file that waits for its place."""

    staged: Path
    path: Path
    actor: Account
    replaces: bool


class Draft:
    """Collects files and folders; `commit` puts them into place, and leaving the block without it undoes everything."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._clear: list[Callable[[], None]] = []
        self._moves: list[_Move] = []
        self._hidden: dict[Path, Path] = {}
        self.kept: dict[Path, Path] = {}
        """Replaced file → where its former content is now."""

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _undisturbed():
            for step in (*reversed(self._clear), *reversed(self._undo)):
                with suppress(OSError):
                    step()

    def folder(self, path: Path, mode: int, owner: Account) -> bool:
        """Make the folder *path* unless it is there, root's folders above it too; whether it was made.

        Raises:
            FileError: something else has that name.
            OSError: it cannot be made.
        """
        if path.is_symlink() and path.parent.stat().st_uid != 0:
            raise FileError(f"{path}: is a link in a folder that is not root's: put the folder itself there.")
        if path.is_dir():
            return False
        if path.exists() or path.is_symlink():
            raise FileError(f"{path}: is there and no folder: move it away, or name another folder.")
        if not path.parent.is_dir():
            self.folder(path.parent, 0o755, own())
        actor = _actor(path.parent, owner)
        with _undisturbed(), as_user(actor):
            path.mkdir(0o700)
            self._undo.append(lambda: _as(actor, path.rmdir))
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if actor.uid != owner.uid:
                    os.fchown(descriptor, owner.uid, owner.gid)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)
        return True

    def hidden(self, folder: Path, owner: Account) -> Path:
        """The hidden folder of *folder*, in which its files wait.

        Raises:
            FileError: another process is at work there.
            OSError: it cannot be made.
        """
        if folder not in self._hidden:
            actor = _actor(folder, owner)
            with _undisturbed(), as_user(actor):
                self._hidden[folder] = _locked(folder / HIDDEN, self._clear, actor)
        return self._hidden[folder]

    def file(self, path: Path, content: bytes, mode: int, owner: Account, root: Path | None = None) -> Path:
        """Have *content* at *path* after `commit`; where it waits until then, in the hidden folder of *root*.

        *root* is the file's own folder unless given. What is at *path* by then is kept beside it, under a name that
        ends with ``.before-`` and the time.

        Raises:
            FileError: the disk is full, or another process is at work there.
            OSError: it cannot be made.
        """
        root = root or path.parent
        staged = self.hidden(root, owner) / path.relative_to(root)
        actor = _actor(root, owner)
        with as_user(actor):
            staged.parent.mkdir(0o700, exist_ok=True)
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                if actor.uid != owner.uid:
                    os.fchown(descriptor, owner.uid, owner.gid)
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
        except OSError as error:
            raise FileError(f"{path} cannot be written: {error.strerror}. Nothing was changed.") from error
        self._moves.append(_Move(staged, path, actor, path.exists()))
        return staged

    def commit(self) -> None:
        """Put everything into its place, in the order in which it was given."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        with _undisturbed():
            for move in self._moves:
                with as_user(move.actor):
                    self._put(move, stamp)
            if not signal.sigpending() & set(_SIGNALS):  # else the signal raises what undoes all of it
                self._undo.clear()

    def _put(self, move: _Move, stamp: str) -> None:
        if not move.replaces:
            os.link(move.staged, move.path)  # unlike a rename it replaces nothing that has come meanwhile
            self._undo.append(lambda: _as(move.actor, move.path.unlink))
            return
        former = _unused(move.path, stamp)
        os.link(move.path, former)
        self._undo.append(lambda: _as(move.actor, lambda: former.replace(move.path)))
        move.staged.replace(move.path)
        self.kept[move.path] = former


def _as(actor: Account, step: Callable[[], object]) -> None:
    with as_user(actor):
        step()


def _actor(folder: Path, owner: Account) -> Account:
    """Who makes what is *owner*'s in *folder*: the owner in their own folder, where root would follow their links."""
    return owner if owner.uid != 0 and folder.stat().st_uid == owner.uid else own()


def _unused(path: Path, stamp: str) -> Path:
    """A name beside *path* for its former content that no file has yet."""
    names = (
        path.with_name(f"{path.name}.before-{stamp}{suffix}") for suffix in ("", *(f"-{n}" for n in range(2, 100)))
    )
    return next((each for each in names if not each.exists()), path.with_name(f"{path.name}.before-{time.time_ns()}"))


def _locked(path: Path, clear: list[Callable[[], None]], actor: Account) -> Path:
    """Make the hidden folder *path*, or take over what a killed process has left; it goes with *clear*."""
    with suppress(FileExistsError):
        path.mkdir(0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.stat()  # it is still there: who held it may have cleared it away
    except OSError as error:
        os.close(descriptor)
        raise FileError(f"Another kadeploy-site init is at work in {path.parent}: wait for its end.") from error
    clear.append(lambda: os.close(descriptor))
    clear.append(lambda: _as(actor, path.rmdir))
    clear.append(lambda: _as(actor, lambda: _empty(path)))
    _empty(path)
    return path


def _empty(folder: Path) -> None:
    """Delete what is in *folder*, and follow no link."""
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            _empty(path)
            path.rmdir()
        else:
            path.unlink()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What would end this process waits for the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
