"""DHCP packets as they pass by on a network interface, whoever they are for (packet(7))."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean

_ALL, _IPV4, _SO_ATTACH_FILTER = 0x0003, 0x0800, 26
_MOST_BYTES = 65536


@contextmanager
def listening(interface: str, port: int) -> Iterator[socket.socket]:
    """A socket that gets all UDP packets to *port* on *interface*, those from and to this machine's own programs too.

    Raises:
        OptionError: there is no such interface, or this user may not do it.
    """
    with ExitStack() as stack:
        try:
            ear = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
            _attach(ear, port)
            ear.bind((interface, _ALL))
        except OSError as error:
            raise refused(interface, error) from error
        yield ear


def heard(ear: socket.socket) -> tuple[bytes, str]:
    """What the next packet carries, and the address that it came from; nothing where it is malformed."""
    content, (_, protocol, *_) = ear.recvfrom(_MOST_BYTES)
    header = (content[0] & 0x0F) * 4 if content else 0
    if protocol != _IPV4 or len(content) < header + 8:
        return b"", ""
    return content[header + 8 :], socket.inet_ntoa(content[12:16])


def _attach(ear: socket.socket, port: int) -> None:
    """Have the kernel pass on nothing but what is wanted: a busy network would drown it."""
    instructions = _to(port)
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    kept = ctypes.create_string_buffer(program)
    ear.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(instructions), ctypes.addressof(kept)))


def _to(port: int) -> tuple[tuple[int, int, int, int], ...]:
    """UDP to *port*, as a program for the kernel (classic BPF), from the IPv4 header on."""
    return (
        (0x30, 0, 0, 9),  # the protocol
        (0x15, 0, 6, socket.IPPROTO_UDP),
        (0x28, 0, 0, 6),  # is no later fragment
        (0x45, 4, 0, 0x1FFF),
        (0xB1, 0, 0, 0),  # the port behind the header
        (0x48, 0, 0, 2),
        (0x15, 0, 1, port),
        (0x06, 0, 0, 0x40000),
        (0x06, 0, 0, 0),
    )


def refused(interface: str, error: OSError) -> OptionError:
    """What to tell when *interface* cannot be listened to, or spoken on."""
    if error.errno in {errno.EPERM, errno.EACCES}:
        return OptionError("DHCP can be seen by root alone: run the command by sudo.")
    if error.errno == errno.ENODEV:
        names = [name for _, name in socket.if_nameindex()]
        meant = did_you_mean(interface, names)
        return OptionError(f"There is no network interface {interface!r}; there are {', '.join(names)}.{meant}")
    if error.errno == errno.EADDRINUSE:
        return OptionError("The port of DHCP clients is taken by another one: stop it for the probe.")
    return OptionError(f"{interface}: {error.strerror or error}.")
