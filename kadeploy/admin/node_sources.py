"""Nodes from the files that a site has already: what they say, checked, each machine once."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from kadeploy.admin.sources import dhcpd, dnsmasq, inventory, kea, table
from kadeploy.admin.sources.found import Entry, Found, LeftOut
from kadeploy.caller import own
from kadeploy.errors import FileError, NodeListError, OptionError
from kadeploy.files import MEGA, open_as_user
from kadeploy.hints import did_you_mean, of_nodes
from kadeploy.nodeset import MOST, require_few, told

_LARGEST = 64 * MEGA
KINDS = ("csv", "dhcpd", "dnsmasq", "kea", "inventory")
_EXAMPLE = "csv:nodes.csv, dhcpd:/etc/dhcp/dhcpd.conf, dnsmasq:FILE, kea:FILE or inventory:FILE[:GROUP]"


def read(sources: Iterable[str], domain: str = "", only: Sequence[str] = ()) -> Found:
    """The nodes of all *sources*, each ``KIND:FILE``, and what was left out of them.

    Args:
        sources: such as ``dhcpd:/etc/dhcp/dhcpd.conf``.
        domain: added to names that have no dot.
        only: whole or short names of the nodes that are wanted; empty: all.

    Raises:
        OptionError: a source is of no known kind.
        FileError: a file cannot be read or understood, or no node is in it.
        NodeListError: one of *only* is in no file.
    """
    listed = list(sources)
    parts = [_read(source) for source in listed]
    entries = [_named(entry, domain) for part in parts for entry in part.entries]
    wanted = _wanted(entries, only)
    found = sound(wanted)
    left_out = [each for part in parts for each in part.left_out] + found.left_out
    if others := len(entries) - len(wanted):
        text = f"{others} other {'host is' if others == 1 else 'hosts are'} not among the nodes that are named"
        left_out.append(LeftOut(where=", ".join(listed), text=text))
    require_few(len(found.entries), MOST, ", ".join(listed))
    if not found.entries:
        reasons = "".join(f"\n  {each.where}: {each.text}." for each in left_out[:_SHOWN])
        raise FileError(f"{', '.join(listed)}: no node was found in it.{reasons}")
    return Found(found.entries, left_out)


_SHOWN = 5


def _read(source: str) -> Found:
    kind, colon, path = source.partition(":")
    if not colon or not path or kind not in KINDS:
        hint = did_you_mean(kind, KINDS) if colon else ""
        raise OptionError(f"--from {source}: expected {_EXAMPLE}.{hint}")
    if kind == "inventory":
        return _inventory(path)
    return _READERS[kind](_text(path), path)


def _inventory(named: str) -> Found:
    path, colon, group = named.rpartition(":")
    if not colon or Path(named).exists():
        return inventory.read(named)
    return inventory.read(path, group)


_READERS: dict[str, Callable[[str, str], Found]] = {
    "csv": table.read,
    "dhcpd": lambda text, path: dhcpd.read(text, path, _text),
    "dnsmasq": dnsmasq.read,
    "kea": kea.read,
}


def _text(path: str) -> str:
    """Text of a file: UTF-8, or where it is none the Latin-1 of older comments.

    Raises:
        FileError: it cannot be read, or is no text.
    """
    with open_as_user(path, own()) as stream:
        try:
            content = stream.read(_LARGEST + 1)
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}.") from error
    if len(content) > _LARGEST:
        raise FileError(f"{path}: is larger than {_LARGEST // MEGA} MB: name the file of the nodes.")
    if b"\0" in content:
        raise FileError(f"{path}: is no text file.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- nodes that make sense ------------------------------------------------------------------------------------------

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
_NAME = re.compile(rf"(?!.*\d{{16}}){_LABEL}(?:\.{_LABEL})*")
_LONGEST_NAME = 253
_MAC = re.compile(
    r"[0-9a-f]{1,2}([:-])[0-9a-f]{1,2}(?:\1[0-9a-f]{1,2}){4}|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}|[0-9a-f]{12}"
)
_URL = re.compile(r"https?://([A-Za-z0-9._-]+)(?::\d{1,5})?(?:/[\x21-\x7e]*)?")


def checked(machines: Iterable[Entry]) -> Found:
    """*machines* that are somebody's own words: the same, with MAC addresses as they are written here.

    Raises:
        OptionError: a value makes no sense, or two machines share it.
    """
    found = sound(machines)
    if found.left_out:
        raise OptionError(f"{found.left_out[0].where}: {found.left_out[0].text}.")
    return found


def is_name(text: str) -> bool:
    """Whether a node, or its address, may be called so."""
    return len(text) <= _LONGEST_NAME and _NAME.fullmatch(text) is not None


def is_address(text: str) -> bool:
    """Whether *text* is an IP address, or a name that may stand for one."""
    try:
        return bool(ipaddress.ip_address(text)) and "%" not in text
    except ValueError:
        return is_name(text) and not re.fullmatch(r"[\d.]+", text)


def is_bmc(text: str) -> bool:
    """Whether *text* is an address, or the base URL of a Redfish service."""
    return is_address(text) or _URL.fullmatch(text) is not None


def mac_address(text: str) -> str:
    """*text* as MAC addresses are written here; empty when it is none.

    >>> mac_address("52-54-0-AB-CD-1"), mac_address("5254.00ab.cd01"), mac_address("52:54")
    ('52:54:00:ab:cd:01', '52:54:00:ab:cd:01', '')
    """
    lower = text.strip().lower()
    if not _MAC.fullmatch(lower):
        return ""
    digits = "".join(part.zfill(2) for part in re.split("[:-]", lower)).replace(".", "")
    return ":".join(digits[rank : rank + 2] for rank in range(0, 12, 2))


def _named(entry: Entry, domain: str) -> Entry:
    is_short = domain and "." not in entry.name
    return msgspec.structs.replace(entry, name=f"{entry.name}.{domain.strip('.')}") if is_short else entry


def _wanted(entries: Sequence[Entry], only: Sequence[str]) -> list[Entry]:
    """Those of *entries* that *only* names, by their whole names or up to a dot."""
    if not only:
        return list(entries)
    names = set(only)
    wanted = [entry for entry in entries if names & _called(entry.name)]
    missing = names - {each for entry in wanted for each in _called(entry.name)}
    if missing:
        named = [name for name in only if name in missing]
        hint = of_nodes(named, sorted({each for entry in entries for each in _called(entry.name)}))
        raise NodeListError(f"--nodes: {told(named)} is in none of the files.{hint}")
    return wanted


def _called(name: str) -> set[str]:
    return {name, name.partition(".")[0]}


class _Wrong(NamedTuple):
    key: str
    is_right: Callable[[str], bool]
    what: str


_CHECKS = (
    _Wrong("name", is_name, "is no name of a machine"),
    _Wrong("address", is_address, "is no address"),
    _Wrong("mac", lambda text: bool(mac_address(text)), "is no MAC address"),
    _Wrong("bmc", is_bmc, "is no address of a BMC"),
)
_WORDS = {"name": "name", "address": "address", "mac": "MAC address", "bmc": "BMC"}


def sound(entries: Iterable[Entry]) -> Found:
    """Those of *entries* whose values make sense and that share none with an earlier one."""
    found = Found([], [])
    known: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        if reason := _wrong(entry) or _taken(entry, known):
            found.left_out.append(LeftOut(where=entry.where, text=reason))
            continue
        known |= dict.fromkeys(_marks(entry), entry)
        found.entries.append(msgspec.structs.replace(entry, mac=mac_address(entry.mac)))
    return found


def _wrong(entry: Entry) -> str:
    values = msgspec.structs.asdict(entry)
    wrong = next((each for each in _CHECKS if values[each.key] and not each.is_right(values[each.key])), None)
    if wrong is None:
        return "" if entry.name else "this node has no name"
    whose = "" if wrong.key == "name" else f"{entry.name}: "
    return f"{whose}{values[wrong.key][:_SHOWN_CHARACTERS]!r} {wrong.what}"


_SHOWN_CHARACTERS = 80


def _taken(entry: Entry, known: dict[tuple[str, str], Entry]) -> str:
    for kind, mark in _marks(entry):
        if other := known.get((kind, mark)):
            return f"{entry.name} has the {_WORDS[kind]} {mark} of {other.name} ({other.where})"
    return ""


def _marks(entry: Entry) -> list[tuple[str, str]]:
    marks = [("name", entry.name.lower()), ("address", _comparable(entry.address))]
    marks += [("mac", mac_address(entry.mac)), ("bmc", _comparable(entry.bmc))]
    return [(kind, mark) for kind, mark in marks if mark]


def _comparable(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address.lower()
