"""Known-hosts lines from what ssh-keyscan says."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

from kadeploy.remote import hostkeys

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]


def test_keys_are_written_under_name_and_address_and_strangers_are_ignored() -> None:
    scanned = [
        "# 10.0.0.1:22 SSH-2.0-OpenSSH",
        "10.0.0.1 ssh-ed25519 AAAA",
        "10.0.0.1 ssh-rsa BBBB",
        "10.0.0.9 ssh-rsa CC",
    ]
    assert hostkeys.lines({"n-1": "10.0.0.1", "n-2": "10.0.0.2"}, scanned, 22) == [
        "n-1,10.0.0.1 ssh-ed25519 AAAA",
        "n-1,10.0.0.1 ssh-rsa BBBB",
    ]


def test_another_port_is_written_in_brackets() -> None:
    assert hostkeys.lines({"n-1": "10.0.0.1"}, ["[10.0.0.1]:2222 ssh-rsa A"], 2222) == [
        "[n-1]:2222,[10.0.0.1]:2222 ssh-rsa A"
    ]


def test_a_node_that_is_reached_by_its_name_is_written_once() -> None:
    assert hostkeys.lines({"n-1": "n-1"}, ["n-1 ssh-rsa A"], 22) == ["n-1 ssh-rsa A"]


def test_no_node_asks_nobody() -> None:
    assert hostkeys.collect({}, 22) == []


def test_a_node_that_is_still_busy_is_asked_again(nodes: Nodes) -> None:
    """For a second after the first question it hangs up on everybody."""
    with socket.create_server(("127.9.0.77", 0)) as listener:
        threading.Thread(target=_hang_up_at_first, args=(listener, nodes), daemon=True).start()
        found = hostkeys.collect({"n-1": "127.9.0.77"}, listener.getsockname()[1])
    assert any(nodes.known_key in line and line.startswith("[n-1]:") for line in found), found


def _hang_up_at_first(listener: socket.socket, nodes: Nodes) -> None:
    begun = 0.0
    while True:
        try:
            asking, _ = listener.accept()
        except OSError:  # the test is over
            return
        begun = begun or time.monotonic()
        if time.monotonic() < begun + 1:
            asking.close()
            continue
        server = socket.create_connection((nodes.target("node-1").address, nodes.port))
        for source, sink in ((asking, server), (server, asking)):
            threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    while piece := source.recv(1 << 16):
        sink.sendall(piece)
    sink.shutdown(socket.SHUT_WR)
