"""The boot server gives nodes the files of its folders, and nobody anything else."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tftpy
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.boot.server import HttpServer, TftpServer, open_below


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
