"""A picture of a run as shapes: places and widths in percent of the time that it took so far, heights in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kadeploy.server.web.lanes import Bar, Look, Picture
from kadeploy.server.web.rendering import span

LANE = 26
"""Pixels from one lane to the next."""
BAR = 22
_TOP = 22
"""Pixels above the first lane, for the times."""
_LEAST = 0.4
"""Percent that a bar is wide at least, so that it can be seen."""
_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)
"""Seconds between two lines of time."""
_LINES = 5
MARKS: Mapping[Look, str] = {"ok": "✓", "ko": "✗", "parted": "✓✗", "aborted": "■", "busy": "▸"}
WORDS: Mapping[Look, str] = {
    "ok": "well",
    "ko": "failed",
    "parted": "some failed",
    "aborted": "stopped",
    "busy": "under way",
}


@dataclass(frozen=True)
class Block:
    """A bar."""

    x: str
    width: str
    y: int
    look: Look
    text: str
    told: str
    """All of it in words."""


@dataclass(frozen=True)
class Link:
    """From the end of one bar down or up to another that goes on from it."""

    x: str
    top: int
    bottom: int


@dataclass(frozen=True)
class Tick:
    """A line of time."""

    x: str
    text: str


@dataclass(frozen=True)
class Drawing:
    """What the page draws."""

    height: int
    blocks: tuple[Block, ...]
    links: tuple[Link, ...]
    ticks: tuple[Tick, ...]


def draw(picture: Picture) -> Drawing:
    """Draw *picture*, its beginning at the left and its end, or the present, at the right."""
    first = picture.began or min((bar.begun for bar in picture.bars), default=picture.now)
    total = max(1.0, picture.now - first, *(bar.until - first for bar in picture.bars))
    by_number = {bar.number: bar for bar in picture.bars}
    links = [
        Link(_percent(bar.begun - first, total), *sorted((_y(bar.lane) + BAR // 2, _y(before.lane) + BAR // 2)))
        for bar in picture.bars
        for number in bar.before[:1]
        if (before := by_number.get(number)) and before.lane != bar.lane
    ]
    blocks = tuple(_block(bar, first, total) for bar in picture.bars)
    return Drawing(_TOP + max(1, picture.lanes) * LANE, blocks, tuple(links), _ticks(total))


def _block(bar: Bar, first: float, total: float) -> Block:
    width = max(_LEAST, 100 * (bar.until - bar.begun) / total)
    x = min(100 - width, 100 * (bar.begun - first) / total)
    at = f", {bar.micro_step}" if bar.look == "busy" and bar.micro_step else ""
    text = f"{MARKS[bar.look]} {bar.title} · {bar.count}{at}"
    return Block(f"{x:.2f}%", f"{width:.2f}%", _y(bar.lane), bar.look, text, _told(bar))


def _told(bar: Bar) -> str:
    nodes = f"{bar.count} node{'' if bar.count == 1 else 's'}"
    where = f" in {bar.micro_step}" if bar.look in ("busy", "aborted") and bar.micro_step else ""
    ends = ", ".join(f"{count} {word}" for word, count in bar.ends.items())
    return (
        f"{bar.title}, {nodes}: {WORDS[bar.look]}{where}, {span(bar.until - bar.begun)}{f' ({ends})' if ends else ''}"
    )


def _y(lane: int) -> int:
    return _TOP + lane * LANE


def _percent(seconds: float, total: float) -> str:
    return f"{100 * max(0.0, min(seconds, total)) / total:.2f}%"


def _ticks(total: float) -> tuple[Tick, ...]:
    step = next((each for each in _STEPS if total / each <= _LINES), _STEPS[-1])
    count = min(_LINES, int(total / step))
    return tuple(Tick(_percent(rank * step, total), span(rank * step)) for rank in range(count + 1))
