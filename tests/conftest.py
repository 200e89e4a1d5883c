"""What tests of all kinds share."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import pytest

from tests.accounts import installation
from tests.packaging.package import debian_package

__all__ = ["debian_package", "installation"]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Have failures named as they happen."""
    if reporter := session.config.pluginmanager.getplugin("terminalreporter"):
        session.config.pluginmanager.register(_AtOnce(reporter))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was collected stays to the end: nobody looks through it for garbage again and again."""
    gc.freeze()


@dataclass(frozen=True)
class _AtOnce:
    """Names each test that fails: a run that is cut off comes to no summary."""

    reporter: Any

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of one phase of one test."""
        if report.failed:
            self.reporter.ensure_newline()
            self.reporter.write_line(f"{report.when} FAILED {report.nodeid}")
