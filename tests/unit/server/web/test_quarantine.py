"""Quarantine on the page: everybody sees it, and administrators have the way in and back."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from kadeploy.config.site import Site
from kadeploy.state import database, quarantine
from tests.unit.server.web.conftest import Browser

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
Browse = Callable[[str], Browser]


def test_everybody_sees_which_nodes_are_left_out_and_why(site: Site, browse: Browse) -> None:
    database.connect(site)
    quarantine.put(site, ["gdx-2.site", "gdx-3.site"], "root", "<b>its disk</b>", int(time.time()) + 3600)
    bob = browse("bob")
    page = bob.get("/ui/quarantine")
    assert page.status == 200
    assert "gdx-2.site" in page.words
    assert "<b>its disk</b>" in page.words
    assert "<b>" not in page.text
    assert "Release" not in page.words
    assert "2 in quarantine : gdx-[2-3].site" in bob.get("/ui/nodes").words
    assert "in quarantine since" in bob.get("/ui/nodes/gdx-2.site").words
    assert "in quarantine since" not in bob.get("/ui/nodes/gdx-4.site").words


def test_an_administrator_puts_nodes_there_and_lets_them_out(site: Site, browse: Browse) -> None:
    root = browse("root")
    done = root.post("/ui/quarantine", step="put", nodes="gdx-[1-2].site", reason="its fan", until="2999-01-01")
    assert (done.status, "In quarantine: gdx-[1-2].site." in done.words) == (200, True)
    [first, second] = quarantine.current(site)
    assert (first.node, first.put_by, first.reason) == ("gdx-1.site", "root", "its fan")
    assert first.until == second.until
    assert (
        "No longer in quarantine: gdx-1.site." in root.post("/ui/quarantine", step="release", nodes="gdx-1.site").words
    )
    assert [stay.node for stay in quarantine.current(site)] == ["gdx-2.site"]


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"nodes": ""}, 400, "No node is named"),
        ({"nodes": "elsewhere-1"}, 400, "elsewhere-1"),
        ({"nodes": "gdx-1.site", "until": "yesterday"}, 400, "not a date"),
        ({"nodes": "gdx-1.site", "until": "2001-01-01"}, 400, "this date is over"),
        ({"nodes": "gdx-1.site", "reason": "a\x1b[31mb"}, 400, "one line of text"),
    ],
)
def test_what_cannot_be_done_stays_in_the_form(
    site: Site, browse: Browse, fields: dict[str, str], status: int, said: str
) -> None:
    refused = browse("root").post("/ui/quarantine", step="put", **fields)
    assert (refused.status, said in refused.words) == (status, True), refused.words
    assert f'value="{fields["nodes"]}"' in refused.text
    assert quarantine.current(site) == []


def test_nobody_else_does(site: Site, browse: Browse) -> None:
    quarantine.put(site, ["gdx-2.site"], "root", "")
    for step in ("put", "release"):
        assert browse("bob").post("/ui/quarantine", step=step, nodes="gdx-2.site").status == 403
    assert [stay.node for stay in quarantine.current(site)] == ["gdx-2.site"]
