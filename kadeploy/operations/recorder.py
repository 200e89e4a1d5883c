"""What is kept of an operation while it runs: how each node ended, the journal, the states of nodes, the log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from kadeploy.events import (
    AttemptEnded,
    AttemptStarted,
    Began,
    Ended,
    Event,
    Finished,
    LeftOut,
    LetGo,
    Note,
    Progress,
    Report,
    StepResult,
    StepStarted,
    Taken,
)
from kadeploy.operations.work import Work
from kadeploy.runner import roles
from kadeploy.runner.roles import Role
from kadeploy.state import journal, nodes
from kadeploy.state.journal import LogRow
from kadeploy.state.nodes import NO_ENVIRONMENT, Recorded, State
from kadeploy.workflow import ABORTED, Final, Outcome, Verdict


class Results:
    """A listener that knows at the end how an operation went; it writes nothing.

    *work* has the nodes that take part.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.finals: dict[str, Final] = work.resumption.finals(work.names) if work.resumption else {}
        self.answers: dict[str, str] = {}
        self.taken: set[str] = set()
        """Nodes that were taken before they came to an end."""

    def __call__(self, event: Event) -> None:
        """Keep what *event* says of nodes."""
        if isinstance(event, StepResult):
            self.answers |= {name: outcome.answer for name, outcome in event.outcomes.items() if outcome.answer}
        elif isinstance(event, Taken):
            self.taken |= event.reasons.keys() - self.finals.keys()
        elif isinstance(event, Finished):
            self.finals |= event.finals

    def lost(self) -> dict[str, Final]:
        """Nodes that came to no end: aborted."""
        return {name: Final(Verdict.KO, ABORTED, aborted=True) for name in self.work.names if name not in self.finals}

    def keep_alive(self) -> None:
        """Nobody waits for a sign of life of who holds no node."""

    def close(self) -> None:
        """Nothing was opened."""

    def report(self, left_out: Mapping[str, str]) -> Report:
        """How it ended, once it has."""
        ends = {name: self.finals[name] for name in self.work.names}
        return Report(
            self.work.wid,
            tuple(name for name, final in ends.items() if final.verdict is not Verdict.KO),
            {name: final.message for name, final in ends.items() if final.verdict is Verdict.KO} | dict(left_out),
            tuple(name for name, final in ends.items() if final.verdict is Verdict.BRK),
            tuple(name for name, final in ends.items() if final.aborted and name not in self.taken),
            tuple(name for name, final in ends.items() if final.aborted and name in self.taken),
            self.answers,
        )


