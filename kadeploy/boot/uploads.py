"""Files of users for their own boot profiles (``-x``), where boot loaders find them.

``-x /home/alice/vmlinuz`` becomes ``kernels/pxe-alice--vmlinuz`` under *http_root* and *tftp_root*. All of them
together stay below *uploads_max_mb*: those that were not used for longest go first, and those of the last hour stay.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kadeploy import files
from kadeploy.boot.profile import FILES_FOLDER
from kadeploy.config.site import BootFolders
from kadeploy.errors import ConfigError, FileError, OptionError
from kadeploy.files import MEGA

PREFIX = "pxe-"
PROFILES = ("pxelinux.cfg", "grub", "ipxe")
"""Folders of boot profiles, under *tftp_root*."""
IN_USE = 3600.0
"""Seconds for which a file that was uploaded or read is not removed: nodes may be about to boot from it."""
_NAME = re.compile(r"[A-Za-z0-9._+@=~][A-Za-z0-9._+@=~-]{0,149}")
"""No dash at its beginning: ``pxe-a---x`` is user ``a-`` and file ``x``, and never user ``a`` and file ``-x``."""


Opener = Callable[..., AbstractContextManager[BinaryIO]]
"""Opens a source; of what comes over http, at most *max_bytes*."""


def store(sources: Sequence[str], boot: BootFolders, user: str, opener: Opener) -> list[str]:
    """Put *sources* (paths and URLs, opened by *opener*) where loaders find them, as files of *user*.

    Returns their names under *http_root* and *tftp_root*. A file of the same name, the user's own, is replaced.

    Raises:
        FileError: a file cannot be read, or there is no room for it.
        OptionError: names that boot loaders would not understand, or that are the same.
        ConfigError: a folder of the site cannot be written.
    """
    limit = boot.uploads_max_mb * MEGA
    names = [name_of(source, user) for source in sources]
    if twice := {name for name in names if names.count(name) > 1}:
        raise OptionError(f"-x: two files have the same name: {', '.join(sorted(twice))}. Rename one of them.")
    for name, source in zip(names, sources, strict=True):
        with opener(source, max_bytes=limit) as stream, _beside(stream, boot, name) as copy, locked(boot) as folder:
            _make_room(boot, folder, name, source, copy.stat().st_size)
            copy.replace(folder / name)
            link(folder / name, boot)
    return [f"{FILES_FOLDER}/{name}" for name in names]


def name_of(source: str, user: str) -> str:
    """Name of an uploaded file, as the wiki page has it (Kadeploy, use case 6).

    Raises:
        OptionError: boot loaders would not understand it.
    """
    base = source.partition("?")[0].rstrip("/").rpartition("/")[2]
    if not _NAME.fullmatch(base):
        raise OptionError(
            f"-x {source}: boot loaders need plain names: letters, digits and . _ + @ = ~ -, the first of them no -. "
            "Rename it."
        )
    if "--" in user:
        raise OptionError(f"-x: the user name {user} holds --, which ends the user's name in uploaded files.")
    return f"{PREFIX}{user}--{base}"


# --- the folder -------------------------------------------------------------------------------------------------


@contextmanager
def locked(boot: BootFolders) -> Iterator[Path]:
    """The folder of boot files under *http_root*, for this process alone.

    Raises:
        ConfigError: it cannot be made, or written.
    """
    with writing(boot) as folder:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(descriptor)


@contextmanager
def writing(boot: BootFolders) -> Iterator[Path]:
    """The same folder, for what others need not wait for: files under names that nobody else knows.

    Raises:
        ConfigError: it cannot be made, or written.
    """
    folder = Path(boot.http_root) / FILES_FOLDER
    try:
        for each in (folder, Path(boot.tftp_root) / FILES_FOLDER):
            each.mkdir(mode=0o755, parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: {error.strerror}: check boot.http_root, boot.tftp_root and their disk."
        ) from error


@contextmanager
def _beside(stream: BinaryIO, boot: BootFolders, name: str) -> Iterator[Path]:
    """A copy of *stream* in the folder, readable for all, which is gone at the end unless it was given a name.

    Raises:
        FileError: it does not end within the room that there is for all uploads.
    """
    with writing(boot) as folder, tempfile.NamedTemporaryFile(prefix=".new-", dir=folder, delete=False) as copy:
        path, limit = Path(copy.name), boot.uploads_max_mb * MEGA
        try:
            while piece := stream.read(MEGA):
                copy.write(piece)
                if copy.tell() > limit:
                    raise FileError(
                        f"{name}: no room: it alone is bigger, and boot.uploads_max_mb is {boot.uploads_max_mb}. "
                        "Make it smaller, or ask an administrator."
                    )
            copy.flush()
            path.chmod(0o644)
            yield path
        finally:
            path.unlink(missing_ok=True)


def link(path: Path, boot: BootFolders) -> None:
    """The same file for TFTP: a hard link, or a copy where that is another disk."""
    other = Path(boot.tftp_root) / FILES_FOLDER / path.name
    if other.parent.resolve() == path.parent.resolve():
        return
    temporary = other.with_name(f".new-{path.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        with path.open("rb") as stream, files.replacing(other, 0o644) as target:
            shutil.copyfileobj(stream, target)
        return
    temporary.replace(other)
    temporary.unlink(missing_ok=True)  # rename(2) leaves it when both are links to one file


class _Stored(NamedTuple):
    """A file of the folder; *places* are its path and that for TFTP, which may be a file of its own."""

    places: tuple[Path, Path]
    size: int
    last_use: float

    @classmethod
    def at(cls, path: Path, boot: BootFolders) -> _Stored:
        """As it is now."""
        places = (path, Path(boot.tftp_root) / FILES_FOLDER / path.name)
        found = [place.lstat() for place in places if os.path.lexists(place)]
        return cls(places, found[0].st_size, max(max(each.st_atime, each.st_mtime) for each in found))


def _make_room(boot: BootFolders, folder: Path, name: str, source: str, size: int) -> None:
    """Remove files that nobody used for long until *size* bytes more fit."""
    limit = boot.uploads_max_mb * MEGA
    others = [_Stored.at(path, boot) for path in folder.glob(f"{PREFIX}*") if path.name != name]
    total = size + sum(each.size for each in others)
    for each in sorted(others, key=lambda other: other.last_use):
        if total <= limit or time.time() - each.last_use < IN_USE:
            break
        for path in each.places:
            path.unlink(missing_ok=True)
        total -= each.size
    if total > limit:
        raise FileError(
            f"-x {source}: no room: with the files of the last hour it makes {total / MEGA:.1f} MB, and "
            f"boot.uploads_max_mb is {boot.uploads_max_mb}. Try later, or ask an administrator."
        )


# --- what nobody uses -------------------------------------------------------------------------------------------


def unused(boot: BootFolders, folder: Path, seconds: float) -> list[tuple[Path, int]]:
    """Files in *folder* that were neither uploaded nor read for so long, and that no profile mentions; with bytes."""
    stored = [_Stored.at(path, boot) for path in folder.glob(f"{PREFIX}*")]
    old = [each for each in stored if time.time() - each.last_use > max(seconds, IN_USE)]
    root = Path(boot.tftp_root)
    texts = [each.read_bytes() for name in PROFILES for each in (root / name).glob("*") if old and each.is_file()]
    return [(each.places[0], each.size) for each in old if not _is_in(os.fsencode(each.places[0].name), texts)]


def _is_in(name: bytes, texts: Sequence[bytes]) -> bool:
    return any(name in text for text in texts)


def remove(boot: BootFolders, path: Path) -> None:
    """Remove a file that nobody uses, for both servers."""
    for place in _Stored.at(path, boot).places:
        place.unlink(missing_ok=True)
