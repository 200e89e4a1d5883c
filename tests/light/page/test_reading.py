"""Every page for every reader: axe-core finds nothing, it fits a narrow window, and needs neither mouse nor scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from playwright.sync_api import Browser

from kadeploy.operations.recording import Recording
from tests.browser import Scheme, Seat, seat
from tests.light.page.cluster import FAULTY, MINE, Page, begin, wait_for_end
from tests.light.page.conftest import Sit
from tests.light.page.places import Place, places

GIVEN: Mapping[str, str] = {
    "kind": "reboot",
    "name": "node-1",
    "node": FAULTY,
    "owner": "root",
    "picture": "load",
    "version": "1",
}
"""What stands in an address, by its name; the id of a run besides."""
OF_PLACES: Mapping[str, Mapping[str, str]] = {
    "/ui/environments/one": {"name": "sim", "owner": "root"},
    "/ui/environments/delete": {"name": "sim", "owner": "root", "version": "1"},
}
"""What has to be asked for there, behind the question mark."""
WIDTHS = (400, 900, 1600)
INLINE = """
() => {
  const script = document.createElement("script");
  script.textContent = "hit()";
  document.body.append(script);
  document.body.insertAdjacentHTML("beforeend", "<b id=probe style='color: red' onclick='hit()'>probe</b>");
  document.getElementById("probe").click();
}
"""


@pytest.fixture(scope="module")
def ended(page: Page, browser: Browser) -> str:
    """A run of alice's with a node that has failed."""
    with seat(browser, page.address) as there:
        there.sign_in(page.token("alice"))
        wid = begin(there, f"{MINE} {FAULTY}")
        wait_for_end(there, page.site, wid)
    recorded = Recording.begin(page.site, FAULTY, "alice", rows=24, columns=80)
    recorded.shown(b"login: \r\n")
    recorded.end()
    return wid


def address(place: Place, wid: str) -> str:
    """One of the addresses of *place* that has something to show."""
    return place.address(GIVEN | {"wid": wid}, **OF_PLACES.get(place.path, {}))


def whole(there: Seat, wid: str) -> Iterator[str]:
    """The addresses of all pages: of what is asked for, a part of a page has no title."""
    for place in places():
        there.open(address(place, wid))
        if there.page.title():
            yield address(place, wid)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(sit: Sit, ended: str, scheme: Scheme) -> None:
    there = sit("root", scheme=scheme)
    found = [f"{path}: {each}" for path in whole(there, ended) for each in there.violations()]
    there.context.clear_cookies()
    for path, status in (("/ui/sign-in", 200), ("/ui/none", 404)):
        there.open(path, status)
        found += [f"{path}: {each}" for each in there.violations()]
    assert found == [], "\n".join(found)
    assert there.settled() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_window(sit: Sit, ended: str, width: int) -> None:
    there = sit("root", width=width)
    assert {path: there.overflow() for path in whole(there, ended) if there.overflow() > 0} == {}


def test_the_keyboard_comes_to_what_a_page_is_for(sit: Sit, ended: str) -> None:
    """The first key leads past what all pages have; the next is on what this one has."""
    there = sit("root")
    for path in whole(there, ended):
        if path.endswith("/console"):
            continue  # a terminal takes the key for itself
        page = there.page
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main", path
        wanted = page.locator("main :is(a[href], button, input:not([type=hidden]), select, textarea, summary)")
        seen = wanted.evaluate_all("all => all.some(each => each.checkVisibility())")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('main') !== null") is seen, path
        if seen:
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.evaluate(outline) != "none", f"{path}: one sees where the keyboard is"


def test_every_page_can_be_read_without_scripts(sit: Sit, ended: str, page: Page) -> None:
    with_scripts, without = sit("root"), sit("root", scripts=False)
    for path in whole(with_scripts, ended):
        without.open(path)
        assert without.page.locator("h1").inner_text() == with_scripts.page.locator("h1").inner_text()
        main = without.page.locator("main").inner_text()
        assert len(main) >= 0.8 * len(with_scripts.page.locator("main").inner_text()) or path.endswith("/console"), path
    shown = without.open(f"/ui/runs/{ended}")
    assert FAULTY in shown.locator("main").inner_text()
    assert "not enough space" in shown.locator("main").inner_text()


def test_the_policy_of_every_page_lets_nothing_run_that_stands_in_it(sit: Sit, ended: str) -> None:
    there = sit("root")
    for path in whole(there, ended):
        assert there.settled() == [], path
        there.page.evaluate(INLINE)
        noted = there.settled()
        assert any(each.startswith("policy: script-src") for each in noted), path
        assert not any(each.startswith("hit") for each in noted), path
        noted.clear()
