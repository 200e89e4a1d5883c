"""Consoles through a service: uvicorn on a unix socket, real programs, and the tools' client on real terminals."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import re
import select
import socket
import sqlite3
import ssl
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect
import pytest
import uvicorn
from litestar import Litestar, WebSocket, websocket
from litestar.params import FromPath

from kadeploy.client.console import RemoteConsole, connect
from kadeploy.config.folder import load_configuration
from kadeploy.config.site import Site
from kadeploy.errors import KadeployError
from kadeploy.operations import console, recording
from kadeploy.operations.console import End, Size
from kadeploy.server.consoles import Consoles
from kadeploy.state import database, rights

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]

CONSOLE = """\
console_account: {account}
console: {folder}/console HOSTNAME_SHORT
"""
PROGRAM = """\
#!/bin/sh
echo $$ >>{folder}/pids
stty -echo
trap 'stty size' WINCH
printf 'console of %s, %s\\r\\n' "$1" "$(stty size)"
while :; do
    read -r word || continue
    case $word in
        quit) exit 7 ;;
        flood) exec yes ;;
        count) n=0; while :; do n=$((n + 1)); printf '%01000d' 0; echo $n >{folder}/count; done ;;
        raw) stty raw; echo rawly; head -c 400000 | md5sum; exit ;;
        deaf) trap '' HUP; stty raw; echo deaf; while :; do sleep 1; done ;;
        whoami) id -un; env ;;
        size) stty size ;;
        *) echo "got $word" ;;
    esac
done
"""
CLIENT = """\
import socket, sys
from kadeploy.cli.console import attach_remote
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
print("start", flush=True)
try:
    print("END", attach_remote(connection, sys.argv[2], lambda: [("x-user", sys.argv[3])]), flush=True)
except Exception as error:
    print("RAISED", type(error).__name__, error, flush=True)
print("LFLAG", flush=True)
sys.stdin.read()
"""
PATH = "/v1/nodes/gdx-1.site/console"


@dataclass
class Service:
    """A service that runs, and what its consoles leave behind."""

    site: Site
    folder: Path
    server: uvicorn.Server
    thread: threading.Thread
    told: list[tuple[str, str]]
    """For whom a console was opened, or was not by which refusal."""

    @property
    def socket(self) -> str:
        return str(self.folder / "service.sock")

    def connection(self) -> socket.socket:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        found.settimeout(20)
        found.connect(self.socket)
        return found

    def open(self, user: str = "alice", path: str = PATH, **headers: str) -> RemoteConsole:
        return connect(self.connection(), path, [("x-user", user), *headers.items()], "localhost", Size(30, 90))

    def programs(self) -> list[int]:
        """The consoles' programs that still run."""
        with contextlib.suppress(FileNotFoundError):
            pids = (self.folder / "pids").read_text(encoding="ascii").split()
            return [int(pid) for pid in pids if Path(f"/proc/{pid}").exists()]
        return []

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@pytest.fixture
def service(site: Site, site_folder: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """One whose handler believes the header x-user; alice and bob have rights on gdx-1."""
    account = Path.home().owner() if os.geteuid() != 0 else "nobody"
    folder = open_folder
    folder.chmod(0o777)
    program = folder / "console"
    program.write_text(PROGRAM.format(folder=folder), encoding="ascii")
    program.chmod(0o755)
    with (site_folder / "clusters" / "gdx.yml").open("a", encoding="utf-8") as file:
        file.write(CONSOLE.format(account=account, folder=folder))
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write("service: {quota: {consoles: 8}, record_consoles: true, consoles_as_service: true}\n")
    database.connect(site)
    for user in ("alice", "bob"):
        rights.add(site, user, ["gdx-1.site"], ["*"])
    monkeypatch.setattr(console, "CHECK", 0.3)
    yield from _served(site, folder)


def _served(site: Site, folder: Path, **settings: Any) -> Iterator[Service]:
    configuration = load_configuration()
    consoles = Consoles()
    told: list[tuple[str, str]] = []

    @websocket("/v1/nodes/{node:str}/console")
    async def handler(socket: WebSocket[Any, Any, Any], node: FromPath[str]) -> None:
        async def noted(error: KadeployError | None) -> None:
            told.append((socket.headers["x-user"], type(error).__name__))

        await consoles.serve(socket, socket.headers["x-user"], node, configuration, noted, lambda: None)

    settings = settings or {"uds": str(folder / "service.sock")}
    config = uvicorn.Config(Litestar([handler], openapi_config=None), ws="wsproto", log_config=None, **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, 20)
    service = Service(site, folder, server, thread, told)
    try:
        yield service
    finally:
        service.stop()
        assert not thread.is_alive()
        assert service.programs() == []


def until(holds: Callable[[], object], seconds: float = 10.0) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.02)


