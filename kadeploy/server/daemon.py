"""`kadeploy3d`: the process that serves a site, on its socket and by HTTPS."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.errors import ConfigError
from kadeploy.remote import sockets
from kadeploy.server.app import application
from kadeploy.server.peers import Protocol

_LOG = logging.getLogger("kadeploy.server")
_BACKLOG = 1024


class Watched:
    """The configuration, read again once one of its files has changed; a wrong one is told and the old one kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._marks = self._look()
        self._known = load_configuration(folder)
        self._next = 0.0

    def __call__(self) -> Configuration:
        """The configuration as it is now, at most a second old."""
        with self._lock:
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + 1.0
                self._refresh()
            return self._known

    def _refresh(self) -> None:
        marks = self._look()
        if marks == self._marks:
            return
        self._marks = marks
        try:
            self._known = load_configuration(self.folder)
            _LOG.info("the configuration has changed")
        except ConfigError as error:
            _LOG.error("the configuration has changed and is wrong, the one before is kept: %s", error)

    def _look(self) -> list[tuple[str, int, int]]:
        paths = [self.folder / "site.yml", *sorted((self.folder / "clusters").glob("*.yml"))]
        found = [(path, path.stat()) for path in paths if path.exists()]
        return [(str(path), status.st_mtime_ns, status.st_ino) for path, status in found]


def run(folder: Path, path: Path) -> int:
    """Serve the site of *folder* on the socket *path* until SIGTERM.

    Raises:
        ConfigError: the configuration is wrong, or another process serves there.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with listening(path) as bound:
        server(folder).run(sockets=[bound])
    return 0


def server(folder: Path) -> uvicorn.Server:
    """What serves the site of *folder*.

    Raises:
        ConfigError: the configuration is wrong.
    """
    config = uvicorn.Config(
        application(Watched(folder)),
        http=Protocol,
        ws="wsproto",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        backlog=_BACKLOG,
    )
    return uvicorn.Server(config)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket to which anybody may connect, for the kernel says who they are; gone afterwards.

    Raises:
        ConfigError: another process serves there, or it cannot be made.
    """
    with _bound(path) as bound:
        _LOG.info("listening on %s", path)
        yield bound
    path.unlink(missing_ok=True)


def _bound(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with sockets.address(path.parent, path.name) as short:
            if _answers(short):
                raise ConfigError(f"{path}: another process serves there already.")
            path.unlink(missing_ok=True)
            bound = socket.socket(socket.AF_UNIX)
            bound.bind(short)
        path.chmod(0o666)
        bound.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: check service.socket in site.yml.") from error
    return bound


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0
