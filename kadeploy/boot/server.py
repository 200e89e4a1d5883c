"""Read-only TFTP and HTTP servers for what nodes fetch while they boot.

TFTP carries the loader and its profiles, a few hundred KB. HTTP carries kernels and initrds. Both serve regular files
below their root and nothing else: no write, no folder listing, no ``..``, no symbolic link that leads outside. Both
bound how many clients they serve at a time, and the others wait for their turn: a whole room of nodes that boots, or
somebody who only knocks, ends neither.

HTTP is the standard library's server with a thread for each connection. Files go from the page cache to the network in
one call of sendfile(2), without Python, so that it is as fast as nginx (docs/performance.md).

``python -m kadeploy.boot.server --address 10.177.0.1 --tftp-root DIR --http-root DIR`` serves a site that has no
servers of its own; the virtual cluster runs the same program.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import io
import os
import resource
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urlsplit

from kadeploy.boot import parts
from kadeploy.boot.root import open_below
from kadeploy.boot.tftp import TRANSFERS, Log, TftpServer
from kadeploy.printable import printable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECTIONS = 1000
"""HTTP connections at a time."""


@dataclass(frozen=True)
class Patience:
    """Seconds for which an HTTP client is waited for."""

    to_ask: float = 20.0
    """From its connection until it has said all of its request."""
    to_take: int = 60
    """Until it takes another byte of a file."""
    to_go_on: float = 5.0
    """For another request on the same connection, and for a client that takes leave."""


_TICK = 0.2
_MOST_TOLD = 200
"""Characters of a request that the log tells."""


# --- HTTP -------------------------------------------------------------------------------------------------------


class _Words(io.RawIOBase):
    """What a client says until a certain time, whether it says so in one packet or a byte at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self.until = 0.0
        self._connection = connection

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Wait for more; raises TimeoutError."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of files below *root*."""

    protocol_version = "HTTP/1.1"
    server_version = "kadeploy"
    sys_version = ""
    disable_nagle_algorithm = True  # else the end of a file waits until the client has acknowledged what is before

    def __init__(self, root: Path, log: Log, patience: Patience, *args: Any) -> None:
        self._root = root
        self._log = log
        self._patience = patience
        super().__init__(*args)

    def setup(self) -> None:
        """Listen to the client, for a while."""
        super().setup()
        self._words = _Words(self.connection)
        self._words.until = time.monotonic() + self._patience.to_ask
        self.rfile = io.BufferedReader(self._words)

    def handle_one_request(self) -> None:
        """Answer a request, and wait for another one for as long as patience goes."""
        super().handle_one_request()
        self._words.until = time.monotonic() + self._patience.to_go_on

    def do_GET(self) -> None:
        """Send a file."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Send what GET would, without the file."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        self.connection.settimeout(self._patience.to_take)
        stream = open_below(self._root, unquote(urlsplit(self.path).path, errors="surrogateescape"))
        if stream is None:
            self.send_error(HTTPStatus.NOT_FOUND, "No such file")
            return
        with stream:
            part = parts.of(os.fstat(stream.fileno()), self.headers)
            self.send_response(part.status)
            for name, value in part.headers.items():
                self.send_header(name, value)
            if part.status is not HTTPStatus.NOT_MODIFIED:
                self.send_header("Content-Type", "application/octet-stream")
                self.send_header("Content-Length", str(part.length))
            self.end_headers()
            if with_body and part.length:
                self._send(stream, part)

    def _send(self, stream: BinaryIO, part: parts.Part) -> None:
        try:
            self.wfile.flush()
            is_whole = _send_file(self.connection, stream, part, self._patience.to_take)
        except OSError as error:  # the node was switched off meanwhile
            why = "it takes nothing more" if error.errno == errno.EAGAIN else error.strerror or error
            self._log(f"http: {self.address_string()} {self.path!r} interrupted: {why}")
            self.close_connection = True
        else:
            self.close_connection |= not is_whole  # somebody has cut the file: the client has to see it

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named by the library
        """One line per request."""
        self._log(f"http: {self.address_string()} {printable(format % args)[:_MOST_TOLD]}")

    def log_error(self, format: str, *args: Any) -> None:  # noqa: A002 - named by the library
        """Nothing: a request has its line, and who asks no more has done nothing wrong."""


class HttpServer(ThreadingHTTPServer):
    """An HTTP server for the files below *root*: GET and HEAD only, *limit* connections at a time, the others wait.

    A connection is forgotten soon after its client has been: GRUB takes the same ports after each boot, and its new
    connection would not come about as long as we know the old one.
    """

    daemon_threads = True
    request_queue_size = 4096

    def __init__(
        self,
        root: Path,
        address: str,
        port: int = 80,
        log: Log = print,
        limit: int = CONNECTIONS,
        patience: Patience = Patience(),
    ) -> None:
        self._places = threading.BoundedSemaphore(limit)
        self._log_line = log
        self._patience = patience
        super().__init__((address, port), partial(_Handler, root, log, patience))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve the connection in a thread of its own, once there is a place for it."""
        self._places.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What that thread does."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def shutdown_request(self, request: Any) -> None:
        """End a connection: with the client's leave, or by a reset when it says nothing more."""
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            if not _took_leave(request, self._patience.to_go_on):
                request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - named by the library
        """A connection that broke within a request, in a line in place of a traceback."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionResetError):  # between two requests: how iPXE and GRUB take leave
            self._log_line(f"http: {client_address[0]} interrupted: {error}")


def _send_file(connection: socket.socket, stream: BinaryIO, part: parts.Part, patience: int) -> bool:
    """Have the kernel send *part*: this thread sleeps meanwhile, for the socket blocks; whether all of it was there.

    Raises:
        OSError: the client is gone, or takes nothing for *patience* seconds.
    """
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", patience, 0))
    at, end = part.first, part.first + part.length
    while at < end:
        sent = os.sendfile(connection.fileno(), stream.fileno(), at, end - at)
        if not sent:
            return False
        at += sent
    return True


def _took_leave(connection: socket.socket, patience: float) -> bool:
    """Whether the client has acknowledged everything and closes, too; False when nothing happens for *patience*."""
    connection.settimeout(min(_TICK, patience))
    closed, waiting, since = False, -1, time.monotonic()
    while time.monotonic() - since < patience:
        if closed:
            time.sleep(min(_TICK, patience))
        with suppress(TimeoutError):
            closed = not connection.recv(1 << 16)
        (left,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
        if closed and not left:
            return True
        if left != waiting:
            waiting, since = left, time.monotonic()
    return False


# --- both -------------------------------------------------------------------------------------------------------


def serve(tftp_root: Path, http_root: Path, address: str, tftp_port: int = 69, http_port: int = 80) -> None:
    """Serve both folders on *address* for ever, one line per request on the standard output.

    How many clients are served at a time follows the number of files that the process may have open (`LimitNOFILE`);
    an HTTP client takes a thread (`TasksMax`) and 40 kB of memory.

    Raises:
        OSError: a port cannot be had.
    """
    log = _Lines()
    fair_share = _raise_file_limit() // 5  # a client takes two descriptors, and some are left for the rest
    http = HttpServer(http_root, address, http_port, log, min(CONNECTIONS, fair_share))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    TftpServer(tftp_root, log, min(TRANSFERS, fair_share)).serve(address, tftp_port)


class _Lines:
    """The standard output, a whole line at a time from however many threads.

    When nothing can be written there any more, on a full disk, nodes are served all the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        """Write it."""
        with self._lock, suppress(OSError, UnicodeError):
            print(line, flush=True)


def _raise_file_limit() -> int:
    """How many files this process may have open, after asking for as many as are useful."""
    useful = 5 * max(CONNECTIONS, TRANSFERS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < useful:
        soft = useful if hard == resource.RLIM_INFINITY else min(useful, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return useful if soft == resource.RLIM_INFINITY else soft


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m kadeploy.boot.server", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--address", default="0.0.0.0", help="IPv4 address to listen on (default: all)")  # noqa: S104
    parser.add_argument("--tftp-root", type=Path, required=True, help="folder of loaders and profiles")
    parser.add_argument("--http-root", type=Path, required=True, help="folder of kernels and initrds")
    parser.add_argument("--tftp-port", type=int, default=69)
    parser.add_argument("--http-port", type=int, default=80)
    options = parser.parse_args(arguments)
    try:
        serve(options.tftp_root, options.http_root, options.address, options.tftp_port, options.http_port)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
