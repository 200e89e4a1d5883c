"""Files that users have sent, below ``state_dir/sent``: a folder for each user, a file for each content.

A user's file is found by its SHA-256 in the folder of that user alone: to know the hash of somebody else's file is not
to have it. Names say all there is to know, so that a rename completes a file:

    <SHA-256>-<bytes announced>.part    what has arrived so far; locked (flock) while more of it comes
    <SHA-256>-<MD5>                     complete and checked; locked, shared, by operations that use it

All of them together stay within ``service.quota.files_mb``, each in whole megabytes, partial ones with what is still to
come. What was used least recently makes room, and never what is in use. Should such a file be removed all the same, an
operation that has opened it keeps it: on Linux a file is there until nobody has it open.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kadeploy import checksums, files
from kadeploy.checksums import Checksums
from kadeploy.config.site import Site
from kadeploy.errors import FileBusyError, FileError
from kadeploy.files import MEGA, LocalFile

FOLDER = "sent"
PARTIAL_SECONDS = 86_400.0
"""Age at which a file that was never completed goes."""
IDLE_SECONDS = 600.0
"""Seconds for which a partial file that does not grow keeps its room from other files of the user."""
_LONGEST_NAME = 200
_SHA256 = re.compile(r"[0-9a-f]{64}")


# --- sending ------------------------------------------------------------------------------------------------------


def begin(site: Site, user: str, sha256: str, size: int) -> int:
    """Announce a file of *size* bytes, for which there is room from now on; how many bytes of it are here already.

    All of them: it is complete, and nothing is to be sent.

    Raises:
        FileBusyError: it is being sent.
        FileError: it is bigger than the user's quota, or other files that are in use leave no room for it.
    """
    _require_sha256(sha256)
    quota = site.service.quota.files_mb
    if _megabytes(size) > quota:
        raise FileError(
            f"The file has {size / MEGA:.1f} MB, and {user} has room for {quota} MB here (service.quota.files_mb in "
            "site.yml). Offer it by http, or ask an administrator."
        )
    with _locked(site, user) as folder:
        _remove_old(folder)
        complete = _complete(folder, sha256)
        if complete:
            return _whole_again(complete, size)
        part = _part(folder, sha256, size)
        if not part.exists():
            _remove_others(folder, sha256)
            _make_room(folder, _megabytes(size), quota, user)
            part.touch(mode=0o600)
        there = part.stat().st_size
    return append(site, user, sha256, size, ()) if there == size else there


def append(site: Site, user: str, sha256: str, offset: int, chunks: Iterable[bytes]) -> int:
    """Take *chunks*, which follow the first *offset* bytes of a file that was announced; how many bytes are here then.

    When all that was announced is here, the file is checked and complete. What arrived before *chunks* broke off, with
    whatever error, stays for the next time; it is read again then, so that a file is best sent in one go.

    Raises:
        FileBusyError: it is being sent by somebody else.
        FileError: it was not announced, *offset* is not what is here, or the disk is full (all of them: ask `begin`
            again); more than was announced came, or something else than that (what came is removed).
    """
    arrival = Arrival(site, user, sha256, offset)
    try:
        arrival.open()
        for chunk in chunks:
            arrival.take(chunk)
        return arrival.complete()
    finally:
        arrival.close()


class Arrival:
    """More of a file, while it comes; see `append`. It is not for two threads at a time."""

    def __init__(self, site: Site, user: str, sha256: str, offset: int) -> None:
        _require_sha256(sha256)
        self._site, self._user, self._sha256, self._offset = site, user, sha256, offset
        self._opened = ExitStack()

    def open(self) -> None:
        """Have the partial file for this sender alone, and read what is here of it."""
        stream, self._part = _opened_part(_folder(self._site, self._user), self._sha256)
        self._stream = self._opened.enter_context(stream)
        self._announced = _announced(self._part)
        here = os.fstat(self._stream.fileno()).st_size
        if here != self._offset:
            raise FileError(f"{here} bytes of the file are here, not {self._offset}. Go on from there.")
        self._found = checksums.of(self._stream)

    def take(self, chunk: bytes | bytearray) -> None:
        """Write what has come."""
        if self._found.size + len(chunk) > self._announced:
            self._part.unlink()
            raise FileError(f"The file is longer than announced, {self._announced} bytes. Send it again.")
        _write(self._stream, chunk, self._site)
        self._found.update(chunk)

    def complete(self) -> int:
        """How many bytes are here; with the last one, the file is checked and complete."""
        if self._found.size == self._announced:
            _finish(self._part, self._sha256, self._found, self._site)
        return self._found.size

    def close(self) -> None:
        """Leave the file to others."""
        self._opened.close()


def _finish(part: Path, sha256: str, found: Checksums, site: Site) -> None:
    if found.sha256 != sha256:
        part.unlink()
        raise FileError(
            f"What arrived is not what was announced (SHA-256 {found.sha256}, not {sha256}). Was the file changed "
            "meanwhile? Send it again."
        )
    files.keep_beginnings(found, site.state / "cache")
    part.rename(part.with_name(f"{sha256}-{found.md5}"))


def _write(stream: BinaryIO, chunk: bytes | bytearray, site: Site) -> None:
    left = memoryview(chunk)
    try:
        while left:
            left = left[os.write(stream.fileno(), left) :]
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "its disk is full" if full else f"{error.strerror}"
        raise FileError(
            f"The file cannot be kept in {site.state}: {why}. What has arrived stays for a day: send the rest once an "
            "administrator has made room."
        ) from error


def _opened_part(folder: Path, sha256: str) -> tuple[BinaryIO, Path]:
    """The partial file, for this sender alone."""
    part = next(folder.glob(f"{sha256}-*.part"), None)
    if part is None:
        raise FileError(f"The file {sha256} was not announced, or has been removed since. Begin again.")
    try:
        stream = part.open("r+b", buffering=0)
    except FileNotFoundError as error:
        raise FileBusyError(f"The file {sha256} has just been completed or removed. Ask again what is here.") from error
    if not _lock(stream.fileno(), fcntl.LOCK_EX) or not _is_at(stream.fileno(), part):
        stream.close()
        raise FileBusyError(f"The file {sha256} is being sent already. Try again when that has ended.")
    return stream, part


def _lock(descriptor: int, kind: int) -> bool:
    """Take a lock, which goes with the descriptor; False when somebody else has it."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


