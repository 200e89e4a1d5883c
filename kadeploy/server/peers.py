"""Who is at the other end of a connection: ASGI does not say, the kernel and TLS do.

uvicorn's protocol is extended here, in what it keeps for itself: `tests/unit/server/test_peers.py` pins it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import Any, NamedTuple

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kadeploy.remote import sockets

SCOPE = "kadeploy_peer"
"""Key of `Peer` in the state of a request's scope."""


class Peer(NamedTuple):
    """What is known of the other end without its saying so."""

    uid: int | None = None
    """User of a local process, by the kernel; None for other connections."""
    pid: int = 0
    address: str = ""
    certificate: dict[str, Any] | None = None
    """Of a client that has shown one which an authority of ours has signed (`ssl.SSLSocket.getpeercert`)."""

    def __str__(self) -> str:
        return self.address if self.uid is None else f"uid {self.uid}, process {self.pid}"


PATIENCE = 60.0
"""Seconds in which a request has to be there as a whole, once the connection is, or its first byte."""
HEAD = 64 << 10
"""Bytes that may come without being a part of a body: the request's line and headers, and what goes with pieces."""
CONNECTIONS = 500
"""That one local account other than root, or one address, may hold at a time."""
_open: Counter[str] = Counter()
"""Connections of each of them."""


class Protocol(HttpToolsProtocol):
    """HTTP whose requests know their `Peer`, and whose clients cannot hold connections by saying nothing."""

    _limit: asyncio.TimerHandle | None = None
    _whose = ""
    _head = 0
    """Bytes that have come since the last headers or piece of a body were whole."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at the new connection."""
        super().connection_made(transport)
        peer = _peer(transport)
        self.app_state = {**self.app_state, SCOPE: peer}
        self._whose = peer.address if peer.uid is None else f"uid {peer.uid}"
        _open[self._whose] += 1
        if _open[self._whose] > CONNECTIONS and peer.uid != 0:
            transport.close()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is not waited for any more."""
        self._leave()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """Somebody else deals with the connection from here on."""
        self._leave()
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request, unless there is no end of its head: all of it is kept in memory."""
        self._head += len(data)
        super().data_received(data)
        if self._head > HEAD and not self.transport.is_closing():
            self.send_400_response(f"The head of a request has {HEAD} bytes at most.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Whoever takes a file has a patience of its own."""
        super().on_headers_complete()
        self._head = 0
        if self.parser.get_method() == b"PATCH" and self.url.startswith(b"/v1/files/"):
            self._stop_waiting()

    def on_body(self, body: bytes) -> None:
        """A piece of the body is there."""
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._head = 0
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered; nobody takes what may still come of a file."""
        super().on_response_complete()
        if self.cycle and self.cycle.more_body:
            self._wait()

    def _wait(self) -> None:
        self._stop_waiting()
        self._limit = self.loop.call_later(PATIENCE, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._limit:
            self._limit.cancel()
            self._limit = None

    def _leave(self) -> None:
        self._stop_waiting()
        if self._whose:
            _open[self._whose] -= 1
            if not _open[self._whose]:
                del _open[self._whose]
            self._whose = ""


def _peer(transport: asyncio.Transport) -> Peer:
    end = transport.get_extra_info("socket")
    if end is not None and end.family == socket.AF_UNIX:
        found = sockets.credentials(end)
        return Peer(found.uid, found.pid)
    address = transport.get_extra_info("peername") or ("",)
    return Peer(address=str(address[0]), certificate=transport.get_extra_info("peercert") or None)
