"""The client's end of a console, against services that are slow, wrong or hostile; and what it costs other tools."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, Message, Ping, Pong

from kadeploy.cli import TOOLS
from kadeploy.cli.console import ESCAPE, attach
from kadeploy.client import console
from kadeploy.client.console import RemoteConsole, connect
from kadeploy.errors import KadeployError, RightsError
from kadeploy.operations.console import End, Size

OPENED = '{"type":"opened","node":"gdx-1.site","part":"/dev/sda3","program":"cat"}'


class Peer:
    """The other end of a connection, which does what a test says."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.protocol = WSConnection(ConnectionType.SERVER)
        self.heard: list[Event] = []

    def send(self, *events: Event) -> None:
        for event in events:
            self.connection.sendall(self.protocol.send(event))

    def listen(self, kind: type[Event]) -> Event:
        """Take what comes, up to an event of this kind."""
        while True:
            while self.heard:
                if isinstance(event := self.heard.pop(0), kind):
                    return event
            data = self.connection.recv(1 << 16)
            assert data
            self.protocol.receive_data(data)
            self.heard += list(self.protocol.events())

    def accept(self) -> None:
        self.connection.recv(1 << 16, socket.MSG_PEEK)
        self.protocol.receive_data(self.connection.recv(1 << 16))
        self.request = next(self.protocol.events())
        self.send(AcceptConnection())


def against(says: Callable[[Peer], None]) -> RemoteConsole:
    """A console at a service that does *says* in a thread of its own, and then hangs up."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)

    def serve() -> None:
        with theirs, contextlib.suppress(ConnectionError):
            says(Peer(theirs))

    threading.Thread(target=serve, daemon=True).start()
    return connect(ours, "/v1/nodes/gdx-1.site/console", [("authorization", "Bearer x")], "here", Size(24, 80))


def opened(then: Callable[[Peer], None]) -> RemoteConsole:
    def says(peer: Peer) -> None:
        peer.accept()
        peer.send(Message(data=OPENED))
        then(peer)

    return against(says)


def shown(stream: RemoteConsole, seconds: float = 10.0) -> bytes:
    said, limit = stream.read(), time.monotonic() + seconds
    while not stream.over:
        assert select.select([stream], [stream] if stream.waiting else [], [], limit - time.monotonic()) != ([], [], [])
        stream.write(b"")
        said += stream.read()
    return said


# --- what it says and hears -------------------------------------------------------------------------------------------


def test_the_client_says_who_asks_and_how_large_its_terminal_is() -> None:
    heard: list[object] = []

    def says(peer: Peer) -> None:
        peer.accept()
        heard.extend([peer.request.target, dict(peer.request.extra_headers)[b"authorization"], peer.request.host])
        peer.send(Message(data=OPENED))
        heard.append(peer.listen(Message).data)  # type: ignore[attr-defined]

    shown(against(says))
    assert heard[:3] == ["/v1/nodes/gdx-1.site/console", b"Bearer x", "here"]
    assert heard[3] == '{"type":"size","rows":24,"columns":80}'


def test_bytes_in_fragments_and_pings_among_them_are_taken() -> None:
    def then(peer: Peer) -> None:
        peer.send(Message(data=b"one ", message_finished=False), Ping(payload=b"?"))
        peer.send(Message(data=b"two", message_finished=True), Message(data=b""))
        assert peer.listen(Pong).payload == b"?"  # type: ignore[attr-defined]
        peer.send(Message(data=b" three"), Message(data='{"type":"ended","reason":"ended","status":3}'))

    stream = opened(then)
    assert shown(stream) == b"one two three"
    assert stream.end("ended") == End("ended", 3)


def test_what_comes_together_with_the_word_that_it_is_open_is_shown() -> None:
    """As a quick program's first words do, on a busy machine; and its last ones, when that was all it had to say."""

    def together(*messages: Event) -> Callable[[Peer], None]:
        def says(peer: Peer) -> None:
            peer.accept()
            peer.listen(Message)
            peer.connection.sendall(b"".join(peer.protocol.send(each) for each in (Message(data=OPENED), *messages)))
            peer.listen(CloseConnection)

        return says

    ended: Event = Message(data='{"type":"ended","reason":"ended","status":3}')
    for more, keys, end in [([], ESCAPE, End("left")), ([ended], b"", End("ended", 3))]:
        stream = against(together(Message(data=b"login: "), *more))
        ours, users = pty.openpty()
        typist = threading.Thread(target=lambda ours=ours, keys=keys: _answer(ours, b"login: ", keys))
        typist.start()
        assert attach(stream, terminal=users, screen=users) == end
        typist.join(10)
        assert not typist.is_alive(), "nothing was shown"
        os.close(users)
        os.close(ours)


