"""The way from this machine to an address, as the kernel would take it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import NamedTuple

from kadeploy.admin.check.asked import ask


class Route(NamedTuple):
    """A way; both are empty where there is none."""

    interface: str
    gateway: str
    """The first router; empty where the address is in a network of this machine."""


def to(address: str) -> Route:
    """The way to an IPv4 address."""
    ended = ask("ip", "-j", "route", "get", address)
    if ended is not None and ended.rc == 0:
        with suppress(ValueError, IndexError):
            first = json.loads(ended.stdout)[0]
            return Route(str(first.get("dev", "")), str(first.get("gateway", "")))
    return Route("", "")