def read_until(stream: RemoteConsole, wanted: bytes, seconds: float = 15.0) -> bytes:
    """What a console shows, up to *wanted*."""
    said, limit = stream.read(), time.monotonic() + seconds
    while wanted not in said:
        assert not stream.over, said
        assert select.select([stream], [], [], limit - time.monotonic())[0], said
        said += stream.read()
    return said


def read_to_the_end(stream: RemoteConsole, seconds: float = 15.0) -> End:
    limit = time.monotonic() + seconds
    stream.read()
    while not stream.over:
        assert select.select([stream], [], [], limit - time.monotonic())[0]
        stream.read()
    return stream.end("ended")


def type_in(stream: RemoteConsole, keys: bytes) -> None:
    while keys or stream.waiting:
        select.select([], [stream], [], 10)
        keys = keys[stream.write(keys) :]


Attach = Callable[..., pexpect.spawn]


@pytest.fixture
def attach(service: Service) -> Iterator[Attach]:
    """``attach("alice")``: a terminal on which the tools' client shows the console of gdx-1."""
    opened: list[pexpect.spawn] = []

    def run(user: str = "alice", path: str = PATH) -> pexpect.spawn:
        words = ["-c", CLIENT, service.socket, path, user]
        child = pexpect.spawn(sys.executable, words, timeout=20, dimensions=(31, 97))
        opened.append(child)
        child.before_console = termios.tcgetattr(child.child_fd)
        child.expect("start\r\n")
        return child

    yield run
    for child in opened:
        child.close(force=True)


def is_restored(child: pexpect.spawn) -> bool:
    child.expect("LFLAG")
    settings: list[object] = termios.tcgetattr(child.child_fd)
    return settings == child.before_console


# --- a console on a terminal ------------------------------------------------------------------------------------------


def test_a_console_through_the_service_is_as_it_is_without(attach: Attach) -> None:
    """Size, keys, words, changes of the size, the program's end and its status."""
    child = attach()
    child.expect_exact("Console of gdx-1.site; ESC typed four times leaves it.")
    child.expect_exact("console of gdx-1, 31 97")
    child.send("word\r")
    child.expect_exact("got word")
    child.setwinsize(44, 132)
    child.expect_exact("44 132")
    child.send("quit\r")
    child.expect_exact("End(reason='ended', status=7")
    assert is_restored(child)


def test_escape_four_times_ends_the_program(attach: Attach, service: Service) -> None:
    child = attach()
    child.expect("console of")
    child.send("\x1b" * 4)
    child.expect_exact("End(reason='left', status=0")
    assert is_restored(child)
    until(lambda: not service.programs(), 2)


def test_a_refusal_is_told_before_the_terminal_is_touched(attach: Attach, service: Service) -> None:
    child = attach("mallory")
    child.expect("RAISED KadeployError mallory does not have the right to use /dev/sda3 of gdx-1.site")
    assert is_restored(child)
    assert service.programs() == []


def test_the_console_is_closed_when_the_rights_end(attach: Attach, service: Service) -> None:
    child = attach()
    child.expect("console of")
    child.send("deaf\r")
    child.expect("deaf")
    rights.delete(service.site, "alice", ["gdx-1.site"], ["*"])
    child.expect_exact("End(reason='revoked', status=0")
    assert is_restored(child)
    assert service.programs() == []


