"""Durations of the macro-steps over time, image by image."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kadeploy.pictures import dates
from kadeploy.pictures.look import Look
from kadeploy.pictures.past import STEP_NAMES, Past, named
from kadeploy.state.history import Durations, Image

Dashes = Literal["-", "--", ":", "-."]
_STYLES: tuple[tuple[Dashes, str], ...] = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
"""Dashes and marker of each image that is drawn."""
IMAGES = len(_STYLES)
"""More than these cannot be told apart."""


def draw(axes: Any, past: Past, look: Look) -> None:
    """A line for each macro-step and image: colours tell macro-steps, dashes and markers tell images."""
    images = named(past.durations, IMAGES, look.size.letters)
    for image, (dashes, marker) in zip(images, _STYLES, strict=False):
        own = [item for item in past.durations if item.image == image]
        for means, colour in zip(_means(own), look.palette.steps, strict=True):
            days = [dates.day(item.start) for item in own]
            axes.plot(days, means, dashes, color=colour, marker=marker, markersize=look.size.marker, linewidth=1.2)
    dates.show(axes, look, [item.start for item in past.durations])
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.set_ylabel("mean duration (s)")
    count = len({item.image for item in past.durations})
    subset = f", the {IMAGES} most deployed of {count} images" if count > IMAGES else ""
    axes.set_title(textwrap.fill(f"Duration of the macro-steps over time{subset}", look.size.line))
    if images:
        _explain(axes, images, look)


def _means(own: Sequence[Durations]) -> list[list[float]]:
    """Of each macro-step; where it did not run there is a gap."""
    found = ([item.step1, item.step2, item.step3] for item in own)
    return [[float("nan") if mean is None else mean for mean in means] for means in zip(*found, strict=True)]


def _explain(axes: Any, images: Mapping[Image, str], look: Look) -> None:
    """What colours, dashes and markers mean."""
    from matplotlib.lines import Line2D  # noqa: PLC0415 - slow to import

    steps = [
        Line2D([], [], color=colour, linewidth=3, label=name)
        for name, colour in zip(STEP_NAMES, look.palette.steps, strict=True)
    ]
    styles = [
        Line2D([], [], color=look.palette.words, linestyle=dashes, marker=marker, markersize=4, label=name)
        for name, (dashes, marker) in zip(images.values(), _STYLES, strict=False)
        if name
    ]
    axes.figure.legend(handles=steps + styles, loc="outside lower center", ncols=look.size.columns)
