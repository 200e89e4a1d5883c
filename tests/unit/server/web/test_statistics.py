"""Statistics on the page: what kastat3 tells of a period, as figures and pictures."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from kadeploy.config.site import Site
from kadeploy.server.web import statistics as page
from kadeploy.state import database, overview
from kadeploy.state.history import Selection, failure_rates
from kadeploy.state.tables import Log
from tests.unit.server.web.conftest import Browser

Browse = Callable[[str], Browser]
PATH = "/ui/statistics"
KO = {"success": False, "error": "BootNewEnvKexec-wait_reboot: no <answer>"}


@pytest.fixture
def past(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site with some deployments behind it, the older ones of ten days ago."""
    monkeypatch.setattr(overview, "KEPT", 0.0)
    database.connect(site)
    rows = [row(hostname=f"gdx-{rank}.site") for rank in (1, 2, 2, 10)]
    old = row(hostname="nvm-1.site", start=int(time.time()) - 10 * overview.DAY)
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
    since = Selection(since=int(time.time()) - 7 * overview.DAY)
    for rate in failure_rates(past, since):
        assert f"{rate.hostname} {rate.operations} {rate.operations - rate.successes} {rate.failures} %" in answer.words


def test_steps_and_durations_are_told(past: Site, browse: Browse) -> None:
    answer = browse("alice").get(PATH)
    assert "BootNewEnvKexec wait_reboot 2" in answer.words
    assert "debian<b>:12 d41d8cd9 4 1 min 1 s 1 min 1 s 30 s 30 s –" in answer.words
    assert "<b>" not in answer.text


@pytest.mark.parametrize(("days", "count", "bars"), [(1, 6, 25), (7, 6, 169), (30, 7, 121), (9999, 6, 169)])
def test_a_period_is_chosen_and_the_picture_has_its_slices(
    past: Site, browse: Browse, days: int, count: int, bars: int
) -> None:
    answer = browse("alice").get(PATH, days=str(days))
    assert f"{count} deployments of nodes from" in answer.words
    picture = answer.text.partition('<svg class="load"')[2].partition("</svg>")[0]
    assert picture.count("<rect") == bars
    assert answer.text.partition("<summary>Figures")[2].partition("</table>")[0].count("<tr>") == bars + 1


def test_pictures_need_no_style_of_their_own_since_browsers_would_refuse_it(past: Site, browse: Browse) -> None:
    text = browse("alice").get(PATH).text
    assert " style=" not in text
    assert "<style" not in text


def test_what_does_not_fit_is_counted(past: Site, browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST", 1)
    monkeypatch.setattr(overview, "MOST", 3)
    words = browse("alice").get(PATH, days="30").words
    assert "There were more before: only the newest operations are counted." in words
    monkeypatch.setattr(overview, "MOST", 1000)
    assert "3 more nodes failed less often" in browse("alice").get(PATH, days="30").words


def test_a_site_without_a_past_has_a_page(site: Site, browse: Browse) -> None:
    assert "No information is available." in browse("alice").get(PATH).words