def _answer(line: int, prompt: bytes, keys: bytes) -> None:
    said = b""
    while prompt not in said:
        said += os.read(line, 1 << 10)
    os.write(line, keys)


def test_leaving_is_said_and_never_waited_for() -> None:
    heard: list[Event] = []
    stream = opened(lambda peer: heard.append(peer.listen(CloseConnection)))
    assert stream.end("left") == End("left")
    deadline = time.monotonic() + 5
    while not heard:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    silent = opened(lambda _: time.sleep(5))
    begun = time.monotonic()
    for _ in range(200):
        silent.write(b"x" * 10_000)
    silent.end("left")
    assert time.monotonic() - begun < 3


def test_more_is_not_taken_than_the_service_takes() -> None:
    stream = opened(lambda _: time.sleep(5))
    taken = sum(stream.write(b"x" * 10_000) for _ in range(500))
    assert taken < 2_000_000
    stream.end("left")


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (b'HTTP/1.1 403 No\r\ncontent-length: 20\r\n\r\n{"message":"no way"}', RightsError, "no way"),
        (b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n", RightsError, "HTTP status 401"),
        (b'HTTP/1.1 404 No\r\ncontent-length: 18\r\n\r\n{"detail":"lost?"}', KadeployError, r"lost\?"),
        (b"HTTP/1.1 500 No\r\ncontent-length: 5\r\n\r\noops!", KadeployError, "HTTP status 500"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", KadeployError, "HTTP status 200"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", KadeployError, "did not say why"),
        (b"", KadeployError, "did not say why"),
        (bytes(range(256)) * 100, KadeployError, "did not say why"),
    ],
)
def test_an_answer_that_opens_nothing_is_told(answer: bytes, error: type[KadeployError], said: str) -> None:
    def says(peer: Peer) -> None:
        peer.connection.recv(1 << 16)
        peer.connection.sendall(answer)

    with pytest.raises(error, match=said):
        against(says)


def test_a_refusal_is_told_without_its_control_characters() -> None:
    def says(peer: Peer) -> None:
        peer.accept()
        peer.send(Message(data='{"type":"refused","message":"no \\u001b[31mway"}'), CloseConnection(code=1008))

    with pytest.raises(KadeployError) as caught:
        against(says)
    assert str(caught.value) == "no \N{REPLACEMENT CHARACTER}[31mway"


def test_a_service_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PATIENCE", 0.5)
    with pytest.raises(KadeployError, match="does not open the console"):
        against(lambda _: time.sleep(5))


def test_a_service_that_dribbles_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PATIENCE", 0.5)

    def says(peer: Peer) -> None:
        for _ in range(500):
            peer.connection.sendall(b"H")
            time.sleep(0.02)

    begun = time.monotonic()
    with pytest.raises(KadeployError):
        against(says)
    assert time.monotonic() - begun < 5


# --- what is no console's language ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["hello", "[]", "null", "{}", '{"type":"size"}', '{"type":"ended","reason":"x"}', "[" * 100_000, '"' * 9]
)
def test_a_text_that_is_no_message_ends_the_console(text: str) -> None:
    stream = opened(lambda peer: peer.send(Message(data=text)))
    shown(stream)
    assert stream.end("ended") == End("lost")


def test_a_text_without_end_ends_the_console_and_fills_no_memory() -> None:
    def then(peer: Peer) -> None:
        for _ in range(1000):
            peer.send(Message(data="x" * 100_000, message_finished=False))

    stream = opened(then)
    shown(stream)
    assert len(stream._text) < 2 << 20
    assert stream.end("ended") == End("lost")


@pytest.mark.parametrize("seed", range(100))
def test_noise_ends_the_console_and_raises_nothing(seed: int) -> None:
    chance = random.Random(seed)

    def frame() -> bytes:
        payload = chance.randbytes(chance.randrange(120))
        head = bytes([chance.choice((0x80, 0, 0xC0)) | chance.randrange(16), chance.choice((0, 0x80)) | len(payload)])
        long = struct.pack("!BBQ", 0x82, 127, chance.randrange(1 << 63))
        return chance.choice((head + payload, head + payload, long, chance.randbytes(30)))

    stream = opened(lambda peer: peer.connection.sendall(b"".join(frame() for _ in range(chance.randrange(20)))))
    shown(stream)
    assert stream.end("ended").reason in ("lost", "ended")


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_no_tool_pays_for_websockets_that_it_does_not_use() -> None:
    modules = ", ".join(f"kadeploy.cli.{name.replace('-', '_')}" for name in TOOLS)
    script = f"import sys; import {modules}; print({{'wsproto', 'h11', 'litestar'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
