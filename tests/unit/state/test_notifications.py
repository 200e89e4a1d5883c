"""What users want to be told, and the outbox: each end once on each channel, and nobody in the way of others."""

from __future__ import annotations

import time

import pytest

from kadeploy.config.site import Site
from kadeploy.state import journal, notifications
from kadeploy.state.notifications import Choice
from kadeploy.state.tables import NotificationRow, Outbox

HOOK = "https://hooks.example.org/kadeploy"


def test_a_choice_comes_back_as_it_was_given(site: Site) -> None:
    assert notifications.of(site, "ada") is None
    choice = Choice(mail=True, address="ada@home.example", webhook=HOOK, outcome="failures", operations=("reboot",))
    notifications.choose(site, "ada", choice)
    kept = notifications.of(site, "ada")
    assert kept is not None
    assert kept.choice == choice
    assert kept.choice.channels == ["mail", "webhook"]
    assert list(notifications.everybody(site)) == ["ada"]


def test_a_secret_is_told_once_and_another_url_has_another(site: Site) -> None:
    first = notifications.choose(site, "ada", Choice(webhook=HOOK))
    assert first.startswith("whsec_")
    assert notifications.choose(site, "ada", Choice(webhook=HOOK, mail=True)) == ""
    kept = notifications.of(site, "ada")
    assert kept is not None
    assert kept.secret == first
    renewed = notifications.choose(site, "ada", Choice(webhook=HOOK), new_secret=True)
    moved = notifications.choose(site, "ada", Choice(webhook=f"{HOOK}/2"))
    assert len({first, renewed, moved}) == 3
    assert notifications.choose(site, "ada", Choice(mail=True)) == ""
    kept = notifications.of(site, "ada")
    assert kept is not None
    assert kept.secret == ""


def test_an_end_is_in_the_outbox_once_for_each_channel_and_one_service_takes_it(site: Site) -> None:
    for _ in range(2):
        notifications.put(site, {"D-1": "ada"}, ["mail", "webhook"])
    mail, webhook = notifications.due(site)
    assert (mail.channel, webhook.channel) == ("mail", "webhook")
    assert [notifications.take(site, mail) for _ in range(2)] == [True, False]
    notifications.sent(site, mail)
    notifications.put(site, {"D-1": "ada"}, ["mail"])
    assert [each.channel for each in notifications.due(site)] == ["webhook"]
    [told, _] = notifications.of_user(site, "ada", 10)
    assert (told.channel, told.tries, told.due, told.sent is not None) == ("mail", 1, None, True)


def test_one_that_failed_waits_and_is_given_up_when_nobody_says_until_when(site: Site) -> None:
    notifications.put(site, {"D-1": "ada"}, ["webhook"])
    [delivery] = notifications.due(site)
    assert notifications.take(site, delivery)
    notifications.failed(site, delivery, "x" * 1000, again=60)
    [waiting] = notifications.of_user(site, "ada", 10)
    assert (list(notifications.due(site)), waiting.error, waiting.tries) == ([], "x" * 500, 1)
    assert waiting.due is not None
    assert waiting.due > time.time() + 50
    notifications.failed(site, delivery, "gone", again=None)
    assert [(each.due, each.error) for each in notifications.of_user(site, "ada", 10)] == [(None, "gone")]


def test_one_that_a_killed_service_had_taken_is_due_again_when_its_time_is_over(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "LEASE", -1)
    notifications.put(site, {"D-1": "ada"}, ["webhook"])
    [delivery] = notifications.due(site)
    assert notifications.take(site, delivery)
    assert [each.tries for each in notifications.due(site)] == [1]


def test_many_that_wait_for_one_user_leave_room_for_the_others(site: Site) -> None:
    notifications.put(site, {f"D-{rank:04}": "ada" for rank in range(700)}, ["webhook"])
    notifications.put(site, {"R-1": "bob"}, ["webhook", "mail"])
    assert [(each.user, each.channel) for each in notifications.due(site)] == [
        ("ada", "webhook"),
        ("bob", "mail"),
        ("bob", "webhook"),
    ]
    assert [each.user for each in notifications.due(site, {("ada", "webhook"), ("bob", "mail")})] == ["bob"]


def test_who_wants_nothing_any_more_is_told_nothing_that_waits(site: Site) -> None:
    notifications.choose(site, "ada", Choice(webhook=HOOK))
    notifications.put(site, {"D-1": "ada", "D-2": "bob"}, ["webhook"])
    assert [notifications.forget(site, "ada") for _ in range(2)] == [True, False]
    assert [each.wid for each in notifications.due(site)] == ["D-2"]
    assert NotificationRow.select().count() == 0


def test_rows_are_forgotten_after_a_while(site: Site) -> None:
    notifications.put(site, {"D-1": "ada"}, ["mail"])
    Outbox.update(made=int(time.time()) - notifications.KEPT - 1).execute()
    notifications.put(site, {"D-2": "ada"}, ["mail"])
    assert [each.wid for each in notifications.of_user(site, "ada", 10)] == ["D-2"]


def test_workflows_that_have_ended_are_found_by_when_they_did(site: Site) -> None:
    for wid in ("D-1", "D-2"):
        journal.begin(site, wid, "deploy", "ada", None, {"gdx": ["gdx-1.site"]})
    journal.end("D-1", [])
    now = int(time.time())
    assert [(flow.wid, flow.user) for flow in notifications.ended(site, now - 10)] == [("D-1", "ada")]
    assert notifications.ended(site, now + 10) == []
