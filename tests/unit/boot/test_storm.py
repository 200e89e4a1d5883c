"""A thousand nodes that are switched on at once boot, all of them, with few places and few open files."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import loaders
from bench.loaders import HttpWish, TftpWish
from tests.unit.boot import tftp_client

NODES = 1000
FILES = ("loader", "profile-of-mac-{node}", "profile-{node}")
"""As PXELINUX looks for its profile: first by the MAC address, for which there is none."""
WHOLE_LINE = re.compile(
    r"tftp: [\d.]+ '[\w-]+' (sent|absent)|tftp: [\d.]+ is silent after \d+ bytes: given up"
    r'|http: [\d.]+ "GET /kernel HTTP/1.1" 200 -'
)
TFTP_PORT, HTTP_PORT = 10069, 10080


@dataclass
class Room:
    """The program as a site runs it, with a thousand open files: a fifth of them for clients of each kind."""

    root: Path
    address: str
    log: Path
    pid: int

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {file.name: file.stat().st_size for file in self.root.iterdir()}

    @property
    def memory(self) -> float:
        """The most it has had, MB (proc(5))."""
        return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[0]) / 1024


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    root, log = tmp_path / "root", tmp_path / "log"
    root.mkdir()
    (root / "loader").write_bytes(os.urandom(60_000))
    (root / "kernel").write_bytes(bytes(1_000_000))
    for rank in range(NODES):
        (root / f"profile-{rank}").write_bytes(b"DEFAULT deploy\n" * (60 + rank % 7))
    address = f"127.7.{os.getpid() % 250}.1"
    command = ["prlimit", "--nofile=1024:1024", sys.executable, "-m", "kadeploy.boot.server", "--address", address]
    command += ["--tftp-root", root, "--http-root", root]
    command += ["--tftp-port", str(TFTP_PORT), "--http-port", str(HTTP_PORT)]
    with log.open("w") as file, subprocess.Popen(command, stdout=file) as process:
        tftp_client.fetch((address, TFTP_PORT), "profile-0")
        yield Room(root, address, log, process.pid)
        process.kill()


def test_a_thousand_nodes_at_once_get_loader_and_profile(room: Room) -> None:
    wish = TftpWish(NODES, FILES, absent=FILES[1:2])
    told = loaders.by_tftp((room.address, TFTP_PORT), wish, room.sizes)
    assert told.failures == []
    assert len(told.done) == NODES
    assert room.memory < 100


def test_a_thousand_nodes_get_them_when_packets_are_lost_and_kernels_are_sent_and_some_vanish(room: Room) -> None:
    server = (room.address, TFTP_PORT)
    gone = [tftp_client.half_open(server, "loader", f"127.9.0.{rank}") for rank in range(1, 200)]
    for each in gone[:100]:
        each.close()  # the others keep their ports, and are silent
    with ThreadPoolExecutor(1) as pool:
        web = pool.submit(loaders.fetch, (room.address, HTTP_PORT), HttpWish(NODES, ["/kernel"] * 3))
        told = loaders.by_tftp(server, TftpWish(NODES, FILES, absent=FILES[1:2], deaf=0.002), room.sizes)
    assert told.failures == []
    assert len(told.done) == NODES
    assert web.result().failures == []
    assert web.result().bytes == NODES * 3_000_000
    assert [line for line in room.log.read_text().splitlines() if not WHOLE_LINE.fullmatch(line)] == []
    for each in gone[100:]:
        each.close()


def test_nodes_beyond_the_places_for_http_wait_for_their_turn(room: Room) -> None:
    told = loaders.by_http((room.address, HTTP_PORT), HttpWish(NODES, ["/kernel", "/profile-7"], keep_alive=False))
    assert told.failures == []
    assert told.bytes == NODES * (1_000_000 + room.sizes["profile-7"])
    with socket.create_connection((room.address, HTTP_PORT), 10) as client:
        client.sendall(b"HEAD /kernel HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
