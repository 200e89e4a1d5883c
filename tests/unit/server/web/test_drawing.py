"""A picture of a run as shapes: all of it within its frame, whatever the run was like."""

from __future__ import annotations

import time

import pytest

from kadeploy.events import AttemptStarted, StepStarted
from kadeploy.server.web.drawing import BAR, LANE, draw
from kadeploy.server.web.lanes import Lanes
from kadeploy.workflow import Attempt, Outcome, Verdict
from tests.unit.server.web.runs import tell
from tests.unit.test_workflow import OK, plan

NAMES = tuple(f"gdx-{number}.site" for number in range(1, 9))


def number(percent: str) -> float:
    return float(percent.removesuffix("%"))


def test_nodes_that_part_are_joined_to_where_they_come_from() -> None:
    def answer(attempt: Attempt, nodes: tuple[str, ...]) -> dict[str, Outcome]:
        bad = nodes[-2:] if attempt.retry == 0 and len(nodes) == 8 else ()
        return dict.fromkeys(nodes, OK) | dict.fromkeys(bad, Outcome(Verdict.KO, "no"))

    lanes = Lanes("D-1")
    tell(lanes.feed, plan("A:A1:1", "B:B1:0"), answer, NAMES)
    drawing = draw(lanes.picture(time.time()))
    [link] = drawing.links
    assert link.bottom - link.top == LANE
    assert [block.text for block in drawing.blocks[:1]] == ["✓✗ A1 · 8"]
    assert drawing.blocks[0].told == "A1, 8 nodes: some failed, 0 s (6 ok, 2 ko)"
    assert all(block.y + BAR <= drawing.height for block in drawing.blocks)
    assert all(number(block.x) + number(block.width) <= 100.01 for block in drawing.blocks)


@pytest.mark.parametrize("seconds", [0, 0.5, 7, 90, 3599, 100_000, 10_000_000])
def test_however_long_it_takes_there_are_some_lines_of_time_and_bars_that_can_be_seen(seconds: float) -> None:
    lanes, attempt = Lanes("D-1"), Attempt("A", "A1")
    lanes.feed(AttemptStarted(at=1000.0, attempt=attempt, nodes=NAMES))
    lanes.feed(StepStarted(at=1000.0, attempt=attempt, micro_step="first", nodes=NAMES))
    drawing = draw(lanes.picture(1000.0 + seconds))
    assert 1 <= len(drawing.ticks) <= 6
    assert drawing.ticks[0].text == "0 s"
    [block] = drawing.blocks
    assert block.text == "▸ A1 · 8, first"
    assert number(block.width) >= 0.4
    assert number(block.x) + number(block.width) <= 100


def test_before_anything_has_begun_there_is_an_empty_frame() -> None:
    drawing = draw(Lanes("D-1").picture(1000.0))
    assert (drawing.blocks, drawing.links) == ((), ())
