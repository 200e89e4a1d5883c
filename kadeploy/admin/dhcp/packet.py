"""DHCP packets as the firmware of nodes sends and reads them (RFC 2131, 2132, 4578; PXE 2.1; UEFI 2.10, 24.7).

A DISCOVER alone is made here: it asks what a node would be offered, and nothing is leased.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from kadeploy.errors import OptionError

SERVER_PORT, CLIENT_PORT, PROXY_PORT = 67, 68, 4011
BIOS, UEFI, UEFI_BC, UEFI_ARM64, UEFI_HTTP, UEFI_HTTP_ARM64 = 0, 7, 9, 11, 16, 19
"""Architectures of clients (RFC 4578, and IANA's list "Processor Architecture Types")."""
IPXE = "iPXE"
"""The user class by which iPXE tells that it is there already."""

_MAGIC = b"\x63\x82\x53\x63"
_HEAD = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_BROADCAST = 0x8000
_PAD, _END = 0, 255
_REQUEST, _REPLY = 1, 2
_DISCOVER, _OFFER, _ASK, _ACK = 1, 2, 3, 5
_MOST_BYTES = 1260
_NOWHERE = "0.0.0.0"  # noqa: S104 - who has no address yet
_ASKED_FOR = (1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, *range(40, 44), 50, 51, 54, 58, 59, 60, 66, 67, 97)
"""Options that ROMs want; servers leave out the others."""
_INTERFACES = {BIOS: (1, 2, 1)}
"""Network interface of the firmware (option 94): UNDI 2.1 under BIOS; UEFI has 3.16."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one DHCP server offers."""

    server: str
    """Address that the server calls itself by (option 54), or that its answer came from."""
    address: str
    """Address for the node; empty from a ProxyDHCP server, which has none to give."""
    next_server: str
    """Where the boot file is: ``siaddr``, or else option 66; empty where neither is."""
    file: str
    """Name or URL of the boot file: option 67, or else the field of the header."""
    options: Mapping[int, bytes] = field(default_factory=dict)
    """All options by number, as they came: 43 is the vendor's own, 60 the class that it answers to."""

    @property
    def is_proxy(self) -> bool:
        """Whether it comes from a ProxyDHCP server: boot files, and no address."""
        return not self.address and self.vendor_class.startswith(("PXEClient", "HTTPClient"))

    @property
    def vendor_class(self) -> str:
        """Option 60: ``PXEClient`` from a server that speaks PXE, ``HTTPClient`` where UEFI is to boot by HTTP."""
        return _text(self.options.get(60, b""))


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the firmware of a machine asks when it boots from the network."""

    mac: str
    architecture: int
    """Of the firmware (RFC 4578): `BIOS`, `UEFI` and so on."""

    @property
    def firmware(self) -> str:
        """``bios`` or ``uefi``, as cluster files call it."""
        return "bios" if self.architecture == BIOS else "uefi"


def mac_bytes(mac: str) -> bytes:
    """A MAC address as six bytes.

    >>> mac_bytes("52:54:00:12:34:56").hex()
    '525400123456'

    Raises:
        OptionError: it is none.
    """
    try:
        found = bytes.fromhex(mac.replace(":", "").replace("-", ""))
    except ValueError:
        found = b""
    if len(found) != 6:
        raise OptionError(f"{mac!r} is not a MAC address: expected six pairs of digits such as 52:54:00:12:34:56.")
    return found


def discover(transaction: int, mac: str, architecture: int, user_class: str = "", *, http: bool = False) -> bytes:
    """What a ROM with *mac* broadcasts; *http*: the firmware wants a URL (UEFI HTTP boot).

    Raises:
        OptionError: no MAC address, or no architecture.
    """
    return _packet(_DISCOVER, transaction, mac, architecture, user_class, http=http)


def ask_proxy(transaction: int, mac: str, architecture: int, user_class: str, address: str) -> bytes:
    """What a ROM asks the boot service at the other port of a ProxyDHCP server; *address* is answered."""
    return _packet(_ASK, transaction, mac, architecture, user_class, http=False, address=address)


def _packet(
    kind: int, transaction: int, mac: str, architecture: int, user_class: str, *, http: bool, address: str = _NOWHERE
) -> bytes:
    hardware = mac_bytes(mac)
    if not 0 <= architecture <= 0xFFFF:
        raise OptionError(f"{architecture} is not an architecture of clients: 0 is BIOS, 7 UEFI, 16 UEFI HTTP boot.")
    none = b"\0" * 4
    head = _HEAD.pack(
        *(_REQUEST, 1, 6, 0, transaction, 0, _BROADCAST if kind == _DISCOVER else 0),
        *(ipaddress.IPv4Address(address).packed, none, none, none, hardware, b"", b""),
    )
    interface = _INTERFACES.get(architecture, (1, 3, 16))
    firmware = "HTTPClient" if http else "PXEClient"
    vendor_class = f"{firmware}:Arch:{architecture:05d}:UNDI:{interface[1]:03d}{interface[2]:03d}"
    options = {
        53: bytes([kind]),
        55: bytes(_ASKED_FOR),
        57: struct.pack("!H", _MOST_BYTES),
        60: vendor_class.encode(),
        93: struct.pack("!H", architecture),
        94: bytes(interface),
        97: b"\0" + b"\0\0kadeploy" + hardware,
    }
    if user_class:
        options[77] = user_class.encode()
    if user_class == IPXE:
        options[175] = _OF_IPXE
    return head + _MAGIC + b"".join(bytes([code, len(value)]) + value for code, value in options.items()) + b"\xff"


_OF_IPXE = bytes([0xB1, 5, 1, 0x1A, 0xF4, 0x10, 0x00, 0x13, 1, 1, 0x15, 1, 1, 0xEB, 3, 1, 0, 0])
"""What iPXE tells of itself: its bus, that it has HTTP and TFTP, its version."""


def parsed(packet: bytes, transaction: int, source: str = "") -> Offer | None:
    """The offer in a packet that came from address *source*; None of any other packet, and of a malformed one."""
    if not _is_dhcp(packet):
        return None
    operation, _, _, _, number, _, _, _, yours, theirs, _, _, name, file = _HEAD.unpack_from(packet)
    if operation != _REPLY or number != transaction:
        return None
    options = _options(packet[_HEAD.size + 4 :])
    overload = options.get(52, b"\0")[-1:]
    if overload in {b"\1", b"\3"}:
        options |= _options(file)
        file = b""
    if overload in {b"\2", b"\3"}:
        options |= _options(name)
    if options.get(53, b"") not in {bytes([_OFFER]), bytes([_ACK])}:
        return None
    return Offer(
        server=_address(options.get(54, b"")) or source,
        address=_address(yours),
        next_server=_address(theirs) or _text(options.get(66, b"")),
        file=_text(options.get(67, b"")) or _text(file),
        options=options,
    )


def question(packet: bytes) -> Question | None:
    """What a firmware asks in a packet to a DHCP server; None of another packet, and of systems that are running."""
    if not _is_dhcp(packet):
        return None
    operation, _, length, *_, hardware, _, _ = _HEAD.unpack_from(packet)
    options = _options(packet[_HEAD.size + 4 :])
    if operation != _REQUEST or length != 6 or options.get(53) != bytes([_DISCOVER]):
        return None
    if not options.get(60, b"").startswith((b"PXEClient", b"HTTPClient")) or len(options.get(93, b"")) < 2:
        return None
    return Question(mac=hardware[:6].hex(":"), architecture=int.from_bytes(options[93][:2], "big"))


def _is_dhcp(packet: bytes) -> bool:
    return len(packet) >= _HEAD.size + len(_MAGIC) and packet[_HEAD.size : _HEAD.size + 4] == _MAGIC


def _options(content: bytes) -> dict[int, bytes]:
    """Options by number; parts of one that is too long for one stand together (RFC 3396)."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(content) and content[at] != _END:
        code, at = content[at], at + 1
        if code == _PAD or at >= len(content):
            continue
        length, at = content[at], at + 1
        found[code] = found.get(code, b"") + content[at : at + length]
        at += length
    return found


def _address(packed: bytes) -> str:
    """An IPv4 address; empty where none is."""
    return str(ipaddress.IPv4Address(packed)) if len(packed) == 4 and any(packed) else ""


def _text(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("utf-8", errors="replace")
