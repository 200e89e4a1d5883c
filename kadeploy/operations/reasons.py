"""Reasons of nodes that failed, by their kind: what differs by name, address and time alone is one failure."""

from __future__ import annotations

import re
from collections.abc import Mapping


def kinds(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Nodes by the kind of their reason, of which the first node's stands for all (*reasons* by node)."""
    alike: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        alike.setdefault(kind(name, reason), []).append(name)
    return {reasons[names[0]]: names for names in alike.values()}


def kind(name: str, reason: str) -> str:
    """What is the same in the reasons of nodes that failed in one way: all but their names, addresses and times.

    >>> kind("gdx-1", "gdx-1 (10.0.0.1:22) does not answer after 12.5 s")
    '… (…) does not answer after …'
    """
    return _OWN.sub("…", reason.replace(name, "…"))


_OWN = re.compile(r"\b\d+\.\d+\.\d+\.\d+(:\d+)?|\b\d+(\.\d+)? s\b")
"""An address with its port, or seconds."""
