"""Linux network namespaces: a lab's nodes live in one, and the controller enters it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kadeploy.errors import ConfigError

FOLDERS = (Path("/run/netns"), Path("/var/run/netns"))
"""Where ``ip netns`` keeps its namespaces (ip-netns(8))."""

_CLONE_NEWNET = 0x40000000


def enter(name: str) -> None:
    """Move the calling thread, and what it starts from now on, into the network namespace *name* (empty: stay).

    To be called before any thread starts: threads that exist already stay where they are.

    Raises:
        ConfigError: there is no such namespace, or this user may not enter it.
    """
    if not name:
        return
    path = next((folder / name for folder in FOLDERS if "/" not in name and (folder / name).exists()), None)
    if path is None:
        raise ConfigError(
            f"network_namespace: there is no namespace {name!r}; `ip netns` lists them. Is the lab running?"
        )
    _set(path, name)


def _set(path: Path, name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise ConfigError(
                f"network_namespace: {name!r} cannot be entered: {reason}. Run the command as root (sudo)."
            )
    finally:
        os.close(descriptor)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Temporary."""
    enter(name)
    yield
