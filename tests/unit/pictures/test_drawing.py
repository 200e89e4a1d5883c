"""Pictures of past operations: what is on them, and that nothing that is drawn can break them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest

from kadeploy.pictures import drawing
from kadeploy.pictures.drawing import Name
from kadeploy.pictures.look import DARK, LIGHT, NARROW, WIDE, Look, Palette, Size
from kadeploy.pictures.past import Past
from kadeploy.state.history import Durations, Image, Rate
from kadeploy.state.load import HOUR, Load
from tests import hostile

NINE = 1234515600  # 2009-02-13 09:00:00 UTC
RATES = (Rate("gdx-1.site", 4, 3), Rate("gdx-2.site", 1, 0))
DURATIONS = (Durations(NINE, 101.0, 52.0, 63.0), Durations(NINE + 3600, 90.0, None, None))
LOAD = tuple(Load(NINE + HOUR * rank, HOUR, float(rank % 3)) for rank in range(24))
PAST = Past(RATES, DURATIONS, LOAD)
NAMES = get_args(Name)
LOOKS = [Look(size, palette) for size in (WIDE, NARROW) for palette in (LIGHT, DARK)]
HOSTILE = hostile.TEXTS[:: len(hostile.TEXTS) // 40]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


def words(picture: bytes) -> list[str]:
    """What is written on a picture; matplotlib keeps the words in comments when it draws letters as paths."""
    text = picture.decode()
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    return re.findall("<!-- (.*?) -->", text)


def drawn(name: Name, size: Size = WIDE, rates: tuple[Rate, ...] = RATES, **past: tuple[Durations, ...]) -> list[str]:
    return words(drawing.draw(name, Past(rates, past.get("durations", DURATIONS), LOAD), Look(size)))


# --- files --------------------------------------------------------------------------------------------------------


def test_a_sheet_has_all_pictures_below_its_title() -> None:
    shown = set(words(drawing.sheet(PAST, "paris", "svg")))
    assert {"paris", "gdx-1", "gdx-2", "SetDeploymentEnv", "BroadcastEnv", "BootNewEnv"} <= shown
    assert "Nodes at work, on average over each hour" in shown


def test_a_png_is_one() -> None:
    assert drawing.sheet(PAST, "paris", "png").startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("name", NAMES)
def test_threads_that_draw_at_once_get_what_each_of_them_asked_for(name: Name) -> None:
    alone = [drawing.draw(name, PAST, look) for look in LOOKS]
    assert len(set(alone)) == len(LOOKS)
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda look: drawing.draw(name, PAST, look), LOOKS * 3))
    assert together == alone * 3


@pytest.mark.parametrize("name", NAMES)
def test_a_site_without_a_past_has_empty_pictures(name: Name) -> None:
    assert words(drawing.draw(name, Past((), (), ()), Look()))


# --- what others have written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["$\\frac{$", "a <b> & 'c'", "été", "\0\x1b[31m", "--><script>hit()</script>"])
def test_a_title_is_text_and_never_a_formula_or_markup(title: str) -> None:
    assert words(drawing.sheet(PAST, title, "svg"))


@pytest.mark.parametrize("look", [Look(WIDE), Look(NARROW)], ids=["wide", "narrow"])
def test_names_that_others_choose_are_text_and_make_nothing_that_runs(look: Look) -> None:
    for start in range(0, len(HOSTILE), 4):
        texts = HOSTILE[start : start + 4]
        rates = [Rate(text, 1, 0) for text in texts]
        durations = [Durations(NINE, 1.0, 2.0, 3.0, Image(text, text)) for text in texts]
        for name in ("failures", "durations"):
            require_lifeless(drawing.draw(name, Past(rates, durations, LOAD), look))


def require_lifeless(picture: bytes) -> None:
    """Of a picture: it has shapes and a style sheet alone, and leads nowhere but to its own parts."""
    for each in ET.fromstring(picture.decode()).iter():
        assert isinstance(each.tag, str)
        assert each.tag.rpartition("}")[2] in _ELEMENTS, each.tag
        for key, value in each.attrib.items():
            name = key.rpartition("}")[2]
            assert not name.startswith("on"), name
            assert name != "href" or value.startswith("#"), value


_ELEMENTS = {
    *("svg", "g", "defs", "path", "use", "clipPath", "rect", "style", "text", "tspan"),
    *("metadata", "RDF", "Work", "type", "format", "creator", "Agent", "title", "date"),
}


def test_a_name_of_any_length_leaves_room_for_the_figures() -> None:
    long = "n" * 5000
    shown = words(drawing.draw("failures", Past([Rate(long, 1, 0)], (), ()), Look(NARROW)))
    assert f"{'n' * (NARROW.letters - 1)}…" in shown


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_of_many_nodes_the_worst_are_drawn_and_the_others_counted(size: Size) -> None:
    many = tuple(Rate(f"nvm-{rank}.site", 1, 1) for rank in range(1, 50))
    shown = drawn("failures", size, rates=(*many, Rate("nvm-50.site", 1, 0)))
    assert f"Failure rate, the {size.nodes} worst of 50 nodes" in shown
    assert "nvm-50" in shown
    assert "nvm-49" not in shown
    assert sum(word.startswith("nvm-") for word in shown) == size.nodes


def test_nodes_of_two_domains_that_are_called_the_same_have_these_in_their_names() -> None:
    shown = drawn("failures", rates=(Rate("gdx-1.here", 1, 0), Rate("gdx-1.there", 1, 0)))
    assert {"gdx-1.here", "gdx-1.there"} <= set(shown)


# --- durations ----------------------------------------------------------------------------------------------------


def test_a_single_operation_is_drawn_in_its_hour() -> None:
    shown = drawn("durations", durations=DURATIONS[:1])
    assert [word for word in shown if re.fullmatch(r"0[89]:\d\d", word)]
    assert "2009-Feb-13 09:00" in shown or "2009-Feb-13" in shown


def test_a_macro_step_that_never_ran_leaves_a_gap_and_no_error() -> None:
    gap = (Durations(NINE, 1.0, None, None), Durations(NINE + 60, 2.0, None, None))
    assert "BootNewEnv" in drawn("durations", durations=gap)


def test_images_are_drawn_apart_and_told_by_their_names_and_where_these_are_the_same_by_their_checksums() -> None:
    images = (Image("debian:12", "aaaaaaaa"), Image("debian:12", "bbbbbbbb"), Image("tiny:3", "cccccccc"))
    shown = drawn("durations", durations=tuple(Durations(NINE, 1.0, 2.0, 3.0, image) for image in images))
    assert {"debian:12 (aaaaaa)", "debian:12 (bbbbbb)", "tiny:3"} <= set(shown)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_of_many_images_those_deployed_most_often_are_drawn_and_the_others_counted(size: Size) -> None:
    many = tuple(Durations(NINE, 1.0, 2.0, 3.0, Image(f"env{rank}:1", "a"), rank) for rank in range(1, 8))
    shown = drawn("durations", size, durations=many)
    assert "Duration of the macro-steps over time, the 4 most deployed of 7 images" in " ".join(shown)
    assert "env4:1" in shown
    assert "env3:1" not in shown


def test_a_name_of_an_image_is_text_and_never_a_formula() -> None:
    assert "$x_1$:1" in drawn("durations", durations=(Durations(NINE, 1.0, 2.0, 3.0, Image("$x_1$:1", "a")),))


# --- colours ------------------------------------------------------------------------------------------------------


def contrast(one: str, other: str) -> float:
    """Of two colours (WCAG 2.2)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_words_and_figures_stand_out_from_their_ground(palette: Palette) -> None:
    assert contrast(palette.words, palette.ground) >= 4.5
    for colour in (palette.load, palette.failures, *palette.steps):
        assert contrast(colour, palette.ground) >= 3
