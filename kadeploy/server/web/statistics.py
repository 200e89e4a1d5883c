"""What the log tells of a period, as kastat3 does: failures, durations, and how busy the site was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from kadeploy.pictures import drawing
from kadeploy.pictures.drawing import Name
from kadeploy.pictures.look import DARK, LIGHT, NARROW, WIDE, Look
from kadeploy.pictures.words import WORDS
from kadeploy.runner.playbooks import MACRO_STEPS
from kadeploy.server.web import drawn
from kadeploy.server.web.damaged import readable
from kadeploy.server.web.rendering import HEADERS
from kadeploy.server.web.visit import Visit
from kadeploy.state.history import Image
from kadeploy.state.overview import Overview, Usual, overview

PERIODS = {1: "1 day", 7: "7 days", 30: "30 days"}
"""Days that can be chosen, and what people read."""
MOST = 100
"""Nodes of the table; the others have failed less often."""
IMAGES = 30
"""Images of the table of durations; the others were deployed less often."""
_MEANS = 300
"""Rows of the table of means over time: the newest ones."""
_REASONS = 50
_SIZES = {"wide": WIDE, "narrow": NARROW}
_PALETTES = {"light": LIGHT, "dark": DARK}
_VARIANTS = (
    ("(max-width: 48rem) and (prefers-color-scheme: dark)", "narrow", "dark"),
    ("(max-width: 48rem)", "narrow", "light"),
    ("(prefers-color-scheme: dark)", "wide", "dark"),
)
"""Where a browser takes another size and palette than the wide and light ones; the first that is true counts."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
"""Of a picture, which has a style sheet in it and needs nothing else (see `rendering.POLICY`)."""


class Steps(msgspec.Struct, frozen=True):
    """What the macro-steps of an image take."""

    image: Image
    deployments: int
    """How many went well."""
    steps: Sequence[Usual | None]
    """In the order of the macro-steps; None: it was not run."""


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
        chosen = _chosen(days)
        found, left_out = readable(lambda: [overview(visit.served.site, chosen)])
        return visit.page(
            "statistics.html", "Statistics", days=chosen, periods=PERIODS, left_out=left_out, **_told(found[0])
        )

    @get("/{picture:str}")
    async def picture(
        self,
        visit: NamedDependency[Visit],
        picture: FromPath[Name],
        days: FromQuery[int] = 7,
        size: FromQuery[Literal["wide", "narrow"]] = "wide",
        scheme: FromQuery[Literal["light", "dark"]] = "light",
    ) -> Response[bytes]:
        """A picture of these days, for a width and a colour scheme of browsers."""
        look = Look(_SIZES[size], _PALETTES[scheme])
        content = await drawn.picture(visit.served.site, _chosen(days), picture, look)
        headers = {**HEADERS, "Content-Security-Policy": _POLICY}
        return Response(content, headers=headers, media_type="image/svg+xml")


def _chosen(days: int) -> int:
    return days if days in PERIODS else 7


def _told(found: Overview) -> dict[str, Any]:
    """Values of the template."""
    images = _by_image(found.durations)
    past = drawn.past_of(found)
    return {
        "period": found.period,
        "deployments": found.deployments,
        "rates": found.rates[:MOST],
        "more_rates": max(0, len(found.rates) - MOST),
        "reasons": found.reasons[:_REASONS],
        "images": images[:IMAGES],
        "more_images": max(0, len(images) - IMAGES),
        "macro_steps": MACRO_STEPS,
        "load": found.load,
        "timeline": found.timeline[-_MEANS:],
        "are_drawn": drawing.is_possible(),
        "words": {name: words(past) for name, words in WORDS.items()},
        "sizes": _SIZES,
        "variants": _VARIANTS,
    }
