"""The page of a console: for those who may open it, under the policy of all pages."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kadeploy.config.site import Site
from kadeploy.server.web import rendering
from tests.unit.server.web.acts import acted
from tests.unit.server.web.conftest import Browser

__all__ = ["acted"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root alone acts for others")
Browse = Callable[[str], Browser]


def test_who_may_deploy_gets_the_page_with_the_socket_of_the_node(acted: Site, browse: Browse) -> None:
    page = browse("alice").get("/ui/nodes/gdx-1/console")
    assert page.status == 200
    assert 'data-socket="/ui/nodes/gdx-1.site/socket"' in page.text
    assert "ESC typed four times leaves" in page.words
    assert "kaconsole3 -m gdx-1.site" in page.words


def test_scripts_and_styles_of_the_page_are_our_own_files_under_the_policy_of_all_pages(
    acted: Site, browse: Browse
) -> None:
    alice = browse("alice")
    page = alice.get("/ui/nodes/gdx-1.site/console")
    policy = page.headers["content-security-policy"]
    assert policy == alice.get("/ui/deploy").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page.text)
    static = Path(rendering.__file__).with_name("static")
    script = (static / "console.js").read_text()
    for name in (*re.findall(r'"/ui/static/([^"?]+)', page.text), *re.findall(r'from "\./([^"]+)"', script)):
        answer = alice.get(f"/ui/static/{name}")
        assert answer.status == 200
        assert answer.text == (static / name).read_text(encoding="utf-8")
        if name.endswith((".js", ".mjs")):
            assert answer.headers["content-type"].startswith("text/javascript")


def test_who_may_not_is_refused_with_the_reason(acted: Site, browse: Browse) -> None:
    refused = browse("alice").get("/ui/nodes/gdx-3.site/console")
    assert refused.status == 403
    assert "gdx-3.site" in refused.words
    assert browse("alice").get("/ui/nodes/gdx-99.site/console").status == 400


def test_a_page_of_another_server_opens_no_console(acted: Site, browse: Browse) -> None:
    answer = browse("alice").ask(
        "GET",
        "/ui/nodes/gdx-1.site/socket",
        Connection="Upgrade",
        Upgrade="websocket",
        Origin="https://elsewhere.site",
        **{"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="},
    )
    assert answer.status == 403
