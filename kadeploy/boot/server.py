"""Read-only TFTP and HTTP servers for what nodes fetch while they boot.

TFTP (RFC 1350, with the block size and size options of RFC 2348 and 2349) carries the loader and its profiles: a few
hundred KB at 1 to 2 MB/s. HTTP carries kernels and initrds. Both serve regular files below their root and nothing
else: no write, no folder listing, no ``..``, no symbolic link that leads outside.

``python -m kadeploy.boot.server --address 10.177.0.1 --tftp-root DIR --http-root DIR`` serves a site that has no
servers of its own; the virtual cluster runs the same program.
"""

from __future__ import annotations

import argparse
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import tftpy

Log = Callable[[str], None]

_NO_FOLDER = "/dev/null"
"""Root shown to tftpy: it holds no file, so that every request is answered by `open_below`."""
_SECONDS_IDLE = 60
"""After so long without a byte an HTTP client is let go."""


def open_below(root: Path, name: str) -> BinaryIO | None:
    """Open the regular file *name* below *root* for reading; None when there is none that may be served.

    *name* comes from the network. What was really opened is compared with *root*, so that neither ``..`` nor a
    symbolic link, even one that changes meanwhile, leads outside.
    """
    if "\0" in name:
        return None
    try:
        descriptor = os.open(root / name.lstrip("/"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return None
    opened = Path(f"/proc/self/fd/{descriptor}").readlink()
    if not opened.is_relative_to(root.resolve()) or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")


# --- TFTP -------------------------------------------------------------------------------------------------------


class _Sessions(dict[str, Any]):
    """tftpy's transfers by client: one that meets a malformed packet ends, where tftpy would end the whole server."""

    def __setitem__(self, key: str, session: Any) -> None:
        session.start = _contained(session.start)
        session.cycle = _contained(session.cycle)
        super().__setitem__(key, session)


def _contained(step: Callable[..., None]) -> Callable[..., None]:
    """*step*, failing in no other way than the one tftpy is prepared for."""

    def run(*arguments: Any) -> None:
        try:
            step(*arguments)
        except tftpy.TftpException:
            raise
        except Exception as error:
            raise tftpy.TftpException(f"malformed packet: {error}") from error

    return run


class TftpServer:
    """A TFTP server for the files below *root*; uploads are refused."""

    def __init__(self, root: Path, log: Log = print) -> None:
        self._root = root
        self._log = log
        self._server = tftpy.TftpServer(str(root), dyn_file_func=self._open, upload_open=self._refuse)
        self._server.root = _NO_FOLDER
        self._server.sessions = _Sessions()
        logging.getLogger("tftpy").setLevel(logging.CRITICAL)  # it reports every profile that a loader probes for

    @property
    def port(self) -> int | None:
        """UDP port, once it listens."""
        return self._server.listenport if self._server.is_running.is_set() else None

    def serve(self, address: str, port: int = 69) -> None:
        """Answer until `stop`; raises OSError when the port cannot be had."""
        self._server.listen(address, port)

    def stop(self) -> None:
        """End `serve` within a few seconds."""
        self._server.stop(now=True)

    def _open(self, name: str, raddress: str, rport: int) -> BinaryIO | None:  # noqa: ARG002 - named by tftpy
        stream = open_below(self._root, name)
        self._log(f"tftp: {raddress} {name!r} {'sent' if stream else 'absent'}")
        return stream

    def _refuse(self, path: str, context: Any) -> None:
        self._log(f"tftp: {context.host} {path!r} upload refused")


# --- HTTP -------------------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of files below *root*."""

    protocol_version = "HTTP/1.1"
    server_version = "kadeploy"
    sys_version = ""
    timeout = _SECONDS_IDLE

    def __init__(self, root: Path, log: Log, *args: Any) -> None:
        self._root = root
        self._log = log
        super().__init__(*args)

    def do_GET(self) -> None:
        """Send a file."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Send what GET would, without the file."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        stream = open_below(self._root, unquote(urlsplit(self.path).path, errors="surrogateescape"))
        if stream is None:
            self.send_error(HTTPStatus.NOT_FOUND, "No such file")
            return
        with stream:
            status = os.fstat(stream.fileno())
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(status.st_size))
            self.send_header("Last-Modified", self.date_time_string(int(status.st_mtime)))
            self.end_headers()
            if with_body:
                self._send(stream)

    def _send(self, stream: BinaryIO) -> None:
        try:
            self.wfile.flush()
            self.connection.sendfile(stream)
        except OSError as error:  # the node was switched off meanwhile
            self._log(f"http: {self.address_string()} {self.path!r} interrupted: {error}")
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named by the library
        """One line per request."""
        self._log(f"http: {self.address_string()} {format % args}")


class HttpServer(ThreadingHTTPServer):
    """An HTTP server for the files below *root*: GET and HEAD only."""

    daemon_threads = True

    def __init__(self, root: Path, address: str, port: int = 80, log: Log = print) -> None:
        super().__init__((address, port), partial(_Handler, root, log))


# --- both -------------------------------------------------------------------------------------------------------


def serve(tftp_root: Path, http_root: Path, address: str, tftp_port: int = 69, http_port: int = 80) -> None:
    """Serve both folders on *address* for ever, one line per request on the standard output."""
    log = partial(print, flush=True)
    http = HttpServer(http_root, address, http_port, log)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    TftpServer(tftp_root, log).serve(address, tftp_port)


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
