"""What the log tells of a period, as kastat3 does: failures, durations, and how busy the site was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from kadeploy.runner.playbooks import MACRO_STEPS
from kadeploy.server.web.damaged import readable
from kadeploy.server.web.visit import Visit
from kadeploy.state.history import Image
from kadeploy.state.overview import Load, Overview, Usual, overview

PERIODS = {1: "1 day", 7: "7 days", 30: "30 days"}
"""Days that can be chosen, and what people read."""
MOST = 100
"""Nodes of the table; the others have failed less often."""
IMAGES = 30
"""Images of the table of durations; the others were deployed less often."""
_REASONS = 50
_HEIGHT = 120
"""Of the picture of the load, in its own units; each bar of it is ten wide."""
_BAR = 10


class Bar(msgspec.Struct, frozen=True):
    """One bar of the picture of the load, in the picture's units."""

    load: Load
    x: int
    y: float
    height: float


class Steps(msgspec.Struct, frozen=True):
    """What the macro-steps of an image take."""

    image: Image
    deployments: int
    """How many went well."""
    steps: Sequence[Usual | None]
    """In the order of the macro-steps; None: it was not run."""


def _bars(load: Sequence[Load]) -> list[Bar]:
    highest = max((each.nodes for each in load), default=0) or 1
    heights = [round(_HEIGHT * each.nodes / highest, 1) for each in load]
    return [
        Bar(each, _BAR * rank, round(_HEIGHT - height, 1), height)
        for rank, (each, height) in enumerate(zip(load, heights, strict=True))
    ]


def _by_image(found: Iterable[Usual]) -> list[Steps]:
    """In the order of *found*, which is that of their frequency."""
    images: dict[Image, dict[int, Usual]] = {}
    for each in found:
        images.setdefault(each.image, {})[each.step] = each
    return [
        Steps(image, max(each.deployments for each in steps.values()), [steps.get(rank) for rank in (1, 2, 3)])
        for image, steps in images.items()
    ]


class Statistics(Controller):
    """Past operations."""

    path = "/ui/statistics"
    include_in_schema = False

    @get("/", sync_to_thread=True)
    def show(self, visit: NamedDependency[Visit], days: FromQuery[int] = 7) -> Response[str]:
        """The last days, of the periods that can be chosen."""
        chosen = days if days in PERIODS else 7
        found, left_out = readable(lambda: [overview(visit.served.site, chosen)])
        return visit.page(
            "statistics.html", "Statistics", days=chosen, periods=PERIODS, left_out=left_out, **_told(found[0])
        )


def _told(found: Overview) -> dict[str, Any]:
    """Values of the template."""
    images = _by_image(found.durations)
    return {
        "period": found.period,
        "deployments": found.deployments,
        "rates": found.rates[:MOST],
        "more_rates": max(0, len(found.rates) - MOST),
        "reasons": found.reasons[:_REASONS],
        "images": images[:IMAGES],
        "more_images": max(0, len(images) - IMAGES),
        "macro_steps": MACRO_STEPS,
        "bars": _bars(found.load),
        "width": _BAR * len(found.load),
        "height": _HEIGHT,
        "highest": max((each.nodes for each in found.load), default=0),
    }
