"""Rights on the page: one's own, those of all for administrators, and what karights3 -a and -d do."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from kadeploy.config.site import Site
from kadeploy.server import audit
from kadeploy.server.web import rights as page
from kadeploy.state import database, rights
from kadeploy.state.rights import Given
from tests.unit.server.web.conftest import Browser

Browse = Callable[[str], Browser]
PATH = "/ui/rights"
SDA3 = "/dev/sda3"
END = int(time.time()) + 86400


@pytest.fixture
def given(site: Site) -> Site:
    """Rights of alice and bob."""
    database.connect(site)
    rights.add(site, "alice", [f"gdx-{rank}.site" for rank in (1, 2, 3, 5)], [SDA3], until=END)
    rights.add(site, "alice", ["nvm-1.site"], ["*"])
    rights.add(site, "bob", ["*"], ["*"])
    return site


def nodes_of(site: Site, user: str) -> list[str]:
    return [each.node for each in rights.show(site, user)]


def test_a_user_sees_the_own_rights_folded_with_their_end_and_nobody_elses(given: Site, browse: Browse) -> None:
    answer = browse("alice").get(PATH)
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(END))
    assert f"{SDA3} gdx-[1-3,5].site (4) {end}" in answer.words
    assert "* nvm-1.site no end" in answer.words
    assert "bob" not in answer.text
    assert 'name="csrf"' not in answer.text.partition("<main")[2]


def test_a_filter_shows_a_user_nothing_of_others(given: Site, browse: Browse) -> None:
    assert "bob" not in browse("alice").get(PATH, nodes="gdx-1.site").words
    assert "* * no end" not in browse("alice").get(PATH, user="bob").words


def test_who_has_no_rights_is_told(given: Site, browse: Browse) -> None:
    assert "No rights have been given for the user carol." in browse("carol").get(PATH).words


@pytest.mark.parametrize(
    ("query", "alice", "bob"),
    [({}, True, True), ({"user": "alice"}, True, False), ({"nodes": "gdx-7.site"}, False, True)],
)
def test_an_administrator_sees_those_of_all_by_user_and_node(
    given: Site, browse: Browse, query: dict[str, str], alice: bool, bob: bool
) -> None:
    words = browse("root").get(PATH, **query).words
    assert (f"alice {SDA3} gdx-[1-3,5].site" in words, "bob * *" in words) == (alice, bob)


def test_more_rows_than_a_page_has_are_told(given: Site, browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST", 1)
    assert "2 more rows" in browse("root").get(PATH).words


def test_a_filter_that_names_no_node_is_refused_on_the_page(given: Site, browse: Browse) -> None:
    answer = browse("root").get(PATH, nodes="gdx-99.[")
    assert (answer.status, "Invalid node range" in answer.words) == (400, True)


# --- changing -------------------------------------------------------------------------------------------------------

WISH = {"user": "carol", "nodes": "gdx-[7-8].site", "parts": SDA3, "step": "grant"}


def test_an_administrator_gives_rights_and_the_audit_log_says_which(given: Site, browse: Browse) -> None:
    answer = browse("root").post(PATH, **WISH, until="2999-03-31 19:00")
    assert (answer.status, f"Rights of carol added: {SDA3} of gdx-[7-8].site." in answer.words) == (200, True)
    found = rights.show(given, "carol")
    assert [each.node for each in found] == ["gdx-7.site", "gdx-8.site"]
    assert {each.until is None for each in found} == {False}
    [entry] = audit.read(given)
    assert (entry.what, entry.object, entry.user) == (f"POST {PATH}", f"carol: {SDA3} of gdx-[7-8].site", "root")


def test_nodes_may_be_given_by_the_beginning_of_their_names_and_all_by_a_star(given: Site, browse: Browse) -> None:
    browse("root").post(PATH, **WISH | {"nodes": "gdx-7 *", "parts": f"{SDA3}, *"})
    assert rights.show(given, "carol") == [
        Given("*", "*"),
        Given("*", SDA3),
        Given("gdx-7.site", "*"),
        Given("gdx-7.site", SDA3),
    ]


def test_taken_nodes_are_skipped_unless_they_are_to_be_overwritten(given: Site, browse: Browse) -> None:
    wish = WISH | {"nodes": "gdx-1.site"}
    words = browse("root").post(PATH, **wish).words
    assert "already set on gdx-1.site: skipped" in words
    assert "No rights added." in words
    assert nodes_of(given, "carol") == []
    browse("root").post(PATH, **wish, overwrite="on")
    assert nodes_of(given, "carol") == ["gdx-1.site"]
    assert "gdx-1.site" not in nodes_of(given, "alice")


def test_rights_that_there_are_already_are_told(given: Site, browse: Browse) -> None:
    wish = {"user": "bob", "nodes": "*", "parts": "*", "step": "grant"}
    assert "The user bob has these rights already." in browse("root").post(PATH, **wish).words


def test_rights_are_taken_back_and_those_that_never_were_told(given: Site, browse: Browse) -> None:
    wish = {"user": "alice", "nodes": "gdx-[1-4].site", "parts": SDA3, "step": "revoke"}
    words = browse("root").post(PATH, **wish).words
    assert f"Rights of alice taken back: {SDA3} of gdx-[1-3].site." in words
    assert f"The user alice has no right on {SDA3} of gdx-4.site: nothing to delete there." in words
    assert nodes_of(given, "alice") == ["gdx-5.site", "nvm-1.site"]


@pytest.mark.parametrize("step", ["grant", "revoke"])
def test_others_than_administrators_change_nothing(given: Site, browse: Browse, step: str) -> None:
    wish = WISH | {"user": "bob", "nodes": "*", "parts": "*", "step": step}
    answer = browse("alice").post(PATH, **wish)
    assert (answer.status, "Only administrators" in answer.words) == (403, True)
    assert nodes_of(given, "bob") == ["*"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("user", "", "is not a user name"),
        ("user", "a b\x1b", "is not a user name"),
        ("nodes", "", "at least one node"),
        ("nodes", "gdx-99.site", "Unknown node"),
        ("parts", "", "at least one partition"),
        ("parts", "sda3", "is not a partition"),
        ("until", "soon", "not a date"),
        ("until", "2001-01-01", "this date is over"),
    ],
)
def test_a_field_that_is_wrong_is_told_beside_what_was_typed(
    given: Site, browse: Browse, field: str, value: str, said: str
) -> None:
    answer = browse("root").post(PATH, **WISH | {field: value})
    assert (answer.status, said in answer.words) == (400, True)
    assert f'value="{WISH["nodes"]}"' in answer.text or field == "nodes"
    assert nodes_of(given, "carol") == []


def test_a_form_of_another_page_gives_nothing(given: Site, browse: Browse) -> None:
    assert browse("root").post(PATH, **WISH, csrf="guessed").status == 403
    assert nodes_of(given, "carol") == []
