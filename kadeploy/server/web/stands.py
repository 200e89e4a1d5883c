"""How the nodes of a run stand by now: at their end and how, or on their way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from kadeploy.events import Ended
from kadeploy.nodeset import fold, natural_key
from kadeploy.workflow import Final, Verdict

State = Literal["busy", "ko", "aborted", "breakpoint", "ok"]
"""What a node is; one that was stopped, or taken from its run, is aborted."""
STATES: tuple[State, ...] = get_args(State)
_ENDS: Mapping[Verdict, State] = {Verdict.OK: "ok", Verdict.BRK: "breakpoint"}


@dataclass(frozen=True)
class Group:
    """The nodes in one state."""

    state: State
    names: tuple[str, ...]
    folded: str


class Stands:
    """The state of each node, by what its run tells."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.reasons: dict[str, str] = {}
        """What was said last of nodes that are not well."""
        self._groups: dict[State, Group] = {}

    def begin(self, names: Iterable[str]) -> None:
        """These nodes are on their way, unless they are known already."""
        for name in names:
            self.states.setdefault(name, "busy")

    def finish(self, finals: Mapping[str, Final]) -> None:
        """These have come to their end."""
        for name, final in finals.items():
            self.end(name, "aborted" if final.aborted else _ENDS.get(final.verdict, "ko"), final.message)

    def lose(self, reasons: Mapping[str, str], state: State) -> None:
        """These do not take part, or no more, unless they were at their end already."""
        for name, reason in reasons.items():
            if self.states.get(name, "busy") == "busy":
                self.end(name, state, reason)

    def close(self, event: Ended) -> None:
        """The run is over: what it reports counts for nodes of whose end nothing was told."""
        report = event.report
        aborted, waiting = {*report.aborted, *report.taken}, set(report.at_breakpoint)
        for name in report.ok:
            self.lose({name: ""}, "breakpoint" if name in waiting else "ok")
        for name, reason in report.ko.items():
            self.lose({name: reason}, "aborted" if name in aborted else "ko")

    def end(self, name: str, state: State, reason: str) -> None:
        """*name* is at its end."""
        self.states[name] = state
        if reason:
            self.reasons[name] = reason

    def count(self, names: Iterable[str]) -> dict[State, int]:
        """How many of *names* are in which state."""
        found = Counter(self.states.get(name, "busy") for name in names)
        return {state: found[state] for state in STATES if found[state]}

    def groups(self) -> tuple[Group, ...]:
        """All nodes by their states; what has not changed is not folded anew, which takes milliseconds."""
        names: dict[State, list[str]] = {}
        for name, state in self.states.items():
            names.setdefault(state, []).append(name)
        self._groups = {state: self._group(state, tuple(names[state])) for state in STATES if state in names}
        return tuple(self._groups.values())

    def _group(self, state: State, names: tuple[str, ...]) -> Group:
        known = self._groups.get(state)
        if known and known.names == names:
            return known
        return Group(state, names, fold(names))

    def ordered(self, state: str) -> list[str]:
        """The nodes in *state* (empty: all), in their natural order."""
        return sorted((name for name, found in self.states.items() if state in ("", found)), key=natural_key)
