"""How long run folders are kept: for some days, and within some room, the oldest going first (`runs` in site.yml).

The events of a run outlive its folder: see `kept_events`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kadeploy.config.site import Site
from kadeploy.events import FILE_NAME
from kadeploy.files import MEGA
from kadeploy.operations import kept_events
from kadeploy.operations.work import run_folder
from kadeploy.state import journal

_DAY = 86400.0
_SIZE = "size"
"""File of a run folder that tells how many bytes it holds, written once it has ended."""


class Run(NamedTuple):
    """A run folder that nobody uses; *last* is when something was written there (Unix), 0 where half of it is gone."""

    path: Path
    last: float
    size: int


def purge(site: Site, wid: str = "") -> None:
    """Remove what is too old or too much; the workflow *wid* has just ended, and stays."""
    if wid:
        _note_size(run_folder(site, wid))
    for run in surplus(site, wid):
        remove(site, run)
    kept_events.purge(site)


def remove(site: Site, run: Run) -> None:
    """Remove a run folder, once its events are kept; where they cannot be, they stay in it alone, until the next time.

    So nothing of them is lost on a disk that is full, and the room that the rest took is free.
    """
    if not _events_are_kept(site, run):
        _empty(run)
        if not _events_are_kept(site, run):
            return
    shutil.rmtree(run.path, ignore_errors=True)


def _events_are_kept(site: Site, run: Run) -> bool:
    with suppress(OSError):
        kept_events.keep(site, run.path.name)
        return True
    return False


def _empty(run: Run) -> None:
    """Remove all but the events; the folder stays as old as it is."""
    with suppress(OSError):
        for path in run.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != FILE_NAME:
                path.unlink()
        os.utime(run.path, (run.last, run.last))


def surplus(site: Site, wid: str = "") -> list[Run]:
    """Run folders that are too old, or too much, oldest first; never those of workflows that run, or of *wid*."""
    ended = journal.ended(site)
    runs = sorted(_unused(site, ended, wid), key=lambda run: run.last)
    oldest = time.time() - site.runs.days * _DAY
    room = site.runs.max_mb * MEGA - (_size(run_folder(site, wid)) if wid else 0)
    total = sum(run.size for run in runs)
    found = []
    for run in runs:
        if total <= room and run.last >= oldest:
            break
        found.append(run)
        total -= run.size
    return found


def _unused(site: Site, ended: Mapping[str, bool], wid: str) -> Iterator[Run]:
    """Run folders, less those of workflows that run or are just being prepared."""
    for path in site.run_folders.glob("*"):
        with suppress(OSError):  # another process may purge as well
            last = path.stat().st_mtime
            fresh = time.time() - last < _DAY
            if path.name != wid and ended.get(path.name, not fresh):
                is_half_gone = kept_events.path_of(site, path.name).exists()  # who removed it was killed
                yield Run(path, 0.0 if is_half_gone else last, _size(path))


def _size(folder: Path) -> int:
    """Bytes below *folder*, as noted at its end, or else counted: its controller died."""
    try:
        return int((folder / _SIZE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return _count(folder)


def _note_size(folder: Path) -> None:
    with suppress(OSError):
        (folder / _SIZE).write_text(f"{_count(folder)}\n", encoding="ascii")


def _count(folder: Path) -> int:
    """A file that several attempts have, by links, counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = os.lstat(os.path.join(where, name))  # noqa: PTH118 - many files
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())
