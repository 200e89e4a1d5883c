"""Statistics on the page: what kastat3 tells of a period, as figures and pictures."""

from __future__ import annotations

import html
import re
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from kadeploy.cli import kastat3, shell
from kadeploy.config.site import Site
from kadeploy.server.web import statistics as page
from kadeploy.state import database, overview
from kadeploy.state.history import Selection, failure_rates
from kadeploy.state.load import DAY
from kadeploy.state.tables import Log
from tests import hostile
from tests.unit.pictures.test_drawing import require_lifeless
from tests.unit.server.web.conftest import Answer, Browser

Browse = Callable[[str], Browser]
PATH = "/ui/statistics"
KO = {"success": False, "error": "BootNewEnvKexec-wait_reboot: no <answer>"}


@pytest.fixture
def past(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site with some deployments behind it, the older ones of ten days ago."""
    monkeypatch.setattr(overview, "KEPT", 0.0)
    database.connect(site)
    rows = [row(hostname=f"gdx-{rank}.site") for rank in (1, 2, 2, 10)]
    old = row(hostname="nvm-1.site", start=int(time.time()) - 10 * DAY)
    rows += [row(hostname="gdx-2.site") | KO, row(hostname="gdx-10.site") | KO, row() | KO | {"error": "aborted"}, old]
    database.insert(Log, rows)
    return site


def row(**changes: Any) -> dict[str, Any]:
    usual = {
        "wid": "D-1",
        "operation": "deploy",
        "user": "alice",
        "hostname": "gdx-1.site",
        "start": int(time.time()) - 3600,
        "step1_duration": 61,
        "step2_duration": 30,
        "step3_duration": 0,
        "env": "debian<b>:12",
        "md5": "d41d8cd98f",
        "success": True,
        "error": "",
    }
    return usual | changes


def test_nodes_are_listed_worst_first_with_the_rates_of_kastat3(past: Site, browse: Browse) -> None:
    answer = browse("alice").get(PATH)
    found = re.findall(r'href="/ui/nodes/([^"]+)">', answer.text)
    assert found == ["gdx-10.site", "gdx-2.site", "gdx-1.site"]
    since = Selection(since=int(time.time()) - 7 * DAY)
    for rate in failure_rates(past, since):
        assert f"{rate.hostname} {rate.operations} {rate.operations - rate.successes} {rate.failures} %" in answer.words


def test_steps_and_durations_are_told(past: Site, browse: Browse) -> None:
    answer = browse("alice").get(PATH)
    assert "BootNewEnvKexec wait_reboot 2" in answer.words
    assert "debian<b>:12 d41d8cd9 4 1 min 1 s 1 min 1 s 30 s 30 s –" in answer.words
    assert "<b>" not in answer.text


@pytest.mark.parametrize(("days", "count", "slices"), [(1, 6, 25), (7, 6, 169), (30, 7, 121), (9999, 6, 169)])
def test_a_period_is_chosen_and_the_figures_of_its_pictures_are_in_tables(
    past: Site, browse: Browse, days: int, count: int, slices: int
) -> None:
    answer = browse("alice").get(PATH, days=str(days))
    assert f"{count} deployments of nodes from" in answer.words
    assert answer.text.partition("<summary>Figures")[2].partition("</table>")[0].count("<tr>") == slices + 1
    means = answer.text.rpartition("<summary>Figures")[2].partition("</table>")[0]
    assert means.count("<tr>") >= 2
    assert "debian&lt;b&gt;:12" in means


# --- pictures -----------------------------------------------------------------------------------------------------


def test_each_picture_is_told_in_words_and_comes_in_two_widths_and_two_schemes(past: Site, browse: Browse) -> None:
    alice = browse("alice")
    text = alice.get(PATH, days="1").text
    words = [html.unescape(each) for each in re.findall(r'<img [^>]*alt="([^"]+)"', text)]
    assert re.fullmatch(
        r"Nodes at work over time: 0\.\d on average, and most, 0\.\d, in the hour from .* on\.", words[0]
    )
    assert words[1] == "Failure rates of 3 nodes, the worst first: gdx-10.site 50 %, gdx-2.site 34 %, gdx-1.site 0 %."
    assert words[2].endswith("of 1 image. The last of debian<b>:12: SetDeploymentEnv 61 s, BroadcastEnv 30 s.")
    found = [html.unescape(each) for each in re.findall(r'(?:src|srcset)="(/ui/statistics/[^"]+)"', text)]
    assert len(set(found)) == 12
    assert len({svg(alice.get(path)) for path in found}) == 12


def svg(answer: Answer) -> str:
    """A picture, which nothing may run in, or be fetched for."""
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"].split("; ")
    assert policy == ["default-src 'none'", "style-src 'unsafe-inline'", "frame-ancestors 'none'", "sandbox"]
    require_lifeless(answer.text.encode())
    return answer.text


def test_pictures_are_drawn_once_for_all_who_look_until_the_figures_are_new(
    past: Site, browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "KEPT", 1000.0)
    first = browse("alice").get(f"{PATH}/failures")
    database.insert(Log, [row(hostname="new.site")])
    assert browse("bob").get(f"{PATH}/failures").text == svg(first)
    assert "new.site" not in browse("bob").get(PATH).words
    monkeypatch.setattr(overview, "KEPT", 0.0)
    assert "<!-- new -->" in svg(browse("alice").get(f"{PATH}/failures"))


def test_names_that_others_choose_are_text_in_a_picture(site: Site, browse: Browse, monkeypatch: Any) -> None:
    monkeypatch.setattr(overview, "KEPT", 0.0)
    database.connect(site)
    texts = hostile.TEXTS[:: len(hostile.TEXTS) // 20]
    rows = [row(hostname=text[:200].replace("\0", ""), env=text[:200].replace("\0", "")) for text in texts]
    database.insert(Log, rows)
    for name in ("load", "failures", "durations"):
        svg(browse("alice").get(f"{PATH}/{name}", size="narrow"))
    assert "<script>hit" not in browse("alice").get(PATH).text


@pytest.mark.parametrize("path", ["/nothing", "/load?scheme=red", "/load?size=1", "/load?days=x", "/..%2fload"])
def test_a_picture_that_there_is_not_is_refused(past: Site, browse: Browse, path: str) -> None:
    assert browse("alice").get(f"{PATH}{path}").status in {400, 404}


def test_without_matplotlib_the_page_says_what_to_install_and_has_its_tables(
    past: Site, browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    answer = browse("alice").get(PATH)
    assert "Pictures need matplotlib on the service's machine: pip install 'kadeploy[plot]' ." in answer.words
    assert "<img" not in answer.text
    assert "gdx-10.site 2 1 50 %" in answer.words
    assert "Pictures need matplotlib" in browse("alice").get(f"{PATH}/load", size="wide").words


def test_the_page_and_kastat3_draw_the_same_figures(past: Site, browse: Browse, tmp_path: Path) -> None:
    alice = browse("alice")
    text = alice.get(PATH, days="30").text
    since, until = (datetime.fromisoformat(each) for each in re.findall(r'datetime="([^"]+)"', text)[:2])
    period = ["-x", since.strftime(DATE), "-y", until.strftime(DATE)]
    file = tmp_path / "past.svg"
    assert shell.run(kastat3.app, "kastat3", ["--plot", str(file), "-o", "all", *period]) == 0
    for name in ("load", "failures", "durations"):
        page, sheet = shapes(alice.get(f"{PATH}/{name}", days="30").text, name), shapes(file.read_text(), name)
        assert page == sheet
        assert page


DATE = "%Y:%m:%d:%H:%M:%S"


def shapes(picture: str, name: str) -> list[list[float]]:
    """How high the points are of all that is drawn of *name*, in percent of the picture's own height."""
    axes = next(each for each in ET.fromstring(picture).iter() if each.get("id") == name)
    paths = {each.get("id", ""): each.find("{*}path") for each in axes if each.find("{*}path") is not None}
    heights = {key: ordinates(path.get("d", "")) for key, path in paths.items() if path is not None}
    ground = next(iter(heights.values()))
    low, high = max(ground), min(ground)
    return [[round(100 * (low - each) / (low - high), 1) for each in found] for found in list(heights.values())[1:]]


def ordinates(path: str) -> list[float]:
    """Of a path's points."""
    return [float(each) for each in re.findall(r"[ML] \S+ (\S+)", path)]


# --- what else there is -------------------------------------------------------------------------------------------


def test_pictures_need_no_style_of_their_own_since_browsers_would_refuse_it(past: Site, browse: Browse) -> None:
    text = browse("alice").get(PATH).text
    assert " style=" not in text
    assert "<style" not in text


def test_what_does_not_fit_is_counted(past: Site, browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST", 1)
    assert "3 more nodes failed less often" in browse("alice").get(PATH, days="30").words


def test_a_site_without_a_past_has_a_page(site: Site, browse: Browse) -> None:
    assert "No information is available." in browse("alice").get(PATH).words
