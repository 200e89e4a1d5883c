"""Calls of URLs that users have given, signed as https://www.standardwebhooks.com has it.

A user could have the service call what the user cannot reach. So a URL has to begin as one of those that the
administrator lists; its host is looked up once, and what is called is the address that was found and looked at; no
redirect is followed, no proxy asked, and of the answer nothing but its status is told.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from kadeploy import __version__
from kadeploy.config.rules import is_url
from kadeploy.errors import NotToldError, OptionError

CONNECT = 5.0
"""Seconds until an attempt to connect is given up."""
DEADLINE = 10.0
"""Seconds that a call may take in all, however slowly the other side speaks."""
LONGEST = 2000
"""Letters of a URL."""
_ANSWER = 1024
"""Bytes of an answer that are read, so that the other side is not cut off while it speaks."""
_PORTS = {"http": 80, "https": 443}
_DOTS = re.compile(r"(?i)(^|/)(\.|%2e){1,2}(/|$)|%2f|%5c")
"""What servers may make another path of."""


class _Place(NamedTuple):
    """Whom a URL calls."""

    scheme: str
    host: str
    port: int


def require_allowed(url: str, allowed: Sequence[str]) -> None:
    """Refuse a *url* that does not begin as one of *allowed*.

    Raises:
        OptionError: says which may be called.
    """
    if not _is_plain(url):
        raise OptionError(
            f"The webhook is no URL, or has more in it than a host, a port, a path and a query: expected "
            f"https://hooks.example.org/…, of at most {LONGEST} letters."
        )
    if not any(_begins(url, each) for each in allowed):
        listed = f"what begins with {' or '.join(allowed)}" if allowed else "nothing"
        raise OptionError(f"This webhook is not allowed here: the site lets {listed} be called. Ask an administrator.")


def _is_plain(url: str) -> bool:
    """Whether all who read it understand the same: no user, no fragment, no path that leads upwards."""
    if len(url) > LONGEST or not re.fullmatch(r"[!-~]+", url) or "\\" in url or "#" in url:
        return False
    return is_url(url.partition("?")[0]) and not _DOTS.search(urlsplit(url).path)


def _begins(url: str, prefix: str) -> bool:
    found, known = urlsplit(url), urlsplit(prefix)
    return _place(found) == _place(known) and (found.path or "/").startswith(known.path)


def _place(url: SplitResult) -> _Place:
    return _Place(url.scheme, (url.hostname or "").rstrip("."), url.port or _PORTS[url.scheme])


# --- signing ----------------------------------------------------------------------------------------------------


def signature(secret: str, message: str, moment: int, body: bytes) -> str:
    """The value of ``webhook-signature`` for the *message* with that id, sent at *moment* (Unix seconds)."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message}.{moment}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _headers(secret: str, message: str, body: bytes) -> Mapping[str, str]:
    moment = int(time.time())
    return {
        "Content-Type": "application/json",
        "User-Agent": f"kadeploy/{__version__}",
        "webhook-id": message,
        "webhook-timestamp": str(moment),
        "webhook-signature": signature(secret, message, moment, body),
    }


# --- calling ----------------------------------------------------------------------------------------------------


def call(url: str, secret: str, message: str, body: bytes, allowed: Sequence[str]) -> None:
    """Send *body* to *url*, as the *message* with that id.

    Raises:
        OptionError: the URL is not among what is *allowed*.
        NotToldError: nobody has taken it.
    """
    require_allowed(url, allowed)
    parts = urlsplit(url)
    place = _place(parts)
    target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    connection = _connection(place, _address(place))
    try:
        with _deadline(connection):
            connection.request("POST", target, body, dict(_headers(secret, message, body)))
            status = _status(connection)
    except (OSError, http.client.HTTPException) as error:
        raise NotToldError(_why(place, error)) from error
    finally:
        connection.close()
    if status in range(300, 400):
        raise NotToldError(f"{place.host} answers with a redirect ({status}), and none is followed.")
    if status not in range(200, 300):
        raise NotToldError(f"{place.host} answers with status {status}.")


def _status(connection: http.client.HTTPConnection) -> int:
    response = connection.getresponse()
    with suppress(OSError, http.client.HTTPException):
        response.read(_ANSWER)
    return response.status


def _why(place: _Place, error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"{place.host} does not answer in time."
    if isinstance(error, ssl.SSLError):
        return f"{place.host} cannot be spoken to by TLS ({error.reason or 'no certificate to be trusted'})."
    said = getattr(error, "strerror", None) or type(error).__name__
    return f"{place.host} does not take it ({said})."


def _address(place: _Place) -> str:
    """The address of *place*, which is none of this machine's own unless the administrator has listed it as such.

    Raises:
        NotToldError: there is none, or one of them may not be called.
    """
    if _ip(place.host):
        return place.host
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotToldError(f"{place.host} is not known by this name.") from error
    addresses = [str(each[4][0]) for each in found]
    if any(map(_is_inner, addresses)):
        raise NotToldError(
            f"{place.host} leads to an address of this machine or its own network link, which is not called by a name."
        )
    return addresses[0]


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(text.partition("%")[0])
    return None


def _is_inner(address: str) -> bool:
    found = _ip(address)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    return found is None or found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified


class _Plain(http.client.HTTPConnection):
    """To an address, whatever its host is called."""

    address = ""

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), timeout=self.timeout)


class _Encrypted(http.client.HTTPSConnection):
    """The same by TLS; the certificate has to be the host's."""

    address = ""
    context: ssl.SSLContext

    def connect(self) -> None:
        bare = socket.create_connection((self.address, self.port), timeout=self.timeout)
        sock = self.context.wrap_socket(bare, server_hostname=self.host, do_handshake_on_connect=False)
        self.sock = sock  # before the other side says anything, so that the deadline can end it
        sock.do_handshake()


def _connection(place: _Place, address: str) -> _Plain | _Encrypted:
    if place.scheme == "http":
        plain = _Plain(place.host, place.port, timeout=CONNECT)
        plain.address = address
        return plain
    context = ssl.create_default_context()
    encrypted = _Encrypted(place.host, place.port, timeout=CONNECT, context=context)
    encrypted.address, encrypted.context = address, context
    return encrypted


@contextmanager
def _deadline(connection: http.client.HTTPConnection) -> Iterator[None]:
    """Within, the connection is cut off when the time is over: the other side may send a byte now and then."""
    passed = threading.Event()

    def cut() -> None:
        passed.set()
        with suppress(OSError):
            if connection.sock:
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(DEADLINE, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if passed.is_set():
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
