"""What a node would be answered: packets of DHCP, files by TFTP and HTTP, and words for what does not come."""

from __future__ import annotations

import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.admin import probe
from kadeploy.admin.dhcp import packet
from kadeploy.boot import tftp_client
from kadeploy.boot.server import HttpServer
from kadeploy.boot.tftp import TftpServer
from kadeploy.errors import FileError, OptionError

MAC = "52:54:00:12:34:56"
KERNEL = bytes(range(256)) * 1000


def answer(transaction: int, options: dict[int, bytes], file: bytes = b"", name: bytes = b"", **address: str) -> bytes:
    """What a DHCP server sends."""
    yours, theirs = (socket.inet_aton(address.get(key, "0.0.0.0")) for key in ("yours", "theirs"))
    head = struct.pack(
        "!BBBBIHH4s4s4s4s16s64s128s",
        *(2, 1, 6, 0, transaction, 0, 0x8000, b"", yours, theirs, b"", packet.mac_bytes(MAC), name, file),
    )
    return head + b"\x63\x82\x53\x63" + encoded({53: b"\2", **options}) + b"\xff"


def encoded(options: dict[int, bytes]) -> bytes:
    return b"".join(bytes([code, len(value)]) + value for code, value in options.items())


# --- DHCP -------------------------------------------------------------------------------------------------------


def options_of(question: bytes) -> dict[int, bytes]:
    found = packet.parsed(b"\2" + question[1:].replace(b"\x35\x01\x01", b"\x35\x01\x02"), 7)
    assert found is not None
    return dict(found.options)


def test_a_bios_rom_asks_as_rfc_4578_has_it_and_for_an_answer_to_all() -> None:
    question = packet.discover(7, MAC, packet.BIOS)
    options = options_of(question)
    assert question[10:12] == b"\x80\x00"
    assert question[28:34].hex(":") == MAC
    assert options[60] == b"PXEClient:Arch:00000:UNDI:002001"
    assert (options[93], options[94]) == (b"\0\0", b"\1\2\1")
    assert (len(options[97]), options[97][0]) == (17, 0)
    assert {66, 67, 43, 60} <= set(options[55])
    assert 77 not in options


def test_uefi_wants_a_url_by_its_vendor_class_and_ipxe_tells_its_name() -> None:
    assert options_of(packet.discover(7, MAC, packet.UEFI_HTTP, http=True))[60] == b"HTTPClient:Arch:00016:UNDI:003016"
    options = options_of(packet.discover(7, MAC, packet.UEFI, packet.IPXE))
    assert (options[60], options[77]) == (b"PXEClient:Arch:00007:UNDI:003016", b"iPXE")
    assert 175 in options


def test_an_offer_tells_where_the_boot_file_is() -> None:
    found = packet.parsed(
        answer(
            7, {54: socket.inet_aton("10.0.0.1"), 60: b"PXEClient"}, b"pxelinux.0", yours="10.0.0.9", theirs="10.0.0.2"
        ),
        7,
    )
    assert found is not None
    assert (found.server, found.address, found.next_server) == ("10.0.0.1", "10.0.0.9", "10.0.0.2")
    assert (found.file, found.vendor_class) == ("pxelinux.0", "PXEClient")


def test_options_66_and_67_stand_for_the_fields_of_the_header() -> None:
    found = packet.parsed(answer(7, {66: b"10.0.0.2", 67: b"http://10.0.0.2/core.efi\0"}), 7, source="10.0.0.1")
    assert found is not None
    assert (found.server, found.next_server, found.file) == ("10.0.0.1", "10.0.0.2", "http://10.0.0.2/core.efi")
    assert found.address == ""


def test_options_that_overflow_into_the_fields_of_the_header_are_read() -> None:
    """RFC 2131, section 4.1: the field of the file name holds options then."""
    found = packet.parsed(answer(7, {52: b"\1"}, encoded({67: b"core.efi"}) + b"\xff"), 7)
    assert found is not None
    assert found.file == "core.efi"


def test_a_long_option_in_two_parts_is_one() -> None:
    content = answer(7, {})[:-1] + encoded({67: b"a" * 200}) + encoded({67: b"b" * 100}) + b"\xff"
    found = packet.parsed(content, 7)
    assert found is not None
    assert found.file == "a" * 200 + "b" * 100


