"""How many nodes were at work, slice of time by slice of time."""

from __future__ import annotations

from typing import Any

from kadeploy.pictures import dates
from kadeploy.pictures.look import Look
from kadeploy.pictures.past import Past

_SPANS = {3600: "hour", 6 * 3600: "6 hours", 86400: "day"}


def draw(axes: Any, past: Past, look: Look) -> None:
    """One area, whose steps are the slices."""
    load = past.load
    if load:
        edges = [dates.day(each.start) for each in load] + [dates.day(load[-1].start + load[-1].seconds)]
        axes.stairs([each.nodes for each in load], edges, fill=True, color=look.palette.load)
        axes.set_xlim(edges[0], edges[-1])
    dates.show(axes, look, [])
    axes.set_ylim(0, max(1.0, *(1.05 * each.nodes for each in load)) if load else 1.0)
    axes.set_ylabel("nodes at work")
    axes.set_title(f"Nodes at work, on average over each {_span(load[0].seconds)}" if load else "Nodes at work")


def _span(seconds: int) -> str:
    return _SPANS.get(seconds) or f"{seconds // 86400} days"
