"""How an operation ended, for who tells people of it afterwards.

The events of the run say it best: they know nodes that were left out. Where they are for another account alone, or the
controller died before it could tell its end, the database says it.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from kadeploy.config.site import Site
from kadeploy.errors import UnknownWorkflowError
from kadeploy.events import Ended, Report, decode
from kadeploy.nodeset import fold
from kadeploy.operations import follow, reasons
from kadeploy.operations.follow import is_last
from kadeploy.state import history
from kadeploy.state.history import Selection
from kadeploy.state.journal import Flow

DONE = {"deploy": "deployed", "reboot": "rebooted", "power": "switched"}
"""What has been done to nodes, by operation."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that has ended; times are Unix seconds."""

    wid: str
    user: str
    operation: str
    state: str
    """ended or aborted."""
    environment: str
    """``name:version``; empty where none was deployed, or one that is not recorded."""
    began: int
    ended: int
    report: Report

    @property
    def has_failed(self) -> bool:
        """Whether it was stopped, or a node is KO."""
        return self.state == "aborted" or bool(self.report.ko)

    @property
    def headline(self) -> str:
        """``3 of 4 nodes deployed``."""
        good, total = len(self.report.ok), len(self.report.ok) + len(self.report.ko)
        stopped = ", stopped" if self.state == "aborted" else ""
        return f"{good} of {total} node{'' if total == 1 else 's'} {DONE[self.operation]}{stopped}"

    @property
    def lines(self) -> list[str]:
        """The whole of it for people: names folded, reasons grouped."""
        what = f" with {self.environment}" if self.environment else ""
        seconds = max(0, self.ended - self.began)
        found = [f"{self.wid}: {self.headline}{what}, in {seconds // 60} min {seconds % 60} s.", ""]
        good = [name for name in self.report.ok if name not in self.report.at_breakpoint]
        found += [f"{DONE[self.operation]}: {fold(good)}"] if good else []
        found += [f"at the breakpoint: {fold(self.report.at_breakpoint)}"] if self.report.at_breakpoint else []
        return found + [f"failed: {fold(names)}: {why}" for why, names in reasons.kinds(self.report.ko).items()]


def of(site: Site, flow: Flow) -> Run | None:
    """How the workflow *flow* ended; None while its controller has not told its last word."""
    report = _told(site, flow.wid) or (None if _is_about_to_tell(site, flow.wid) else _logged(site, flow.wid))
    if report is None:
        return None
    environment = f"{flow.env_name}:{flow.env_version}" if flow.env_name and not flow.anonymous else flow.env_name
    return Run(
        wid=flow.wid,
        user=flow.user,
        operation=flow.operation,
        state=flow.state,
        environment=environment,
        began=flow.began,
        ended=flow.ended or flow.last,
        report=report,
    )


def _told(site: Site, wid: str) -> Report | None:
    with suppress(UnknownWorkflowError):
        last = next((line for _, line in follow.opened(site, wid).lines() if is_last(line)), b"")
        event = decode(last)
        return event.report if isinstance(event, Ended) else None
    return None


def _is_about_to_tell(site: Site, wid: str) -> bool:
    """Whether the controller, whose end is in the database, still lives."""
    with suppress(UnknownWorkflowError):
        return follow.goes_on(site, wid, follow.events_of(site, wid))
    return False


def _logged(site: Site, wid: str) -> Report:
    rows = list(history.rows(site, Selection(None, wid=wid), ("hostname", "success", "error")))
    good = tuple(name for name, success, _ in rows if success == "true")
    return Report(wid, good, {name: why or "KO" for name, success, why in rows if success != "true"})
