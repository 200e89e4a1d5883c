"""What tests of the service share: a site on SQLite, and a clock that stands until it is put forward."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.serving import service

__all__ = ["service"]


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """An empty database; what is in it does the same on others (tests/unit/state)."""
    return f"sqlite://{tmp_path}/site/state/kadeploy.db"
