"""Who is at the other end of a connection: ASGI does not say, the kernel and TLS do.

uvicorn's protocol is extended here, in what it keeps for itself: `tests/unit/server/test_peers.py` pins it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, NamedTuple

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_CREDENTIALS = struct.Struct("3i")
"""Process, user and group (unix(7), SO_PEERCRED)."""
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


class Protocol(HttpToolsProtocol):
    """HTTP whose requests know their `Peer`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at the new connection."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, SCOPE: _peer(transport)}


def _peer(transport: asyncio.Transport) -> Peer:
    end = transport.get_extra_info("socket")
    if end is not None and end.family == socket.AF_UNIX:
        pid, uid, _ = _CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return Peer(uid, pid)
    address = transport.get_extra_info("peername") or ("",)
    return Peer(address=str(address[0]), certificate=transport.get_extra_info("peercert") or None)
