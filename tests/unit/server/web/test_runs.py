"""The pages of runs: what real runs look like, whose they are, and what many browsers cost."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from kadeploy import events
from kadeploy.config.site import Site
from kadeploy.events import Ended, EventFile, Report
from kadeploy.operations.recording import Recording
from kadeploy.operations.work import run_folder
from kadeploy.server.web.watched import watch
from kadeploy.state import journal
from kadeploy.state.journal import LogRow
from kadeploy.workflow import Attempt, Outcome, Verdict
from tests.unit.plays import batch, write_play
from tests.unit.server.web.acts import acted, ended, slow, start
from tests.unit.server.web.conftest import Answer, Browser
from tests.unit.server.web.runs import tell
from tests.unit.test_workflow import OK, plan

__all__ = ["acted", "slow"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root alone looks for others")
Browse = Callable[[str], Browser]
HOSTILE = "<script>alert(1)</script> \"'> {{ 7 * 7 }} \x1b[31mred\x00"
MANY = tuple(f"gdx-{number}.site" for number in range(1, 2001))


def power(browser: Browser, node: str = "gdx-1.site") -> str:
    """A run that switches a node on."""
    return start(browser, "/ui/act/power", nodes=node, operation="on", level="soft")


def now_of(answer: Answer) -> str:
    """Where the page asks for what is new; empty: nowhere."""
    found = re.search(r'id="now"[^>]* hx-get="([^"]+)"', answer.text)
    return found[1] if found else ""


def keep(site: Site, wid: str, told: list[events.Event]) -> None:
    """The folder of a run that has told this."""
    run_folder(site, wid).mkdir(parents=True)
    with closing(EventFile(run_folder(site, wid) / events.FILE_NAME)) as file:
        for event in told:
            file(event)


# --- a run ----------------------------------------------------------------------------------------------------------


def test_a_deployment_is_followed_to_its_end_and_the_page_then_asks_for_nothing_more(
    acted: Site, browse: Browse
) -> None:
    alice = browse("alice")
    wid = start(alice, "/ui/deploy", nodes="gdx-[1-2].site", environment="debian12")
    page = alice.get(f"/ui/runs/{wid}")
    assert page.status == 200
    assert f"kadeploy3 --attach {wid}" in page.words
    assert f'action="/ui/runs/{wid}/cancel"' in page.text
    ended(acted, wid)
    deadline = time.monotonic() + 30
    while "hx-refresh" not in (last := alice.get(f"/ui/runs/{wid}/now")).headers:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert (last.status, last.text) == (200, "")
    page = alice.get(f"/ui/runs/{wid}")
    assert now_of(page) == ""
    assert "/cancel" not in page.text
    assert "debian12:3 of alice" in page.words
    assert "2 OK" in page.words
    assert re.search("✓ SetDeploymentEnvDummy · 2 .*✓ BroadcastEnvDummy · 2 .*✓ BootNewEnvDummy · 2", page.words)
    assert 'href="/ui/nodes/gdx-1.site"' in page.text


def test_a_part_that_has_not_changed_is_not_sent_again(acted: Site, browse: Browse, slow: Path) -> None:
    alice = browse("alice")
    wid = power(alice)
    page = alice.get(f"/ui/runs/{wid}")
    deadline = time.monotonic() + 30
    while "▸ PowerOn" not in page.words:  # then it waits
        assert time.monotonic() < deadline
        time.sleep(0.3)
        page = alice.get(f"/ui/runs/{wid}")
    time.sleep(1.5)
    page = alice.get(f"/ui/runs/{wid}")
    where = now_of(page)
    assert where.startswith(f"/ui/runs/{wid}/now?seen=")
    same, other = alice.get(where), alice.get(f"/ui/runs/{wid}/now?seen=other")
    assert 'id="now"' in same.text
    assert "hx-swap-oob" not in same.text
    assert '<div id="rest" hx-swap-oob="true">' in other.text
    slow.touch()
    ended(acted, wid)


def test_what_fails_is_told_by_reason_with_the_command_that_repeats_it_for_administrators(
    acted: Site, site_folder: Path, browse: Browse
) -> None:
    write_play(site_folder, "PowerOn", "  tasks:\n" + batch("press", gdx_1__site="ko", gdx_2__site="ok"))
    alice = browse("alice")
    wid = power(alice, "gdx-[1-2].site")
    ended(acted, wid)
    time.sleep(1.2)
    command = f"{run_folder(acted, wid)}/01-PowerOn/command --tags press --limit gdx-1.site"
    mine, roots = alice.get(f"/ui/runs/{wid}").words, browse("root").get(f"/ui/runs/{wid}").words
    for words in (mine, roots):
        assert "PowerOn, press: 1 node" in words
        assert "kapower3 -m 'gdx-1.site' and the same options" in words
    failure = re.search(r'<article class="failure".*?</article>', alice.get(f"/ui/runs/{wid}").text, re.DOTALL)
    assert failure
    assert re.findall(r"gdx-1\.site", re.sub("<[^>]*>", " ", failure[0])) == ["gdx-1.site"] * 2  # its link, and -m
    assert command in roots
    assert str(acted.state) not in mine


def test_the_end_of_a_recorded_console_is_shown_to_who_may_see_it(
    acted: Site, site_folder: Path, browse: Browse
) -> None:
    write_play(site_folder, "PowerOn", "  tasks:\n" + batch("press", gdx_1__site="ko"))
    recording = Recording.begin(acted, "gdx-1.site", "alice", 24, 80)
    recording.shown(b"\x1b[1;32mlogin\x1b[0m: <b>root</b>\r\nKernel panic\r\n")
    recording.end()
    alice, bob = browse("alice"), browse("bob")
    wid = power(alice)
    ended(acted, wid)
    time.sleep(1.2)
    where = f"/ui/runs/{wid}/consoles/gdx-1.site"
    assert where in alice.get(f"/ui/runs/{wid}").text
    page = alice.get(where)
    assert (page.status, "login: &lt;b&gt;root&lt;/b&gt;\nKernel panic</pre>" in page.text) == (200, True)
    assert bob.get(where).status == 403
    assert alice.get(f"/ui/runs/{wid}/consoles/gdx-2.site").status == 400


def test_the_run_of_another_is_refused_as_by_the_tools(acted: Site, browse: Browse, slow: Path) -> None:
    wid = power(browse("alice"))
    for path in (f"/ui/runs/{wid}", f"/ui/runs/{wid}/now", f"/ui/runs/{wid}?nodes="):
        refused = browse("bob").get(path)
        assert refused.status == 403
        assert f"{wid} is the workflow of alice, and you are bob." in refused.words
        assert browse("root").get(path).status == 200
    assert browse("bob").get("/ui/runs/D-nothing123").status == 400
    slow.touch()
    ended(acted, wid)
    shutil.rmtree(run_folder(acted, wid))
    assert browse("bob").get(f"/ui/runs/{wid}").status == 403


def test_of_a_run_whose_folder_is_gone_the_log_tells(acted: Site, browse: Browse) -> None:
    journal.begin(acted, "D-gone", "deploy", "alice", None, {"gdx": ["gdx-1.site", "gdx-2.site"]})
    rows = [
        LogRow(hostname="gdx-1.site", success=True, step1="SetDeploymentEnvDummy"),
        LogRow(hostname="gdx-2.site", success=False, error="BootNewEnvDummy-wait: <i>no answer</i> in 12 s"),
    ]
    journal.end("D-gone", rows)
    page = browse("alice").get("/ui/runs/D-gone")
    assert page.status == 200
    assert "Its folder is not kept any more" in page.words
    assert "1 node: gdx-2.site BootNewEnvDummy-wait: <i>no answer</i> in 12 s" in page.words
    assert "<i>" not in page.text
    assert "hx-refresh" in browse("alice").get("/ui/runs/D-gone/now").headers


def test_a_run_that_lost_its_controller_does_not_go_on(acted: Site, browse: Browse) -> None:
    told: list[events.Event] = []
    tell(told.append, plan("A:A1:0"), lambda _, nodes: dict.fromkeys(nodes, OK), ("gdx-1.site",))
    keep(acted, "D-1", told[:3])
    os.utime(run_folder(acted, "D-1") / events.FILE_NAME, (1.0, 1.0))
    page = browse("alice").get("/ui/runs/D-1")
    assert now_of(page) == ""
    assert "■ A1 · 1" in page.words


# --- what others wrote ----------------------------------------------------------------------------------------------


def test_what_nodes_and_users_say_is_shown_and_does_nothing(acted: Site, browse: Browse) -> None:
    def answer(attempt: Attempt, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        return {name: Outcome(Verdict.KO, f"A1-work: {HOSTILE}", stderr=HOSTILE) for name in nodes}

    told: list[events.Event] = []
    tell(told.append, plan("A:A1:0"), answer, ("gdx-1.site",))
    told.insert(1, events.Note(text=HOSTILE))
    told[-1] = Ended(operation="power", groups={}, report=Report("D-1", answers={"gdx-2.site": HOSTILE}))
    keep(acted, "D-1", told)
    for path in ("/ui/runs/D-1", "/ui/runs/D-1?nodes="):
        page = browse("alice").get(path)
        assert page.status == 200
        assert "<script>alert" not in page.text
        assert "\x1b" not in page.text
        assert "\x00" not in page.text
        assert page.words.count("<script>alert(1)</script> \"'> {{ 7 * 7 }}") >= 3
        assert not re.search(r"\sstyle=|\son\w+=|javascript:", page.text)


# --- the list -------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(acted: Site) -> Site:
    """Runs of alice and bob, three that have ended and one that goes on."""
    past = [("D-1", "deploy", "alice", "gdx-1.site"), ("R-2", "reboot", "bob", "gdx-3.site")]
    for wid, operation, user, node in past:
        journal.begin(acted, wid, operation, user, None, {"gdx": [node]})  # type: ignore[arg-type]
        journal.end(wid, [LogRow(hostname=node, success=wid == "D-1")])
    journal.begin(acted, "P-3", "power", "alice", None, {"gdx": ["gdx-2.site"]})
    journal.end("P-3", [LogRow(hostname="gdx-2.site", success=False)], "aborted")
    journal.begin(acted, "D-4", "deploy", "bob", None, {"gdx": ["gdx-3.site"]})
    return acted


def listed(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.words
    return re.findall(r'id="run-([^"]+)"', answer.text)


def test_everybody_sees_their_own_runs_and_administrators_all(many: Site, browse: Browse) -> None:
    assert sorted(listed(browse("alice").get("/ui/runs"))) == ["D-1", "P-3"]
    assert listed(browse("bob").get("/ui/runs/now", user="alice"))[0] == "D-4"
    assert sorted(listed(browse("bob").get("/ui/runs", user="alice"))) == ["D-4", "R-2"]
    assert sorted(listed(browse("root").get("/ui/runs/"))) == ["D-1", "D-4", "P-3", "R-2"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"user": "bob"}, ["D-4", "R-2"]),
        ({"kind": "deploy"}, ["D-1", "D-4"]),
        ({"state": "running"}, ["D-4"]),
        ({"state": "aborted"}, ["P-3"]),
        ({"state": "ended"}, ["D-1", "R-2"]),
        ({"node": "gdx-3"}, ["D-4", "R-2"]),
        ({"node": "gdx-[1-2].site", "kind": "deploy"}, ["D-1"]),
        ({"page": "2"}, []),
    ],
)
def test_the_list_is_of_what_was_asked_for(many: Site, browse: Browse, asked: dict[str, str], found: list[str]) -> None:
    page = browse("root").get("/ui/runs", **asked)
    assert sorted(listed(page)) == found
    again = re.search(r'id="runs" hx-get="([^"]+)"', page.text)
    assert again
    assert sorted(listed(browse("root").get(again[1].replace("&amp;", "&")))) == found


def test_a_node_that_nobody_has_and_a_word_that_is_none_are_refused(many: Site, browse: Browse) -> None:
    for query in ({"node": "gdx-[1-"}, {"kind": "explode"}, {"page": "0"}, {"page": "-1"}):
        assert browse("root").get("/ui/runs", **query).status == 400
    assert listed(browse("root").get("/ui/runs", node="nvm-99.site")) == []


def test_what_has_ended_comes_in_pages_the_newest_first(acted: Site, browse: Browse) -> None:
    for number in range(60):
        journal.begin(acted, f"D-{number:02d}", "deploy", "alice", None, {"gdx": ["gdx-1.site"]})
        journal.end(f"D-{number:02d}", [LogRow(hostname="gdx-1.site", success=True)])
    alice = browse("alice")
    first, second = alice.get("/ui/runs", kind="deploy"), alice.get("/ui/runs", kind="deploy", page="2")
    assert (len(listed(first)), len(listed(second))) == (50, 10)
    assert set(listed(first)) | set(listed(second)) == {f"D-{number:02d}" for number in range(60)}
    assert 'href="/ui/runs?kind=deploy&amp;page=2"' in first.text
    assert "Newer" in second.words
    assert "Older" not in second.words


# --- many who watch -------------------------------------------------------------------------------------------------


@pytest.fixture
def large(acted: Site) -> Site:
    """The run D-1 of two thousand nodes, which goes on; some have failed and are tried again."""

    def answer(attempt: Attempt, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        bad = nodes[attempt.retry :: 7]
        failed = {name: Outcome(Verdict.KO, f"{attempt.implementation}-work: reason {len(name)}") for name in bad}
        return dict.fromkeys(nodes, OK) | failed

    told: list[events.Event] = []
    tell(told.append, plan("A:A1:2", "B:B1:2", "C:C1:2"), answer, MANY)
    keep(acted, "D-1", told[: len(told) * 2 // 3])
    return acted


def test_the_parts_of_a_run_of_two_thousand_nodes_are_short(large: Site) -> None:
    found = watch(large, "D-1")
    assert found.goes_on
    parts = found.parts(is_administrator=False)
    assert len(parts.now + parts.rest) < 200_000, "no list of two thousand rows"


def test_a_hundred_browsers_cost_one_look_a_second(large: Site) -> None:
    def look(number: int) -> tuple[int, int]:
        found = watch(large, "D-1")
        return id(found.picture), id(found.parts(is_administrator=False))

    look(0)
    with ThreadPoolExecutor(20) as pool:
        begun_at = time.monotonic()
        seen = set(pool.map(look, range(100)))
        took = time.monotonic() - begun_at
    assert len(seen) <= 2 + took


def test_rows_of_all_nodes_come_when_asked_for(large: Site, browse: Browse) -> None:
    alice = browse("alice")
    assert len(re.findall("<tr>", alice.get("/ui/runs/D-1").text)) < 100
    assert len(re.findall("<tr>", alice.get("/ui/runs/D-1", nodes="").text)) > 2000
    some = alice.get("/ui/runs/D-1", nodes="ok")
    assert "Nodes one by one" in some.words
