"""People deploy, stop and look at simulated nodes from the page, while it changes under their eyes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from playwright.sync_api import Page as Shown

from kadeploy.state import journal
from tests.light.page.cluster import CONSOLE, FAULTY, MINE, PATIENCE, THEIRS, Page, begin, told_at, wait_for_end
from tests.light.page.conftest import Sit


def seen(shown: Shown, until: str) -> Iterator[str]:
    """What a page shows, each time that it changes by itself, until it shows *until*."""
    before, end = "", time.monotonic() + PATIENCE
    while until not in before:
        assert time.monotonic() < end, before
        shown.wait_for_timeout(100)
        now = shown.locator("main").inner_text()
        if now != before:
            yield now
        before = now


def test_a_deployment_is_planned_begun_and_watched_to_its_end(sit: Sit, page: Page) -> None:
    there = sit("alice")
    shown = there.open("/ui/deploy")
    shown.get_by_label("Nodes").first.fill("node-[1-4]")
    shown.locator("#environment").select_option(index=1)
    shown.get_by_role("button", name="Show the plan").click()
    plan = shown.get_by_label("The plan").inner_text()
    assert all(word in plan for word in ("node-[1-4]", "BroadcastEnvChain", "Nothing was done")), plan
    assert journal.workflows(page.site) == {}, "nothing is done before the plan is seen"
    shown.get_by_role("button", name="Deploy 4 nodes").click()
    shown.wait_for_url("**/ui/runs/D-*")
    moments = list(seen(shown, "4 OK"))
    assert len(moments) > 3, moments
    steps = ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv")
    assert all(any(step in each for each in moments) for step in steps), moments
    shown = there.open("/ui/nodes")
    assert shown.locator("#nodes").get_by_text("node-4").count() > 0
    assert "deployed" in told_at(there, "/ui/nodes/node-4", "no operation has it")
    assert there.settled() == []


def test_what_is_seen_of_a_run_that_goes_on_is_accessible_and_narrow(sit: Sit, page: Page) -> None:
    there = sit("alice", width=400)
    wid = begin(there, f"node-1 {FAULTY}")
    there.page.locator("#now svg.lanes").wait_for()
    assert there.violations() == []
    assert there.overflow() == 0
    assert there.foreign() == []
    *_, last = seen(there.page, "1 KO")
    wait_for_end(there, page.site, wid)
    assert "not enough space" in told_at(there, f"/ui/runs/{wid}", "Ended"), last
    assert there.settled() == []


def test_a_run_is_cancelled_and_its_nodes_are_free(sit: Sit, page: Page) -> None:
    there = sit("alice")
    wid = begin(there, MINE)
    there.page.get_by_role("button", name="Cancel").click()
    wait_for_end(there, page.site, wid)
    told = told_at(there, f"/ui/runs/{wid}", "Stopped before its end")
    assert "5 aborted" in told, told
    assert "no operation has it" in there.open("/ui/nodes/node-1").locator("main").inner_text()
    assert there.settled() == []


def test_somebody_elses_run_is_not_cancelled(sit: Sit, page: Page) -> None:
    wid = begin(sit("alice"), "node-2")
    there = sit("bob")
    answer = there.fetch(f"/ui/runs/{wid}/cancel", csrf=_token(there.open("/ui/deploy")))
    assert answer.status in {403, 404}, answer.text
    assert wid in journal.workflows(page.site)
    wait_for_end(there, page.site, wid)


def _token(shown: Shown) -> str:
    return shown.locator("main [name=csrf]").first.input_value()


def test_the_node_of_another_account_is_refused_and_the_form_keeps_what_was_typed(sit: Sit, page: Page) -> None:
    there = sit("alice")
    shown = there.open("/ui/deploy")
    shown.get_by_label("Nodes").first.fill(f"node-1 {THEIRS}")
    shown.locator("#environment").select_option(index=1)
    shown.get_by_role("button", name="Show the plan").click()
    said = shown.get_by_role("alert").inner_text()
    assert f"alice does not have the right to use /dev/sda3 of {THEIRS}. An administrator gives it with:" in said
    assert shown.get_by_label("Nodes").first.input_value() == f"node-1 {THEIRS}"
    assert journal.workflows(page.site) == {}
    there.open(f"/ui/nodes/{THEIRS}/console", 403)
    assert f"alice does not have the right to use /dev/sda3 of {THEIRS}" in shown.get_by_role("alert").inner_text()
    there.open("/ui/audit", 403)


def test_the_console_of_a_node_shows_its_text_and_takes_keys(sit: Sit) -> None:
    there = sit("alice")
    shown = there.open("/ui/nodes/node-3/console")
    shown.locator(".xterm-rows").get_by_text(f"{CONSOLE} node-3").wait_for()
    shown.keyboard.type("echoed")
    shown.locator(".xterm-rows").get_by_text("echoed").wait_for()
    for _ in range(4):
        shown.keyboard.press("Escape")
    shown.get_by_text("Console closed.").wait_for()
    assert shown.get_by_role("link", name="Open it again").is_visible()
    assert there.settled() == []