def test_the_console_is_closed_when_nobody_can_tell_the_rights(attach: Attach, service: Service) -> None:
    child = attach()
    child.expect("console of")
    with sqlite3.connect(service.site.state / "kadeploy.db") as connection:
        connection.execute('ALTER TABLE "rights" RENAME TO "gone"')
    child.expect_exact("End(reason='unchecked', status=0")
    with sqlite3.connect(service.site.state / "kadeploy.db") as connection:
        connection.execute('ALTER TABLE "gone" RENAME TO "rights"')


def test_when_the_service_stops_its_programs_end_and_the_terminal_is_restored(attach: Attach, service: Service) -> None:
    child = attach()
    child.expect("console of")
    service.stop()
    child.expect_exact("End(reason='lost', status=0")
    assert is_restored(child)
    assert service.programs() == []


# --- clients that are slow, or gone -----------------------------------------------------------------------------------


def test_the_program_of_a_client_that_was_killed_ends_within_two_seconds(attach: Attach, service: Service) -> None:
    child = attach()
    child.expect("console of")
    child.kill(9)
    until(lambda: not service.programs(), 2)


def test_a_client_that_vanishes_behind_a_paste_nobody_reads_is_noticed(service: Service) -> None:
    """While there is no room for what it sends, its connection is not read."""
    stream = service.open()
    read_until(stream, b"console of")
    type_in(stream, b"deaf\r")
    read_until(stream, b"deaf")
    limit = time.monotonic() + 2
    while time.monotonic() < limit:
        stream.write(b"x" * 60_000)
        time.sleep(0.01)
    stream._connection.close()
    until(lambda: not service.programs(), 4)  # the program is deaf for the hangup, too


def test_a_client_that_does_not_read_holds_up_its_program_and_nobody_else(service: Service) -> None:
    stream, other = service.open(), service.open("bob")
    read_until(stream, b"console of")
    read_until(other, b"console of")
    type_in(stream, b"count\r")
    until((service.folder / "count").exists)
    counts = [-1, 0]
    while counts[-1] != counts[-2]:
        time.sleep(1)
        counts.append(int((service.folder / "count").read_text() or 0))
    assert counts[-1] < 1000  # KB: two buffers of sockets, and the 64 KiB that wait
    type_in(other, b"word\r")
    read_until(other, b"got word")
    read_until(stream, b"0" * 1_000_000)  # it goes on
    for each in (stream, other):
        each.end("left")


def test_a_long_paste_arrives_whole(service: Service) -> None:
    stream = service.open()
    read_until(stream, b"console of")
    type_in(stream, b"raw\r")
    read_until(stream, b"rawly")
    pasted = random.Random(1).randbytes(400_000)
    type_in(stream, pasted)
    read_until(stream, hashlib.md5(pasted).hexdigest().encode())
    assert read_to_the_end(stream) == End("ended", 0)


def test_many_consoles_share_the_threads_of_a_few(service: Service) -> None:
    before = threading.active_count()
    streams = [service.open(user) for user in ("alice", "bob") for _ in range(8)]
    for number, stream in enumerate(streams):
        type_in(stream, f"word{number}\r".encode())
    for number, stream in enumerate(streams):
        read_until(stream, f"got word{number}\r\n".encode())
    assert len(service.programs()) == 16
    assert threading.active_count() - before < 16
    for stream in streams:
        stream.end("left")
    until(lambda: not service.programs(), 5)


# --- who may what -----------------------------------------------------------------------------------------------------


