"""The boot server gives nodes the files of its folders, and nobody anything else."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
import tftpy
from hypothesis import given
from hypothesis import strategies as st

from bench import loaders
from kadeploy.boot.root import open_below
from kadeploy.boot.server import HttpServer, Patience, TftpServer
from tests.unit.boot import tftp_client


@dataclass
class Servers:
    """Both servers on ephemeral ports of the loopback device, over one folder."""

    root: Path
    tftp_port: int
    http_port: int
    log: list[str] = field(default_factory=list)

    def get(self, path: str, method: str = "GET") -> tuple[int, bytes, str | None]:
        """Status, body, length header."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.getheader("Content-Length")
        finally:
            connection.close()

    def tftp(self, name: str) -> bytes:
        """A file, by tftpy's own client; raises TftpException when it is refused."""
        target = self.root.parent / "fetched"
        tftpy.TftpClient("127.0.0.1", self.tftp_port).download(name, str(target), timeout=5)
        return target.read_bytes()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "profile").write_bytes(b"DEFAULT disk\n")
    (root / "initrd").write_bytes(os.urandom(300_000))
    (tmp_path / "secret").write_text("secret")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "in").symlink_to("sub/profile")
    log: list[str] = []
    web = HttpServer(root, "127.0.0.1", 0, log.append)
    tftp = TftpServer(root, log.append)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    threading.Thread(target=tftp.serve, args=("127.0.0.1", 0), daemon=True).start()
    while tftp.port is None:
        time.sleep(0.01)
    yield Servers(root, tftp.port, web.server_address[1], log)
    web.shutdown()
    web.server_close()
    tftp.stop()


def test_http_sends_a_whole_file(servers: Servers) -> None:
    body = (servers.root / "initrd").read_bytes()
    assert servers.get("/initrd") == (200, body, "300000")


def test_http_tells_the_length_without_the_file(servers: Servers) -> None:
    assert servers.get("/initrd", "HEAD") == (200, b"", "300000")


def test_http_decodes_names(servers: Servers) -> None:
    assert servers.get("/sub%2Fprofile?x=1")[1] == b"DEFAULT disk\n"


@pytest.mark.parametrize(
    "path", ["/", "/sub", "/sub/", "/absent", "/out", "/../secret", "/sub/../../secret", "/%2e%2e/secret", "/a%00b"]
)
def test_http_has_nothing_but_files_of_its_folder(servers: Servers, path: str) -> None:
    status, body, _ = servers.get(path)
    assert status == 404
    assert b"secret" not in body.replace(b"/secret", b"")


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
def test_http_refuses_to_change_anything(servers: Servers, method: str) -> None:
    assert servers.get("/initrd", method)[0] == 501
    assert (servers.root / "initrd").exists()


def test_a_link_inside_the_folder_is_followed(servers: Servers) -> None:
    assert servers.get("/in")[1] == b"DEFAULT disk\n"
    assert servers.tftp("in") == b"DEFAULT disk\n"


def test_tftp_sends_a_file_of_many_blocks(servers: Servers) -> None:
    assert servers.tftp("initrd") == (servers.root / "initrd").read_bytes()


@pytest.mark.parametrize(
    "name", ["absent", "sub", "out", "../secret", "/etc/passwd", "sub/../../secret", "/dev/null/x", "/dev/null"]
)
def test_tftp_has_nothing_but_files_of_its_folder(servers: Servers, name: str) -> None:
    with pytest.raises(tftpy.TftpException):
        servers.tftp(name)


@pytest.mark.parametrize("name", ["initrd", "new", "../new"])
def test_tftp_refuses_uploads(servers: Servers, name: str, tmp_path: Path) -> None:
    before = (servers.root / "initrd").read_bytes()
    source = tmp_path / "mine"
    source.write_text("mine")
    with pytest.raises(tftpy.TftpException):
        tftpy.TftpClient("127.0.0.1", servers.tftp_port).upload(name, str(source), timeout=5)
    assert (servers.root / "initrd").read_bytes() == before
    assert not (servers.root / "new").exists()
    assert not (tmp_path / "new").exists()


