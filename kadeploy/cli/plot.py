"""A picture of past operations: failure rate of each node, durations of the macro-steps over time (matplotlib)."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from kadeploy.errors import OptionError
from kadeploy.state.history import Durations, Image, Rate

BARS = 40
"""More nodes than this do not fit; the worst ones are shown."""
_AROUND = timedelta(minutes=30)
STEP_NAMES = ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv")
_COLOURS = ("#4477aa", "#ee6677", "#228833")  # told apart by colour-blind readers too (Paul Tol's bright scheme)
_STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
"""Dashes and marker of each image that is drawn."""


def draw(rates: Sequence[Rate], durations: Sequence[Durations], title: str, form: str) -> bytes:
    """The picture as a file of type *form* (``png`` or ``svg``).

    Raises:
        OptionError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise OptionError("--plot needs matplotlib: pip install 'kadeploy[plot]'.") from error
    figure = Figure(figsize=(12, 9), layout="constrained")
    figure.suptitle(title, parse_math=False)
    upper, lower = figure.subplots(2, 1)
    _draw_rates(upper, rates)
    _draw_durations(lower, durations)
    picture = io.BytesIO()
    figure.savefig(picture, format=form, dpi=110)
    return picture.getvalue()


def _draw_rates(axes: Any, rates: Sequence[Rate]) -> None:
    worst = sorted(rates, key=lambda rate: rate.failures, reverse=True)[:BARS]
    axes.bar([rate.hostname for rate in worst], [rate.failures for rate in worst], color=_COLOURS[1])
    axes.set_ylim(0, 100)
    axes.set_ylabel("failure rate (%)")
    axes.margins(x=0.01)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", rotation=90 if len(worst) > 8 else 0, labelsize=8)
    nodes = "1 node" if len(rates) == 1 else f"{len(rates)} nodes"
    subset = f"the {BARS} worst of {nodes}" if len(rates) > BARS else nodes
    axes.set_title(f"Failure rate, {subset}", loc="left", fontsize=11)


def _draw_durations(axes: Any, durations: Sequence[Durations]) -> None:
    """A line for each macro-step and image: colours tell macro-steps, dashes and markers tell images."""
    images = _images(durations)
    for (image, label), (dashes, marker) in zip(images.items(), _STYLES, strict=False):
        own = [item for item in durations if item.image == image]
        times = [datetime.fromtimestamp(item.start) for item in own]
        for step, (name, colour) in enumerate(zip(STEP_NAMES, _COLOURS, strict=True), start=1):
            means = [getattr(item, f"step{step}") for item in own]
            numbers = [float("nan") if mean is None else mean for mean in means]
            text = f"{name}, {label}" if label else name
            axes.plot(times, numbers, dashes, label=text, color=colour, marker=marker, markersize=3, linewidth=1.2)
    if len({item.start for item in durations}) == 1:  # matplotlib would show years around it
        moment = datetime.fromtimestamp(durations[0].start)
        axes.set_xlim(moment - _AROUND, moment + _AROUND)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.set_ylabel("mean duration (s)")
    axes.grid(alpha=0.3)
    axes.tick_params(axis="x", rotation=30)
    count = len({item.image for item in durations})
    subset = f", the {len(_STYLES)} most deployed of {count} images" if count > len(_STYLES) else ""
    axes.set_title(f"Duration of the macro-steps over time{subset}", loc="left", fontsize=11)
    if not durations:
        return
    columns = len(images) if len(images) > 1 else len(STEP_NAMES)
    for text in axes.figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False).texts:
        text.set_parse_math(False)


def _images(durations: Sequence[Durations]) -> dict[Image, str]:
    """The images deployed most often and their names; images of the same name are told apart by their checksums."""
    counts: Counter[Image] = Counter()
    for item in durations:
        counts[item.image] += item.operations
    names = Counter(image.env for image in counts)
    return {
        image: image.env if names[image.env] == 1 else f"{image.env or 'image'} ({image.md5[:6]})"
        for image, _ in counts.most_common(len(_STYLES))
    }