def test_a_user_has_as_many_consoles_as_the_quota_says_and_places_are_given_back(service: Service) -> None:
    streams = [service.open() for _ in range(8)]
    with pytest.raises(KadeployError, match=r"alice has 8 consoles open.*service.quota.consoles"):
        service.open()
    assert service.told == [("alice", "NoneType")] * 8 + [("alice", "LimitError")]
    service.open("bob").end("left")
    streams.pop().end("left")
    until(lambda: len(service.programs()) == 7)
    streams.append(service.open())
    for stream in streams:
        stream.end("left")


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("mars-1", "Unknown node: mars-1"),
        ("gdx-[1-2].site", "2 nodes"),
        ("nvm-1.site", "does not have the right"),
        ("..%2F..%2Fetc", "HTTP status 403"),
    ],
)
def test_refusals_are_those_of_the_tool(node: str, said: str, service: Service) -> None:
    with pytest.raises(KadeployError, match=said):
        service.open(path=f"/v1/nodes/{node}/console")
    assert service.programs() == []


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://[", "http://localhost.evil.example"])
def test_a_page_of_another_server_cannot_use_what_a_browser_knows(origin: str, service: Service) -> None:
    with pytest.raises(KadeployError, match="may not open consoles here"):
        service.open(origin=origin)
    service.open(origin="http://localhost").end("left")


