"""What a file says of machines, before anybody has asked whether it makes sense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as a file has it; empty is what the file does not say."""

    name: str
    address: str = ""
    bmc: str = ""
    mac: str = ""
    where: str
    """File and line, for people."""


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """Something in a file that became no node, or not wholly."""

    where: str
    """File and line."""
    text: str
    """Why, in a sentence."""


class Found(NamedTuple):
    """What a file says."""

    entries: list[Entry]
    left_out: list[LeftOut]


COLUMNS: Mapping[str, tuple[str, ...]] = {
    "name": ("name", "node", "host", "hostname", "host_name", "fqdn"),
    "address": ("address", "ip", "ip_address", "ipaddress", "ipv4", "ipv6", "addr"),
    "bmc": ("bmc", "bmc_address", "bmc_ip", "ipmi", "ipmi_address", "ipmi_host", "redfish", "idrac", "ilo"),
    "mac": ("mac", "mac_address", "macaddress", "hwaddr", "hardware_address"),
}
"""What is known of a machine, and the names that people give it."""


def plain(word: str) -> str:
    """A name as `COLUMNS` has it.

    >>> plain(" MAC-Address ")
    'mac_address'
    """
    return word.strip().casefold().replace("-", "_").replace(" ", "_")


def first_of(values: Mapping[str, object], names: Iterable[str]) -> str:
    """The first of *values* that is a text and has one of these names; empty where none is."""
    found = (values[name] for name in names if name in values)
    return next((each.strip() for each in found if isinstance(each, str) and each.strip()), "")
