"""Pictures of the page: each is drawn once for all who look, by a thread of their own, until the figures are new."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kadeploy.config.site import Site
from kadeploy.errors import ServiceError
from kadeploy.pictures import drawing
from kadeploy.pictures.drawing import Name
from kadeploy.pictures.look import Look
from kadeploy.pictures.past import Past
from kadeploy.server.web.damaged import readable
from kadeploy.state.database import url_of
from kadeploy.state.overview import Overview, overview

_PAINTER = ThreadPoolExecutor(1, "painter")
"""Whoever waits for a picture takes none of the threads that answer everybody."""


@dataclass
class _Drawn:
    """Pictures of the same figures."""

    of: Overview
    pictures: dict[tuple[Name, Look], bytes] = field(default_factory=dict)


_drawn: dict[tuple[str, int], _Drawn] = {}
"""By site and days; the painter's alone."""


async def picture(site: Site, days: int, name: Name, look: Look) -> bytes:
    """The picture of the last *days* days, as SVG.

    Raises:
        DatabaseError: nothing can be read.
        ServiceError: matplotlib is not installed.
    """
    try:
        return await asyncio.get_running_loop().run_in_executor(_PAINTER, _paint, site, days, name, look)
    except ImportError as error:
        raise ServiceError(
            "Pictures need matplotlib on the service's machine: pip install 'kadeploy[plot]'."
        ) from error


def _paint(site: Site, days: int, name: Name, look: Look) -> bytes:
    [found], _ = readable(lambda: [overview(site, days)])
    drawn = _drawn.get((url_of(site), days))
    if drawn is None or drawn.of is not found:
        drawn = _drawn[url_of(site), days] = _Drawn(found)
    if (name, look) not in drawn.pictures:
        drawn.pictures[name, look] = drawing.draw(name, past_of(found), look)
    return drawn.pictures[name, look]


def past_of(found: Overview) -> Past:
    """What is drawn of a period."""
    return Past(found.rates, found.timeline, found.load)
