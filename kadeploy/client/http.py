"""HTTP to a site's service: one connection, kept from one question to the next."""

from __future__ import annotations

import http.client
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import msgspec

from kadeploy.client.address import Address, is_for_good, trouble
from kadeploy.errors import AuthenticationError, ServiceError
from kadeploy.operations.service import Refusal

AnswerT = TypeVar("AnswerT")
Query = Mapping[str, str | int | bool | Sequence[str] | None]
_LAST_EVENT = "Last-Event-ID"
_TRIES = 30
"""Attempts to find a service again that is being restarted."""
_PAUSE = 1.0
_LOOK = 0.2
"""Seconds between two looks whether to stop."""
_SHOWN = "Name what shows who you are in client.yml: token_file, user and password_file, or certificate."


class Message(NamedTuple):
    """A server-sent event."""

    event: str
    data: bytes
    number: str
    """Its id."""


class Http:
    """Requests to the service at *address*."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._connection = address.connection()

    def ask(
        self,
        method: str,
        path: str,
        kind: type[AnswerT],
        query: Query | None = None,
        body: Any = None,
        header: Callable[[str], None] | None = None,
        headed: str = "",
        pieces: Iterator[bytes] | None = None,
    ) -> AnswerT:
        """The answer of a resource as a *kind*; *header* gets the value of the header *headed*, where there is one.

        In place of a *body* that becomes JSON, *pieces* may be sent as they are.

        Raises:
            KadeployError: what the service refuses.
            ServiceError: it cannot be reached, or does not answer as it should.
        """
        response = (
            self._sent(method, path, query, body) if pieces is None else self._poured(method, path, query, pieces)
        )
        content = self._read(response)
        if header is not None and (value := response.getheader(headed)):
            header(value)
        if kind is type(None):
            return None
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ServiceError(f"{self.address.told}: an answer that is not understood ({path}: {error}).") from error

    def content(self, path: str, query: Query) -> bytes:
        """What a resource answers, as it is."""
        return self._read(self._sent("GET", path, query, None))

    def opened(self, path: str) -> http.client.HTTPResponse:
        """An answer to be read piece by piece, with `telling` around."""
        return self._sent("GET", path, None, None)

    def telling(self) -> AbstractContextManager[None]:
        """What goes wrong with the connection within is a refusal."""
        return _told(self.address)

    def cut(self) -> None:
        """From any thread: end what is being read or sent."""
        _shut(self._connection)

    def close(self) -> None:
        """Nothing more will be asked."""
        self._connection.close()

    def connected(self) -> socket.socket:
        """A new connection to the service, for another protocol."""
        with _told(self.address):
            connection = self.address.connection()
            connection.connect()
            return connection.sock

    def lines(self, path: str, body: Any) -> Iterator[bytes]:
        """The lines of an answer, as they come."""
        response = self._sent("POST", path, None, body)
        with _told(self.address), response:
            yield from _lines(response)

    def events(self, path: str, last: str, stopped: Callable[[], bool]) -> Iterator[Message]:
        """The events of a stream behind number *last*, until it ends or *stopped*; it survives a lost connection.

        Raises:
            ServiceError: the connection is lost, and cannot be made again.
        """
        tries = _TRIES
        while not stopped():
            try:
                with closing(_Events(self.address, path, last)) as stream:
                    for message in stream.read(stopped):
                        last, tries = stream.last, _TRIES
                        yield message
            except OSError as error:
                tries -= 1
                if not tries or is_for_good(error):
                    raise ServiceError(f"{trouble(self.address, error)} The service is gone.") from error
                time.sleep(_PAUSE)
            else:
                return

    def _sent(self, method: str, path: str, query: Query | None, body: Any) -> http.client.HTTPResponse:
        content = None if body is None else msgspec.json.encode(body)
        target = f"{path}?{urlencode(_given(query), doseq=True)}" if query else path
        headers = {**self.address.headers, **({"Content-Type": "application/json"} if content is not None else {})}
        with _told(self.address):
            if method != "GET":
                self._connection.close()  # what changes something is sent once, so not where nobody may listen any more
            is_old = self._connection.sock is not None
            try:
                response = self._answered(method, target, content, headers)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                self._connection.close()
                if not is_old:
                    raise
                response = self._answered(method, target, content, headers)  # it was kept for too long
        _require_good(self.address, response, lambda: self._read(response))
        return response

    def _answered(
        self, method: str, target: str, content: bytes | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        self._connection.request(method, target, content, headers)
        return self._connection.getresponse()

    def _poured(self, method: str, path: str, query: Query | None, pieces: Any) -> http.client.HTTPResponse:
        """By a connection of its own, which a cut does no harm to; what goes wrong with it is an OSError."""
        self._connection.close()
        target = f"{path}?{urlencode(_given(query or {}), doseq=True)}"
        try:
            self._connection.request(method, target, pieces, dict(self.address.headers), encode_chunked=True)
            response = self._connection.getresponse()
        except BaseException:  # the pieces may end early too; the service hears of it at once
            self._connection.close()
            raise
        _require_good(self.address, response, response.read)
        return response

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        with _told(self.address):
            return response.read()


def _shut(connection: http.client.HTTPConnection) -> None:
    with suppress(OSError):
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def _told(address: Address) -> Iterator[None]:
    """What goes wrong with a connection is a refusal."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise ServiceError(trouble(address, error)) from error


