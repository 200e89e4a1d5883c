"""Whether somebody is there who lets workflows go on after their controllers died: the daemon of the site.

It holds a lock on a file of the state folder for as long as it lives; the kernel takes the lock back, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kadeploy.config.site import Site
from kadeploy.errors import ConfigError

FILE_NAME = "kadeploy3d.lock"
"""In *state_dir*; when it was touched last is when the watch began."""
_PATIENCE = 2.0
"""Seconds for which the lock is tried: who asks whether it is held holds it for a moment."""


@contextmanager
def watching(site: Site) -> Iterator[None]:
    """Keep watch over the workflows of *site*; one process at a time does.

    Raises:
        ConfigError: another one does, or the state folder cannot be used.
    """
    path = site.state / FILE_NAME
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: check state_dir in site.yml.") from error
    try:
        if not _locked(descriptor, fcntl.LOCK_EX, _PATIENCE):
            raise ConfigError(f"{path} is locked: another process serves this site already. End it first.")
        os.utime(descriptor)
        yield
    finally:
        os.close(descriptor)


def watched_since(site: Site) -> float | None:
    """When the watch over *site* began (Unix); None: nobody watches."""
    try:
        descriptor = os.open(site.state / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _locked(descriptor, fcntl.LOCK_SH) else os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def is_watched(site: Site) -> bool:
    """Whether somebody is there who lets workflows go on."""
    return watched_since(site) is not None


def _locked(descriptor: int, how: int, patience: float = 0.0) -> bool:
    limit = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= limit:
                return False
            time.sleep(0.02)
        else:
            return True
