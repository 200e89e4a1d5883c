"""A run folder on its way to a worker, and what comes back: tar archives, packed and unpacked piece by piece."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from kadeploy.errors import FileError
from kadeploy.files import MEGA
from kadeploy.runner import request

KEY = "key"
"""What the secret of the try is called in the archive."""
_THERE = (request.FILE_NAME, request.FILES)
"""What goes to a worker of a run folder, and does not come back."""
MOST = 256 * MEGA
"""Bytes that may come back of one shard."""
_MOST_FILES = 20_000
_DEPTH = 16
"""Folders in each other."""


def packed(folder: Path, secret: Path | None) -> Iterator[bytes]:
    """The request of *folder* and the files that it names, and the *secret* of its try."""
    yield from _archive(_members(folder, secret))


def results(folder: Path) -> Iterator[bytes]:
    """What a run has left in *folder*."""
    own = (path for path in sorted(folder.rglob("*")) if path.relative_to(folder).parts[0] not in _THERE)
    yield from _archive((path, str(path.relative_to(folder))) for path in own)


def _members(folder: Path, secret: Path | None) -> Iterator[tuple[Path, str]]:
    yield folder / request.FILE_NAME, request.FILE_NAME
    for path in sorted((folder / request.FILES).rglob("*")):
        yield path, str(path.relative_to(folder))
    if secret is not None:
        yield secret, KEY


def _archive(members: Iterable[tuple[Path, str]]) -> Iterator[bytes]:
    """Regular files alone, each by its name: neither links nor what else a folder may hold."""
    for path, name in members:
        if path.is_file() and not path.is_symlink():
            yield from _member(path, name)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _member(path: Path, name: str) -> Iterator[bytes]:
    """A file as it is now; what is appended meanwhile stays out."""
    with path.open("rb") as file:
        info = tarfile.TarInfo(name)
        info.size, info.mode = os.fstat(file.fileno()).st_size, 0o600
        yield info.tobuf(tarfile.PAX_FORMAT)
        left = info.size
        while left:
            if not (piece := file.read(min(MEGA, left))):
                raise FileError(f"{path} is cut short while it is sent.")
            left -= len(piece)
            yield piece
    yield bytes(-info.size % tarfile.BLOCKSIZE)


def unpack(stream: IO[bytes], into: Path, most: int = 0) -> None:
    """Write the regular files of an archive below *into*; nothing there is replaced, and links are not followed.

    Raises:
        FileError: it is no such archive, names files elsewhere, or holds more than *most* bytes (0: any number).
    """
    left, files = most, 0
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=MEGA) as archive:
            for member in archive:
                files, left = files + 1, left - member.size
                if not member.isreg() or member.size < 0 or files > _MOST_FILES or (most and left < 0):
                    raise FileError("An archive of a run folder holds what it must not, or too much.")
                _place(archive, member, into)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise FileError(f"An archive of a run folder cannot be unpacked: {error}.") from error


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    parts = Path(member.name).parts
    if not parts or len(parts) > _DEPTH or any(part in ("..", "/", "//") for part in parts):
        raise FileError("An archive of a run folder names files elsewhere.")
    source = archive.extractfile(member)
    if source is None:
        return
    with contextlib.closing(_Folder(into)) as folder:
        for part in parts[:-1]:
            folder.enter(part)
        with folder.new(parts[-1]) as file:
            while piece := source.read(MEGA):
                file.write(piece)


class _Folder:
    """A folder that is open, so that nobody can put another in its place."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, _TO_ENTER)

    def enter(self, name: str) -> None:
        """Go on in the folder *name* within, made if it is not there; never through a link."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._descriptor)
        inner = os.open(name, _TO_ENTER | os.O_NOFOLLOW, dir_fd=self._descriptor)
        self.close()
        self._descriptor = inner

    def new(self, name: str) -> IO[bytes]:
        """A file that was not there."""
        how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(name, how, 0o600, dir_fd=self._descriptor), "wb")

    def close(self) -> None:
        os.close(self._descriptor)


_TO_ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