# --- using --------------------------------------------------------------------------------------------------------


def find(site: Site, user: str, sha256: str) -> Path | None:
    """The complete file of *user*, which counts as used now; None when there is none."""
    _require_sha256(sha256)
    path = _complete(_folder(site, user), sha256)
    with suppress(FileNotFoundError):
        if path:
            os.utime(path)
            return path
    return None


def hold(site: Site, user: str, sha256: str) -> tuple[BinaryIO, LocalFile] | None:
    """The complete file of *user*, open and with its checksums; None when there is none.

    As long as it is open somewhere, it makes no room for others.

    Raises:
        FileError: it cannot be read.
    """
    path = find(site, user, sha256)
    if path is None:
        return None
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}. Ask an administrator.") from error
    if not _lock(stream.fileno(), fcntl.LOCK_SH) or not _is_at(stream.fileno(), path):
        stream.close()
        return None
    return stream, LocalFile(path, os.fstat(stream.fileno()).st_size, path.name.rpartition("-")[2], sha256)


def held(path: Path) -> BinaryIO:
    """A file that is there, open; one that a user has sent makes no room for others meanwhile.

    Raises:
        OSError: it cannot be opened.
    """
    stream = path.open("rb")
    _lock(stream.fileno(), fcntl.LOCK_SH)
    return stream


# --- the folder of a user -----------------------------------------------------------------------------------------


def _folder(site: Site, user: str) -> Path:
    """No two users have the same, and none has a name that means anything to a file system."""
    quoted = urllib.parse.quote(user, safe="", errors="surrogatepass").replace(".", "%2E")
    if not quoted or len(quoted) > _LONGEST_NAME:
        quoted = "=" + hashlib.sha256(user.encode(errors="surrogatepass")).hexdigest()
    return site.state / FOLDER / quoted


@contextmanager
def _locked(site: Site, user: str) -> Iterator[Path]:
    """The user's folder, in which nobody else begins or removes a file meanwhile."""
    folder = _folder(site, user)
    try:
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise FileBusyError(f"{error.filename} has just been completed or removed. Ask again what is here.") from error
    except OSError as error:
        raise FileError(f"{error.filename or folder}: {error.strerror}. Ask an administrator.") from error


