"""What a check has found out: one line each, good or bad, with what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    topic: str
    """What it belongs to, in the words of the documentation: ``boot``, ``names``, ``bmc``."""
    level: Level
    """Good; odd, and deployments work all the same; or a reason why one would fail."""
    text: str
    """What was seen, with its values."""
    advice: str = ""
    """What to do about it; empty only where all is well."""


def ok(topic: str, text: str) -> Finding:
    """A good one."""
    return Finding(topic=topic, level="ok", text=text)


def warn(topic: str, text: str, advice: str) -> Finding:
    """An odd one."""
    return Finding(topic=topic, level="warn", text=text, advice=advice)


def fail(topic: str, text: str, advice: str) -> Finding:
    """A bad one."""
    return Finding(topic=topic, level="fail", text=text, advice=advice)


def worst(found: Iterable[Finding]) -> Level:
    """The worst level among them; ``ok`` of none.

    >>> worst([ok("boot", "there"), warn("boot", "old", "renew it")])
    'warn'
    """
    levels = {each.level for each in found}
    return next((level for level in _WORST_FIRST if level in levels), "ok")


_WORST_FIRST: tuple[Level, ...] = ("fail", "warn")
