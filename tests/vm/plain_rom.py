"""A network card whose ROM speaks as those of vendors do: QEMU's own is iPXE, and says so.

Between the machine and its network the words by which iPXE tells itself are taken out of DHCP requests, until the ROM
has asked for its loader. So the DHCP server sees a plain PXE ROM; then whatever was loaded speaks for itself.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType

from kadeploy.remote import namespace

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_ETHERNET, _UDP = 14, 8
_BOOTP = 236
"""Bytes of a request in front of its options, without their cookie."""
_USER_CLASS, _ENCAPSULATED = 77, 175
"""Options by which iPXE tells itself (ipxe.org/howto/dhcpd)."""


class PlainRom:
    """Carries frames between QEMU, by UDP on the loopback of a network namespace, and a tap device there."""

    def __init__(self, where: str, tap: str, port: int) -> None:
        self.netdev = f"socket,id=net,udp=127.0.0.1:{port},localaddr=127.0.0.1:{port + 1}"
        """QEMU's ``-netdev`` value."""
        self.asked: list[str] = []
        """The user class of each DHCP request, as it went on; empty where it had none."""
        self.has_loader = False
        with namespace.inside(where):
            self._machine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._machine.bind(("127.0.0.1", port))
            self._machine.connect(("127.0.0.1", port + 1))
            self._network = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(self._network, _TUNSETIFF, struct.pack("16sH22x", tap.encode(), _IFF_TAP | _IFF_NO_PI))
        self._wake, self._end = os.pipe()
        self._thread = threading.Thread(target=self._carry)

    def __enter__(self) -> PlainRom:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._end)
        self._thread.join()
        self._machine.close()
        os.close(self._network)
        os.close(self._wake)

    def _carry(self) -> None:
        while True:
            ready, _, _ = select.select([self._machine, self._network, self._wake], [], [])
            if self._wake in ready:
                return
            if self._network in ready:
                self._to_machine(os.read(self._network, 65536))
            if self._machine in ready:
                self._from_machine()

    def _to_machine(self, frame: bytes) -> None:
        with suppress(ConnectionRefusedError):  # it is not on
            self._machine.send(frame)

    def _from_machine(self) -> None:
        try:
            frame = self._machine.recv(65536)
        except ConnectionRefusedError:
            return
        os.write(self._network, self._as_plain(frame))

    def _as_plain(self, frame: bytes) -> bytes:
        """The frame as a ROM without iPXE would send it."""
        port, at = _udp(frame)
        if port == 69:
            self.has_loader = True
        if port != 67:
            return frame
        begin = at + _BOOTP + 4
        options = _options(frame[begin:])
        if not self.has_loader:
            options = [each for each in options if each[0] not in {_USER_CLASS, _ENCAPSULATED}]
        self.asked.append(next((each[2:].decode() for each in options if each[0] == _USER_CLASS), ""))
        head = frame[: at - 2] + bytes(2) + frame[at:begin]  # no checksum (RFC 768)
        return (head + b"".join(options) + b"\xff").ljust(len(frame), b"\0")


def _udp(frame: bytes) -> tuple[int, int]:
    """Port that a UDP datagram over IPv4 goes to, and where its content begins; port 0: it is none."""
    if frame[12:14] != b"\x08\x00" or frame[23:24] != b"\x11":
        return 0, 0
    begin = _ETHERNET + 4 * (frame[_ETHERNET] & 15)
    return struct.unpack_from(">H", frame, begin + 2)[0], begin + _UDP


def _options(content: bytes) -> list[bytes]:
    """The options of a request, each with its code and its length in front, without padding (RFC 2132)."""
    found, at = [], 0
    while at < len(content) and content[at] != 255:
        end = at + 1 if content[at] == 0 else at + 2 + content[at + 1]
        if content[at]:
            found.append(content[at:end])
        at = end
    return found
