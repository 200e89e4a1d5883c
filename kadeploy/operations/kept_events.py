"""The events of runs whose folders are gone, behind xz: ``state_dir/events/WID.jsonl.xz`` (`runs` in site.yml).

A file of them is whole or not there: it is on the disk under its name before the run folder goes. It is as old as the
last event, and belongs to whom the run belonged.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from kadeploy import events, files
from kadeploy.config.site import Site
from kadeploy.errors import UnknownWorkflowError
from kadeploy.files import MEGA
from kadeploy.operations.work import run_folder

SUFFIX = ".jsonl.xz"
_QUICK = 1
"""The preset of xz: the events of 500 nodes, 5 MB, become in 0.2 s a fifteenth, by the best in 1.5 s a nineteenth."""
_DAY = 86400.0


class Kept(NamedTuple):
    """A file of events that were kept; *last* is when the last one happened (Unix)."""

    last: float
    size: int
    path: Path


def path_of(site: Site, wid: str) -> Path:
    """Where the events of the workflow *wid* are once its run folder is gone."""
    return site.kept_events / f"{wid}{SUFFIX}"


def all_of(site: Site) -> list[Path]:
    """All such files of the site."""
    return sorted(site.kept_events.glob(f"*{SUFFIX}"))


def is_kept(path: Path) -> bool:
    """Whether *path* is a file of events that were kept, rather than one that may grow."""
    return path.name.endswith(SUFFIX)


# --- keeping --------------------------------------------------------------------------------------------------------


def keep(site: Site, wid: str) -> None:
    """Keep the events that are in the run folder of *wid*, unless there are none, or they are too old.

    Raises:
        OSError: they cannot be kept; nothing was changed.
    """
    with suppress(FileNotFoundError), _opened(run_folder(site, wid) / events.FILE_NAME) as source:
        status = os.fstat(source.fileno())
        if status.st_size and status.st_mtime >= _oldest(site):
            _make_folder(site)
            with files.replacing(path_of(site, wid)) as target:
                with lzma.open(target, "wb", preset=_QUICK) as packed:
                    shutil.copyfileobj(source, packed, MEGA)
                _finish(target, status)
            _write_down(site.kept_events)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file that is no link: root may be the one who keeps what is another account's."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(path)
        yield file


def _finish(target: BinaryIO, of: os.stat_result) -> None:
    """*target* is on the disk, and has the age and, as far as that can be given, the owner *of* another file."""
    target.flush()
    if os.geteuid() == 0:
        os.fchown(target.fileno(), of.st_uid, of.st_gid)
    os.utime(target.fileno(), ns=(of.st_mtime_ns, of.st_mtime_ns))
    os.fsync(target.fileno())


def _make_folder(site: Site) -> None:
    """As that of the run folders, beside which it is."""
    if not site.kept_events.is_dir():
        with suppress(FileExistsError):  # another process may purge as well
            site.kept_events.mkdir()
        if os.geteuid() == 0:
            like = site.run_folders.stat()
            os.chown(site.kept_events, like.st_uid, like.st_gid, follow_symlinks=False)


def _write_down(folder: Path) -> None:
    """What is in *folder* is called so on the disk as well."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- removing -------------------------------------------------------------------------------------------------------


def purge(site: Site) -> None:
    """Remove what is `surplus`."""
    for kept in surplus(site):
        with suppress(OSError):
            kept.path.unlink()


def surplus(site: Site) -> list[Kept]:
    """Those that are too old, the oldest of those that are too much, and what a process that was killed has left."""
    oldest, room = _oldest(site), site.runs.events_max_mb * MEGA
    found = []
    for kept in sorted(_files(site, f"*{SUFFIX}"), reverse=True):
        room -= kept.size
        if room < 0 or kept.last < oldest:
            found.append(kept)
    return found + [each for each in _files(site, ".new-*") if time.time() - each.last > _DAY]


def _oldest(site: Site) -> float:
    return time.time() - site.runs.events_days * _DAY


def _files(site: Site, pattern: str) -> Iterator[Kept]:
    for path in site.kept_events.glob(pattern):
        with suppress(OSError):  # another process may purge as well
            status = path.lstat()
            yield Kept(status.st_mtime, status.st_size, path)


# --- reading --------------------------------------------------------------------------------------------------------


def lines(path: Path, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Whole lines as they are, from *offset* on, each with its own: those that it had in the run folder.

    Raises:
        UnknownWorkflowError: the file is damaged, or may not be read; what is before the damage has come.
    """
    try:
        with suppress(FileNotFoundError), lzma.open(path, format=lzma.FORMAT_XZ) as file:
            place = file.seek(offset)
            for line in file:
                place += len(line)
                if events.decode(line) is not None:  # until its end, nobody has verified what is in the file
                    yield place, line.rstrip(b"\n")
    except (lzma.LZMAError, EOFError, OSError) as error:
        wid = path.name.removesuffix(SUFFIX)
        raise UnknownWorkflowError(
            f"{wid}: what was kept of its events is damaged ({path.name}: {error}); kastat3 -d -w {wid} tells how it "
            "ended."
        ) from error
