"""What failed in a run, nodes together that failed in one way, and how the step is repeated for them."""

from __future__ import annotations

import heapq
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kadeploy.nodeset import fold
from kadeploy.operations.reasons import kind
from kadeploy.runner.player import folder_name
from kadeploy.server.web.stands import Stands, State
from kadeploy.workflow import Attempt

MOST = 20
"""Ways of failing that are shown, those of most nodes first."""
_LIMIT = 16
"""Nodes that a command names one by one; for more of them it is repeated for the whole set."""


@dataclass(frozen=True)
class Failure:
    """Nodes that failed in one way, in one micro-step."""

    implementation: str
    """Of the macro-step; empty where the nodes were in none."""
    micro_step: str
    """Empty where it is not known, or the nodes were in none."""
    reason: str
    """What the first of them said."""
    names: tuple[str, ...]
    folded: str
    now: Mapping[State, int]
    """How these nodes stand by now: they may have been tried again."""
    tries: tuple[tuple[str, int], ...]
    """Folders of the attempts in which they failed, each with how many of the nodes did."""

    def by_hand(self, run: Path) -> list[str]:
        """Commands that repeat the step, for the site's administrator; *run* is the folder of the run."""
        tags = ["--tags", self.micro_step] if self.micro_step else []
        limit = ["--limit", ",".join(self.names)] if len(self.names) <= _LIMIT else []
        return [shlex.join([str(run / name / "command"), *tags, *limit]) for name, _ in self.tries[-1:]]


@dataclass
class _Way:
    """One way of failing."""

    implementation: str
    micro_step: str
    reason: str
    names: dict[str, None] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    folded: tuple[int, str] = (0, "")
    """For how many of the names."""

    def failure(self, stands: Stands) -> Failure:
        if self.folded[0] != len(self.names):
            self.folded = len(self.names), fold(self.names)
        names, tries = tuple(self.names), tuple(self.tries.items())
        where = (self.implementation, self.micro_step, self.reason)
        return Failure(*where, names, self.folded[1], stands.count(names), tries)


class Failures:
    """Those of a run, node by node as they happen."""

    def __init__(self) -> None:
        self._ways: dict[tuple[str, str, str], _Way] = {}

    def add(self, name: str, message: str, attempt: Attempt | None = None, micro_step: str = "") -> None:
        """The node *name* has failed; a *message* may begin with the steps that say where."""
        implementation = attempt.implementation if attempt else ""
        where = f"{implementation}-{micro_step}: " if micro_step else f"{implementation}: "
        reason = message.removeprefix(where) if implementation else message
        key = implementation, micro_step, kind(name, reason)
        way = self._ways.setdefault(key, _Way(implementation, micro_step, reason))
        way.names[name] = None
        if attempt:
            folder = folder_name(attempt)
            way.tries[folder] = way.tries.get(folder, 0) + 1

    def __len__(self) -> int:
        """In how many ways nodes failed."""
        return len(self._ways)

    def largest(self, stands: Stands) -> tuple[Failure, ...]:
        """The `MOST` of most nodes, by how these stand now."""
        ways = heapq.nlargest(MOST, self._ways.values(), key=lambda way: len(way.names))
        return tuple(way.failure(stands) for way in ways)
