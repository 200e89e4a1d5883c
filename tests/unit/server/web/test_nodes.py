"""The grid of nodes and the page of one: the states that kanodes3 tells, and of rights no more than it shows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import msgspec
import pytest

from kadeploy.config.site import Site
from kadeploy.operations.recording import Recording
from kadeploy.server.web import nodes as page
from kadeploy.state import database, journal, nodes, rights
from kadeploy.state.nodes import MEANINGS
from kadeploy.state.tables import EnvironmentRow, Log, environment_columns
from tests.unit import build
from tests.unit.server.web.conftest import Browser

Browse = Callable[[str], Browser]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "KEPT", 0.0)


@pytest.fixture
def used(site: Site) -> Site:
    """A site on which alice has deployed one node, bob's deployment of another has failed, and one is his now."""
    database.connect(site)
    nodes.set_state(["gdx-1.site"], "deployed", build.environment(name="debian", version=12, user="root"), "alice")
    nodes.set_state(["gdx-2.site"], "deploy_failed", None, "bob")
    nodes.set_state(["gdx-3.site"], "deploying", None, "bob")
    done = {"wid": "D-1", "operation": "deploy", "user": "alice", "hostname": "gdx-1.site", "start": 1000}
    failed = {"success": False, "error": "BootNewEnvKexec-wait_reboot: <b>no</b> \x1b[31manswer"}
    database.insert(
        Log, [{**done, "success": True, "error": ""}, {**done, "wid": "R-2", "operation": "reboot"} | failed]
    )
    database.insert(Log, [{**done, "wid": f"D-{start}", "start": start} | failed for start in range(2000, 2030)])
    return site


def cells(text: str) -> dict[str, str]:
    """Kinds of the nodes in a grid."""
    return {name: kind for kind, name in re.findall(r'<a id="n-[^"]+" class="(\w+)" href="/ui/nodes/([^"]+)">', text)}


def test_each_node_is_there_with_what_its_state_amounts_to(used: Site, browse: Browse) -> None:
    found = cells(browse("alice").get("/ui/nodes").text)
    assert len(found) == 24
    assert (found["gdx-1.site"], found["gdx-2.site"], found["gdx-3.site"]) == ("ok", "ko", "busy")
    assert (found["gdx-4.site"], found["nvm-1.site"]) == ("unknown", "unknown")


def test_each_state_is_of_a_kind() -> None:
    assert {page.kind_of(state) for state in MEANINGS} == {"ok", "ko", "busy", "aborted"}


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"state": "ko"}, {"gdx-2.site"}),
        ({"state": "deployed"}, {"gdx-1.site"}),
        ({"user": "bob"}, {"gdx-2.site", "gdx-3.site"}),
        ({"cluster": "nvm"}, {f"nvm-{rank}.site" for rank in range(1, 5)}),
        ({"nodes": "gdx-[2-3].site nvm-1"}, {"gdx-2.site", "gdx-3.site", "nvm-1.site"}),
        ({"nodes": "gdx-[1-3].site", "user": "bob", "state": "busy"}, {"gdx-3.site"}),
        ({"state": "powered"}, set()),
    ],
)
def test_nodes_are_chosen_by_state_user_cluster_and_range(
    used: Site, browse: Browse, query: dict[str, str], names: set[str]
) -> None:
    assert set(cells(browse("alice").get("/ui/nodes", **query).text)) == names


@pytest.mark.parametrize("nodes", ["gdx-[1-", "nothing-1", "<script>alert(1)</script>"])
def test_a_range_that_stands_for_no_node_is_refused_on_the_page_and_can_be_corrected(
    used: Site, browse: Browse, nodes: str
) -> None:
    answer = browse("alice").get("/ui/nodes", nodes=nodes)
    assert (answer.status, cells(answer.text)) == (400, {})
    assert 'role="alert"' in answer.text
    assert "<script>alert" not in answer.text


def test_what_is_refreshed_asks_for_the_same_nodes(used: Site, browse: Browse) -> None:
    text = browse("alice").get("/ui/nodes", user="bob", nodes="gdx-[1-3].site").text
    assert 'hx-get="/ui/nodes?nodes=gdx-%5B1-3%5D.site&amp;user=bob&amp;page=1"' in text


