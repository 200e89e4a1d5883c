"""Dates on an axis, as the clocks of this machine show them; matplotlib counts in days."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kadeploy.pictures.look import Look

_DAY = 86400
_AROUND = 1800 / _DAY


def day(moment: float) -> float:
    """A moment in Unix seconds as matplotlib counts."""
    return moment / _DAY


def show(axes: Any, look: Look, moments: Sequence[int]) -> None:
    """Have the axis tell dates; if all *moments* (Unix seconds) are one, those of its hour."""
    from dateutil.tz import tzlocal  # noqa: PLC0415 - comes with matplotlib
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415 - slow to import

    zone = tzlocal()
    locator = AutoDateLocator(tz=zone, minticks=2, maxticks=look.size.ticks)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=zone))  # type: ignore[no-untyped-call]
    if len(set(moments)) == 1:  # matplotlib would show years around it
        axes.set_xlim(day(moments[0]) - _AROUND, day(moments[0]) + _AROUND)
