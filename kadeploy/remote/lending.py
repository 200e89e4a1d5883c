"""Files that a user named, lent as open descriptors to the tasks of a workflow.

The file is opened once, as the user, when the request is checked. A task that opened it again by its name could meet
another one: by then the name may stand for any file of this machine, and the task is root's. A descriptor means the
file itself (unix(7), SCM_RIGHTS).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from kadeploy.remote import sockets

SOCKET = "files.sock"
_NAMES_LIMIT = 64 << 10
_MOST = 16
"""Files of one workflow; it has one image."""


@contextmanager
def lend(folder: Path, files: Mapping[str, int]) -> Iterator[None]:
    """Give *files* (descriptors by name) to all who ask at a socket in *folder*; needs a running event loop.

    Raises:
        OSError: the socket cannot be made.
    """
    loop = asyncio.get_running_loop()
    with sockets.listening(folder, SOCKET) as listener:
        loop.add_reader(listener, _hand_out, listener, files)
        try:
            yield
        finally:
            loop.remove_reader(listener)


def _hand_out(listener: socket.socket, files: Mapping[str, int]) -> None:
    with suppress(OSError):  # who asked has gone
        visitor, _ = listener.accept()
        with visitor:
            socket.send_fds(visitor, [msgspec.json.encode(list(files))], list(files.values()))


def borrow(folder: Path, name: str) -> int | None:
    """A descriptor of the file *name*; None when nobody lends it. The caller closes it.

    All borrowers share one position in the file: read with `os.pread` or `os.sendfile`.
    """
    try:
        with sockets.address(folder, SOCKET) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lender:
            lender.connect(path)
            text, descriptors, _, _ = socket.recv_fds(lender, _NAMES_LIMIT, _MOST)
    except OSError:
        return None
    known = dict(zip(msgspec.json.decode(text, type=list[str]), descriptors, strict=True)) if text else {}
    wanted = known.pop(name, None)
    for other in known.values():
        os.close(other)
    return wanted
