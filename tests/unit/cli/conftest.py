"""What all tests of tools share."""

from __future__ import annotations

import pytest

from tests.unit.serving import once, service, way

__all__ = ["service", "way"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what would be tested twice."""
    if twice := once(items):
        config.hook.pytest_deselected(items=twice)
        items[:] = [item for item in items if item not in set(twice)]
