"""Notifications on the page: what a user chooses there, and what is shown of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kadeploy.config.site import Site
from kadeploy.server.notifications import choosing
from kadeploy.state import database, notifications
from kadeploy.state.notifications import Choice
from tests.unit.server import receivers
from tests.unit.server.receivers import Hook
from tests.unit.server.web.conftest import Browser

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
Browse = Callable[[str], Browser]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of other tests are none of this one's."""
    monkeypatch.setattr(choosing, "_trials", {})


@pytest.fixture
def hook(site_folder: Path) -> Iterator[Hook]:
    with receivers.hook() as found:
        mail = {"server": "127.0.0.1", "port": 1, "sender": "k@site.example", "domain": "site.example"}
        offered = {"mail": mail, "webhooks": [found.root]}
        with (site_folder / "site.yml").open("a") as text:
            text.write(f"notifications: {json.dumps(offered)}\n")
        yield found


def chosen(site: Site, user: str) -> Choice | None:
    kept = notifications.of(site, user)
    return kept.choice if kept else None


def test_a_user_chooses_tries_and_takes_it_back(site: Site, hook: Hook, browse: Browse) -> None:
    alice = browse("alice")
    page = alice.get("/ui/notifications")
    assert page.status == 200
    assert "Mail to alice@site.example" in page.words
    assert hook.root in page.text
    assert "Send something now" not in page.words
    url = f"{hook.root}1"
    saved = alice.post(
        "/ui/notifications", step="save", webhook=url, outcome="failures", operations=["deploy", "power"]
    )
    assert chosen(site, "alice") == Choice(webhook=url, outcome="failures", operations=("deploy", "power"))
    kept = notifications.of(site, "alice")
    assert kept is not None
    assert kept.secret in saved.text
    again = alice.get("/ui/notifications")
    assert kept.secret not in again.text
    assert f'value="{url}"' in again.text
    hook.answers = [500]
    tried = alice.post("/ui/notifications", step="try")
    assert "Webhook: 127.0.0.1 answers with status 500." in tried.words
    assert "a moment ago" in alice.post("/ui/notifications", step="try").words
    renewed = alice.post("/ui/notifications", step="secret", webhook=url, operations="deploy")
    assert "whsec_" in renewed.text
    assert kept.secret not in renewed.text
    assert "told nothing any more" in alice.post("/ui/notifications", step="forget").words
    assert chosen(site, "alice") is None


def test_what_is_refused_stays_in_the_form_and_nothing_is_kept(site: Site, hook: Hook, browse: Browse) -> None:
    alice = browse("alice")
    for url, said in (("http://evil.example/<b>", "is not allowed here"), ("<script>", "is no URL")):
        refused = alice.post("/ui/notifications", step="save", webhook=url, operations="deploy")
        assert (refused.status, said in refused.words) == (400, True), refused.words
        assert "<b>" not in refused.text
        assert "<script>" not in refused.text
    refused = alice.post("/ui/notifications", step="save", webhook=hook.root)
    assert (refused.status, "No operation is named" in refused.words) == (400, True)
    assert chosen(site, "alice") is None


def test_a_form_of_another_page_changes_nothing(site: Site, hook: Hook, browse: Browse) -> None:
    refused = browse("alice").post("/ui/notifications", step="save", webhook=hook.root, operations="deploy", csrf="x")
    assert refused.status == 403
    assert chosen(site, "alice") is None


def test_what_became_of_messages_is_shown_to_their_user_alone(site: Site, hook: Hook, browse: Browse) -> None:
    notifications.choose(site, "alice", Choice(webhook=hook.root))
    notifications.put(site, {"D-1": "alice"}, ["webhook"])
    [delivery] = notifications.due(site)
    notifications.failed(site, delivery, "<i>no</i>", again=None)
    database.disconnect()
    page = browse("alice").get("/ui/notifications")
    assert "D-1 webhook" in page.words
    assert "given up: <i>no</i>" in page.words
    assert "<i>" not in page.text
    assert "D-1" not in browse("root").get("/ui/notifications").words


def test_the_page_leads_there_where_the_site_tells_anybody(site: Site, hook: Hook, browse: Browse) -> None:
    assert 'href="/ui/notifications"' in browse("alice").get("/ui/rights").text


def test_a_site_that_tells_nobody_says_so(site: Site, browse: Browse) -> None:
    assert "sends no mail and calls no webhooks" in browse("alice").get("/ui/notifications").words
    assert 'href="/ui/notifications"' not in browse("alice").get("/ui/rights").text
