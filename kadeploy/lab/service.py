"""A daemon of the lab as data: what to run, and which ports tell that it answers."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

Port = tuple[str, str, int]
"""Protocol (``udp`` or ``tcp``), local IPv4 address, number."""


@dataclass(frozen=True)
class Service:
    """One daemon that the supervisor starts, logs and starts again when it ends."""

    name: str
    command: Sequence[str]
    ports: tuple[Port, ...] = ()
    """It answers once all of them are bound."""
    socket: Path | None = None
    """It answers once somebody can connect to this one."""

    @property
    def ready(self) -> bool:
        """Whether it answers, asked in its network namespace."""
        return bound(self.ports) and (self.socket is None or _listens(self.socket))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) == 0


def bound(ports: Iterable[Port]) -> bool:
    """Whether every port is bound in this network namespace (``/proc/net/udp`` and ``tcp``, proc(5))."""
    wanted = set(ports)
    found: set[Port] = set()
    for protocol in {protocol for protocol, _, _ in wanted}:
        found |= parse_table(protocol, Path(f"/proc/net/{protocol}").read_text())
    anywhere = {(protocol, "0.0.0.0", number) for protocol, _, number in wanted}  # noqa: S104 - compared, not bound
    usable = found & (wanted | anywhere)
    return all(port in usable or (port[0], "0.0.0.0", port[2]) in usable for port in wanted)  # noqa: S104


def parse_table(protocol: str, text: str) -> set[Port]:
    r"""Local ends in the kernel's socket table.

    >>> parse_table("udp", "sl local\n 1: 0100B10A:0045 00000000:0000 07\n")
    {('udp', '10.177.0.1', 69)}
    """
    found: set[Port] = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 4 or (protocol == "tcp" and fields[3] != "0A"):  # 0A: listening
            continue
        address, _, number = fields[1].partition(":")
        found.add((protocol, str(ipaddress.IPv4Address(struct.pack("=I", int(address, 16)))), int(number, 16)))
    return found
