"""The service of a site in a thread of the test's process, and the tools as its clients."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kadeploy.client.sites import VARIABLE
from kadeploy.config.folder import load_site
from kadeploy.errors import KadeployError
from kadeploy.operations import background
from kadeploy.server import daemon
from kadeploy.server.daemon import Watched, Way
from kadeploy.state import controllers, database, journal

DUMMY_CLUSTER = """\
nodes: [{name: "gdx-[1-8].site", address: "127.9.1.[1-8]"}]
disk:
  device: /dev/sda
  table: msdos
  partitions: [{number: 1, size: 1GiB, role: swap}, {number: 2, size: 4GiB, role: prod}, {number: 3, role: deploy}]
power: {driver: command, commands: {soft_on: "true", soft_off: "true", soft_reboot: "true", status: "echo on"}}
macro_steps:
  SetDeploymentEnv: [{implementation: SetDeploymentEnvDummy}]
  BroadcastEnv: [{implementation: BroadcastEnvDummy}]
  BootNewEnv: [{implementation: BootNewEnvDummy}]
"""
"""Eight nodes on which nothing is done."""


@contextmanager
def served(folder: Path, path: Path, *others: socket.socket) -> Iterator[Path]:
    """Serve the site of *folder* on the socket *path*, by HTTPS where it says so, and on *others* that listen."""
    with served_ways(folder, path, *others):
        yield path


@contextmanager
def served_ways(folder: Path, path: Path, *others: socket.socket) -> Iterator[list[Way]]:
    """The same, and the sockets that it is served on."""
    stops: list[Callable[[], None]] = []
    begun = threading.Event()

    def until(stop: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop))
        begun.set()

    def run() -> None:
        asyncio.run(daemon.serve(Watched(folder, age=0.0), [*ways, *map(Way, others)], until))
        database.disconnect()

    with daemon.ways_in(load_site(folder).service, path) as ways:
        thread = threading.Thread(target=run, name="service", daemon=True)
        thread.start()
        assert begun.wait(120)
        try:
            yield ways
        finally:
            _end_operations(folder)
            stops[0]()
            thread.join(30)


def _end_operations(folder: Path) -> None:
    """Those that a test has left behind, less those that it only pretends to carry out itself."""
    with suppress(KadeployError):
        site = load_site(folder)
        for wid in journal.workflows(site):
            found = controllers.of(site, wid)
            if found and found[0].pid != os.getpid():
                background.cancel(site, wid)


@pytest.fixture
def service(site_folder: Path) -> Iterator[Path]:
    """The socket of the service of the site of *site_folder*."""
    with served(site_folder, site_folder / "state" / "test.sock") as path:
        yield path


@pytest.fixture(params=["process", "service"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tools do the work themselves, or are clients of a service."""
    if "site_folder" in request.fixturenames:
        if request.param == "service":
            monkeypatch.setenv(VARIABLE, str(request.getfixturevalue("service")))
        database.connect(load_site(request.getfixturevalue("site_folder")))
    return str(request.param)


PROCESS_ALONE = pytest.mark.parametrize("way", ["process"], indirect=True)
"""For tests of a tool that does the work itself: of its process, its files, or what becomes of it when it dies."""


def once(items: list[pytest.Item]) -> list[pytest.Item]:
    """Those of *items* that go through a service with PostgreSQL: the service does with a database what a tool does."""
    found = []
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters and (parameters.params.get("way"), parameters.params.get("database_url")) == _BOTH:
            found.append(item)
    return found


_BOTH = ("service", "postgresql")
