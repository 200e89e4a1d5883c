"""Nodes from dnsmasq: ``dhcp-host`` lines, lines of a ``dhcp-hostsfile``, and lines of hosts(5) (dnsmasq(8))."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass, field

from kadeploy.admin.sources.found import Entry, Found, LeftOut

_SETTING = re.compile(r"(?:--)?([a-z][a-z0-9-]*)\s*=\s*(.*)", re.DOTALL)
_FILES = ("conf-file", "conf-dir", "dhcp-hostsfile", "dhcp-hostsdir", "addn-hosts", "hostsdir")
_COMMENT = re.compile(r"(?:^|\s)#.*")
_MAC = re.compile(r"(?:[0-9a-f]{1,2}-)?((?:[0-9a-f]{1,2}|\*)(?::(?:[0-9a-f]{1,2}|\*)){5,})", re.IGNORECASE)
_LEASE = re.compile(r"infinite|\d+[smhdw]?", re.IGNORECASE)
_LABELS = ("set:", "tag:", "net:", "id:")


def read(text: str, path: str) -> Found:
    """Nodes of *text*, which is in the file *path*; what is no host is passed over."""
    found = Found([], [])
    for number, raw in enumerate(text.splitlines(), start=1):
        line, where = _COMMENT.sub("", raw).strip(), f"{path}:{number}"
        setting = _SETTING.fullmatch(line)
        if setting and setting[1] in _FILES:
            text = f"{setting[1]} names another file: give {setting[2]} by a --from of its own"
            found.left_out.append(LeftOut(where=where, text=text))
        elif setting and setting[1] == "dhcp-host":
            _take(setting[2], where, found)
        elif not setting and "," in line:
            _take(line, where, found)
        elif not setting and (host := _hosts_line(line)):
            found.entries.append(Entry(name=host[1], address=host[0], where=where))
    return found


def _hosts_line(line: str) -> list[str]:
    """Address and names of a line of hosts(5); nothing when it is something else, or the machine itself."""
    words = line.split()
    address = _parsed(words[0]) if len(words) > 1 else None
    if address is None or address.is_loopback or address.is_multicast or address.is_link_local:
        return []
    return [str(address), *words[1:]]


@dataclass
class _Host:
    """The parts of a ``dhcp-host`` that matter here."""

    names: list[str] = field(default_factory=list)
    macs: list[str] = field(default_factory=list)
    """Some may have ``*`` in place of bytes."""
    addresses: list[str] = field(default_factory=list)
    is_ignored: bool = False

    def add(self, part: str) -> None:
        """Take the next part."""
        if part == "ignore":
            self.is_ignored = True
        elif not part or part == "*" or part.startswith(_LABELS) or _LEASE.fullmatch(part):
            return
        elif _IN_BRACKETS.fullmatch(part) or _parsed(part):
            self.addresses.append(part)
        elif mac := _MAC.fullmatch(part):
            self.macs.append(mac[1])
        else:
            self.names.append(part)

    @property
    def usable(self) -> list[str]:
        """Addresses that are whole; IPv4 first, by which nodes boot."""
        return sorted(filter(None, map(_address, self.addresses)), key=lambda each: ":" in each)

    @property
    def trouble(self) -> str:
        """Why it becomes no node; empty when it does."""
        if self.is_ignored:
            return "is told to be ignored"
        if len(self.names) != 1:
            return f"has a second name, {self.names[1]}" if self.names else "has no name"
        if not self.usable:
            return f"has an address that is not whole, {self.addresses[0]}" if self.addresses else "has no address"
        return ""


def _take(value: str, where: str, found: Found) -> None:
    """Add the node that the value of a ``dhcp-host`` is about, or why it is none."""
    host = _Host()
    for part in value.split(","):
        host.add(part.strip().strip('"'))
    shown = (host.names or host.macs or [value[:_SHOWN]])[0]
    if host.trouble:
        found.left_out.append(LeftOut(where=where, text=f"{shown} {host.trouble}"))
        return
    whole = [mac for mac in host.macs if "*" not in mac]
    if len(host.usable) > 1:
        found.left_out.append(LeftOut(where=where, text=f"{shown} has several addresses; {host.usable[0]} is taken"))
    if len(host.macs) > 1 or host.macs != whole:
        taken = f"{whole[0]} is taken" if whole else "none is taken"
        found.left_out.append(LeftOut(where=where, text=f"{shown} has several MAC addresses; {taken}"))
    mac = whole[0] if whole else ""
    found.entries.append(Entry(name=shown, address=host.usable[0], mac=mac, where=where))


_SHOWN = 80


def _address(text: str) -> str:
    """*text* of a ``dhcp-host`` as an address: IPv4, or IPv6 in brackets; empty when it is none.

    An IPv6 address without a network, such as ``[::56]``, is only the host's part of one.
    """
    inner = _IN_BRACKETS.fullmatch(text)
    found = _parsed(inner[1] if inner else text)
    if found is None or (found.version == 6) != (inner is not None):
        return ""
    return str(found) if found.version == 4 or int(found) >> 64 else ""


_IN_BRACKETS = re.compile(r"\[([^\]/]*)(?:/\d+)?\]")


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(text)
    return None
