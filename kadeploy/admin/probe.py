"""What a node would be answered: by DHCP servers, by TFTP, by HTTP; nothing is leased, nothing is changed."""

from __future__ import annotations

import secrets
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http import HTTPStatus
from http import client as web
from typing import NamedTuple
from urllib.parse import urlsplit

from kadeploy.admin.dhcp import packet, wire
from kadeploy.admin.dhcp.packet import CLIENT_PORT, PROXY_PORT, SERVER_PORT, Offer
from kadeploy.boot import tftp_client
from kadeploy.errors import FileError, OptionError

__all__ = ["Fetched", "Offer", "dhcp", "http", "tftp"]


class Fetched(NamedTuple):
    """A file that came."""

    size: int
    """Bytes of the whole file."""
    content: bytes
    """Its bytes, or the first of them."""


# --- DHCP -------------------------------------------------------------------------------------------------------


def dhcp(
    interface: str,
    mac: str,
    architecture: int,
    user_class: str = "",
    http: bool = False,
    timeout: float = 4.0,
) -> list[Offer]:
    """What all DHCP servers behind *interface* offer a node that boots, in the order in which they answer.

    A DISCOVER goes out, as the node's firmware would send it but from this machine's own Ethernet address, so that no
    switch learns the node in a wrong place. No REQUEST for an address follows. More than one server with an address or
    a boot file is something to look at.

    Args:
        interface: of this machine, such as ``eth0``.
        mac: the node's MAC address.
        architecture: what the firmware is (RFC 4578): `packet.BIOS`, `packet.UEFI` and so on.
        user_class: ``iPXE`` once that has been loaded.
        http: the firmware wants a URL (UEFI HTTP boot).
        timeout: seconds in which answers count; all of them are waited for, as another server may come later.

    Raises:
        OptionError: there is no such interface, MAC address or architecture, or this user may not do it.
    """
    number = secrets.randbits(32)
    question = packet.discover(number, mac, architecture, user_class, http=http)
    with ExitStack() as stack:
        ear = stack.enter_context(wire.listening(interface, CLIENT_PORT))
        mouth = stack.enter_context(_speaking(interface))

        def ask_proxy(server: str) -> None:
            """Ask a ProxyDHCP server at its other port, as UEFI does (PXE 2.1, section 2.2.3)."""
            where = _own_address(interface, server)
            if where and not http:  # which is told at once
                asked = packet.ask_proxy(number, mac, architecture, user_class, where)
                _send(mouth, asked, (server, PROXY_PORT))

        return _answers(ear, number, timeout, lambda: _send(mouth, question, _EVERYBODY), ask_proxy)


def _answers(
    ear: socket.socket, number: int, timeout: float, ask: Callable[[], None], ask_proxy: Callable[[str], None]
) -> list[Offer]:
    """One offer of each server and address; the question is put again halfway when nobody has answered."""
    begun = time.monotonic()
    found: dict[tuple[str, str], Offer] = {}
    asked = 0
    while (passed := time.monotonic() - begun) < timeout:
        if asked == 0 or (asked == 1 and not found and passed > timeout / 2):
            ask()
            asked += 1
        if not select.select([ear], [], [], min(0.1, timeout - passed))[0]:
            continue
        content, source = wire.heard(ear)
        offer = packet.parsed(content, number, source)
        if offer is None:
            continue
        mark = (offer.server, offer.address)
        if mark not in found and offer.is_proxy and not offer.file:
            ask_proxy(offer.server)
        if mark not in found or offer.file:
            found[mark] = offer
    return list(found.values())


_EVERYBODY = ("255.255.255.255", SERVER_PORT)


def _send(mouth: socket.socket, content: bytes, where: tuple[str, int]) -> None:
    try:
        mouth.sendto(content, where)
    except OSError as error:
        raise OptionError(f"No DHCP request can be sent to {where[0]}: {error.strerror}. Is the link up?") from error


def _own_address(interface: str, server: str) -> str:
    """The address by which this machine speaks to *server* on *interface*; empty where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        try:
            line.connect((server, PROXY_PORT))
        except OSError:
            return ""
        found = str(line.getsockname()[0])
        return "" if found == "0.0.0.0" else found  # noqa: S104 - no address is there


@contextmanager
def _speaking(interface: str) -> Iterator[socket.socket]:
    """A socket whose broadcasts leave by *interface*, and reach this machine's own server as well."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
        try:
            mouth.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            mouth.bind(("", CLIENT_PORT))
        except OSError as error:
            raise wire.refused(interface, error) from error
        yield mouth


# --- files ------------------------------------------------------------------------------------------------------


def tftp(server: str, name: str, timeout: float = 5.0, enough: int | None = None) -> Fetched:
    """The file *name* of the TFTP server: whole, or the first *enough* bytes.

    Raises:
        FileError: it does not come; the text says why.
    """
    content = tftp_client.fetch(server, name, timeout, enough=enough)
    return Fetched(len(content), content)


def http(url: str, timeout: float = 5.0, most: int = 1 << 16) -> Fetched:
    """The file at *url* as a boot loader asks for it: directly, without a proxy, and not where a redirect points.

    Of a file that says how long it is the first *most* bytes are read, of another one all.

    Raises:
        FileError: it does not come; the text says why.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise FileError(f"{url}: not an address that loaders can fetch: expected http://HOST/PATH.")
    try:
        with closing(web.HTTPConnection(parts.hostname, parts.port, timeout=timeout)) as connection:
            connection.request("GET", f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}")
            answer = connection.getresponse()
            if answer.status != HTTPStatus.OK:
                raise FileError(f"{url}: {_told(answer)}")
            return _fetched(answer, most, time.monotonic() + 10 * timeout)
    except TimeoutError as error:
        raise FileError(f"{url}: nothing came within {timeout:g} s. Is a firewall in between?") from error
    except (OSError, ValueError, web.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FileError(f"{url}: {reason}. Does a web server run there?") from error


def _told(answer: web.HTTPResponse) -> str:
    """What a web server says in place of the file, and what to do."""
    where = answer.getheader("Location", "")
    if where:
        return f"the web server points to {where}, and loaders do not follow: let it serve the file itself."
    return f"the web server says {answer.status} {answer.reason}. Is the file below the folder that it serves?"


def _fetched(answer: web.HTTPResponse, most: int, deadline: float) -> Fetched:
    length = answer.length  # None where the server does not tell
    content, size = b"", 0
    while (length is None or size < min(most, length)) and (piece := answer.read(min(1 << 16, most))):
        size += len(piece)
        content += piece[: most - len(content)]
        if time.monotonic() > deadline:
            raise TimeoutError
    if length is not None and size < min(most, length):
        raise web.IncompleteRead(content, length - size)
    return Fetched(size if length is None else length, content)
