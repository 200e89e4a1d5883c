"""HTTP to a site's service, by a unix socket: one connection, kept from one request to the next."""

from __future__ import annotations

import http.client
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import msgspec

from kadeploy.errors import ServiceError
from kadeploy.operations.service import Refusal

AnswerT = TypeVar("AnswerT")
Query = Mapping[str, str | int | bool | Sequence[str] | None]
_PATIENCE = 60.0
"""Seconds that an answer may take to begin, or to go on."""
_REPEATABLE = {"GET", "HEAD"}
_LAST_EVENT = "Last-Event-ID"
_TRIES = 30
"""Attempts to find a service again that is being restarted."""
_PAUSE = 1.0
_LOOK = 0.2
"""Seconds between two looks whether to stop."""


class _Connection(http.client.HTTPConnection):
    """By the unix socket *path*."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_PATIENCE)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Message(NamedTuple):
    """A server-sent event."""

    event: str
    data: bytes
    number: str
    """Its id."""


class Http:
    """Requests to the service that listens at *where*, each with *headers*."""

    def __init__(self, where: str, headers: Mapping[str, str] | None = None) -> None:
        self.where = where
        self.headers = headers or {}
        self._connection = _Connection(where)

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
            raise ServiceError(f"{self.where}: an answer that is not understood ({path}: {error}).") from error

    def content(self, path: str, query: Query) -> bytes:
        """What a resource answers, as it is."""
        return self._read(self._sent("GET", path, query, None))

    def connected(self) -> socket.socket:
        """A new connection to the service, for another protocol."""
        with self._told():
            connection = _Connection(self.where)
            connection.connect()
            return connection.sock

    def lines(self, path: str, body: Any) -> Iterator[bytes]:
        """The lines of an answer, as they come."""
        response = self._sent("POST", path, None, body)
        with self._told(), response:
            yield from response

    def events(self, path: str, last: str, stopped: Callable[[], bool]) -> Iterator[Message]:
        """The events of a stream behind number *last*, until it ends or *stopped*; it survives a lost connection.

        Raises:
            ServiceError: the connection is lost, and cannot be made again.
        """
        tries = _TRIES
        while not stopped():
            try:
                with closing(_Events(self.where, path, {**self.headers, _LAST_EVENT: last})) as stream:
                    for message in stream.read(stopped):
                        last, tries = stream.last, _TRIES
                        yield message
            except OSError as error:
                tries -= 1
                if not tries:
                    raise ServiceError(f"{self.where}: the service is gone ({_why(error)}).") from error
                time.sleep(_PAUSE)
            else:
                return

    def _sent(self, method: str, path: str, query: Query | None, body: Any) -> http.client.HTTPResponse:
        content = None if body is None else msgspec.json.encode(body)
        target = f"{path}?{urlencode(_given(query), doseq=True)}" if query else path
        headers = {**self.headers, **({"Content-Type": "application/json"} if content is not None else {})}
        if method not in _REPEATABLE:
            self._connection.close()  # nothing is asked twice because a kept connection has ended meanwhile
        with self._told():
            try:
                self._connection.request(method, target, content, headers)
                response = self._connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self._connection.close()
                if method not in _REPEATABLE:
                    raise
                self._connection.request(method, target, content, headers)
                response = self._connection.getresponse()
        _require_good(response.status, lambda: self._read(response))
        return response

    def _poured(self, method: str, path: str, query: Query | None, pieces: Any) -> http.client.HTTPResponse:
        """By a connection of its own, which a cut does no harm to; what goes wrong with it is an OSError."""
        self._connection.close()
        target = f"{path}?{urlencode(_given(query or {}), doseq=True)}"
        self._connection.request(method, target, pieces, dict(self.headers), encode_chunked=True)
        response = self._connection.getresponse()
        _require_good(response.status, response.read)
        return response

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        with self._told():
            return response.read()

    def _told(self) -> Any:
        return _Told(self.where)


class _Told:
    """What goes wrong with a connection is a refusal."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, PermissionError | FileNotFoundError | ConnectionRefusedError):
            raise ServiceError(
                f"{self.where}: the service of this site does not answer ({_why(error)}). Is kadeploy3d running?"
            ) from error
        if isinstance(error, OSError | http.client.HTTPException):
            raise ServiceError(f"{self.where}: the service does not answer as it should ({_why(error)}).") from error


def _why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _given(query: Query) -> dict[str, str | int | Sequence[str]]:
    words = {name: value for name, value in query.items() if value is not None}
    return {name: ("true" if value else "false") if isinstance(value, bool) else value for name, value in words.items()}


def _require_good(status: int, content: Callable[[], bytes]) -> None:
    if status < 400:
        return
    try:
        refusal = msgspec.json.decode(content(), type=Refusal)
    except msgspec.DecodeError as error:
        raise ServiceError(f"The service answers with the status {status} and no reason.") from error
    refusal.raised()


class _Events:
    """One connection that events come by, read in a thread of its own: whoever waits may look at other things."""

    def __init__(self, where: str, path: str, headers: Mapping[str, str]) -> None:
        self.last = headers[_LAST_EVENT]
        self._queue: queue.SimpleQueue[Message | OSError | None] = queue.SimpleQueue()
        self._connection = _Connection(where)
        self._connection.request("GET", path, headers={**headers, "Accept": "text/event-stream"})
        self._response = self._connection.getresponse()
        _require_good(self._response.status, self._response.read)
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
            for message in _messages(self._response):
                self._queue.put(message)
            self._queue.put(None)
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:  # closed meanwhile
            self._queue.put(error if isinstance(error, OSError) else ConnectionResetError(str(error)))

    def close(self) -> None:
        """End it; the thread hears of it."""
        with suppress(OSError):
            if self._connection.sock is not None:
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()


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
