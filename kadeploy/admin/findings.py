"""What a check has found out: one line each, good or bad, with what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import msgspec

from kadeploy.nodeset import natural_key, told
from kadeploy.printable import printable

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
    name: str = ""
    """Which of the things that are looked at it is about, as the documentation lists them; empty: of no list."""


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


# --- things that are looked at ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """One thing that is looked at: whatever is found of it has this topic and this name, which programs may rely on.

    >>> Look("boot", "kernel").fail("no such file", "put it there").name
    'kernel'
    """

    topic: str
    name: str

    def ok(self, text: str) -> Finding:
        """All is well."""
        return self._found("ok", text, "")

    def warn(self, text: str, advice: str) -> Finding:
        """Odd, or nobody can tell."""
        return self._found("warn", text, advice)

    def fail(self, text: str, advice: str) -> Finding:
        """A deployment would fail of it."""
        return self._found("fail", text, advice)

    def _found(self, level: Level, text: str, advice: str) -> Finding:
        line, what_to_do = (printable(" ".join(each.split())) for each in (text, advice))
        return Finding(topic=self.topic, name=self.name, level=level, text=line, advice=what_to_do)


def grouped(found: Mapping[str, Finding], values: Mapping[str, str] = MappingProxyType({})) -> Iterator[Finding]:
    """One finding for all nodes of which the same was found (*found* by node), the nodes in front of its text.

    *values* are what differs from node to node: that of the first one is told for all.

    >>> [each.text for each in grouped({"n-1": ok("bmc", "on"), "n-2": ok("bmc", "on"), "n-3": ok("bmc", "off")})]
    ['n-[1-2]: on', 'n-3: off']
    """
    alike: dict[Finding, list[str]] = {}
    for node in sorted(found, key=natural_key):
        alike.setdefault(found[node], []).append(node)
    for finding, nodes in alike.items():
        value = values.get(nodes[0], "")
        first = f"{nodes[0]}: " if len(nodes) > 1 else ""
        seen = f" ({first}{printable(value)})" if value else ""
        yield msgspec.structs.replace(finding, text=f"{told(nodes)}: {finding.text}{seen}")
