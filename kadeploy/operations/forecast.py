"""How long an operation will still take, by what the last ones of its kind have taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import mean

from kadeploy.config.cluster import Implementation, StepTable
from kadeploy.errors import DatabaseError
from kadeploy.events import Began
from kadeploy.operations.work import Work
from kadeploy.state import history
from kadeploy.state.history import Image
from kadeploy.workflow import Attempt

LEAST = 3
"""Operations without which nothing is said."""
_PATIENCE = 1.5
"""How much longer than usual a macro-step may take before nobody knows any more."""
_SLACK = 10.0
"""Seconds that are always granted."""


@dataclass(frozen=True)
class Forecast:
    """What is usual, and which way the nodes of an operation go."""

    usual: Mapping[str, Mapping[str, float]]
    """Mean seconds of implementations that were seen often enough, by cluster."""
    plans: Mapping[str, StepTable]
    """By cluster."""
    clusters: Mapping[str, str]
    """By node."""
    passing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Nodes that leave out an implementation, by its name."""

    def left(self, attempt: Attempt, nodes: Sequence[str], elapsed: float) -> float | None:
        """Seconds until *nodes*, *elapsed* seconds into *attempt*, come to the end of all macro-steps.

        None: there is no basis; infinite: they take longer than usual. It goes down as time goes on, never below 0.
        """
        cluster = self.clusters[nodes[0]]
        names = [self._first(nodes[0], ways) for _, ways in self._after(cluster, attempt.macro_step)]
        times = [self.usual[cluster].get(name) for name in (attempt.implementation, *names)]
        known = [seconds for seconds in times if seconds is not None]
        if len(known) < len(times):
            return None
        now, *later = known
        if attempt.goes_on or elapsed > _PATIENCE * now + _SLACK:
            return math.inf
        return max(0.0, now - elapsed) + sum(later)

    def _first(self, node: str, ways: Sequence[Implementation]) -> str:
        """The implementation that the node tries first."""
        mine = (way.name for way in ways if node not in self.passing.get(way.name, ()))
        return next(mine, ways[-1].name)

    def _after(self, cluster: str, macro_step: str) -> StepTable:
        steps = [name for name, _ in self.plans[cluster]]
        return self.plans[cluster][steps.index(macro_step) + 1 :]


def of(event: Began) -> Forecast | None:
    """What can be said of an operation when it begins; None where nothing can."""
    clusters = {node: cluster for cluster, nodes in event.groups.items() for node in nodes}
    return Forecast(event.usual, event.plans, clusters, event.passing) if event.usual else None


def usual(work: Work) -> dict[str, dict[str, float]]:
    """Mean seconds of implementations that were seen often enough, by cluster.

    Empty where *work* only looks, or stops at a breakpoint.
    """
    if work.only_looks or any(each.options.breakpoint for each in work.assignments.values()):
        return {}
    wanted = work.environment
    image = Image(f"{wanted.name}:{wanted.version}", wanted.image.md5) if wanted else Image()
    means: dict[str, dict[str, float]] = {}
    with suppress(DatabaseError):  # damaged rows must not stop anybody
        for cluster, nodes in work.groups.items():
            found = history.usual(work.site, work.operation, nodes, image)
            means[cluster] = {name: mean(times) for name, times in found.items() if len(times) >= LEAST}
    return means if means.keys() == work.groups.keys() else {}


def told(seconds: float) -> str:
    """For people, no finer than it is known.

    >>> told(20), told(80), told(200), told(3900), told(math.inf)
    ('less than 1 min left', 'about 1 min left', 'about 3 min left', 'about 1 h 5 min left', 'longer than usual')
    """
    if seconds == math.inf:
        return "longer than usual"
    if seconds < 30:
        return "less than 1 min left"
    minutes = max(1, round(seconds / 60))
    return f"about {minutes // 60} h {minutes % 60} min left" if minutes >= 60 else f"about {minutes} min left"
