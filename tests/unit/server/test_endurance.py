"""What clients leave behind in a service: nothing. It is a process of its own here, whose memory can be looked at."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from kadeploy import events
from kadeploy.caller import caller
from kadeploy.client import servers
from kadeploy.client.remote import Remote
from kadeploy.config.site import Site
from kadeploy.events import EventFile, Note
from kadeploy.operations.requests import PowerRequest
from kadeploy.server import stream
from kadeploy.state import database, nodes, rights
from tests.unit import build
from tests.unit.plays import write_play

LISTS = ("/v1/nodes", "/v1/workflows", "/v1/environments", "/v1/holders", "/v1/site", "/v1/nowhere")
MB = 1 << 20


@dataclass(frozen=True)
class Daemon:
    """A service: its process, and its socket."""

    pid: int
    socket: Path

    @property
    def memory(self) -> int:
        """Resident, in bytes (proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024

    @property
    def files(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208

    @property
    def remote(self) -> Remote:
        """The site as it tells it."""
        return Remote(servers.address_of(servers.Server(url=str(self.socket)), caller()), caller())


def until(happens: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < limit, "not within a minute"
        time.sleep(0.05)


@pytest.fixture
def busy(site: Site, site_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A file for which power operations wait, on a site with a hundred nodes."""
    database.connect(site)
    rights.add(site, caller().name, ["*"], ["*"])
    nodes.set_state([f"gdx-{rank}.site" for rank in range(1, 101)], "deployed", build.environment(), "alice")
    task = f"  tasks:\n    - ansible.builtin.shell: until test -e {tmp_path}/go; do sleep 0.1; done\n"
    write_play(site_folder, "PowerOn", task)
    yield tmp_path / "go"
    (tmp_path / "go").touch()


@pytest.fixture
def daemon(busy: Path, site_folder: Path) -> Iterator[Daemon]:
    words = [Path(sys.executable).parent / "kadeploy3d", "run"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        found = Daemon(process.pid, site_folder / "state" / "kadeploy3d.sock")
        until(lambda: listens(found.socket))
        try:
            yield found
        finally:
            process.send_signal(signal.SIGTERM)


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(str(path))
    return connection


def follower(path: Path, wid: str) -> socket.socket:
    """Who has asked for the events of a workflow, and reads nothing."""
    connection = connected(path)
    connection.sendall(f"GET /v1/workflows/{wid}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


def begun(remote: Remote) -> str:
    return remote.start(PowerRequest(nodes=("gdx-1.site",), operation="on"))


def test_requests_and_streams_leave_no_memory_and_no_file_behind(daemon: Daemon, busy: Path) -> None:
    """By many users, on connections that are kept and on new ones; most of those who follow vanish in the middle."""
    wid = begun(daemon.remote)

    def use(requests: int, streams: int) -> None:
        kept = http.client.HTTPConnection("localhost")
        with closing(connected(daemon.socket)) as kept.sock:
            for rank in range(requests):
                kept.request("GET", LISTS[rank % len(LISTS)], headers={"X-Kadeploy-User": f"user{rank % 500}"})
                kept.getresponse().read()
        for _ in range(streams):
            with follower(daemon.socket, wid) as vanishes:
                assert vanishes.recv(1)

    use(600, 60)
    memory = daemon.memory
    use(2000, 200)
    until(lambda: daemon.files < 100)  # some for each thread: its connection to the database
    assert daemon.memory - memory < 8 * MB
    busy.touch()
    assert daemon.remote.attach(wid, lambda _: None, threading.Event()) is not None


def test_who_follows_and_reads_nothing_costs_no_memory_however_much_is_told(
    daemon: Daemon, site: Site, busy: Path
) -> None:
    wid = begun(daemon.remote)
    with closing(EventFile(site.run_folders / wid / events.FILE_NAME)) as file:
        for _ in range(16_000):
            file(Note(text="x" * 2000))
    memory = daemon.memory
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(follower(daemon.socket, wid))
        reads = stack.enter_context(follower(daemon.socket, wid))
        told = 0
        while told < 30 * MB:  # meanwhile the others would have been given as much
            told += len(reads.recv(MB))
        assert daemon.memory - memory < 40 * MB
    busy.touch()
    assert daemon.remote.attach(wid, lambda _: None, threading.Event()) is not None


def test_who_follows_the_same_workflow_shares_one_look_at_it(site: Site, service: Path, busy: Path) -> None:
    remote = Remote(servers.address_of(servers.Server(url=str(service)), caller()), caller())
    wid = begun(remote)
    with ExitStack() as stack:
        for _ in range(20):
            assert stack.enter_context(follower(service, wid)).recv(1)
        [watch] = stream._watches.values()
        until(lambda: watch.followers == 20)
    until(lambda: not stream._watches)
    busy.touch()
