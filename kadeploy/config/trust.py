"""What root's processes may run: what nobody but root could have changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from kadeploy.errors import ConfigError


def require_roots(path: Path, told: str, advice: str, *, sticky_will_do: bool = False) -> None:
    """Refuse *path* if others than root could change it; *told* is how the message begins, *advice* its end.

    *sticky_will_do* is for a folder in which nobody but its owner can put another thing in the place of one.

    Raises:
        ConfigError: they could.
    """
    try:
        status = path.stat()
    except OSError:
        return  # reading it says why
    others = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid != 0 else 0)
    is_sticky = sticky_will_do and status.st_mode & stat.S_ISVTX
    if status.st_uid != 0 or (status.st_mode & others and not is_sticky):
        raise ConfigError(
            f"{told}: {path} could be changed by others than root, and its commands would run as root: "
            f"{advice}chown root it and chmod go-w it."
        )


def require_all_roots(paths: Iterable[Path], told: str) -> None:
    """Refuse any of *paths*, and folders above them, that others than root could change; only in a process of root's.

    Raises:
        ConfigError: they could.
    """
    if os.geteuid() == 0:
        for folder in _above(paths):
            require_roots(folder, told, "", sticky_will_do=True)
        for path in paths:
            require_roots(path.resolve(), told, "")


def _above(paths: Iterable[Path]) -> Iterator[Path]:
    """Those of links as well: whoever can turn one round has another thing run."""
    places = (place for path in paths for place in (path.absolute(), path.resolve()))
    yield from dict.fromkeys(folder for place in places for folder in place.parents)