class Recorder(Results):
    """Results that also keep the database true while an operation runs.

    All nodes of *work* are claimed. All calls come from one thread, whose database it is.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.begun = work.resumption.begun if work.resumption else time.time()
        self.let_go: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Keep and write down what *event* says."""
        super().__call__(event)
        match event:
            case Began():
                self._begin()
            case StepStarted():
                self._step_started(event.attempt.implementation, event.micro_step, event.nodes)
            case StepResult():
                self._step_result(event.micro_step, event.outcomes)
            case Progress():
                journal.told(self.work.wid, event.nodes, str(event.transfer))
            case Finished():
                self._finished(event.finals)
                self._free()
            case LetGo():
                self.let_go.update(event.nodes)
                self._free()
            case Note(resumed=True):
                self._mark(name for name in self.work.names if name not in self.finals)
            case Taken() | LeftOut() | AttemptStarted() | AttemptEnded() | Note() | Ended():
                pass

    def keep_alive(self) -> None:
        """Tell the controllers of other machines that this one lives."""
        journal.keep_alive(self.work.wid)

    def close(self) -> None:
        """Close the journal, with a row of the log per node."""
        aborted = any(final.aborted and name not in self.taken for name, final in self.finals.items())
        rows = [_log_row(self.work, name, self.finals[name]) for name in self.work.names]
        journal.end(self.work.wid, rows, "aborted" if aborted else "ended")

    def _begin(self) -> None:
        """Open the journal: from here on the truth is in the database, whatever happens to this process."""
        work = self.work
        journal.begin(
            work.site, work.wid, work.operation, work.user, work.environment, work.groups, anonymous=work.anonymous
        )
        self._mark(work.names)

    def _mark(self, names: Iterable[str]) -> None:
        """Nodes are in flight."""
        self._set_state(list(names), self.work.states.begun, self.work.states.environment)

    def _step_started(self, implementation: str, micro_step: str, names: Iterable[str]) -> None:
        journal.micro_step(self.work.wid, names, implementation, micro_step)
        if self._role(micro_step).reboots:
            journal.node_state(self.work.wid, names, "reboot_in_progress")

    def _step_result(self, micro_step: str, outcomes: Mapping[str, Outcome]) -> None:
        if self._role(micro_step).booted:
            journal.node_state(self.work.wid, _with(outcomes, Verdict.OK), "rebooted")
        if ko := _with(outcomes, Verdict.KO):
            journal.node_state(self.work.wid, ko, "ko")

    def _role(self, micro_step: str) -> Role:
        return roles.find(micro_step, self.work.configuration.folder)

    def _finished(self, finals: Mapping[str, Final]) -> None:
        groups: dict[tuple[State | None, Recorded | None], list[str]] = {}
        for name, final in finals.items():
            state, environment = self._end_state(final)
            groups.setdefault((state, environment), []).append(name)
        for (state, environment), names in groups.items():
            self._set_state(names, state, environment)
        ok = [name for name, final in finals.items() if final.verdict is not Verdict.KO]
        journal.node_state(self.work.wid, ok, "ok")
        journal.node_state(self.work.wid, _with(finals, Verdict.KO), "ko")

    def _free(self) -> None:
        """Give back nodes that are out of our hands, once how they ended has been written down."""
        nodes.release(self.work.wid, self.let_go & self.finals.keys())
        self.let_go -= self.finals.keys()

    def _end_state(self, final: Final) -> tuple[State | None, Recorded | None]:
        states = self.work.states
        if final.aborted:
            return "aborted" if states.begun else None, NO_ENVIRONMENT if self.work.operation == "deploy" else None
        if final.verdict is Verdict.BRK:
            return "deploy_env", NO_ENVIRONMENT
        if final.verdict is Verdict.KO:
            return states.ko, states.environment
        return states.ok, states.ok_environment

    def _set_state(self, names: list[str], state: State | None, environment: Recorded | None) -> None:
        if state and names:
            user = self.work.user if self.work.operation == "deploy" else None
            nodes.set_state(names, state, environment, user, self.begun, held_by=self.work.wid)


def _with(ends: Mapping[str, Outcome] | Mapping[str, Final], verdict: Verdict) -> list[str]:
    """Names of the nodes with this verdict."""
    return [name for name, end in ends.items() if end.verdict is verdict]


def _log_row(work: Work, name: str, final: Final) -> LogRow:
    """What kastat3 shows of a node: per macro-step the last implementation, its time-out, tries minus one, seconds."""
    columns: dict[str, str | int] = {}
    for rank, macro_step in enumerate(dict.fromkeys(tried.attempt.macro_step for tried in final.history), start=1):
        attempts = [tried for tried in final.history if tried.attempt.macro_step == macro_step]
        tries = [tried for tried in attempts if tried.verdict is not Verdict.LATE] or attempts
        columns |= {
            f"step{rank}": tries[-1].attempt.implementation,
            f"timeout_step{rank}": tries[-1].attempt.timeout,
            f"retry_step{rank}": len(tries) - 1,
            f"step{rank}_duration": round(sum(tried.seconds for tried in attempts)),
        }
    return LogRow(
        hostname=name,
        success=final.verdict is not Verdict.KO,
        error=final.message if final.verdict is Verdict.KO else "",
        md5=work.environment.image.md5 if work.environment else "",
        given_up=",".join(_given_up(final)),
        **columns,  # type: ignore[arg-type]
    )


def _given_up(final: Final) -> list[str]:
    """Implementations whose last try failed, and after which the node went on with another of the macro-step."""
    tries = [tried for tried in final.history if tried.verdict is not Verdict.LATE]
    last = {tried.attempt.macro_step: tried.attempt.implementation for tried in tries}
    verdicts = {tried.attempt.implementation: tried for tried in tries}
    return [
        name
        for name, tried in verdicts.items()
        if tried.verdict is Verdict.KO and last[tried.attempt.macro_step] != name
    ]
