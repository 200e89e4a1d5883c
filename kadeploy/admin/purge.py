"""What is old and of no use any more at a site: told, or removed. Never what a running operation uses."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from kadeploy.admin import keeper
from kadeploy.boot import kernels, profile, uploads
from kadeploy.boot.profile import FILES_FOLDER
from kadeploy.caller import as_user
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, FileError
from kadeploy.operations import kept_events, recording, runs
from kadeploy.state import database, history, rights, sent, tokens

DAYS = 30
_DAY = 86_400.0

Kind = Literal[
    "runs",
    "events",
    "recordings",
    "sent",
    "uploads",
    "kernels",
    "profiles",
    "cache",
    "leftovers",
    "rights",
    "tokens",
    "statistics",
]
KINDS: dict[Kind, str] = {
    "runs": "run folders beyond runs.days and runs.max_mb",
    "events": "events of runs beyond runs.events_days and runs.events_max_mb",
    "recordings": "recordings of consoles beyond runs.days and runs.max_mb",
    "sent": "files that users have sent and that nobody uses",
    "uploads": "files of -x that nobody uses",
    "kernels": "boot files out of images that no profile mentions",
    "profiles": "boot profiles of nodes that are no longer there",
    "cache": "notes on files that nobody asked for",
    "leftovers": "what interrupted commands have left",
    "rights": "rights that have ended",
    "tokens": "tokens that have ended or were revoked",
    "statistics": "rows of the statistics",
}
"""What goes, in words."""
ROWS: tuple[Kind, ...] = ("rights", "tokens", "statistics")
"""Those that are rows of the database."""


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """What went of a kind, or would."""

    kind: Kind
    number: int
    bytes: int = 0
    """That are free now; 0 of rows, whose room the database uses again."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is old."""

    days: int = DAYS
    """Since when it is of no use."""
    statistics_days: int = 0
    """The same of the statistics; 0: they are kept."""
    dry_run: bool = False


class _Thing(msgspec.Struct, frozen=True):
    """A file or folder that may go."""

    path: Path
    size: int
    remove: Callable[[], object]


Things = Iterator[_Thing]


def purge(folder: Path, wish: Wish) -> list[Gone]:
    """Remove what is old of the site whose configuration is in *folder*, or tell it alone; a line for each kind.

    Raises:
        RightsError: the caller does not keep the site.
        KadeployError: something cannot be looked at, or removed.
    """
    configuration = load_configuration(folder)
    site = configuration.site
    with as_user(keeper.of(site)):
        try:
            found = [_removed(kind, things, wish) for kind, things in _things(configuration, wish)]
            return [*found, *_rows(site, wish)]
        except OSError as error:
            raise FileError(f"{error.filename or site.state}: {error.strerror or error}.") from error
        finally:
            database.disconnect()


def _removed(kind: Kind, things: Iterable[_Thing], wish: Wish) -> Gone:
    number = size = 0
    for thing in things:
        if not wish.dry_run:
            with suppress(FileNotFoundError):  # an operation that ends may purge as well
                thing.remove()
            if thing.path.exists():
                continue
        number, size = number + 1, size + thing.size
    return Gone(kind=kind, number=number, bytes=size)


def _rows(site: Site, wish: Wish) -> list[Gone]:
    before = int(time.time() - wish.days * _DAY)
    found = [
        Gone(kind="rights", number=rights.forget(site, before, wish.dry_run)),
        Gone(kind="tokens", number=tokens.forget(site, before, wish.dry_run)),
    ]
    if wish.statistics_days:
        since = int(time.time() - wish.statistics_days * _DAY)
        found.append(Gone(kind="statistics", number=history.forget(site, since, wish.dry_run)))
    return found


# --- files ------------------------------------------------------------------------------------------------------


def _things(configuration: Configuration, wish: Wish) -> Iterator[tuple[Kind, Iterable[_Thing]]]:
    """Profiles go before what they mention."""
    site, seconds = configuration.site, wish.days * _DAY
    yield "runs", [_Thing(run.path, run.size, partial(runs.remove, site, run)) for run in runs.surplus(site)]
    yield "events", [_Thing(kept.path, kept.size, kept.path.unlink) for kept in kept_events.surplus(site)]
    yield "recordings", [_Thing(path, size, path.unlink) for path, size in recording.surplus(site)]
    yield "sent", [_Thing(path, size, partial(sent.remove, path)) for path, size in sent.unused(site, seconds)]
    yield "profiles", list(_profiles(configuration))
    with _boot_files(site) as folder:
        yield "kernels", list(_kernels(site, folder))
        yield "uploads", list(_uploads(site, folder, seconds))
    yield "cache", list(_cache(site, seconds))
    yield "leftovers", list(_leftovers(site))


@contextmanager
def _boot_files(site: Site) -> Iterator[Path | None]:
    """The folder of boot files, in which nobody else makes or removes any; None: there is none."""
    with ExitStack() as stack:
        is_there = (Path(site.boot.http_root) / FILES_FOLDER).is_dir()
        yield stack.enter_context(uploads.locked(site.boot)) if is_there else None


def _kernels(site: Site, folder: Path | None) -> Things:
    for path in kernels.unused(site.boot, folder) if folder else ():
        yield _Thing(path, path.lstat().st_size, partial(uploads.remove, site.boot, path))


def _uploads(site: Site, folder: Path | None, seconds: float) -> Things:
    for path, size in uploads.unused(site.boot, folder, seconds) if folder else ():
        yield _Thing(path, size, partial(uploads.remove, site.boot, path))


def _profiles(configuration: Configuration) -> Things:
    """Those of a day at least: an operation may have begun before the node was taken out of the configuration."""
    members = (node for cluster in configuration.clusters.values() for node in cluster.members.values())
    with suppress(ConfigError):  # a name does not resolve now: whose profile is whose cannot be told
        for path in profile.left_behind(configuration.site, members):
            if _age(path) > _DAY:
                yield _Thing(path, path.stat().st_size, path.unlink)


def _cache(site: Site, seconds: float) -> Things:
    """Whatever is wanted again is found out again."""
    for path in (site.state / "cache").glob("*/*"):
        if path.is_file() and _idle(path) > seconds:
            yield _Thing(path, path.stat().st_size, path.unlink)


def _leftovers(site: Site) -> Things:
    for path in site.state.glob("dry-run-*"):
        if path.is_dir() and _age(path) > _DAY:
            yield _Thing(path, _size(path), partial(_remove_folder, path))
    for pattern in (".new-*", ".kadeploy-*", ".*.copy-*", "cache/*/.new-*"):
        for path in site.state.glob(pattern):
            if path.is_file() and _age(path) > _DAY:
                yield _Thing(path, path.stat().st_size, path.unlink)


def _idle(path: Path) -> float:
    """Seconds since something was read or written there."""
    status = path.stat()
    return time.time() - max(status.st_atime, status.st_mtime)


def _age(path: Path) -> float:
    """Seconds since it was written; purging reads such files and folders itself."""
    return time.time() - path.stat().st_mtime


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _remove_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
