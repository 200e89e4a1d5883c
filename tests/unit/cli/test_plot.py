"""The picture of past operations: what is on it, and that nothing that is drawn can break it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from kadeploy.cli import plot
from kadeploy.state.history import Durations, Image, Rate

NINE = 1234515600  # 2009-02-13 09:00:00 UTC
RATES = (Rate("gdx-1.site", 4, 3), Rate("gdx-2.site", 1, 0))
DURATIONS = (Durations(NINE, 101.0, 52.0, 63.0), Durations(NINE + 3600, 90.0, None, None))


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


def words(
    rates: tuple[Rate, ...] = RATES, durations: tuple[Durations, ...] = DURATIONS, title: str = "paris"
) -> list[str]:
    """What is written on the picture; matplotlib keeps the words in comments when it draws letters as paths."""
    text = plot.draw(rates, durations, title, "svg").decode()
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    return re.findall("<!-- (.*?) -->", text)


def test_nodes_macro_steps_and_title_are_named() -> None:
    assert {"paris", "gdx-1.site", "gdx-2.site", "SetDeploymentEnv", "BroadcastEnv", "BootNewEnv"} <= set(words())


def test_a_png_is_one() -> None:
    assert plot.draw(RATES, DURATIONS, "paris", "png").startswith(b"\x89PNG\r\n")


def test_of_many_nodes_the_worst_are_drawn_and_the_others_counted() -> None:
    many = tuple(Rate(f"nvm-{rank}.site", 1, 1) for rank in range(1, 50))
    shown = words((*many, Rate("nvm-50.site", 1, 0)))
    assert "Failure rate, the 40 worst of 50 nodes" in shown
    assert "nvm-50.site" in shown
    assert "nvm-49.site" not in shown
    assert sum(word.startswith("nvm-") for word in shown) == plot.BARS


def test_a_single_operation_is_drawn_in_its_hour() -> None:
    shown = words(RATES[:1], DURATIONS[:1])
    assert "Failure rate, 1 node" in shown
    ticks = [word for word in shown if re.fullmatch(r"\d\d \d\d:\d\d", word)]
    assert len(ticks) > 1
    assert {tick[:5] for tick in ticks} <= {"13 08", "13 09"}


@pytest.mark.parametrize("title", ["$\\frac{$", "a <b> & 'c'", "été"])
def test_a_title_is_text_and_never_a_formula_or_markup(title: str) -> None:
    assert words(title=title)


def test_a_macro_step_that_never_ran_leaves_a_gap_and_no_error() -> None:
    assert "BootNewEnv" in words(durations=(Durations(NINE, 1.0, None, None), Durations(NINE + 60, 2.0, None, None)))


def test_images_are_drawn_apart_and_told_by_their_names_and_where_these_are_the_same_by_their_checksums() -> None:
    images = (Image("debian:12", "aaaaaaaa"), Image("debian:12", "bbbbbbbb"), Image("tiny:3", "cccccccc"))
    shown = words(durations=tuple(Durations(NINE, 1.0, 2.0, 3.0, image) for image in images))
    assert {"BootNewEnv, debian:12 (aaaaaa)", "BootNewEnv, debian:12 (bbbbbb)", "BootNewEnv, tiny:3"} <= set(shown)


def test_of_many_images_those_deployed_most_often_are_drawn_and_the_others_counted() -> None:
    many = tuple(Durations(NINE, 1.0, 2.0, 3.0, Image(f"env{rank}:1", "a"), rank) for rank in range(1, 8))
    shown = words(durations=many)
    assert "Duration of the macro-steps over time, the 4 most deployed of 7 images" in shown
    assert "BootNewEnv, env4:1" in shown
    assert "BootNewEnv, env3:1" not in shown


def test_a_name_of_an_image_is_text_and_never_a_formula() -> None:
    assert "BootNewEnv, $x_1$:1" in words(durations=(Durations(NINE, 1.0, 2.0, 3.0, Image("$x_1$:1", "a")),))


def test_when_everything_was_aborted_only_the_durations_are_empty() -> None:
    assert "Duration of the macro-steps over time" in words(durations=())
