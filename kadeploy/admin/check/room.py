"""Room on disks, against what the site may come to need."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kadeploy.admin.check.environments import known, local_file
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look
from kadeploy.errors import KadeployError
from kadeploy.files import MEGA

STATE = Look("room", "state")
RUNS = Look("room", "runs")
QUOTA = Look("room", "quota")
IMAGE = Look("room", "image")
BOOT = Look("room", "boot")
TEMPORARY = Look("room", "temporary")
FILES = Look("room", "files")

LEAST = 100
"""MB without which nothing can be recorded."""
_FEWEST = 1000
"""Files that can still be made."""


def check(subject: Subject) -> Iterator[Finding]:
    """Where room is short."""
    site = subject.site
    if site.state.is_dir():
        yield from _state(subject)
    for setting, folder in (("boot.tftp_root", site.boot.tftp_root), ("boot.http_root", site.boot.http_root)):
        if Path(folder).is_dir():
            needed = site.boot.uploads_max_mb if setting == "boot.http_root" else LEAST
            yield from _boot(setting, Path(folder), needed)
    temporary = Path(tempfile.gettempdir())
    free = _free(temporary)
    if free < LEAST:
        yield TEMPORARY.fail(f"{temporary}: {free} MB are free, and tools need some", f"make room in {temporary}")
    else:
        yield TEMPORARY.ok(f"{temporary}: {_told(free)} free")
    yield from _inodes([site.state, Path(site.boot.tftp_root), Path(site.boot.http_root), temporary])


def _free(folder: Path) -> int:
    """MB that others than root can still use."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize // MEGA


def _told(megabytes: int) -> str:
    return f"{megabytes} MB" if megabytes < 10_000 else f"{megabytes // 1024} GB"


def _state(subject: Subject) -> Iterator[Finding]:
    site = subject.site
    free, state = _free(site.state), site.state
    if free < LEAST:
        yield STATE.fail(f"{state}: {free} MB are free: operations break off when the disk is full", "make room")
        return
    yield STATE.ok(f"{state}: {_told(free)} free")
    kinds = 2 if site.service.record_consoles else 1
    allowed = kinds * site.runs.max_mb + (site.runs.events_max_mb if site.runs.events_days else 0)
    missing = allowed - _used(site.run_folders) - _used(site.kept_events) - free
    if missing > 0:
        yield RUNS.warn(
            f"{state}: runs.max_mb and runs.events_max_mb allow {_told(allowed)}, of which {_told(missing)} have no "
            "room",
            f"make room, or set runs.max_mb to {max(1, (kinds * site.runs.max_mb - missing) // kinds)} in site.yml",
        )
    if site.service.quota.files_mb > free:
        yield QUOTA.warn(
            f"{state}: one user may send files of {_told(site.service.quota.files_mb)}, and {_told(free)} are free",
            "make room, or set service.quota.files_mb lower in site.yml",
        )
    sizes = {path: path.stat().st_size // MEGA for path in _images(subject) if path.is_file()}
    if sizes and (largest := max(sizes, key=lambda path: sizes[path])) and sizes[largest] > free:
        yield IMAGE.warn(
            f"{state}: the largest image, {largest}, has {_told(sizes[largest])}, and {_told(free)} are free: users "
            "cannot send it, nor can it be fetched by http",
            "make room, or name images by path",
        )


def _images(subject: Subject) -> list[Path]:
    """Images that are files here; none where the database does not tell, which `environments` says."""
    try:
        return [path for path in map(local_file, known(subject)) if path]
    except (KadeployError, OSError):
        return []


def _used(folder: Path) -> int:
    """MB of all files below; what cannot be looked at does not count."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size  # noqa: PTH118 - there may be very many
            except OSError:
                continue
    return total // MEGA


def _boot(setting: str, folder: Path, needed: int) -> Iterator[Finding]:
    free = _free(folder)
    if free < needed:
        yield BOOT.warn(
            f"{setting}: {folder}: {free} MB are free, and {needed} MB may be needed",
            "make room, or set boot.uploads_max_mb lower in site.yml",
        )
    else:
        yield BOOT.ok(f"{setting}: {folder}: {_told(free)} free")


def _inodes(folders: list[Path]) -> Iterator[Finding]:
    for folder in dict.fromkeys(each for each in folders if each.is_dir()):
        status = os.statvfs(folder)
        if status.f_files and status.f_favail < _FEWEST:  # some file systems have no such limit
            yield FILES.fail(
                f"{folder}: its file system has room for {status.f_favail} more files, whatever their size",
                "remove files (df -i shows the limit)",
            )
