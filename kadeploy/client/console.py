"""A console over a service: the client's end of a WebSocket (RFC 6455).

Bytes go as binary messages both ways; text messages are the JSON of the structs in `kadeploy.operations.console`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Literal, NoReturn

import msgspec
import wsproto
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from kadeploy.errors import KadeployError, RightsError
from kadeploy.operations.console import PENDING, PIECE, End, Opened, Refused, Size

PATIENCE = 30.0
"""Seconds in which the service has to open a console, or to refuse."""
FAREWELL = 1.0
"""Seconds for telling it that the user leaves."""
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_LARGEST = 1 << 20
"""Bytes of the longest text that a service sends: a refusal."""


def connect(
    connection: socket.socket, path: str, headers: Iterable[tuple[str, str]], host: str, size: Size
) -> RemoteConsole:
    """Open the console at *path* on a terminal of *size*; the connection is closed if that fails.

    Raises:
        KadeployError: the service refuses, or does not answer as one.
    """
    console = RemoteConsole(connection)
    try:
        console.open(path, headers, host, size)
    except BaseException:
        connection.close()
        raise
    return console


class RemoteConsole:
    """A console that a service shows; nothing of it waits, but for `open` and `end`.

    It has to be read before its descriptor is waited for: the service's first words may all have come together.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._out = bytearray()
        self._shown = bytearray()
        self._text = ""
        self._rejection = b""
        self._status = 0
        self._accepted = False
        self.over = False
        """Whether nothing more comes."""
        self._end: End | None = None
        self._refusal = ""
        self._opened: Opened | None = None

    @property
    def opened(self) -> Opened:
        """What the service said when it had opened the console."""
        assert self._opened  # noqa: S101 - `connect` gives none before
        return self._opened

    def open(self, path: str, headers: Iterable[tuple[str, str]], host: str, size: Size) -> None:
        """Shake hands, and wait until the program runs.

        Raises:
            KadeployError: the service refuses, or does not answer as one.
        """
        extra = [(name.encode(), value.encode()) for name, value in headers]
        self._send(Request(host=host, target=path, extra_headers=extra))
        self._until(lambda: self._accepted)
        self.resize(size)
        self._until(lambda: self._opened is not None)
        self._connection.setblocking(False)

    # --- what a terminal is joined to (`kadeploy.cli.console.Stream`) -------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether something is to be written besides what is typed."""
        return bool(self._out)

    def fileno(self) -> int:
        """Descriptor of the connection."""
        return self._connection.fileno()

    def read(self) -> bytes:
        """What the console shows; nothing at all when that is nothing for now."""
        if not self.over:
            with contextlib.suppress(*_LATER):
                self._receive()
        shown = bytes(self._shown)
        self._shown.clear()
        return shown

    def write(self, keys: bytes) -> int:
        """Send what was typed: how much of it there was room for."""
        taken = keys[: max(0, PENDING - len(self._out))]
        if taken:
            self._send(Message(data=taken))
        with contextlib.suppress(*_LATER):
            self._flush()
        return len(taken)

    def resize(self, size: Size) -> None:
        """The terminal has another size."""
        self._send(Message(data=msgspec.json.encode(size).decode()))

    def end(self, reason: Literal["left", "ended", "revoked"]) -> End:
        """Close the connection; why the console was closed."""
        self._send(CloseConnection(code=1000))
        deadline = time.monotonic() + FAREWELL
        with contextlib.suppress(OSError):
            while self._out and (left := deadline - time.monotonic()) > 0:
                self._connection.settimeout(left)
                self._flush()
        self._connection.close()
        if reason != "ended":
            return End(reason)
        return self._end or End("lost")

    # --- the connection -----------------------------------------------------------------------------------------

    def _until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            if self.over:
                self._refuse()
            try:
                self._connection.settimeout(max(0.01, deadline - time.monotonic()))
                while self._out:
                    self._flush()
                self._receive()
            except TimeoutError as error:
                raise KadeployError("The service does not open the console: see its log.") from error

    def _refuse(self) -> NoReturn:
        if self._refusal:
            raise KadeployError(self._refusal)
        if self._status:
            kind = RightsError if self._status in (401, 403) else KadeployError
            raise kind(_sentence(self._rejection) or f"The service refuses: HTTP status {self._status}.")
        raise KadeployError("The service closed the connection and did not say why: see its log.")

    def _send(self, event: Event) -> None:
        with contextlib.suppress(ProtocolError):  # it is closed already
            self._out += self._protocol.send(event)

    def _flush(self) -> None:
        if not self._out:
            return
        try:
            del self._out[: self._connection.send(bytes(self._out))]
        except (*_LATER, TimeoutError):
            raise
        except OSError:  # the connection is gone, as reading tells
            self._out.clear()

    def _receive(self) -> None:
        """Take what has come."""
        try:
            data = self._connection.recv(PIECE)
        except (*_LATER, TimeoutError):
            raise
        except OSError:
            data = b""
        try:
            self._protocol.receive_data(data or None)
            for event in self._protocol.events():
                self._take(event)
        except ProtocolError:
            self.over = True
        self.over = self.over or not data

    def _take(self, event: Event) -> None:
        match event:
            case AcceptConnection():
                self._accepted = True
            case BytesMessage():
                self._shown += event.data
            case TextMessage():
                self._told(event)
            case Ping():
                self._send(event.response())
            case RejectConnection():
                self._status = event.status_code
                self.over = not event.has_body
            case RejectData():
                self._rejection = (self._rejection + event.data)[:_LARGEST]
                self.over = event.body_finished
            case CloseConnection():
                self.over = True

    def _told(self, event: TextMessage) -> None:
        self._text += event.data
        if len(self._text) > _LARGEST:
            raise ProtocolError("a text without end")
        if not event.message_finished:
            return
        text, self._text = self._text, ""
        try:
            told = msgspec.json.decode(text, type=Opened | Refused | End)
        except ValueError as error:
            raise ProtocolError("no word of a console's") from error
        match told:
            case Opened():
                self._opened = told
            case Refused():
                self._refusal, self.over = told.message, True
            case End():
                self._end, self.over = told, True


def _sentence(body: bytes) -> str:
    """What the body of a refusal says, when it says it as JSON."""
    with contextlib.suppress(ValueError):
        said = json.loads(body)
        if isinstance(said, dict):
            return str(said.get("message") or said.get("detail") or "")
    return ""