def test_the_answer_to_another_machine_is_not_ours() -> None:
    assert packet.parsed(answer(8, {}), 7) is None
    assert packet.parsed(packet.discover(7, MAC, packet.BIOS), 7) is None


@given(st.binary(max_size=600), st.integers(0, 599))
def test_no_packet_upsets_the_reader(noise: bytes, cut: int) -> None:
    packet.parsed(noise, 7)
    whole = answer(7, {67: b"core.efi"}, b"pxelinux.0")
    packet.parsed(whole[:cut], 7)
    packet.parsed(whole[:241] + noise, 7)


@pytest.mark.parametrize("mac", ["", "52:54:00:12:34", "52:54:00:12:34:5g", "eth0"])
def test_what_is_no_mac_address_is_refused(mac: str) -> None:
    with pytest.raises(OptionError, match="not a MAC address"):
        packet.discover(7, mac, packet.BIOS)


def test_an_interface_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(OptionError, match=r"no network interface 'loo'; there are .*\blo\b|needs root"):
        probe.dhcp("loo", MAC, packet.BIOS, timeout=0.1)


# --- files ------------------------------------------------------------------------------------------------------


@contextmanager
def tftp_server(root: Path) -> Iterator[int]:
    server = TftpServer(root, log=lambda _line: None)
    thread = threading.Thread(target=server.serve, args=("127.0.0.1", 0))
    thread.start()
    try:
        while server.port is None:
            threading.Event().wait(0.01)
        yield server.port
    finally:
        server.stop()
        thread.join()


def test_a_file_by_tftp_comes_whole(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(KERNEL)
    with tftp_server(tmp_path) as port:
        assert tftp_client.fetch("127.0.0.1", "kernel", port=port) == KERNEL
        assert tftp_client.fetch("127.0.0.1", "/kernel", port=port) == KERNEL


def test_a_file_that_the_tftp_server_has_not_is_named(tmp_path: Path) -> None:
    with tftp_server(tmp_path) as port, pytest.raises(FileError, match=r"tftp://127.0.0.1/gone: .* no such file"):
        tftp_client.fetch("127.0.0.1", "gone", port=port)


def test_a_tftp_server_that_says_nothing_is_given_up(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        mute.bind(("127.0.0.1", 0))
        with pytest.raises(FileError, match="nothing came within"):
            tftp_client.fetch("127.0.0.1", "kernel", 0.3, mute.getsockname()[1])
    assert capfd.readouterr().err == ""


def test_a_file_by_tftp_that_never_ends_does(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(KERNEL)
    with tftp_server(tmp_path) as port, pytest.raises(FileError, match="more than 100000 bytes"):
        tftp_client.fetch("127.0.0.1", "kernel", port=port, most=100_000)


@contextmanager
def web_server(server: http.server.HTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_file_by_http_tells_its_size_and_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(KERNEL)
    with web_server(HttpServer(tmp_path, "127.0.0.1", 0, log=lambda _line: None)) as url:
        assert probe.http(f"{url}/kernel") == (len(KERNEL), KERNEL[: 1 << 16])
        assert probe.http(f"{url}/kernel", most=len(KERNEL)).content == KERNEL
        with pytest.raises(FileError, match=r"/gone: the web server says 404 .* Is the file below the folder"):
            probe.http(f"{url}/gone")


class Elsewhere(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "https://mirror.example/kernel")
        self.end_headers()

    def log_message(self, *_words: Any) -> None:
        pass


def test_where_a_redirect_points_no_loader_goes() -> None:
    with (
        web_server(http.server.HTTPServer(("127.0.0.1", 0), Elsewhere)) as url,
        pytest.raises(FileError, match=r"points to https://mirror\.example/kernel, and loaders do not follow"),
    ):
        probe.http(f"{url}/kernel")


def test_a_web_server_that_is_not_there_or_says_nothing_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with pytest.raises(FileError, match="nothing came within"):
            probe.http(f"http://127.0.0.1:{port}/kernel", timeout=0.2)
    with pytest.raises(FileError, match=r"Connection refused\. Does a web server run there"):
        probe.http(f"http://127.0.0.1:{port}/kernel", timeout=0.2)


@pytest.mark.parametrize("url", ["tftp://127.0.0.1/kernel", "/kernel", "http:///kernel", "http://127.0.0.1:x/kernel"])
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(FileError, match=r"kernel: "):
        probe.http(url, timeout=0.2)