def test_the_program_has_neither_the_services_account_nor_its_secrets(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BMC_PASSWORD", "sesame")
    stream = service.open()
    read_until(stream, b"console of")
    type_in(stream, b"whoami\r")
    said = read_until(stream, b"TERM=xterm")
    assert os.geteuid() != 0 or b"nobody\r\n" in said
    type_in(stream, b"word\r")
    assert b"sesame" not in said + read_until(stream, b"got word")
    stream.end("left")


def test_what_was_shown_is_recorded_and_what_was_typed_is_not(service: Service) -> None:
    stream = service.open()
    read_until(stream, b"console of")
    type_in(stream, b"\x00hunter2\x7f" * 2)
    stream.resize(Size(40, 120))
    type_in(stream, b"\x15size\r")
    read_until(stream, b"40 120")
    type_in(stream, b"quit\r")
    assert read_to_the_end(stream).status == 7
    until(lambda: not service.programs())
    (recorded,) = recording.listed(load_configuration(), "alice")
    assert (recorded.user, recorded.node) == ("alice", "gdx-1.site")
    assert recorded.path.stat().st_mode & 0o777 == 0o600
    with recording.open_recorded(recorded) as file:
        header, pieces = recording.read(file, "it")
        kinds = [(each.kind, each.text) for each in pieces]
    assert (header.width, header.height) == (90, 30)
    assert ("r", "120x40") in kinds
    assert "console of gdx-1, 30 90" in "".join(text for kind, text in kinds if kind == "o")
    assert "hunter2" not in recorded.path.read_text(encoding="utf-8")


# --- what is no console's language ------------------------------------------------------------------------------------


def handshake(connection: socket.socket) -> None:
    connection.sendall(
        f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nx-user: alice\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.recv(1)
    assert answer.startswith(b"HTTP/1.1 101")


def frame(opcode: int, payload: bytes, first: int = 0x80, length: int | None = None) -> bytes:
    """A masked frame (RFC 6455, section 5.2); *length* is what it claims, when that is not so."""
    size = len(payload) if length is None else length
    head = bytes([first | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += bytes([0x80 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", size)
    return head + bytes(4) + payload


# Frames that are none are uvicorn's to refuse, and it just closes the connection.
SIZE = frame(1, b'{"type":"size","rows":24,"columns":80}')
WRONG: dict[str, tuple[bytes, bytes, int | None]] = {
    "text that is no JSON": (SIZE, frame(1, b"hello"), 1003),
    "JSON of another kind": (SIZE, frame(1, b'["size"]'), 1003),
    "a message that only the service says": (SIZE, frame(1, b'{"type":"ended","reason":"left"}'), 1003),
    "a negative size": (SIZE, frame(1, b'{"type":"size","rows":-1,"columns":80}'), 1003),
    "a size that no terminal has": (SIZE, frame(1, b'{"type":"size","rows":99999,"columns":80}'), 1003),
    "a key too much": (SIZE, frame(1, b'{"type":"size","rows":1,"columns":8,"x":1}'), 1003),
    "JSON without end": (SIZE, frame(1, b"[" * 50_000), 1003),
    "text that is no UTF-8": (SIZE, frame(1, b"\xff\xfe"), None),
    "a text that is too long": (SIZE, frame(1, b" " * (2 << 20)), 1009),
    "a paste that is too long": (SIZE, frame(2, b"x" * (2 << 20)), 1009),
    "bytes in front of the size": (b"", frame(2, b"ls"), 1008),
    "an opcode that there is not": (SIZE, frame(3, b""), None),
    "a reserved bit": (SIZE, frame(2, b"x", first=0xC0), None),
    "a control frame that is too long": (SIZE, frame(9, b"x" * 200), None),
    "a continuation of nothing": (SIZE, frame(0, b"x"), None),
    "a frame that is not masked": (SIZE, b"\x82\x01x", None),
    "a length beyond all": (SIZE, frame(2, b"x", length=1 << 63), None),
}


def close_code(connection: socket.socket) -> int | None:
    """The code of the frame by which the service closes; None when it just does."""
    connection.settimeout(10)
    data = b""
    with contextlib.suppress(ConnectionError):
        while not re.search(b"\x88.{3}", data, re.DOTALL) and (piece := connection.recv(1 << 16)):
            data += piece
    found = data.rfind(b"\x88")
    return struct.unpack("!H", data[found + 2 : found + 4])[0] if found >= 0 else None


@pytest.mark.parametrize("name", WRONG)
def test_what_a_client_may_not_say_closes_its_console(
    name: str, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    first, wrong, code = WRONG[name]
    with service.connection() as connection:
        handshake(connection)
        connection.sendall(first)
        with contextlib.suppress(ConnectionError):
            connection.sendall(wrong)
        assert close_code(connection) == code
    until(lambda: not service.programs(), 3)
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


def noise(chance: random.Random) -> bytes:
    """Frames of all kinds, and what is none."""
    kinds: list[Callable[[], bytes]] = [
        lambda: chance.randbytes(chance.randrange(1, 200)),
        lambda: frame(chance.randrange(16), chance.randbytes(chance.randrange(130)), chance.choice((0, 0x80, 0xF0))),
        lambda: frame(1, chance.choice((b"{", b"null", b'{"type":"size"}', b'{"type":"size","rows":"a"}', b"\x00"))),
        lambda: frame(2, chance.randbytes(chance.randrange(70_000))),
        lambda: frame(2, b"x" * chance.randrange(100), length=chance.randrange(1 << 62)),
        lambda: frame(8, chance.randbytes(chance.choice((0, 1, 2, 80)))),
        lambda: SIZE,
    ]
    return b"".join(chance.choice(kinds)() for _ in range(chance.randrange(1, 9)))


@pytest.mark.parametrize("seed", range(8))
def test_two_hundred_noisy_clients_leave_no_traceback_no_program_and_a_service_that_answers(
    seed: int, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(seed)
    for _ in range(25):
        with service.connection() as connection:
            handshake(connection)
            connection.sendall(SIZE if chance.random() < 0.7 else b"")
            with contextlib.suppress(ConnectionError):
                connection.sendall(noise(chance))
            if chance.random() < 0.5:
                connection.shutdown(socket.SHUT_WR)
    until(lambda: not service.programs(), 10)
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []
    until(lambda: answers(service), 30)


def answers(service: Service) -> bool:
    """Whether there is a place for a console again, which is as it should be."""
    try:
        stream = service.open()
    except KadeployError:
        return False
    type_in(stream, b"word\r")
    read_until(stream, b"got word")
    stream.end("left")
    return True


# --- from another machine ---------------------------------------------------------------------------------------------


def test_a_console_is_shown_over_tls(service: Service, tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *name]
    subprocess.run(make, check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = _served(
        service.site, service.folder, host="127.0.0.1", port=port, ssl_certfile=certificate, ssl_keyfile=key
    )
    next(running)
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    secure = ssl.create_default_context(cafile=certificate).wrap_socket(plain, server_hostname="localhost")
    stream = connect(secure, PATH, [("x-user", "alice")], f"localhost:{port}", Size())
    read_until(stream, b"console of gdx-1, 24 80")
    type_in(stream, b"raw\r")
    read_until(stream, b"rawly")
    type_in(stream, bytes(400_000))
    read_until(stream, b"  -")
    assert read_to_the_end(stream) == End("ended", 0)
    with contextlib.suppress(StopIteration):
        next(running)
