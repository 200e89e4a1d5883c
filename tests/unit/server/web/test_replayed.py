"""A run that is shown again: what its page had at each moment, also when its folder is gone, and for whom."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest

from kadeploy.config.site import Site
from kadeploy.operations import follow, runs
from kadeploy.operations.runs import Run
from kadeploy.operations.work import run_folder
from kadeploy.server.web.lanes import Lanes
from kadeploy.server.web.replayed import replayed
from tests.unit.server.web.acts import acted, ended, start
from tests.unit.server.web.conftest import Browser

__all__ = ["acted"]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
Browse = Callable[[str], Browser]


@pytest.fixture
def wid(acted: Site, browse: Browse) -> str:
    """A deployment of alice's, of two nodes, that has ended."""
    found = start(browse("alice"), "/ui/deploy", nodes="gdx-[1-2].site", environment="debian12")
    ended(acted, found)
    return found


def test_at_each_moment_it_is_what_the_run_had_told_until_then(acted: Site, wid: str) -> None:
    told = [event for _, event in follow.opened(acted, wid).read()]
    moments = [event.at for event in told]
    for moment in [*moments, *reversed(moments[::3])]:  # forth, and back
        lanes = Lanes(wid)
        for event in told:
            if event.at <= moment:
                lanes.feed(event)
        found = replayed(acted, wid, "alice", moment)
        assert found == lanes.picture(moment, goes_on=moment < moments[-1])


def test_the_page_shows_a_moment_and_leads_on_by_itself_where_it_plays(browse: Browse, wid: str) -> None:
    alice = browse("alice")
    assert f'href="/ui/runs/{wid}/replay"' in alice.get(f"/ui/runs/{wid}").text
    still = alice.get(f"/ui/runs/{wid}/replay", at="0.5")
    assert still.status == 200
    assert "2 on their way" in still.words
    assert "hx-get" not in still.text
    page = alice.get(f"/ui/runs/{wid}/replay", at="0", speed="1", play="yes")
    moments = []
    while asked := re.search(r'id="then" hx-get="([^"]+)"', page.text):
        where = asked[1].replace("&amp;", "&")
        moments.append(float(parse_qs(urlsplit(where).query)["at"][0]))
        page = alice.get(where)
        assert page.status == 200
    assert moments == [float(second) for second in range(1, len(moments) + 1)]
    assert "This was its end." in page.words
    assert "2 OK" in page.words


def test_it_outlives_its_folder(acted: Site, browse: Browse, wid: str) -> None:
    runs.remove(acted, Run(run_folder(acted, wid), 0.0, 0))
    assert not run_folder(acted, wid).exists()
    page = browse("alice").get(f"/ui/runs/{wid}")
    assert "2 OK" in page.words
    assert "✓ BroadcastEnvDummy · 2" in page.words
    assert "2 on their way" in browse("alice").get(f"/ui/runs/{wid}/replay", at="0.5").words


def test_it_is_for_who_could_follow_the_run_and_of_a_moment_and_a_speed(browse: Browse, wid: str) -> None:
    for path in ("replay", "then"):
        assert browse("bob").get(f"/ui/runs/{wid}/{path}").status == 403
        assert browse("root").get(f"/ui/runs/{wid}/{path}").status == 200
        assert browse("alice").get(f"/ui/runs/D-nothere1/{path}").status == 400
    for wrong in ({"at": "-1"}, {"at": "nan"}, {"at": "1e99"}, {"at": "x"}, {"speed": "7"}, {"speed": "x"}):
        assert browse("alice").get(f"/ui/runs/{wid}/then", **wrong).status == 400, wrong
