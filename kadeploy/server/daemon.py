"""`kadeploy3d`: the process that serves a site, on its socket and by HTTPS."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from litestar.types import ASGIApp

from kadeploy.config import listing
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.service import Https, Service
from kadeploy.errors import ConfigError
from kadeploy.files import MEGA
from kadeploy.remote import sockets
from kadeploy.server.app import application
from kadeploy.server.keeper import Keeper
from kadeploy.server.notifications.notifier import Notifier
from kadeploy.server.notify import listen_fds, notify
from kadeploy.server.peers import Protocol
from kadeploy.state import watch

_LOG = logging.getLogger("kadeploy.server")
_BACKLOG = 1024
AGE = 1.0
"""Seconds after which a change of the configuration counts."""
RETRY = 30.0
"""Seconds until an inventory that is wrong is read again."""


class Watched:
    """The configuration, read again once one of its files has changed; a wrong one is told and the old one kept.

    It is at most *age* seconds old. Inventories of clusters are read beside: that may take long.
    """

    def __init__(self, folder: Path, age: float = AGE) -> None:
        self.folder = folder
        self._age = age
        self._lock = threading.Lock()
        self._marks = self._look()
        self._known = self._read()
        self._next = self._again = 0.0
        self._renewing: threading.Thread | None = None

    def __call__(self) -> Configuration:
        """The configuration as it is now."""
        with self._lock:
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + self._age
                self._refresh()
            return self._known

    def _refresh(self) -> None:
        marks = self._look()
        if marks == self._marks:
            self._renew_inventories()
            return
        self._marks = marks
        try:
            self._known = self._read()
            _LOG.info("the configuration has changed")
        except ConfigError as error:
            _LOG.error("the configuration has changed and is wrong, the one before is kept: %s", error)

    def _renew_inventories(self) -> None:
        """Have inventories read again where they do not count any more; requests go on with the nodes of before."""
        known = filter(None, map(listing.of, self._known.clusters.values()))
        is_busy = self._renewing is not None and self._renewing.is_alive()
        if is_busy or time.monotonic() < self._again or all(each.stands for each in known):
            return
        self._renewing = threading.Thread(target=self._renew, args=(self._known,), daemon=True)
        self._renewing.start()

    def _renew(self, before: Configuration) -> None:
        try:
            found = self._read()
        except ConfigError as error:
            _LOG.error("an inventory has changed and is wrong, the nodes of before are kept: %s", error)
            self._again = time.monotonic() + RETRY
            return
        with self._lock:
            if self._known is before:
                self._known = found

    def _read(self) -> Configuration:
        found = load_configuration(self.folder)
        for name, fault in found.faults.items():
            _LOG.error("the file of cluster %s is wrong, and its nodes are left alone: %s", name, fault)
        return found

    def _look(self) -> list[tuple[str, int, int]]:
        paths = [self.folder / "site.yml", *sorted((self.folder / "clusters").glob("*.yml"))]
        found = [(path, path.stat()) for path in paths if path.exists()]
        return [(str(path), status.st_mtime_ns, status.st_ino) for path, status in found]


def run(folder: Path, path: Path) -> int:
    """Serve the site of *folder* on the socket *path*, and by HTTPS where it says so, until SIGTERM.

    Raises:
        ConfigError: the configuration is wrong, or another process serves the site.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    watched = Watched(folder)
    keeper, notifier = Keeper(watched), Notifier(watched)
    with watch.watching(watched().site), ways_in(watched().site.service, path) as ways:
        keeper.start()
        notifier.start()
        try:
            asyncio.run(serve(watched, ways, _until_signal))
        finally:
            keeper.stop()
            notifier.stop()
    return 0


@dataclass(frozen=True)
class Way:
    """A socket that listens, with TLS or without."""

    listening: socket.socket
    https: Https | None = None


Until = Callable[[Callable[[], None]], None]
"""Is told what ends the service."""


async def serve(configuration: Callable[[], Configuration], ways: Sequence[Way], until: Until) -> None:
    """Serve the site on all *ways* until what *until* was given is called."""
    app = application(configuration)
    servers = [_Server(_config(app, way.https)) for way in ways]

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    until(stop)
    tasks = [server.serve([way.listening]) for server, way in zip(servers, ways, strict=True)]
    notify("READY=1")
    await asyncio.gather(*tasks)
    notify("STOPPING=1")


class _Server(uvicorn.Server):
    """One of several in a process, none of which minds its signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the process's."""
        yield


def _until_signal(stop: Callable[[], None]) -> None:
    gc.freeze()  # what there is now stays; to look through it again and again holds up everybody for 80 ms
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def _config(app: ASGIApp, https: Https | None) -> uvicorn.Config:
    tls: dict[str, Any] = {}
    if https:
        tls = {"ssl_certfile": https.certificate, "ssl_keyfile": https.private_key}
        if https.client_ca:
            tls |= {"ssl_ca_certs": https.client_ca, "ssl_cert_reqs": ssl.CERT_OPTIONAL}
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="wsproto",
        ws_max_size=MEGA,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        backlog=_BACKLOG,
        **tls,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"service.https: {error.strerror or error}: check certificate and private_key.") from error
    return config


@contextmanager
def ways_in(service: Service, path: Path) -> Iterator[list[Way]]:
    """The sockets of a site; those that systemd has opened count in place of our own.

    Raises:
        ConfigError: one of them cannot be opened.
    """
    with ExitStack() as stack:
        given = [stack.enter_context(socket.socket(fileno=number)) for number in listen_fds()]
        local = [way for way in given if way.family == socket.AF_UNIX]
        remote = [way for way in given if way.family != socket.AF_UNIX]
        ways = [Way(each) for each in local or [stack.enter_context(listening(path))]]
        if service.https:
            https = service.https
            ways += [Way(each, https) for each in remote or [stack.enter_context(_tcp(https))]]
        yield ways


def _tcp(https: Https) -> socket.socket:
    try:
        bound = socket.create_server((https.address, https.port), backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"service.https: {https.address}, port {https.port}: {error.strerror}: check address and port."
        ) from error
    _LOG.info("listening on %s, port %s", https.address, https.port)
    return bound


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
