"""What pictures show, in words: for those who cannot see them."""

from __future__ import annotations

import time
from collections.abc import Callable

from kadeploy.pictures.drawing import Name
from kadeploy.pictures.durations import IMAGES
from kadeploy.pictures.look import WIDE
from kadeploy.pictures.past import STEP_NAMES, Past, named, shortened
from kadeploy.state.history import worst_first

_FEW = 3
"""Nodes that are named."""


def load(past: Past) -> str:
    """When most nodes were at work, and how many."""
    busiest = max(past.load, key=lambda each: each.nodes, default=None)
    if busiest is None or not busiest.nodes:
        return "Nodes at work over time: none."
    mean = sum(each.nodes for each in past.load) / len(past.load)
    begin = time.strftime("%Y-%m-%d %H:%M", time.localtime(busiest.start))
    hours = busiest.seconds // 3600
    span = "the hour" if hours == 1 else f"the {hours} hours"
    return f"Nodes at work over time: {mean:.1f} on average, and most, {busiest.nodes:.1f}, in {span} from {begin} on."


def failures(past: Past) -> str:
    """Which nodes failed most often, and how often."""
    worst = worst_first(past.rates)[:_FEW]
    told = ", ".join(f"{shortened(rate.hostname, WIDE.letters)} {rate.failures} %" for rate in worst)
    nodes = "1 node" if len(past.rates) == 1 else f"{len(past.rates)} nodes"
    return f"Failure rates of {nodes}, the worst first: {told}{', …' if len(past.rates) > _FEW else ''}."


def durations(past: Past) -> str:
    """How long macro-steps took last, with the image that was deployed most often."""
    count = len({item.image for item in past.durations})
    images = "1 image" if count == 1 else f"{count} images"
    told = f"Mean durations of macro-steps over time, of {images}."
    for image, name in named(past.durations, IMAGES, WIDE.letters).items():
        last = [item for item in past.durations if item.image == image][-1]
        means = zip(STEP_NAMES, (last.step1, last.step2, last.step3), strict=True)
        steps = ", ".join(f"{step} {mean:.0f} s" for step, mean in means if mean is not None)
        return f"{told} The last of {name or 'those without a name'}: {steps or 'none was run'}."
    return told


WORDS: dict[Name, Callable[[Past], str]] = {"load": load, "failures": failures, "durations": durations}
