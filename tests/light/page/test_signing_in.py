"""Who sits at a browser: a token is shown once, and pages are for those who are known."""

from __future__ import annotations

import pytest

from tests.light.page.cluster import Page
from tests.light.page.conftest import Sit


def test_a_token_signs_in_and_the_first_page_follows(sit: Sit, page: Page) -> None:
    there = sit("alice")
    assert there.page.url.endswith("/ui/runs")
    assert there.page.locator("header").get_by_text("alice").is_visible()
    (cookie,) = there.context.cookies()
    assert {"secure": True, "httpOnly": True, "sameSite": "Lax"}.items() <= cookie.items()
    assert page.token("alice")[:4] not in cookie["value"]
    assert there.settled() == []


def test_what_is_no_token_is_refused_and_may_be_typed_again(sit: Sit) -> None:
    there = sit()
    shown = there.open("/ui/sign-in")
    shown.get_by_label("Token").fill("kd3_none_none")
    shown.get_by_role("button", name="Sign in").last.click()
    assert "This is no token of this site" in shown.get_by_role("alert").inner_text()
    assert shown.get_by_label("Token").input_value() == "", "a secret is not sent back"
    assert there.context.cookies() == []
    assert there.settled() == []


def test_whoever_is_not_known_is_led_to_signing_in_and_back(sit: Sit, page: Page) -> None:
    there = sit()
    there.open("/ui/nodes?state=deployed")
    assert "/ui/sign-in?then=" in there.page.url
    there.page.get_by_label("Token").fill(page.token("alice"))
    there.page.get_by_label("Token").press("Enter")
    there.page.wait_for_url("**/ui/nodes?state=deployed")


@pytest.mark.parametrize(
    "way", ["//127.0.0.1:9/", "https://127.0.0.1:9/", "/\\127.0.0.1:9", "javascript:hit()", "/v1/"]
)
def test_signing_in_leads_to_pages_of_the_service_alone(sit: Sit, page: Page, way: str) -> None:
    there = sit()
    there.open(f"/ui/sign-in?then={way}")
    there.page.get_by_label("Token").fill(page.token("alice"))
    there.page.get_by_label("Token").press("Enter")
    there.page.wait_for_url("**/ui/runs")
    assert there.settled() == []


def test_signing_out_ends_the_session_of_the_cookie(sit: Sit) -> None:
    there = sit("alice")
    cookies = there.context.cookies()
    there.page.get_by_role("button", name="Sign out").click()
    there.page.wait_for_url("**/ui/sign-in")
    there.context.add_cookies(cookies)  # type: ignore[arg-type] # what the browser gave is what it takes
    there.open("/ui/runs")
    assert "/ui/sign-in" in there.page.url


def test_a_form_of_another_page_does_nothing(sit: Sit) -> None:
    """Neither without its token nor with another's: the session goes on."""
    there = sit("alice")
    for token in ({}, {"csrf": ""}, {"csrf": "x" * 43}):
        answer = there.fetch("/ui/sign-out", x="y", **token)
        assert (answer.status, "load its page again" in answer.text) == (403, True)
    there.open("/ui/runs")
    assert there.page.url.endswith("/ui/runs")
