"""A real OpenSSH server on addresses of 127.0.0.0/8, and addresses where nothing good happens.

def test_x(nodes: Nodes): nodes.credentials, nodes.target("node-1"), nodes.refusing(), nodes.silent()
"""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kadeploy.remote.fanout import Credentials, Target

_SSHD = "/usr/sbin/sshd"
_ADDRESSES = [f"127.9.0.{number}" for number in range(1, 9)]


@dataclass
class Nodes:
    """Eight addresses of one sshd (`node-1` … `node-8`), and what tests need to enter it."""

    port: int
    credentials: Credentials
    known_key: str
    log: Path
    addresses: list[str]
    sockets: list[socket.socket] = field(default_factory=list)

    def target(self, name: str = "node-1", pinned: bool = True) -> Target:
        """A node that answers."""
        return Target(name, self.addresses[int(name.rsplit("-", 1)[1]) - 1], self.port, pinned)

    def refusing(self, name: str = "node-refusing") -> Target:
        """A node that refuses connections: no listener there."""
        return Target(name, "127.9.1.1", self.port)

    def silent(self, name: str = "node-silent") -> Target:
        """A node that accepts connections and then says nothing at all."""
        address = f"127.9.2.{len(self.sockets) + 1}"
        listener = socket.create_server((address, self.port), backlog=64)
        self.sockets.append(listener)
        return Target(name, address, self.port)


def _keygen(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def _free_port(addresses: list[str]) -> int:
    for port in range(22000 + os.getpid() % 20000, 65000):
        try:
            for address in addresses:
                socket.create_server((address, port)).close()
        except OSError:
            continue
        return port
    raise AssertionError("no free port")


def _start(
    folder: Path, port: int, addresses: list[str], host_key: Path, settings: str = ""
) -> subprocess.Popen[bytes]:
    config = folder / "sshd_config"
    config.write_text(
        "".join(f"ListenAddress {address}:{port}\n" for address in addresses)
        + f"HostKey {host_key}\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 2000\nMaxSessions 1000\n"
        "LogLevel VERBOSE\nUseDNS no\nPrintMotd no\n"
        "SetEnv SHLVL=3\n"  # keeps bash from reading the .bashrc of whoever runs the tests
         + settings
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on its privilege separation folder
    server = subprocess.Popen(
        [_SSHD, "-D", "-f", config, "-E", folder / "sshd.log"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((addresses[-1], port), timeout=1).close()
        except OSError:
            assert server.poll() is None, (folder / "sshd.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return server


@contextmanager
def serve(folder: Path, settings: str = "") -> Iterator[Nodes]:
    """A server that keeps its files in *folder*; *settings* are more lines of its configuration."""
    known_key = _keygen(folder / "host_key")
    (folder / "authorized_keys").write_text(_keygen(folder / "client_key") + "\n")
    port = _free_port(_ADDRESSES)
    server = _start(folder, port, _ADDRESSES, folder / "host_key", settings)
    credentials = Credentials(folder / "client_key", known_key, getpass.getuser(), connect_timeout=10)
    try:
        yield Nodes(port, credentials, known_key, folder / "sshd.log", _ADDRESSES)
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The server, one for all tests of a run."""
    with serve(tmp_path_factory.mktemp("sshd")) as nodes:
        yield nodes


@pytest.fixture
def nodes(sshd: Nodes) -> Iterator[Nodes]:
    """The server, with silent nodes of this test only."""
    mine = Nodes(sshd.port, sshd.credentials, sshd.known_key, sshd.log, sshd.addresses)
    yield mine
    for listener in mine.sockets:
        listener.close()
