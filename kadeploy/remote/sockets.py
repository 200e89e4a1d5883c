"""Unix sockets: in a folder whose path may be of any length, for its owner alone; and who is at the other end."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


@contextlib.contextmanager
def address(folder: Path, name: str) -> Iterator[str]:
    """The socket's path by way of an open folder: a socket's address holds 107 bytes only (unix(7)).

    Raises:
        OSError: there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def listening(folder: Path, name: str) -> Iterator[socket.socket]:
    """A socket that listens, and is gone afterwards; one that a dead process left is replaced.

    Raises:
        OSError: it cannot be made.
    """
    path = folder / name
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, address(folder, name) as short:
        # Bound without access for others: fchmod on the socket before bind sets the mode of the file.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(short)
        listener.listen(64)
        listener.setblocking(False)
        yield listener
    path.unlink(missing_ok=True)


class Credentials(NamedTuple):
    """The process at the other end of a unix socket, as the kernel saw it connect (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


_CREDENTIALS = struct.Struct("3i")


def credentials(connection: socket.socket) -> Credentials:
    """Who has connected."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Credentials._make(_CREDENTIALS.unpack(found))