def test_too_many_nodes_for_a_page_are_shown_by_cluster_and_those_of_one_in_parts(
    used: Site, browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MOST", 15)
    everything = browse("alice").get("/ui/nodes")
    assert cells(everything.text) == {}
    assert "gdx 20 1 1 1 0 17" in everything.words
    first, second = (set(cells(browse("alice").get("/ui/nodes", cluster="gdx", page=number).text)) for number in "12")
    assert (len(first), len(second), first & second) == (15, 5, set())


def test_a_node_that_an_operation_holds_is_busy_whatever_was_done_before(used: Site, browse: Browse) -> None:
    journal.begin(used, "P-1", "power", "carol", None, {"gdx": ["gdx-1.site"]})
    nodes.claim(used, ["gdx-1.site"], "P-1", "carol")
    assert cells(browse("alice").get("/ui/nodes", user="carol").text) == {"gdx-1.site": "busy"}
    words = browse("alice").get("/ui/nodes/gdx-1.site").words
    assert "by P-1 of carol since" in words


def test_the_page_of_a_node_tells_what_was_done_to_it_and_how_often_it_failed(used: Site, browse: Browse) -> None:
    answer = browse("alice").get("/ui/nodes/gdx-1")
    assert answer.status == 200
    assert "debian version 12 of root" in answer.words
    assert "97 % of 31 deployments" in answer.words
    assert answer.text.count("<tr><td><time") == page.LAST
    assert "R-2" not in answer.text
    assert "\x1b" not in answer.text
    assert "&lt;b&gt;no&lt;/b&gt;" in answer.text


@pytest.mark.parametrize("path", ["/ui/act/reboot", "/ui/act/power", "/ui/deploy"])
def test_the_page_of_a_node_leads_to_what_can_be_done_with_it(used: Site, browse: Browse, path: str) -> None:
    browser = browse("alice")
    assert f'href="{path}?nodes=gdx-1.site"' in browser.get("/ui/nodes/gdx-1.site").text
    assert "gdx-1.site" in browser.get(path, nodes="gdx-1.site").text


def test_a_node_that_nothing_was_done_to_has_a_page_and_one_that_there_is_not_is_refused(
    used: Site, browse: Browse
) -> None:
    assert "never operated on" in browse("alice").get("/ui/nodes/nvm-1.site").words
    unknown = browse("alice").get("/ui/nodes/gdx-99.site")
    assert (unknown.status, "Unknown node: gdx-99.site" in unknown.words) == (400, True)


def test_a_user_sees_the_own_rights_alone_and_an_administrator_those_of_all(used: Site, browse: Browse) -> None:
    rights.add(used, "alice", ["gdx-1.site"], ["/dev/sda3"], until=int(time.time()) + 1000)
    rights.add(used, "dave", ["*"], ["*"])
    mine = browse("alice").get("/ui/nodes/gdx-1.site").words
    assert ("alice /dev/sda3 20" in mine, "dave" in mine) == (True, False)
    assert "dave * no end" in browse("root").get("/ui/nodes/gdx-1.site").words


def test_the_environment_on_a_node_has_a_link_for_whom_may_see_it(used: Site, browse: Browse) -> None:
    found = msgspec.structs.replace(build.environment(), name="debian", version=12, user="alice", visibility="private")
    EnvironmentRow.insert(**environment_columns(found)).execute()
    nodes.set_state(["gdx-1.site"], "deployed", found, "alice")
    link = 'href="/ui/environments/one?name=debian&amp;owner=alice">debian</a>'
    assert link in browse("alice").get("/ui/nodes/gdx-1.site").text
    others = browse("bob").get("/ui/nodes/gdx-1.site")
    assert (link in others.text, "debian version 12 of alice" in others.words) == (False, True)


def test_recordings_are_shown_to_whom_kaconsole3_lists_them(used: Site, browse: Browse) -> None:
    Recording.begin(used, "gdx-1.site", "alice", 24, 80).end()
    assert "gdx-1.site/" in browse("alice").get("/ui/nodes/gdx-1.site").words
    assert "gdx-1.site/" in browse("root").get("/ui/nodes/gdx-1.site").words
    assert "Recordings" not in browse("bob").get("/ui/nodes/gdx-1.site").words


def test_a_damaged_row_is_told_and_the_others_are_shown(used: Site, browse: Browse) -> None:
    database.DB.execute_sql("UPDATE nodes SET date = 'x' WHERE hostname = 'gdx-2.site'")
    answer = browse("alice").get("/ui/nodes")
    assert "of the table nodes" in answer.words
    assert cells(answer.text)["gdx-1.site"] == "ok"
