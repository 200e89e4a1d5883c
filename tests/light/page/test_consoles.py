"""Consoles and buttons in Chromium: what comes too fast is counted, what is over is closed, two presses are one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route

from kadeploy.state import journal, rights
from tests.browser import Seat, seat
from tests.light.page.cluster import Page, served_page, wait_for_end
from tests.unit.conftest import SITE
from tests.unit.serving import DUMMY_CLUSTER

PROGRAM = """\
#!/bin/sh
echo "console of $1"
read -r word
while :; do seq 60000; sleep 1; done
"""
CONSOLE = "/ui/nodes/gdx-1.site/console"
SCREEN = ".xterm-rows"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A service with nodes on which nothing is done, and whose consoles show much once a line was typed."""
    folder = tmp_path_factory.mktemp("small") / "site"
    for name in ("clusters", "state"):
        (folder / name).mkdir(parents=True)
    text = SITE.format(folder=folder, database=f"sqlite://{folder}/state/kadeploy.db", almighty="[root]")
    (folder / "site.yml").write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="kadeploy-open-") as place:
        program = Path(place) / "console"
        program.write_text(PROGRAM, encoding="ascii")
        for path in (Path(place), program):
            path.chmod(0o755)
        cluster = f"{DUMMY_CLUSTER}console: {program} HOSTNAME_SHORT\nconsole_account: nobody\n"
        (folder / "clusters" / "gdx.yml").write_text(cluster, encoding="utf-8")
        with served_page(folder, "  consoles_as_service: true\n") as served:
            rights.add(served.site, "alice", ["gdx-1.site"], ["*"])
            yield served


@pytest.fixture
def alice(small: Page, browser: Browser) -> Iterator[Seat]:
    with seat(browser, small.address) as found:
        found.sign_in(small.token("alice"))
        yield found


def _impatient(route: Route) -> None:
    """The script of a console, for which less is already too much."""
    answer = route.fetch()
    text = answer.text()
    assert "const PENDING = 4 << 20;" in text
    route.fulfill(response=answer, body=text.replace("const PENDING = 4 << 20;", "const PENDING = 4 << 10;"))


def test_what_comes_faster_than_it_is_shown_is_left_out_and_the_reader_told_how_much(alice: Seat) -> None:
    alice.page.route("**/console.js*", _impatient)
    shown = alice.open(CONSOLE)
    shown.locator(SCREEN).get_by_text("console of gdx-1").wait_for()
    shown.keyboard.press("Enter")
    shown.locator(SCREEN).get_by_text("bytes were left out here: they came faster than").first.wait_for()
    assert alice.settled() == []


def test_a_console_is_closed_when_its_reader_signs_out_in_another_window(alice: Seat) -> None:
    shown = alice.open(CONSOLE)
    shown.locator(SCREEN).get_by_text("console of gdx-1").wait_for()
    other = alice.context.new_page()
    other.goto(f"{alice.address}/ui/runs", wait_until="domcontentloaded")
    other.get_by_role("button", name="Sign out").click()
    shown.get_by_text("Console closed. You have signed out, or your session is over: sign in again.").wait_for()
    assert shown.get_by_role("link", name="Open it again").is_visible()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_button_that_is_pressed_twice_begins_one_run_also_without_scripts(
    small: Page, browser: Browser, scripts: bool
) -> None:
    with seat(browser, small.address, scripts=scripts) as there:
        there.sign_in(small.token("alice"))
        before = set(journal.newest(small.site))
        shown = there.open("/ui/act/power?nodes=gdx-1.site")
        shown.locator("#operation").select_option("on")
        shown.get_by_role("button", name="Show the plan").click()
        shown.get_by_role("button", name="Switch 1 node on").dblclick(no_wait_after=True)
        shown.wait_for_url("**/ui/runs/*", wait_until="domcontentloaded")
        wid = shown.url.rpartition("/")[2]
        wait_for_end(there, small.site, wid)
        assert set(journal.newest(small.site)) - before == {wid}
