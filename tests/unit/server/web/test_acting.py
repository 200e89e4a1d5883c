"""Reboots, power and cancelling from the page: as the tools do it, and refused as to them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kadeploy.caller import caller
from kadeploy.config.site import Site
from kadeploy.server.web.acting import ONCE
from kadeploy.state import journal, rights
from tests.unit.server.web.acts import acted, begun, ended, hidden, slow, start
from tests.unit.server.web.conftest import Browser

__all__ = ["acted", "slow"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root alone acts for others")
Browse = Callable[[str], Browser]


def test_nodes_are_switched_on_once_the_plan_was_seen(acted: Site, browse: Browse) -> None:
    alice = browse("alice")
    assert 'value="gdx-1.site"' in alice.get("/ui/act/power", nodes="gdx-1.site").text
    plan = alice.post("/ui/act/power", nodes="gdx-[1-2].site", operation="on", level="soft")
    assert "PowerOn" in plan.words
    assert "Switch 2 nodes on" in plan.words
    wid = begun(alice.post("/ui/act/power", step="start", **hidden(plan)))
    assert ended(acted, wid) == {"gdx-1.site": "ok", "gdx-2.site": "ok"}


def test_a_question_for_power_has_a_run_too_though_it_changes_nothing(acted: Site, browse: Browse) -> None:
    alice = browse("alice")
    wid = start(alice, "/ui/act/power", nodes="gdx-1", operation="status", level="soft")
    assert wid in alice.get(f"/ui/runs/{wid}").words
    assert browse("bob").get(f"/ui/runs/{wid}").status == 403


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("reboot", {"kind": "simple_reboot", "level": "hard"}, "Reboot 1 node"),
        ("reboot", {"kind": "deploy_env", "level": "soft"}, "RebootDeployEnv"),
        ("reboot", {"kind": "env_recorded", "level": "soft", "environment": "debian12", "partition": "3"}, "RebootRec"),
        ("reboot", {"kind": "set_pxe", "level": "soft", "pxe_profile": "DEFAULT x\r\nLABEL x"}, "LABEL x"),
        ("power", {"operation": "off", "level": "very_hard"}, "Switch 1 node off"),
    ],
)
def test_each_kind_has_its_plan(acted: Site, browse: Browse, kind: str, fields: dict[str, str], said: str) -> None:
    plan = browse("alice").post(f"/ui/act/{kind}", nodes="gdx-1.site", **fields)
    assert plan.status == 200, plan.words
    assert said in plan.words
    assert {"nodes": "gdx-1.site", **fields} == {
        name: text.replace("\n", "\r\n") for name, text in hidden(plan).items() if name != ONCE
    }


@pytest.mark.parametrize(
    ("kind", "fields", "status", "said"),
    [
        ("reboot", {"kind": "env_recorded", "level": "soft"}, 400, "needs the environment and its partition"),
        ("reboot", {"kind": "explode", "level": "soft"}, 400, "'explode' is none of simple_reboot"),
        ("reboot", {"kind": "set_pxe", "level": "soft"}, 400, "needs the PXE profile"),
        ("reboot", {"kind": "simple_reboot", "level": "loud"}, 400, "Level (-l): 'loud'"),
        ("power", {"operation": "", "level": "soft"}, 400, "is none of on, off, status"),
        ("power", {"operation": "on", "level": "soft", "nodes": "gdx-3.site"}, 403, "gdx-3.site"),
    ],
)
def test_what_is_refused_stays_in_the_form(
    acted: Site, browse: Browse, kind: str, fields: dict[str, str], status: int, said: str
) -> None:
    refused = browse("alice").post(f"/ui/act/{kind}", **{"nodes": "gdx-1.site"} | fields)
    assert refused.status == status
    assert said in refused.words
    assert f'name="nodes" value="{fields.get("nodes", "gdx-1.site")}"' in refused.text


def test_a_button_that_is_pressed_twice_begins_one_run_and_shows_it(acted: Site, browse: Browse) -> None:
    alice = browse("alice")
    plan = alice.post("/ui/act/power", nodes="gdx-1", operation="on", level="soft")
    carried = {"step": "start", "csrf": alice.token(), **hidden(plan)}
    with ThreadPoolExecutor(3) as pool:
        first, *others = {begun(each) for each in pool.map(lambda _: alice.post("/ui/act/power", **carried), range(3))}
    assert not others
    ended(acted, first)
    assert begun(alice.post("/ui/act/power", **carried)) == first
    assert journal.newest(acted) == [first]


def test_the_plan_of_another_user_or_of_before_the_service_began_anew_is_shown_again(
    acted: Site, browse: Browse
) -> None:
    alice = browse("alice")
    fields = {"nodes": "gdx-1", "operation": "on", "level": "soft"}
    stolen = hidden(browse("bob").post("/ui/act/power", **fields | {"nodes": "gdx-3"}))[ONCE]
    for key in (stolen, "", "another"):
        shown = alice.post("/ui/act/power", step="start", **fields, **{ONCE: key})
        assert shown.status == 200
        assert "Nothing has begun" in shown.words
        assert not journal.newest(acted)
    assert ended(acted, begun(alice.post("/ui/act/power", step="start", **hidden(shown))))


def test_what_was_refused_once_may_be_tried_again(acted: Site, browse: Browse) -> None:
    alice = browse("alice")
    carried = hidden(alice.post("/ui/act/power", nodes="gdx-1", operation="on", level="soft"))
    rights.delete(acted, "alice", ["gdx-1.site", "gdx-2.site"], ["*"])
    assert alice.post("/ui/act/power", step="start", **carried).status == 403
    rights.add(acted, "alice", ["gdx-1.site"], ["*"])
    assert ended(acted, begun(alice.post("/ui/act/power", step="start", **carried)))


def test_there_is_nothing_else_to_do(acted: Site, browse: Browse) -> None:
    assert browse("alice").get("/ui/act/explode").status == 400


def test_ones_own_is_cancelled_and_that_of_another_is_not(acted: Site, browse: Browse, slow: Path) -> None:
    alice, bob = browse("alice"), browse("bob")
    wid = start(alice, "/ui/act/power", nodes="gdx-1.site", operation="on", level="soft")
    assert bob.post(f"/ui/runs/{wid}/cancel").status == 403
    assert alice.post(f"/ui/runs/{wid}/cancel", csrf=bob.token()).status == 403
    assert journal.workflows(acted, wid)[wid]["ended"] is None
    assert begun(alice.post(f"/ui/runs/{wid}/cancel")) == wid
    assert ended(acted, wid) == {"gdx-1.site": "ko"}
    assert begun(alice.post(f"/ui/runs/{wid}/cancel")) == wid


def test_an_administrator_cancels_what_others_have_begun(acted: Site, browse: Browse, slow: Path) -> None:
    wid = start(browse("alice"), "/ui/act/power", nodes="gdx-1", operation="on", level="soft")
    begun(browse(caller().name).post(f"/ui/runs/{wid}/cancel"))
    deadline = time.monotonic() + 30
    while not journal.workflows(acted, wid)[wid]["ended"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_never_was_is_not_cancelled(acted: Site, browse: Browse) -> None:
    refused = browse("alice").post("/ui/runs/P-aaaaaaaaaa/cancel")
    assert refused.status == 400
    assert "No workflow is called" in refused.words
