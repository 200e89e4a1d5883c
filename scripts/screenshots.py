#!/usr/bin/env python
"""Take the pictures of the page in docs/images/page-*.png: a run under way, its failures, the nodes and a plan.

    scripts/screenshots.py

As root: the nodes are simulated ones, in a network namespace of their own. Chromium draws the page at three widths, and
one of them also for readers who like it dark.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.browser import Scheme, Seat, chromium, seat  # noqa: E402
from tests.light.page.cluster import Page, begin, simulated, wait_for_end  # noqa: E402

IMAGES = ROOT / "docs" / "images"
WIDTHS = (400, 900, 1600)
NODES = 40
FAULTS = "small-disk=2,die=1,stay=1,slow=2"
BUSY = "node-[1-30]"
"""What is deployed when the pictures are taken."""
LANES = 3
"""Sets of nodes that have to be seen in a run under way."""


@contextmanager
def sitting(browser: Browser, page: Page, width: int, scheme: Scheme = "light") -> Iterator[Seat]:
    """Alice at a browser of this *width*."""
    with seat(browser, page.address, width=width, scheme=scheme) as there:
        there.sign_in(page.token("alice"))
        yield there


def take(there: Seat, path: str, name: str, *, whole: bool = False) -> None:
    """Save what the page at *path* shows, below as well with *whole*."""
    there.open(path)
    there.page.wait_for_timeout(300)
    file = IMAGES / f"page-{name}.png"
    there.page.screenshot(path=file, full_page=whole)
    print(file.relative_to(ROOT))


def picture(browser: Browser, page: Page) -> None:
    """All of them, in the course of one deployment."""
    with sitting(browser, page, 1200) as alice:
        shown = alice.open("/ui/deploy?nodes=node-[31-34]")
        shown.locator("#environment").select_option(index=1)
        shown.get_by_role("button", name="Show the plan").click()
        shown.get_by_label("The plan").wait_for()
        shown.screenshot(path=IMAGES / "page-plan.png")
        wid = begin(alice, BUSY)
        shown.locator(f"#now svg.lanes rect >> nth={LANES - 1}").wait_for(timeout=120_000)
        run = f"/ui/runs/{wid}"
        for width in WIDTHS:
            with sitting(browser, page, width) as there:
                take(there, run, f"run-{width}")
        with sitting(browser, page, 900, "dark") as there:
            take(there, run, "run-dark")
            take(there, "/ui/nodes", "nodes-dark")
        take(alice, "/ui/nodes", "nodes")
        wait_for_end(alice, page.site, wid)
        take(alice, run, "run-ended", whole=True)


def main() -> None:
    """Take them."""
    IMAGES.mkdir(exist_ok=True)
    lab = simulated("node-[1-40]", "--nodes", str(NODES), "--faults", FAULTS)
    with lab as page, chromium() as browser:
        picture(browser, page)


if __name__ == "__main__":
    main()
