"""Who gets notifications: a web server that is called, and a mail server, both on this machine."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

TIME = 30.0
"""Seconds within which something arrives."""


def arrived(there: Callable[[], bool]) -> None:
    """Wait for what *there* tells."""
    until = time.monotonic() + TIME
    while not there():
        assert time.monotonic() < until, "nothing has arrived"
        time.sleep(0.02)


class Call(NamedTuple):
    """What was sent to a webhook."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, understood."""
        return json.loads(self.body)

    def is_signed_with(self, secret: str) -> bool:
        """Whether it is signed as the specification has it, reckoned here."""
        kind, _, coded = secret.partition("_")
        signed = ".".join((self.headers["webhook-id"], self.headers["webhook-timestamp"], self.body.decode()))
        digest = hmac.digest(base64.b64decode(coded, validate=True), signed.encode(), hashlib.sha256)
        is_recent = abs(time.time() - int(self.headers["webhook-timestamp"])) < 300
        return kind == "whsec" and is_recent and self.headers["webhook-signature"] == f"v1,{_base64(digest)}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


class Hook:
    """A webhook: what it was sent, and what it answers."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.root = f"{scheme}://127.0.0.1:{port}/"
        self.calls: list[Call] = []
        self.answers: list[int] = []
        """Statuses of the next answers; then 204."""
        self.headers: dict[str, str] = {}
        """Of each answer."""
        self.open = threading.Event()
        """Until it is set, nobody is answered."""
        self.open.set()
        self.dripping = False
        """Whether an answer has no end, and comes a byte at a time."""


@contextmanager
def hook(certificate: Path | None = None) -> Iterator[Hook]:
    """A webhook at a port of its own, by TLS with a *certificate*."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.calls.append(Call(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            found.open.wait(TIME)
            with suppress(OSError):
                self._drip() if found.dripping else self._answer()

        def _answer(self) -> None:
            self.send_response(found.answers.pop(0) if found.answers else 204)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def _drip(self) -> None:
            while found.dripping:
                self.wfile.write(b"H")
                time.sleep(0.05)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    found = Hook(server.server_address[1], "https" if certificate else "http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.dripping = False
        found.open.set()
        server.shutdown()
        server.server_close()


class Letter(NamedTuple):
    """What a mail server was given."""

    sender: str
    to: list[str]
    message: EmailMessage
    raw: bytes
    was_encrypted: bool
    user: str
    """Who had logged in."""

    @property
    def text(self) -> str:
        """What people read."""
        return str(self.message.get_content())


class Post:
    """A mail server: what it was given, and whom it refuses."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.letters: list[Letter] = []
        self.refuses = False
        self.passwords: dict[str, str] = {}
        """Who may log in."""


class _Talk(socketserver.StreamRequestHandler):
    """One conversation (RFC 5321)."""

    post: Post
    context: ssl.SSLContext | None
    is_tls = False

    def handle(self) -> None:
        self.user, self.sender, self.to = "", "", []
        with suppress(OSError):
            self._say("220 post")
            while line := self.rfile.readline().decode().strip():
                if not self._answer(*line.partition(" ")[::2]):
                    return

    def _say(self, text: str) -> bool:
        self.wfile.write(f"{text}\r\n".encode())
        return True

    def _answer(self, verb: str, rest: str) -> bool:
        known = {"EHLO": self._hello, "AUTH": self._login, "STARTTLS": self._encrypt, "RCPT": self._recipient}
        known |= {"MAIL": self._from, "DATA": self._data, "QUIT": self._quit}
        return known.get(verb.upper(), self._unknown)(rest)

    def _unknown(self, _: str) -> bool:
        return self._say("502 what?")

    def _hello(self, _: str) -> bool:
        more = ["250-STARTTLS"] if self.context and not self.is_tls else []
        return self._say("\r\n".join(["250-post", *more, "250 AUTH PLAIN"]))

    def _login(self, rest: str) -> bool:
        _, name, password = base64.b64decode(rest.partition(" ")[2]).decode().split("\0")
        if self.post.passwords.get(name) != password:
            return self._say("535 no")
        self.user = name
        return self._say("235 yes")

    def _encrypt(self, _: str) -> bool:
        self._say("220 go on")
        assert self.context
        self.connection = self.context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)  # type: ignore[assignment]
        self.is_tls = True
        return True

    def _from(self, rest: str) -> bool:
        self.sender = rest.partition("<")[2].partition(">")[0]
        return self._say("250 yes")

    def _recipient(self, rest: str) -> bool:
        if self.post.refuses:
            return self._say("550 nobody is called so here")
        self.to.append(rest.partition("<")[2].partition(">")[0])
        return self._say("250 yes")

    def _data(self, _: str) -> bool:
        self._say("354 go on")
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.removeprefix(b"."))
        raw = b"".join(lines)
        message = message_from_bytes(raw, policy=policy.default)
        self.post.letters.append(Letter(self.sender, self.to, message, raw, self.is_tls, self.user))
        return self._say("250 yes")

    def _quit(self, _: str) -> bool:
        self._say("221 bye")
        return False


@contextmanager
def post(certificate: Path | None = None) -> Iterator[Post]:
    """A mail server at a port of its own, which offers STARTTLS with a *certificate*."""
    context = None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

    class Talk(_Talk):
        pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Talk) as server:
        server.daemon_threads = True
        found = Post(server.server_address[1])
        Talk.post, Talk.context = found, context
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield found
        finally:
            server.shutdown()
