"""A service counts as ready when its own ports are bound, not when somebody else's are."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from kadeploy.lab import dhcp
from kadeploy.lab.lab import Lab
from kadeploy.lab.service import Service, bound


def test_a_port_is_ready_once_it_is_bound() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.7", 0))
        number = server.getsockname()[1]
        assert bound([("udp", "127.0.0.7", number)])
        assert not bound([("udp", "127.0.0.8", number)])
    assert not bound([("udp", "127.0.0.7", number)])


def test_a_server_on_all_addresses_answers_on_each() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert bound([("tcp", "127.0.0.7", server.getsockname()[1])])


def test_a_connection_is_no_server() -> None:
    with socket.create_server(("127.0.0.7", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert not bound([("tcp", *client.getsockname())])


def test_all_ports_are_wanted() -> None:
    with socket.create_server(("127.0.0.7", 0)) as server:
        number = server.getsockname()[1]
        assert not bound([("tcp", "127.0.0.7", number), ("tcp", "127.0.0.8", number)])


def test_a_service_with_a_socket_answers_once_it_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    service = Service("socket", ["true"], socket=path)
    assert not service.ready
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert not service.ready
        server.listen()
        assert service.ready


def test_dnsmasq_accepts_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "dnsmasq.conf"
    path.write_text(dhcp.configuration(Lab(nodes=3)))
    done = subprocess.run(["dnsmasq", "--test", f"--conf-file={path}"], capture_output=True, text=True, check=False)
    assert "syntax check OK" in done.stderr


def test_every_node_has_its_address_and_its_name() -> None:
    lines = dhcp.configuration(Lab(nodes=2)).splitlines()
    assert [line for line in lines if line.startswith("dhcp-host")] == [
        "dhcp-host=52:54:00:b1:01:01,10.177.1.1,node-1,infinite",
        "dhcp-host=52:54:00:b1:01:02,10.177.1.2,node-2,infinite",
    ]
