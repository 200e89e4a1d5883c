"""An IPv6 router that leads nowhere: without an answer iPXE, the ROM of the machines, asks for one for 13 seconds.

Meanwhile it does not go on with what DHCP has told it, and keeps a core busy. The answer (RFC 4861, 4.2) has no prefix
and makes no default route: nobody gets an address by it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from pathlib import Path

from kadeploy.lab.network import BRIDGE
from kadeploy.lab.service import Service

_SOLICITATION, _ADVERTISEMENT = 133, 134
_ALL_NODES, _ALL_ROUTERS = "ff02::1", "ff02::2"
_MESSAGE = struct.pack("!BBHBBHII", _ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0)
"""The kernel puts the checksum in."""


def services() -> list[Service]:
    """The router, where this machine has IPv6."""
    if not Path("/proc/net/if_inet6").exists():
        return []
    return [Service("router", [sys.executable, "-I", "-m", "kadeploy.lab.router"])]


def answer(device: str) -> None:
    """Answer whoever asks on *device* for a router; for ever."""
    index = socket.if_nametoindex(device)
    routers = socket.inet_pton(socket.AF_INET6, _ALL_ROUTERS) + struct.pack("@I", index)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as router:
        router.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, routers)
        router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)  # what is less came from elsewhere
        while True:
            if router.recv(1 << 16)[:1] == bytes([_SOLICITATION]):
                with contextlib.suppress(OSError):  # the device has only just come up: they ask again
                    router.sendto(_MESSAGE, (_ALL_NODES, 0, 0, index))


if __name__ == "__main__":
    answer(BRIDGE)
