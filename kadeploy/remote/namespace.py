"""Linux network namespaces: a lab's nodes live in one, and the controller goes in for its traffic."""

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


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Put the calling thread into the network namespace *name* (empty: leave it where it is), and back at the end.

    Threads and processes started inside are born there and stay; other threads do not move. A thread that is there
    already needs no privilege.

    Raises:
        ConfigError: there is no such namespace, or this user may not enter it.
    """
    if not name or is_here(name):
        yield
        return
    with _opened(Path("/proc/thread-self/ns/net")) as outside:
        with _opened(_path(name)) as there:
            _enter(there, name)
        try:
            yield
        finally:
            _set(outside)


def is_here(name: str) -> bool:
    """Whether the calling thread is in the network namespace *name*.

    Raises:
        ConfigError: there is no such namespace.
    """
    return _path(name).samefile("/proc/thread-self/ns/net")


def _path(name: str) -> Path:
    path = next((folder / name for folder in FOLDERS if "/" not in name and (folder / name).exists()), None)
    if path is None:
        raise ConfigError(
            f"network_namespace: there is no namespace {name!r}; `ip netns` lists them. Is the lab running?"
        )
    return path


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(descriptor: int, name: str) -> None:
    try:
        _set(descriptor)
    except OSError as error:
        raise ConfigError(
            f"network_namespace: {name!r} cannot be entered: {error.strerror}. Run the command as root (sudo)."
        ) from error


def _set(descriptor: int) -> None:
    """setns(2), which moves the calling thread alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
