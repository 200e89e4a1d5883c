"""Failure rate of each node, the worst first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kadeploy.pictures.look import Look
from kadeploy.pictures.past import Past, shortened
from kadeploy.state.history import worst_first

_SLOTS = 8
"""Few nodes get the room of so many: a bar is not a wall."""


def draw(axes: Any, past: Past, look: Look) -> None:
    """A bar for each node, as many as fit."""
    size = look.size
    worst = worst_first(past.rates)[: size.nodes]
    places = range(len(worst))
    axes.bar(places, [rate.failures for rate in worst], color=look.palette.failures)
    names = [shortened(name, size.letters) for name in _told_apart([rate.hostname for rate in worst])]
    axes.set_xticks(places, names, rotation=90 if len(worst) > size.upright else 0)
    axes.set_xlim(-0.6, max(len(worst), _SLOTS) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_ylabel("failure rate (%)")
    axes.grid(visible=False, axis="x")
    axes.set_title(_title(len(past.rates), size.nodes))


def _told_apart(names: Sequence[str]) -> Sequence[str]:
    """*names* without their domains, where nodes of two domains are not called the same."""
    short = [name.partition(".")[0] for name in names]
    return short if len(set(short)) == len(set(names)) else names


def _title(count: int, most: int) -> str:
    nodes = "1 node" if count == 1 else f"{count} nodes"
    return f"Failure rate, the {most} worst of {nodes}" if count > most else f"Failure rate, {nodes}"
