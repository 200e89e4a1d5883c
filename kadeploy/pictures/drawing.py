"""Pictures as files: each on its own for a page, or all of them on one sheet.

matplotlib is an extra, takes a second to import, and has settings that all threads share: it is imported when something
is drawn, and one picture is drawn at a time.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from kadeploy.pictures import durations, failures, load
from kadeploy.pictures.look import Look
from kadeploy.pictures.past import Past
from kadeploy.printable import printable

Name = Literal["load", "failures", "durations"]
DRAW: dict[Name, Callable[[Any, Past, Look], None]] = {
    "load": load.draw,
    "failures": failures.draw,
    "durations": durations.draw,
}
"""All pictures, in the order of a sheet."""
_POINTS = 72
"""Of an inch."""
_DPI = 110
_drawing = threading.Lock()


def is_possible() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401, PLC0415 - see above
    except ImportError:
        return False
    return True


def draw(name: Name, past: Past, look: Look) -> bytes:
    """One picture, as SVG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with _figure(look, look.size.height) as figure:
        _fill(figure, name, past, look)
        return _saved(figure, "svg")


def sheet(past: Past, title: str, form: str) -> bytes:
    """All pictures below a *title*, as a file of type *form* (``png`` or ``svg``).

    Raises:
        ImportError: matplotlib is not installed.
    """
    look = Look()
    with _figure(look, (len(DRAW) + 0.15) * look.size.height) as figure:
        figure.suptitle(printable(title), fontsize=look.size.font + 2)
        for part, name in zip(figure.subfigures(len(DRAW), 1), DRAW, strict=True):
            _fill(part, name, past, look)
        return _saved(figure, form)


@contextmanager
def _figure(look: Look, height: float) -> Iterator[Any]:
    """An empty figure, while no other thread draws."""
    with _drawing:
        from matplotlib import rc_context  # noqa: PLC0415 - see above
        from matplotlib.figure import Figure  # noqa: PLC0415

        with rc_context(look.settings), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a letter that no font has is drawn as a box
            yield Figure(figsize=(look.size.width / _POINTS, height / _POINTS), layout="constrained")


def _fill(figure: Any, name: Name, past: Past, look: Look) -> None:
    axes = figure.subplots()
    axes.set_gid(name)
    DRAW[name](axes, past, look)


def _saved(figure: Any, form: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=_DPI, metadata={"Date": None, "Creator": None} if form == "svg" else None)
    return file.getvalue()
