"""Deployments from the page: the form, its plan, and the operation; nothing of a form is believed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable

import pytest

from kadeploy.config.site import Site
from kadeploy.environments.environment import Image
from kadeploy.state import environments, journal
from kadeploy.state.fingerprints import RemoteUser
from tests.unit import build
from tests.unit.server.web.acts import acted, begun, ended, hidden
from tests.unit.server.web.conftest import Browser

__all__ = ["acted"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root alone acts for others")
ENVIRONMENT = "debian12@alice:3"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq7bhOPDK1mHvvcHQ0LvgcVxuPyG2ja9pXQQ8UIwPf ada"
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----"
Browse = Callable[[str], Browser]


def test_the_form_offers_what_the_user_sees_and_knows_where_they_came_from(acted: Site, browse: Browse) -> None:
    hers = build.environment(name="hers", image=Image(file=acted_image(acted), kind="tgz"))
    environments.add(acted, hers, RemoteUser("alice", {}))
    form = browse("alice").get("/ui/deploy", nodes=["gdx-1.site", "gdx-2.site"], environment=ENVIRONMENT)
    assert form.status == 200
    assert 'value="gdx-1.site gdx-2.site"' in form.text
    assert f'<option value="{ENVIRONMENT}" selected>debian12 (version 3, of alice, shared)</option>' in form.text
    assert '<option value="hers@alice:1">' in form.text
    assert "hers@alice" not in browse("bob").get("/ui/deploy").text


def acted_image(site: Site) -> str:
    """The file of the image that is recorded already."""
    return next(iter(environments.listed(site, "alice"))).image.file


def test_an_ordinary_user_sees_the_plan_and_then_deploys_two_nodes(acted: Site, browse: Browse) -> None:
    alice = browse("alice")
    plan = alice.post(
        "/ui/deploy", nodes="gdx-[1-2]", environment=ENVIRONMENT, key=f"{KEY}\r\n{KEY}2\r\n", no_hook="on"
    )
    assert plan.status == 200
    assert "Deploy 2 nodes" in plan.words
    assert "cluster gdx: gdx-1.site, gdx-2.site" in plan.words
    assert re.search(rf"environment {ENVIRONMENT}\S* to /dev/sda3", plan.words)
    assert "SetDeploymentEnvDummy" in plan.words
    carried = hidden(plan)
    assert carried["key"].split() == f"{KEY} {KEY}2".split()
    assert not journal.newest(acted)
    wid = begun(alice.post("/ui/deploy", step="start", **carried))
    assert ended(acted, wid) == {"gdx-1.site": "ok", "gdx-2.site": "ok"}
    assert journal.workflows(acted, wid)[wid]["user"] == "alice"


def test_what_is_refused_stays_in_the_form_with_what_was_typed(acted: Site, browse: Browse) -> None:
    refused = browse("alice").post("/ui/deploy", nodes="gdx-[2-3].site", environment=ENVIRONMENT, partition="3")
    assert refused.status == 403
    assert "gdx-3.site" in refused.words
    assert 'role="alert"' in refused.text
    assert 'name="nodes" value="gdx-[2-3].site"' in refused.text
    assert 'name="partition" value="3"' in refused.text
    assert f'<option value="{ENVIRONMENT}" selected>' in refused.text
    line = json.loads((acted.state / "audit.jsonl").read_text().splitlines()[-1])
    assert (line["user"], line["object"], line["status"]) == ("alice", "gdx-[2-3].site (dry run)", 403)
    assert "gdx-3.site" in line["reason"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"nodes": ""}, "No node"),
        ({"nodes": "gdx-[1-"}, "Invalid node range"),
        ({"nodes": "gdx-[1-999999999].site"}, "limits.nodes"),
        ({"nodes": "gdx-99.site"}, "Unknown node: gdx-99.site"),
        ({"environment": ""}, "No environment"),
        ({"environment": "debian13"}, "debian13"),
        ({"partition": "0"}, "Partition (-p): '0' is no number from 1 on"),
        ({"partition": "٣"}, "is no number"),
        ({"boot_partition": "-1"}, "Boot partition (-c)"),
        ({"block_device": "/dev/sda; reboot"}, "not a disk"),
        ({"reformat_tmp": "ext"}, "-r ext"),
        ({"force_steps": "nonsense"}, "--force-steps"),
        ({"breakpoint": "Nothing"}, "Nothing"),
        ({"reboot_timeout": "__import__('os')"}, "__import__"),
        ({"key": "# none"}, "Key (-k)"),
        ({"nodes": "<script>alert(1)</script>"}, "Invalid node range"),
    ],
)
def test_what_makes_no_sense_is_told_in_the_form(
    acted: Site, browse: Browse, fields: dict[str, str], said: str
) -> None:
    refused = browse("alice").post("/ui/deploy", **{"nodes": "gdx-1.site", "environment": ENVIRONMENT} | fields)
    assert refused.status == 400
    assert said in refused.words
    assert "<script>alert" not in refused.text
    assert "Show the plan" in refused.words


def test_a_private_key_is_refused_and_not_shown_again(acted: Site, browse: Browse) -> None:
    refused = browse("alice").post("/ui/deploy", nodes="gdx-1.site", environment=ENVIRONMENT, key=PRIVATE)
    assert refused.status == 400
    assert "this is a private key" in refused.words
    assert "b3BlbnNzaC1rZXktdjEAAAAA" not in refused.text


def test_hidden_fields_that_were_changed_are_checked_again(acted: Site, browse: Browse) -> None:
    alice = browse("alice")
    carried = hidden(alice.post("/ui/deploy", nodes="gdx-1.site", environment=ENVIRONMENT))
    for changed, status in (({"nodes": "gdx-3.site"}, 403), ({"partition": "9" * 9}, 400), ({"environment": "x"}, 400)):
        assert alice.post("/ui/deploy", step="start", **carried | changed).status == status
    assert not journal.newest(acted)


def test_nobody_acts_by_a_form_of_another_page(acted: Site, browse: Browse) -> None:
    alice, theirs = browse("alice"), browse("bob").token()
    for token in ("", "wrong", theirs):
        for step in ("plan", "start"):
            fields = {"nodes": "gdx-1.site", "environment": ENVIRONMENT, "step": step}
            assert alice.post("/ui/deploy", csrf=token, **fields).status == 403
    assert not journal.newest(acted)


def test_who_changes_something_finds_what_was_typed(acted: Site, browse: Browse) -> None:
    alice = browse("alice")
    carried = hidden(alice.post("/ui/deploy", nodes="gdx-1.site", environment=ENVIRONMENT, debug="on"))
    form = alice.post("/ui/deploy", step="change", **carried)
    assert form.status == 200
    assert 'name="nodes" value="gdx-1.site"' in form.text
    assert 'name="debug" value="on" checked' in form.text
    assert "<details open>" in form.text
