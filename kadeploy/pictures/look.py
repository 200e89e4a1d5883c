"""How a picture looks: its colours and its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Palette:
    """Colours: words have a contrast of 4.5 on the ground, all else of 3 (WCAG 2.2, 1.4.3 and 1.4.11)."""

    ground: str
    words: str
    lines: str
    """Of the grid, which may be faint."""
    load: str
    failures: str
    steps: tuple[str, str, str]
    """Of the macro-steps; told apart by colour-blind readers too."""


LIGHT = Palette("#ffffff", "#111827", "#d1d5db", "#4477aa", "#dd5566", ("#4477aa", "#dd5566", "#228833"))
"""Paul Tol's bright scheme."""
DARK = Palette("#0f141b", "#e5e7eb", "#3b4654", "#77aadd", "#ee8899", ("#77aadd", "#ee8899", "#aacc55"))


@dataclass(frozen=True)
class Size:
    """How much room there is; lengths in points, which are the pixels of a page."""

    width: int
    height: int
    font: int
    nodes: int
    """How many fit; the worst ones are shown."""
    upright: int
    """With more than these, their names are turned."""
    letters: int
    """Of a name that others have chosen."""
    line: int
    """Letters of a line of the title."""
    columns: int
    """Of the legend."""
    ticks: int
    """Dates on the axis."""
    marker: float
    """How wide one is, in points."""


WIDE = Size(width=960, height=330, font=13, nodes=40, upright=8, letters=26, line=110, columns=4, ticks=10, marker=4)
NARROW = Size(width=380, height=320, font=12, nodes=12, upright=2, letters=18, line=48, columns=2, ticks=5, marker=2.5)


@dataclass(frozen=True)
class Look:
    """Both of them."""

    size: Size = WIDE
    palette: Palette = LIGHT

    @property
    def settings(self) -> dict[Any, Any]:
        """Those of matplotlib (its ``rcParams``). No text is a formula, and the same figures make the same file."""
        palette, font = self.palette, self.size.font
        colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), palette.words)
        grounds = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), palette.ground)
        sizes = dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize"), font)
        ticks = dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), font - 1)
        return {
            **colours,
            **grounds,
            **sizes,
            **ticks,
            "axes.edgecolor": palette.words,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": font,
            "grid.color": palette.lines,
            "legend.frameon": False,
            "svg.hashsalt": "kadeploy",
            "text.parse_math": False,
        }
