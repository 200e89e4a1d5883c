"""The page in Chromium: a service, and people at browsers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser

from tests.browser import Seat, chromium, seat
from tests.light.page.cluster import FAULTY, MINE, NODES, Page, simulated

Sit = Callable[..., Seat]
"""A user's name (empty: nobody has signed in) and what `seat` takes → a browser that shows the first page."""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """The service of a lab of simulated nodes, on which alice and bob may deploy."""
    with simulated(f"{MINE} {FAULTY}", "--nodes", str(NODES), "--small-disk", FAULTY) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def sit(page: Page, browser: Browser) -> Iterator[Sit]:
    """Have somebody sit down at a browser."""
    with ExitStack() as stack:

        def down(user: str = "", **options: object) -> Seat:
            found = stack.enter_context(seat(browser, page.address, **options))  # type: ignore[arg-type]
            if user:
                found.sign_in(page.token(user))
            return found

        yield down
