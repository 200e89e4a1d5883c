"""What a node left behind while it tried to boot: in the log of the boot server, and in the log of its console.

The logs are other programs'. All that is known of the boot server's is that its lines name the address of who asks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kadeploy.commands import LINE_LIMIT, last_line

_MOST = 1 << 20
"""Bytes that are read of a log, from its end."""


@dataclass(frozen=True)
class Log:
    """A log that others write, and how long it was when we began to look."""

    path: Path
    length: int

    @classmethod
    def now(cls, path: str | Path) -> Log:
        """The log at *path* from here on; there may be none yet."""
        try:
            return cls(Path(path), Path(path).stat().st_size)
        except OSError:
            return cls(Path(path), 0)

    def lines(self) -> list[str] | None:
        """What was written since, in printable characters, without empty lines; None when it cannot be read."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                begun = self.length if self.length <= size else 0  # else it is another file by now
                file.seek(max(begun, size - _MOST))
                text = file.read(_MOST).decode(errors="replace")
        except OSError:
            return None
        printable = ("".join(sign for sign in line if sign.isprintable()).strip() for line in text.splitlines())
        return [line[:LINE_LIMIT] for line in printable if line]


@dataclass(frozen=True)
class Machines:
    """Who is known to the site; whoever else asks its boot server is a stranger."""

    addresses: frozenset[str]
    """Of nodes and of the controller; empty when nobody knows them all: then nobody is a stranger."""
    cards: Mapping[str, str]
    """Node by the MAC address of its network card, in small letters with colons."""


@dataclass(frozen=True)
class Stranger:
    """Somebody who asked the boot server and is not known."""

    address: str
    card: str
    """Its MAC address, when it asked for a profile by that; else empty."""
    line: str
    """What it asked last."""


@dataclass(frozen=True)
class Requests:
    """What the boot server was asked, as its log has it."""

    last: Mapping[str, str]
    """The last line that names a machine, by its address or name."""
    strangers: Sequence[Stranger]
    """In the order of their last lines."""
    known: Machines

    @classmethod
    def read(cls, lines: Sequence[str], known: Machines) -> Requests:
        """Those in the *lines* of a log."""
        last: dict[str, str] = {}
        strangers: dict[str, Stranger] = {}
        for line in lines:
            words = _WORD.findall(line)
            last |= dict.fromkeys(words, line)
            address = next(filter(_ADDRESS.fullmatch, words), None)
            if address and known.addresses and known.addresses.isdisjoint(words):
                card = _CARD.search(line)
                before = strangers.pop(address, None)
                mac = card[1].replace("-", ":").lower() if card else before.card if before else ""
                strangers[address] = Stranger(address, mac, line)
        return cls(last, list(strangers.values()), known)

    def of(self, node: str, names: Sequence[str]) -> str:
        """What *node*, known to the network by *names*, asked last, for people.

        When it asked for nothing, a stranger may be the node by another network card, or by an address that it should
        not have.

        >>> read = Requests.read(["tftp: 10.0.1.2 'a' sent"], Machines(frozenset(), {}))
        >>> read.of("n-2", ["10.0.1.2"])
        "the boot server's last word of it is: tftp: 10.0.1.2 'a' sent"
        >>> read.of("n-3", ["10.0.1.3"])
        '10.0.1.3 asked the boot server for nothing'
        """
        if line := next((self.last[name] for name in names if name in self.last), None):
            return f"the boot server's last word of it is: {line}"
        nothing = f"{names[0]} asked the boot server for nothing"
        if not self.last:
            return f"{nothing}, nor did anybody else"
        for other in self.strangers:
            if self.known.cards.get(other.card) == node:
                return (
                    f"{nothing}, but its network card {other.card} did, as {other.address}: {other.line} "
                    "(does DHCP know another address than the cluster file?)"
                )
        unknown = [other for other in self.strangers if other.card not in self.known.cards]
        return f"{nothing}, but {_told(unknown)}" if unknown else nothing


def _told(unknown: Sequence[Stranger]) -> str:
    *others, last = unknown
    card = f" with network card {last.card}" if last.card else ""
    more = f" (nor do {len(others)} more)" if others else ""
    return (
        f"{last.address}{card} did, which belongs to no node of this site{more}: {last.line} "
        "(does the node boot from another network card?)"
    )


_WORD = re.compile(r"(?:(?<=::ffff:)|(?<![\w.:/-]))\w[\w-]*(?:\.\w[\w-]*)*")
"""An address or a name, whole; IPv4 addresses may be written as some of IPv6."""
_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}")
_CARD = re.compile(r"\b01-((?:[0-9A-Fa-f]{2}-){5}[0-9A-Fa-f]{2})\b")
"""A MAC address as loaders write it in the name of a profile."""


def said(lines: list[str]) -> str:
    """What a console showed last, for people."""
    last = last_line("\n".join(lines))
    return f"its console says last: {last}" if last else "its console has said nothing"
