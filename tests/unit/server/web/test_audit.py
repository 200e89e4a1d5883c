"""The end of the audit log, read backwards in pieces, and its page for administrators."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kadeploy.config.site import Site
from kadeploy.server import audit
from kadeploy.server.audit import Audit, Entry
from kadeploy.server.auth import Caller
from kadeploy.server.web import audit as page
from tests.unit.server.web.conftest import Browser

Browse = Callable[[str], Browser]
PATH = "/ui/audit"


def written(site: Site, *things: str, user: str = "alice") -> None:
    log = Audit(site)
    for thing in things:
        log.record("POST /v1/deployments", 201, Caller(user, "token", "10.0.0.9"), thing=thing)
    log.close()


def everything(entry: Entry) -> bool:
    return bool(entry)


def told(site: Site, most: int, before: str = "") -> tuple[list[str], str]:
    part = audit.newest(site, most, everything, before)
    return [entry.object for entry in part.entries], part.before


def rotated(site: Site) -> None:
    path = site.state / audit.NAME
    path.replace(path.with_name(f"{audit.NAME}.1"))


# --- the end of the log ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 16])
def test_parts_follow_each_other_without_a_gap_over_a_rotation(
    site: Site, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(audit, "_BLOCK", block)
    site.state.mkdir(exist_ok=True)
    names = [f"gdx-{rank}.site" for rank in range(20)]
    written(site, *names[:8])
    rotated(site)
    written(site, *names[8:])
    found, before = [], ""
    for _ in range(10):
        some, before = told(site, 3, before)
        found += some
        if not before:
            break
    assert found == names[::-1]


def test_lines_that_come_meanwhile_and_a_rotation_do_not_move_the_older_ones(site: Site) -> None:
    written(site, "a", "b", "c")
    assert told(site, 1)[0] == ["c"]
    before = told(site, 1)[1]
    written(site, "d")
    rotated(site)
    written(site, "e")
    assert told(site, 5, before)[0] == ["b", "a"]


@pytest.mark.parametrize("before", ["1-5", "x", "-", "99999999999999999999-3", "1-²"])
def test_a_place_that_is_not_known_is_the_end(site: Site, before: str) -> None:
    written(site, "a", "b")
    assert told(site, 5, before)[0] == ["b", "a"]


def test_of_a_long_log_a_part_is_read_and_the_rest_can_be_asked_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MOST_READ", 2000)
    written(site, *(str(rank) for rank in range(100)))

    def fits(entry: Entry) -> bool:
        return entry.object == "0"

    part, questions = audit.newest(site, 5, fits), 1
    assert (part.entries, bool(part.before)) == ([], True)
    while part.before and not part.entries:
        part, questions = audit.newest(site, 5, fits, part.before), questions + 1
    assert ([entry.object for entry in part.entries], questions > 5) == (["0"], True)


def test_a_line_without_an_end_and_one_that_is_endless_are_passed_over(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_BLOCK", 100)
    monkeypatch.setattr(audit, "_LINE", 1000)
    written(site, "a")
    with (site.state / audit.NAME).open("a", encoding="ascii") as file:
        file.write("x" * 5000 + "\n" + '{"time": 1, "us')
    written(site, "b")
    assert told(site, 5)[0] == ["b", "a"]


def test_there_may_be_no_log(site: Site) -> None:
    assert told(site, 5) == ([], "")


# --- its page -------------------------------------------------------------------------------------------------------


def test_others_than_administrators_see_nothing_of_it(site: Site, browse: Browse) -> None:
    written(site, "gdx-1.site")
    answer = browse("alice").get(PATH)
    assert (answer.status, "gdx-1.site" in answer.text) == (403, False)
    assert PATH not in browse("alice").get("/ui/rights").text


def test_an_administrator_sees_the_newest_lines_by_user_and_text(site: Site, browse: Browse) -> None:
    written(site, "gdx-1.site", "gdx-2.site")
    written(site, "nvm-1.site", user="bob")
    browser = browse("root")
    words = browser.get(PATH).words
    assert words.index("nvm-1.site") < words.index("gdx-2.site") < words.index("gdx-1.site")
    assert "alice token 10.0.0.9 POST /v1/deployments gdx-2.site 201" in words
    assert "gdx-1.site" not in browser.get(PATH, user="bob").words
    found = browser.get(PATH, text="GDX-1").words
    assert ("gdx-1.site" in found, "gdx-2.site" in found) == (True, False)


def test_older_lines_are_behind_a_link(site: Site, browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST", 2)
    written(site, "a-node", "b-node", "c-node")
    part = audit.newest(site, 2, everything)
    assert f"before={part.before}" in browse("root").get(PATH).text
    older = browse("root").get(PATH, before=part.before).words
    assert ("a-node" in older, "b-node" in older, "Newest" in older) == (True, False, True)


def test_what_users_send_is_only_text(site: Site, browse: Browse) -> None:
    written(site, "<script>alert(1)</script>\x1b[31m\u202e")
    text = browse("root").get(PATH).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;�[31m�" in text