def _given(query: Query) -> dict[str, str | int | Sequence[str]]:
    words = {name: value for name, value in query.items() if value is not None}
    return {name: ("true" if value else "false") if isinstance(value, bool) else value for name, value in words.items()}


def _require_good(address: Address, response: http.client.HTTPResponse, content: Callable[[], bytes]) -> None:
    if response.status < 300:
        return
    if response.status < 400:
        raise ServiceError(f"{address.told}: sends us elsewhere, and is not followed: give the address of the service.")
    try:
        refusal = msgspec.json.decode(content(), type=Refusal)
    except msgspec.DecodeError as error:
        raise ServiceError(
            f"{address.told}: answers with the status {response.status} and no reason. Is kadeploy3d there?"
        ) from error
    if response.status == 401 and address.is_remote:
        raise AuthenticationError(f"{address.told}: {refusal.message} {_SHOWN}")
    refusal.raised()


class _Events:
    """One connection that events come by, read in a thread of its own: whoever waits may look at other things."""

    def __init__(self, address: Address, path: str, last: str) -> None:
        self.last = last
        self._queue: queue.SimpleQueue[Message | OSError | None] = queue.SimpleQueue()
        self._connection = address.connection()
        headers = {**address.headers, "Accept": "text/event-stream", _LAST_EVENT: last}
        self._connection.request("GET", path, headers=headers)
        self._response = self._connection.getresponse()
        _require_good(address, self._response, self._response.read)
        threading.Thread(target=self._receive, daemon=True, name="events").start()

    def read(self, stopped: Callable[[], bool]) -> Iterator[Message]:
        """Messages until the stream ends, or *stopped*.

        Raises:
            OSError: the connection is lost.
        """
        while not stopped():
            with suppress(queue.Empty):
                found = self._queue.get(timeout=_LOOK)
                if isinstance(found, OSError):
                    raise found
                if found is None:
                    return
                self.last = found.number or self.last
                yield found

    def _receive(self) -> None:
        try:
            for message in _messages(_lines(self._response)):
                self._queue.put(message)
            self._queue.put(None)
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:  # closed meanwhile
            self._queue.put(error if isinstance(error, OSError) else ConnectionResetError(str(error)))

    def close(self) -> None:
        """End it; the thread hears of it."""
        _shut(self._connection)
        self._connection.close()


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The lines of an answer without their ends; its own `readline` takes a connection that is cut for the last one.

    Raises:
        OSError, http.client.HTTPException: it is cut.
    """
    rest = b""
    while piece := response.read1():
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _messages(lines: Iterable[bytes]) -> Iterator[Message]:
    """Server-sent events (HTML, section 9.2) of a stream's lines."""
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.rstrip(b"\r\n").partition(b": ")
        if name:
            fields[name] = value
        elif b"data" in fields:
            yield Message(fields.get(b"event", b"").decode(), fields[b"data"], fields.get(b"id", b"").decode())
            fields = {}