def test_an_absent_profile_is_one_quiet_line(servers: Servers, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(tftpy.TftpException):
        servers.tftp("pxelinux.cfg/0AB10101")
    assert servers.log == ["tftp: 127.0.0.1 'pxelinux.cfg/0AB10101' absent"]
    assert capfd.readouterr().err == ""


MALFORMED = {
    "empty": b"",
    "too short": b"\x00",
    "unknown operation": b"\x00\x09abc",
    "no end of name": b"\x00\x01name",
    "no such encoding": b"\x00\x01\xff\xfe\x00octet\x00",
    "block size that is no number": b"\x00\x01initrd\x00octet\x00blksize\x00many\x00",
    "option without value": b"\x00\x01initrd\x00octet\x00blksize\x00",
    "data out of nowhere": b"\x00\x03\x00\x01data",
}


@pytest.mark.parametrize("packet", MALFORMED.values(), ids=MALFORMED)
def test_tftp_survives_a_malformed_packet(servers: Servers, packet: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(packet, ("127.0.0.1", servers.tftp_port))
    assert servers.tftp("sub/profile") == b"DEFAULT disk\n"


def test_a_pipe_in_the_folder_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert open_below(tmp_path, "pipe") is None


@given(st.text(max_size=40))
def test_whatever_the_name_nothing_outside_is_opened(name: str) -> None:
    root = Path(__file__).parent / "lab"
    stream = open_below(root, name)
    if stream is not None:
        with stream:
            assert Path(f"/proc/self/fd/{stream.fileno()}").readlink().is_relative_to(root)


# --- TFTP as clients really speak it ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 70_000])
@pytest.mark.parametrize("options", [{}, {"blksize": 1468}, {"blksize": 512, "windowsize": 8}, {"tsize": 0}])
def test_tftp_sends_files_of_every_size_with_every_option(servers: Servers, size: int, options: dict[str, int]) -> None:
    content = os.urandom(size)
    (servers.root / "file").write_bytes(content)
    assert tftp_client.fetch(("127.0.0.1", servers.tftp_port), "file", seconds=20, **options) == content


def test_tftp_counts_blocks_beyond_65535(servers: Servers) -> None:
    content = os.urandom(70_000 * 8)
    (servers.root / "file").write_bytes(content)
    fetched = tftp_client.fetch(("127.0.0.1", servers.tftp_port), "file", blksize=8, windowsize=32)
    assert fetched == content


def test_tftp_sends_no_packet_that_ethernet_would_have_to_cut(servers: Servers) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(tftp_client.request("initrd", blksize=65464, tsize=0), ("127.0.0.1", servers.tftp_port))
        assert client.recv(2000) == b"\0\6blksize\x001468\0tsize\x00300000\0"


@pytest.mark.parametrize(
    ("options", "limit"),
    [({"blksize": 1408}, 12), ({"blksize": 1408, "windowsize": 16}, 3)],
    ids=["lock-step", "window"],
)
def test_a_loader_arrives_over_a_network_that_loses_packets(
    servers: Servers, options: dict[str, int], limit: float
) -> None:
    (servers.root / "loader").write_bytes(os.urandom(100_000))
    server = ("127.0.0.1", servers.tftp_port)
    with tftp_client.lossy_network(server, loss=0.05, delay=0.025) as network:
        begun = time.monotonic()
        content = tftp_client.fetch(network, "loader", patience=3, **options)
    assert content == (servers.root / "loader").read_bytes()
    assert time.monotonic() - begun < limit


def test_the_boot_server_lives_with_hundreds_of_clients_that_ask_and_fall_silent(tmp_path: Path) -> None:
    (tmp_path / "profile").write_bytes(b"DEFAULT disk\n")
    with boot_server(tmp_path) as (process, server):
        silent = [tftp_client.half_open(server, "profile") for _ in range(700)]
        assert tftp_client.fetch(server, "profile", seconds=30) == b"DEFAULT disk\n"
        assert process.poll() is None
        for each in silent:
            each.close()


def test_a_silent_client_makes_room_for_one_that_speaks(tmp_path: Path) -> None:
    (tmp_path / "profile").write_bytes(b"DEFAULT disk\n")
    with tftp_server(tmp_path, limit=4) as server:
        silent = [tftp_client.half_open(server, "profile") for _ in range(8)]
        assert tftp_client.fetch(server, "profile", seconds=15) == b"DEFAULT disk\n"
        for each in silent:
            each.close()


def test_nodes_beyond_what_may_be_served_at_a_time_come_a_little_later(tmp_path: Path) -> None:
    (tmp_path / "loader").write_bytes(os.urandom(50_000))
    with tftp_server(tmp_path, limit=4) as server, ThreadPoolExecutor(40) as pool:
        fetched = list(pool.map(lambda _: tftp_client.fetch(server, "loader"), range(40)))
    assert fetched == [(tmp_path / "loader").read_bytes()] * 40


def test_a_request_that_comes_once_more_begins_nothing_anew(servers: Servers) -> None:
    """A busy server reads it after the transfer has begun; what the client takes already has to go on."""
    content = (servers.root / "initrd").read_bytes()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(tftp_client.request("initrd"), ("127.0.0.1", servers.tftp_port))
        packet, peer = client.recvfrom(600)
        for number in range(1, 9):
            assert packet == struct.pack("!HH", 3, number) + content[512 * (number - 1) : 512 * number]
            client.sendto(tftp_client.request("initrd"), ("127.0.0.1", servers.tftp_port))
            time.sleep(0.02)
            client.sendto(struct.pack("!HH", 4, number), peer)
            packet, sender = client.recvfrom(600)
            assert sender == peer
    assert servers.log == ["tftp: 127.0.0.1 'initrd' sent"]


def test_who_waits_for_a_place_has_it_in_the_order_of_asking_and_need_not_ask_again(tmp_path: Path) -> None:
    (tmp_path / "profile").write_bytes(b"DEFAULT disk\n")
    with tftp_server(tmp_path, limit=1) as server:
        first, *others = [tftp_client.half_open(server, "profile", f"127.9.0.{rank}") for rank in range(1, 7)]
        served = []
        for each in (first, *others):
            each.settimeout(5)
            packet, peer = each.recvfrom(600)
            assert packet == b"\0\3\0\1DEFAULT disk\n"
            served.append(each.getsockname()[0])
            for later in others[len(served) :]:
                with pytest.raises(BlockingIOError):
                    later.recv(600, socket.MSG_DONTWAIT)
            each.sendto(b"\0\4\0\1", peer)
            each.close()
    assert served == [f"127.9.0.{rank}" for rank in range(1, 7)]


def test_who_says_the_same_for_ever_makes_room_for_one_that_gets_on(tmp_path: Path) -> None:
    (tmp_path / "profile").write_bytes(b"DEFAULT disk\n")
    with tftp_server(tmp_path, limit=1) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as parrot:
        over = threading.Event()
        parrot.settimeout(5)
        parrot.sendto(tftp_client.request("profile"), server)
        peer = parrot.recvfrom(600)[1]

        def repeat() -> None:
            while not over.wait(0.1):
                parrot.sendto(b"\0\4\0\0", peer)

        thread = threading.Thread(target=repeat)
        thread.start()
        try:
            assert tftp_client.fetch(server, "profile", seconds=15) == b"DEFAULT disk\n"
        finally:
            over.set()
            thread.join()


def test_another_request_from_the_same_port_is_answered(servers: Servers) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(tftp_client.request("initrd"), ("127.0.0.1", servers.tftp_port))
        assert client.recv(600)[:4] == b"\0\3\0\1"
        client.sendto(tftp_client.request("sub/profile"), ("127.0.0.1", servers.tftp_port))
        assert client.recv(600) == b"\0\3\0\1DEFAULT disk\n"


def test_http_sends_the_rest_of_a_file_from_where_grub_reads_on(servers: Servers) -> None:
    content = (servers.root / "initrd").read_bytes()
    with socket.create_connection(("127.0.0.1", servers.http_port), 10) as grub:
        grub.sendall(b"GET /initrd HTTP/1.1\r\nHost: boot\r\nUser-Agent: GRUB 2.06\r\nRange: bytes=299990-\r\n\r\n\r\n")
        answer = http.client.HTTPResponse(grub)
        answer.begin()
        assert (answer.status, answer.getheader("Content-Range")) == (206, "bytes 299990-299999/300000")
        assert answer.read() == content[299_990:]


def test_answers_without_a_body_and_parts_of_files_leave_the_connection_in_step(servers: Servers) -> None:
    content = (servers.root / "initrd").read_bytes()
    client = http.client.HTTPConnection("127.0.0.1", servers.http_port, timeout=10)
    client.request("GET", "/sub/profile")
    whole = client.getresponse()
    assert whole.read() == b"DEFAULT disk\n"
    tag = whole.headers["ETag"]
    for method, path, headers, status, body in (
        ("GET", "/sub/profile", {"If-None-Match": tag}, 304, b""),
        ("GET", "/initrd", {"Range": "bytes=5-9"}, 206, content[5:10]),
        ("HEAD", "/initrd", {"Range": "bytes=5-9"}, 206, b""),
        ("GET", "/initrd", {"Range": "bytes=300000-"}, 416, b""),
        ("GET", "/initrd", {}, 200, content),
    ):
        connection = client.sock
        client.request(method, path, headers=headers)
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (status, body)
        assert client.sock is connection, "the same one as before"
    client.close()


def test_a_file_that_is_cut_while_it_is_sent_ends_with_its_connection(tmp_path: Path) -> None:
    with (tmp_path / "initrd").open("wb") as file:
        file.truncate(200_000_000)
    with web_server(tmp_path, patience=60) as port, socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"GET /initrd HTTP/1.1\r\n\r\n")
        received = len(client.recv(1000))
        os.truncate(tmp_path / "initrd", 1000)
        while piece := client.recv(1 << 20):
            received += len(piece)
    assert received < 200_000_000


def test_who_says_a_byte_at_a_time_or_vanishes_keeps_no_place(tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(bytes(20_000_000))
    web = HttpServer(tmp_path, "127.0.0.1", 0, [].append, limit=2, patience=Patience(to_ask=0.5, to_go_on=0.5))
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    server = ("127.0.0.1", web.server_address[1])
    slow = socket.create_connection(server)
    vanished = socket.create_connection(server)
    vanished.sendall(b"GET /initrd HTTP/1.1\r\n\r\n")
    vanished.recv(1000)
    vanished.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    vanished.close()
    told = loaders.by_http(server, loaders.HttpWish(10, ["/initrd"]))
    assert told.failures == []
    over, limit = False, time.monotonic() + 10
    while not over and time.monotonic() < limit:
        try:
            slow.sendall(b"G")
            time.sleep(0.05)
        except OSError:
            over = True
    assert over
    web.shutdown()
    web.server_close()


def test_who_takes_nothing_more_of_a_file_keeps_no_place(tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(bytes(20_000_000))
    log: list[str] = []
    web = HttpServer(tmp_path, "127.0.0.1", 0, log.append, limit=1, patience=Patience(to_take=1, to_go_on=0.5))
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    server = ("127.0.0.1", web.server_address[1])
    with socket.create_connection(server) as full:
        full.sendall(b"GET /initrd HTTP/1.1\r\n\r\n")
        assert full.recv(1000).startswith(b"HTTP/1.1 200")
        assert loaders.by_http(server, loaders.HttpWish(3, ["/initrd"])).failures == []
    assert log[1] == "http: 127.0.0.1 '/initrd' interrupted: it takes nothing more"
    web.shutdown()
    web.server_close()


def test_what_a_client_says_reaches_no_terminal_as_it_is(servers: Servers) -> None:
    with socket.create_connection(("127.0.0.1", servers.http_port), 10) as client:
        client.sendall(b"GET /\x1b]0;mine\x07" + b"x" * 5000 + b" HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 404")
    assert len(servers.log) == 1
    assert servers.log[0].isprintable()
    assert len(servers.log[0]) < 300


def test_nodes_are_served_when_the_log_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "profile").write_bytes(b"DEFAULT disk\n")
    with Path("/dev/full").open("w") as full, boot_server(tmp_path, full) as (process, server):
        assert tftp_client.fetch(server, "profile") == b"DEFAULT disk\n"
        assert process.poll() is None


def test_http_clients_that_say_nothing_do_not_end_the_server(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"kernel")
    web = HttpServer(tmp_path, "127.0.0.1", 0, [].append, limit=20)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    silent = [socket.create_connection(web.server_address[:2]) for _ in range(30)]
    for each in silent[:15]:
        each.close()
    answer = http.client.HTTPConnection("127.0.0.1", web.server_address[1], timeout=20)
    answer.request("GET", "/kernel")
    assert answer.getresponse().read() == b"kernel"
    for each in silent:
        each.close()
    web.shutdown()
    web.server_close()


def test_a_client_that_falls_silent_is_forgotten_so_that_it_may_come_again_from_the_same_port(tmp_path: Path) -> None:
    """GRUB does, after each boot; who is still known to the server under that port would not be let in."""
    (tmp_path / "kernel").write_bytes(b"kernel")
    with web_server(tmp_path, patience=0.5) as port, socket.create_connection(("127.0.0.1", port), 5) as silent:
        silent.sendall(b"GET /kernel HTTP/1.1\r\n\r\n")
        own = silent.getsockname()[1]
        assert known_connections(port, own) == 1
        limit = time.monotonic() + 10
        while known_connections(port, own) and time.monotonic() < limit:
            time.sleep(0.1)
        assert known_connections(port, own) == 0


def test_a_client_that_reads_slowly_gets_everything(tmp_path: Path) -> None:
    content = os.urandom(1_000_000)
    (tmp_path / "initrd").write_bytes(content)
    with web_server(tmp_path, patience=0.5) as port, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", port))
        slow.sendall(b"GET /initrd HTTP/1.0\r\n\r\n")
        slow.shutdown(socket.SHUT_WR)
        received = b""
        while piece := slow.recv(20_000):
            received += piece
            time.sleep(0.02)
    assert received.endswith(content)


def test_a_second_request_on_the_same_connection_is_answered_and_ending_it_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"kernel")
    log: list[str] = []
    with web_server(tmp_path, patience=5, log=log) as port:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        for _ in range(2):
            client.request("GET", "/kernel")
            assert client.getresponse().read() == b"kernel"
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # with a reset, as boot loaders do
    assert log == ['http: 127.0.0.1 "GET /kernel HTTP/1.1" 200 -'] * 2


def known_connections(server: int, client: int) -> int:
    """How many connections of the port *client* the kernel keeps for the port *server*."""
    ends = f"0100007F:{server:04X} 0100007F:{client:04X} "
    return sum(ends in line for line in Path("/proc/net/tcp").read_text().splitlines())


@contextmanager
def web_server(root: Path, patience: float, log: list[str] | None = None) -> Iterator[int]:
    web = HttpServer(root, "127.0.0.1", 0, ([] if log is None else log).append, patience=Patience(to_go_on=patience))
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    yield web.server_address[1]
    web.shutdown()
    web.server_close()


@contextmanager
def tftp_server(root: Path, limit: int) -> Iterator[tftp_client.Address]:
    server = TftpServer(root, [].append, limit)
    threading.Thread(target=server.serve, args=("127.0.0.1", 0), daemon=True).start()
    while server.port is None:
        time.sleep(0.01)
    yield "127.0.0.1", server.port
    server.stop()


OWN_ADDRESS = "127.0.0.9"
"""No client elsewhere has it: thousands of those, in other tests, hold ports of 127.0.0.1 and others meanwhile."""


@contextmanager
def boot_server(
    root: Path, log: int | IO[str] = subprocess.DEVNULL
) -> Iterator[tuple[subprocess.Popen[str], tftp_client.Address]]:
    """The program as a site runs it, with as few open files as Debian gives a process at first."""
    port, web = free_port(socket.SOCK_DGRAM), free_port(socket.SOCK_STREAM)
    folders = ["--tftp-root", str(root), "--http-root", str(root)]
    ports = ["--address", OWN_ADDRESS, "--tftp-port", str(port), "--http-port", str(web)]
    process = subprocess.Popen(
        ["prlimit", "--nofile=1024:", sys.executable, "-m", "kadeploy.boot.server", *folders, *ports],
        stdout=log,
        text=True,
    )
    try:
        tftp_client.fetch((OWN_ADDRESS, port), "profile")
        yield process, (OWN_ADDRESS, port)
    finally:
        process.kill()
        process.wait()


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as each:
        each.bind((OWN_ADDRESS, 0))
        return int(each.getsockname()[1])
