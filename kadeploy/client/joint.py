"""Operations at several servers at once, which are told and reported as one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from kadeploy.client.parallel import together
from kadeploy.errors import BrokenOffError, KadeployError, UserInterruptError
from kadeploy.events import Ended, Event, Heard, LeftOut, Listener, Note, Report
from kadeploy.operations.requests import DeployRequest, PowerRequest, RebootRequest, Wish
from kadeploy.workflow import Operation

OPERATIONS: Mapping[type[Wish], Operation] = {DeployRequest: "deploy", RebootRequest: "reboot", PowerRequest: "power"}
Part = Callable[[Listener, threading.Event, Callable[[str], None]], Report | None]
"""What is done at one server: the arguments are those of `Service.carry_out`; None once who only follows is stopped."""
End = Report | KadeployError | None
_LOOK = 0.2
"""Seconds between two looks whether to stop."""
_UNKNOWN = "unknown"
"""The cluster of nodes that no server knows."""


class JointReport(Report, frozen=True):
    """How all parts ended; *wid* has the ids of all, with commas."""

    wids: Mapping[str, str] = {}
    """By server."""
    exit_status: int = 0
    """The worst of all parts."""


@dataclass(frozen=True)
class Share:
    """What is known of a server's part beforehand."""

    partial_failure_status: int
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Its nodes by cluster, with the server's name in front."""

    @property
    def names(self) -> Iterator[str]:
        """Its nodes."""
        return chain.from_iterable(self.groups.values())


class Joint:
    """Carries out *parts*, by server; *shares* says what is known of each.

    *unplaced* are nodes that belong to none of them, and why. Where it is *all_or_nothing*, one part that is refused
    ends the others.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        shares: Mapping[str, Share],
        unplaced: Mapping[str, str] | None = None,
        all_or_nothing: bool = False,
    ) -> None:
        self._parts = parts
        self._shares = shares
        self._unplaced = unplaced or {}
        self._all_or_nothing = all_or_nothing
        self._ended: dict[str, Ended] = {}
        self._ends: dict[str, End] = {}
        self._halt = threading.Event()

    def run(
        self, listener: Listener, stop: threading.Event, admitted: Callable[[str, str], None]
    ) -> JointReport | None:
        """Carry out all of them at once; *listener* hears of them in this thread, *admitted* gets server and id.

        None once *stop* is set, where nothing is ended by that.

        Raises:
            KadeployError: all of them are refused.
        """
        if self._unplaced:
            listener(LeftOut(reasons=self._unplaced))
        self._carry_out(listener, stop, admitted)
        self._ends = {server: self._ends[server] for server in self._parts}
        self._ended = {server: self._ended[server] for server in self._parts if server in self._ended}
        if None in self._ends.values():
            return None
        report = self._report()
        operation = next(iter(self._ended.values())).operation
        listener(Ended(operation=operation, groups=self._groups(), report=report))
        return report

    # --- from many threads to one -----------------------------------------------------------------------------------

    def _carry_out(self, listener: Listener, stop: threading.Event, admitted: Callable[[str, str], None]) -> None:
        calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

        def carry_out(server: str, part: Part) -> None:
            def tell(event: Event) -> None:
                calls.put(partial(self._hear, listener, server, event))

            try:
                end = part(tell, self._halt, lambda wid: calls.put(partial(admitted, server, wid)))
            except Exception as error:
                calls.put(partial(self._failed, listener, server, error))
            else:
                calls.put(partial(self._ends.__setitem__, server, end))

        for each in self._parts.items():
            threading.Thread(target=carry_out, args=each, name=each[0], daemon=True).start()
        while len(self._ends) < len(self._parts):
            if stop.is_set():
                self._halt.set()
            with suppress(queue.Empty):
                calls.get(timeout=_LOOK)()

    def _hear(self, listener: Listener, server: str, event: Event) -> None:
        if isinstance(event, Ended):
            self._ended[server] = event
        listener(Heard(server=server, told=event))

    def _failed(self, listener: Listener, server: str, error: Exception) -> None:
        if not isinstance(error, KadeployError):
            self._halt.set()
            raise error
        self._ends[server] = error
        if len(self._ends) < len(self._parts) or self._ended:  # else all are refused, which is told in the end
            listener(Heard(server=server, told=Note(text=str(error))))
        if self._all_or_nothing and len(self._parts) > 1:
            listener(Note(text="--all-or-nothing: what has begun elsewhere is cancelled"))
            self._halt.set()

    # --- the end of all ---------------------------------------------------------------------------------------------

    def _report(self) -> JointReport:
        reports = {server: end for server, end in self._ends.items() if isinstance(end, Report)}
        errors = {server: end for server, end in self._ends.items() if isinstance(end, KadeployError)}
        if not reports:
            raise together(errors)
        lost = {name: str(error) for server, error in errors.items() for name in self._shares[server].names}
        found = list(reports.values())
        return JointReport(
            wid=",".join(report.wid for report in found),
            ok=_all(report.ok for report in found),
            ko={**self._unplaced, **lost, **{name: why for report in found for name, why in report.ko.items()}},
            at_breakpoint=_all(report.at_breakpoint for report in found),
            aborted=_all(report.aborted for report in found),
            taken=_all(report.taken for report in found),
            answers={name: said for report in found for name, said in report.answers.items()},
            host_keys=_all(report.host_keys for report in found),
            wids={server: report.wid for server, report in reports.items()},
            exit_status=self._exit_status(reports, errors),
        )

    def _exit_status(self, reports: Mapping[str, Report], errors: Mapping[str, KadeployError]) -> int:
        """What matters most: that the user stopped it, that something broke off, that nodes are KO."""
        kinds = {type(error) for error in errors.values()}
        given_up = self._all_or_nothing and bool(errors)
        if UserInterruptError in kinds or (any(report.aborted for report in reports.values()) and not given_up):
            return UserInterruptError.exit_code
        if BrokenOffError in kinds or given_up:
            return BrokenOffError.exit_code
        bad = [server for server, report in reports.items() if report.ko]
        concerned = [*bad, *errors] or (list(self._shares) if self._unplaced else [])
        return max((self._shares[server].partial_failure_status for server in concerned), default=0)

    def _groups(self) -> dict[str, tuple[str, ...]]:
        groups = {
            f"{server}/{cluster}": names
            for server, ended in self._ended.items()
            for cluster, names in ended.groups.items()
        }
        lost = (self._shares[server].groups for server, end in self._ends.items() if isinstance(end, KadeployError))
        groups |= {cluster: tuple(names) for each in lost for cluster, names in each.items()}
        return groups | ({_UNKNOWN: tuple(self._unplaced)} if self._unplaced else {})


def _all(parts: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(chain.from_iterable(parts))