def _complete(folder: Path, sha256: str) -> Path | None:
    return next((path for path in folder.glob(f"{sha256}-*") if path.suffix != ".part"), None)


def _part(folder: Path, sha256: str, size: int) -> Path:
    return folder / f"{sha256}-{size}.part"


def _announced(part: Path) -> int:
    return int(part.stem.rpartition("-")[2])


def _whole_again(complete: Path, size: int) -> int:
    there = complete.stat().st_size
    if there != size:
        raise FileError(f"The file with this SHA-256 has {there} bytes, not {size}. Look what is sent.")
    os.utime(complete)
    return there


def _megabytes(size: int) -> int:
    """Room of a file: at least one, or a user could fill the disk with names."""
    return max(1, -(-size // MEGA))


def _require_sha256(sha256: str) -> None:
    if not _SHA256.fullmatch(sha256):
        raise FileError(f"{sha256[:80]!r} is no SHA-256: expected 64 digits from 0 to f.")


# --- room ---------------------------------------------------------------------------------------------------------


class _Stored(NamedTuple):
    path: Path
    room: int
    """In MB, with what is still to come."""
    last_use: float

    @property
    def idle(self) -> float:
        """Seconds."""
        return time.time() - self.last_use


def _stored(folder: Path) -> list[_Stored]:
    """Those used least recently first."""
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # completed or removed meanwhile
            status = path.stat()
            size = _announced(path) if path.suffix == ".part" else status.st_size
            found.append(_Stored(path, _megabytes(size), status.st_mtime))
    return sorted(found, key=lambda each: each.last_use)


def purge(site: Site) -> None:
    """Remove the files of all users that were begun a day ago and never completed."""
    for folder in (site.state / FOLDER).glob("*"):
        _remove_old(folder)


def unused(site: Site, seconds: float) -> list[tuple[Path, int]]:
    """Complete files that were not used for so long and are in nobody's hands, partial ones of a day, and bytes."""
    stored = (each for folder in (site.state / FOLDER).glob("*") for each in _stored(folder))
    old = (each.path for each in stored if each.idle > (PARTIAL_SECONDS if each.path.suffix == ".part" else seconds))
    return [(path, path.stat().st_size) for path in old if not _is_in_use(path)]


def remove(path: Path) -> bool:
    """Remove one of `unused`; False when somebody has begun to use it."""
    return _remove_unused(path)


def _is_in_use(path: Path) -> bool:
    with suppress(FileNotFoundError), path.open("rb") as stream:
        return not _lock(stream.fileno(), fcntl.LOCK_EX)
    return True


def _remove_old(folder: Path) -> None:
    for each in _stored(folder):
        if each.path.suffix == ".part" and each.idle > PARTIAL_SECONDS:
            _remove_unused(each.path)


def _remove_others(folder: Path, sha256: str) -> None:
    """What was announced with this SHA-256 and another size: one of both was wrong."""
    for part in folder.glob(f"{sha256}-*.part"):
        if not _remove_unused(part):
            raise FileBusyError(f"The file {sha256} is being sent with another size. Try again when that has ended.")


def _make_room(folder: Path, needed: int, quota: int, user: str) -> None:
    """Remove files until *needed* MB more fit; those of operations that run and those on their way stay."""
    stored = _stored(folder)
    total = needed + sum(each.room for each in stored)
    for each in stored:
        if total <= quota:
            return
        on_its_way = each.path.suffix == ".part" and each.idle < IDLE_SECONDS
        if not on_its_way and _remove_unused(each.path):
            total -= each.room
    if total > quota:
        raise FileError(
            f"No room: with the files that are in use or on their way it makes {total} MB, and {user} has "
            f"{quota} MB here (service.quota.files_mb in site.yml). Try again when an operation has ended."
        )


def _remove_unused(path: Path) -> bool:
    """Remove a file that nobody sends or uses; False when somebody does."""
    with suppress(FileNotFoundError), path.open("rb") as stream:
        if not _lock(stream.fileno(), fcntl.LOCK_EX):
            return False
        path.unlink()
    return True
