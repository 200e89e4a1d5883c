"""A run folder on its way to a worker, and what comes back: tar archives, packed and unpacked piece by piece."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

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


def _archive(members: Iterator[tuple[Path, str]]) -> Iterator[bytes]:
    """Regular files alone, each by its name: neither links nor what else a folder may hold."""
    buffer = _Buffer()
    with tarfile.open(fileobj=buffer, mode="w|", format=tarfile.PAX_FORMAT, bufsize=MEGA) as archive:
        for path, name in members:
            if not path.is_file() or path.is_symlink():
                continue
            with path.open("rb") as file:
                info = tarfile.TarInfo(name)
                info.size, info.mode = os.fstat(file.fileno()).st_size, 0o600
                archive.addfile(info, file)
            yield from buffer.taken()
    yield from buffer.taken()


class _Buffer(io.RawIOBase):
    """Takes what tarfile writes until somebody takes it on."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:  # type: ignore[override]
        self._pieces.append(bytes(piece))
        return len(piece)

    def taken(self) -> Iterator[bytes]:
        pieces, self._pieces = self._pieces, []
        yield from pieces


def unpack(stream: io.BufferedIOBase, into: Path, most: int = 0) -> None:
    """Write the regular files of an archive below *into*; nothing there is replaced, and links are not followed.

    Raises:
        FileError: it is no such archive, names files elsewhere, or holds more than *most* bytes (0: any number).
    """
    left, files = most, 0
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=MEGA) as archive:
            for member in archive:
                files, left = files + 1, left - member.size
                if not member.isreg() or files > _MOST_FILES or (most and left < 0):
                    raise FileError("An archive of a run folder holds what it must not, or too much.")
                _place(archive, member, into)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FileError(f"An archive of a run folder cannot be unpacked: {error}.") from error


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    parts = Path(member.name).parts
    if not parts or any(part in ("..", "/", "") for part in parts):
        raise FileError("An archive of a run folder names files elsewhere.")
    source = archive.extractfile(member)
    if source is None:
        return
    folder = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=folder)
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        descriptor = os.open(
            parts[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
        )
        with os.fdopen(descriptor, "wb") as file:
            while piece := source.read(MEGA):
                file.write(piece)
    finally:
        os.close(folder)
