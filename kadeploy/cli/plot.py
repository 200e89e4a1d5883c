"""A picture of past operations: failure rate of each node, durations of the macro-steps over time (matplotlib)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from kadeploy.errors import OptionError
from kadeploy.state.history import Durations, Rate

BARS = 40
"""More nodes than this do not fit; the worst ones are shown."""
_AROUND = timedelta(minutes=30)
STEP_NAMES = ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv")
_COLOURS = ("#4477aa", "#ee6677", "#228833")  # told apart by colour-blind readers too (Paul Tol's bright scheme)


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
    times = [datetime.fromtimestamp(item.start) for item in durations]
    for name, colour, values in zip(
        STEP_NAMES, _COLOURS, zip(*(item[1:] for item in durations), strict=True), strict=True
    ):
        numbers = [float("nan") if value is None else value for value in values]
        axes.plot(times, numbers, label=name, color=colour, marker="o", markersize=3, linewidth=1.2)
    if len(times) == 1:  # matplotlib would show years around it
        axes.set_xlim(times[0] - _AROUND, times[0] + _AROUND)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    axes.set_ylabel("mean duration (s)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=9, frameon=False)
    axes.set_title("Duration of the macro-steps over time", loc="left", fontsize=11)
    axes.tick_params(axis="x", rotation=30)
