"""An operation from beginning to end: may the user, claim the nodes, record, run, report.

Nothing here knows terminals or exit statuses: a `Listener` hears what happens, in the thread that launched the
operation, one call at a time.
"""

from __future__ import annotations

import itertools
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from kadeploy import workflow
from kadeploy.config.folder import Configuration
from kadeploy.nodeset import fold
from kadeploy.operations import admission, hooks, staging
from kadeploy.operations.admission import DeployRequest, PowerRequest, RebootRequest, Work
from kadeploy.remote import broker, namespace
from kadeploy.remote.fanout import Credentials
from kadeploy.runner.player import Player, end_processes
from kadeploy.state import journal, nodes
from kadeploy.state.journal import LogRow
from kadeploy.state.nodes import NO_ENVIRONMENT, Named, State
from kadeploy.workflow import Attempt, Final, Outcome, Verdict


@dataclass(frozen=True)
class Report:
    """How an operation ended: every node of the request is in *ok* or in *ko*."""

    wid: str
    ok: tuple[str, ...] = ()
    ko: Mapping[str, str] = field(default_factory=dict)
    """Reason by node; nodes that were left out or aborted are among them."""
    at_breakpoint: tuple[str, ...] = ()
    """Those of *ok* that wait in the deployment system."""
    aborted: tuple[str, ...] = ()
    """Those of *ko* that were on their way when the operation was stopped."""
    words: Mapping[str, str] = field(default_factory=dict)
    """What the last micro-step said on each node: the answer to ``kapower3 --status``."""


class Listener(Protocol):
    """Who wants to know what happens."""

    def began(self, work: Work) -> None:
        """The operation is recorded and begins."""

    def left_out(self, reasons: Mapping[str, str]) -> None:
        """Nodes that take no part, and why."""

    def attempt_started(self, attempt: Attempt, names: tuple[str, ...]) -> None:
        """A macro-step begins for these nodes."""

    def attempt_ended(self, attempt: Attempt, outcomes: Mapping[str, Outcome], seconds: float) -> None:
        """A macro-step is over for these nodes."""

    def step_started(self, attempt: Attempt, micro_step: str, names: tuple[str, ...]) -> None:
        """A micro-step begins for these nodes."""

    def step_result(self, attempt: Attempt, micro_step: str, outcomes: Mapping[str, Outcome]) -> None:
        """A task of a micro-step has ended."""

    def finished(self, finals: Mapping[str, Final]) -> None:
        """Nodes have come to their end."""

    def note(self, text: str) -> None:
        """Something that people should know."""


# --- the story ------------------------------------------------------------------------------------------------------


def deploy(request: DeployRequest, configuration: Configuration, listener: Listener, stop: threading.Event) -> Report:
    """Deploy an environment on nodes.

    Raises:
        KadeployError: the request is refused; no node was touched.
    """
    return launch(admission.deploy(request, configuration), listener, stop)


def reboot(request: RebootRequest, configuration: Configuration, listener: Listener, stop: threading.Event) -> Report:
    """Reboot nodes.

    Raises:
        KadeployError: the request is refused; no node was touched.
    """
    return launch(admission.reboot(request, configuration), listener, stop)


def power(request: PowerRequest, configuration: Configuration, listener: Listener, stop: threading.Event) -> Report:
    """Switch nodes on or off, or ask whether they are on.

    Raises:
        KadeployError: the request is refused; no node was touched.
    """
    return launch(admission.power(request, configuration), listener, stop)


def launch(work: Work, listener: Listener, stop: threading.Event) -> Report:
    """Do what was admitted; once *stop* is set it ends within seconds, with its nodes aborted and free.

    Raises:
        KadeployError: the request is refused after all (a file has changed or cannot be fetched); no node was touched.
    """
    namespace.enter(work.site.network_namespace)
    for wid, names in nodes.reap(work.site).items():
        end_processes(admission.run_folder(work.site, wid))
        listener.note(f"workflow {wid} was left by a controller that died; its nodes are free again: {fold(names)}")
    with _folder(work.folder):
        work = replace(work, requests=staging.stage(work.requests, work.folder, work.caller, work.uploads))
    claimed, left_out = nodes.claim(work.site, work.names, work.wid, work.caller.name, work.force)
    try:
        if left_out:
            listener.left_out(left_out)
        if not claimed:
            return Report(work.wid, ko=left_out)
        return _record_and_run(work.only(claimed), left_out, listener, stop)
    finally:
        nodes.release(work.wid)


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make the folder of a workflow; a request that is refused leaves none behind."""
    path.mkdir(mode=0o700, parents=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _record_and_run(work: Work, left_out: Mapping[str, str], listener: Listener, stop: threading.Event) -> Report:
    desk = _Desk(work, listener)
    desk.begin()
    try:
        _run_clusters(work, desk, stop)
    finally:
        desk.end()
    if said := hooks.run(work.hook, work.wid, work.site.end_hook_timeout):
        listener.note(said)
    return desk.report(left_out)


def _run_clusters(work: Work, desk: _Desk, stop: threading.Event) -> None:
    """One automaton per cluster, all at the same time; what they say is dealt with here, one thing after the other."""
    numbers = itertools.count(1)
    threads = [
        threading.Thread(target=_run_cluster, args=(work, cluster, numbers, desk, stop), name=cluster)
        for cluster in work.groups
    ]
    with _kept_connections(work):
        for thread in threads:
            thread.start()
        try:
            desk.listen(len(threads))
        except BaseException:
            stop.set()
            raise
        finally:
            for thread in threads:
                thread.join()


def _run_cluster(work: Work, cluster: str, numbers: Iterator[int], desk: _Desk, stop: threading.Event) -> None:
    reporter = _Reporter(desk)
    player = Player(work.requests[cluster], work.members, reporter, stop)
    try:
        workflow.run(work.groups[cluster], work.plans[cluster], player.perform, reporter, stop, numbers=numbers)
    finally:
        desk.leave()


@contextmanager
def _kept_connections(work: Work) -> Iterator[None]:
    """Keep the ssh connections of the workflow from one micro-step to the next."""
    keeper = broker.Broker(work.folder, Credentials.of(work.site))
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


# --- what is written down on the way --------------------------------------------------------------------------------

_REBOOTING = frozenset({"reboot", "reboot_from_deploy_env", "kexec"})
"""Micro-steps after whose beginning a node counts as rebooting, until wait_reboot has seen it."""


class _Desk:
    """Writes down what happens and passes it on to the listener; automata leave their messages in a queue.

    One thread does it all: the database sees one connection, the listener needs no locks.
    """

    def __init__(self, work: Work, listener: Listener) -> None:
        self.work = work
        self.listener = listener
        self.begun = time.time()
        self.finals: dict[str, Final] = {}
        self.words: dict[str, str] = {}
        self._messages: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def put(self, message: Callable[[], None]) -> None:
        """From any thread: have *message* called by the thread that listens."""
        self._messages.put(message)

    def leave(self) -> None:
        """From the thread of an automaton: it has said all it has to say."""
        self._messages.put(None)

    def listen(self, speakers: int) -> None:
        """Call messages until all *speakers* have left; now and then tell other controllers that we live."""
        sign_of_life = max(1.0, self.work.site.purge_deployment_timer / 3)
        while speakers:
            try:
                message = self._messages.get(timeout=sign_of_life)
            except queue.Empty:
                journal.keep_alive(self.work.wid)
                continue
            if message is None:
                speakers -= 1
            else:
                message()

    def begin(self) -> None:
        """Open the journal: from here on the truth is in the database, whatever happens to this process."""
        work = self.work
        user = work.caller.name
        journal.begin(
            work.site, work.wid, work.operation, user, work.environment, work.groups, anonymous=work.anonymous
        )
        self._set_state(work.names, work.states.begun, work.states.environment)
        self.listener.began(work)

    def step_started(self, attempt: Attempt, micro_step: str, names: tuple[str, ...]) -> None:
        journal.micro_step(self.work.wid, names, attempt.implementation, micro_step)
        if micro_step in _REBOOTING:
            journal.node_state(self.work.wid, names, "reboot_in_progress")
        self.listener.step_started(attempt, micro_step, names)

    def step_result(self, attempt: Attempt, micro_step: str, outcomes: Mapping[str, Outcome]) -> None:
        ko = [name for name, outcome in outcomes.items() if outcome.verdict is Verdict.KO]
        if micro_step == "wait_reboot":
            there = [name for name, outcome in outcomes.items() if outcome.verdict is Verdict.OK]
            journal.node_state(self.work.wid, there, "rebooted")
        if ko:
            journal.node_state(self.work.wid, ko, "ko")
        self.words |= {name: outcome.stdout.strip() or outcome.message for name, outcome in outcomes.items()}
        self.listener.step_result(attempt, micro_step, outcomes)

    def finished(self, finals: Mapping[str, Final]) -> None:
        self.finals |= finals
        groups: dict[tuple[State | None, Named | None], list[str]] = {}
        for name, final in finals.items():
            groups.setdefault(self._end_state(final), []).append(name)
        for (state, environment), names in groups.items():
            self._set_state(names, state, environment)
        journal.node_state(self.work.wid, [n for n, f in finals.items() if f.verdict is not Verdict.KO], "ok")
        journal.node_state(self.work.wid, [n for n, f in finals.items() if f.verdict is Verdict.KO], "ko")
        self.listener.finished(finals)

    def end(self) -> None:
        """Close the journal; nodes that came to no end are aborted."""
        lost = {name: Final(Verdict.KO, "aborted", aborted=True) for name in self.work.names if name not in self.finals}
        if lost:
            self.finished(lost)
        aborted = any(final.aborted for final in self.finals.values())
        rows = [_log_row(self.work, name, self.finals[name]) for name in self.work.names]
        journal.end(self.work.wid, rows, "aborted" if aborted else "ended")

    def report(self, left_out: Mapping[str, str]) -> Report:
        """How it ended, once it has."""
        ends = {name: self.finals[name] for name in self.work.names}
        return Report(
            self.work.wid,
            tuple(name for name, final in ends.items() if final.verdict is not Verdict.KO),
            {name: final.message for name, final in ends.items() if final.verdict is Verdict.KO} | dict(left_out),
            tuple(name for name, final in ends.items() if final.verdict is Verdict.BRK),
            tuple(name for name, final in ends.items() if final.aborted),
            self.words,
        )

    def _end_state(self, final: Final) -> tuple[State | None, Named | None]:
        states = self.work.states
        if final.aborted:
            return "aborted" if states.begun else None, NO_ENVIRONMENT if self.work.operation == "deploy" else None
        if final.verdict is Verdict.BRK:
            return "deploy_env", NO_ENVIRONMENT
        if final.verdict is Verdict.KO:
            return states.ko, states.environment
        return states.ok, states.ok_environment

    def _set_state(self, names: list[str], state: State | None, environment: Named | None) -> None:
        if state and names:
            nodes.set_state(names, state, environment, self.work.caller.name, self.begun)


@dataclass(frozen=True)
class _Reporter:
    """What one cluster's automaton and player talk to, in threads of theirs."""

    desk: _Desk

    def started(self, attempt: Attempt, names: tuple[str, ...]) -> None:
        self.desk.put(lambda: self.desk.listener.attempt_started(attempt, names))

    def ended(self, attempt: Attempt, outcomes: Mapping[str, Outcome], seconds: float) -> None:
        self.desk.put(lambda: self.desk.listener.attempt_ended(attempt, outcomes, seconds))

    def finished(self, finals: Mapping[str, Final]) -> None:
        self.desk.put(lambda: self.desk.finished(finals))

    def step_started(self, attempt: Attempt, micro_step: str, names: tuple[str, ...]) -> None:
        self.desk.put(lambda: self.desk.step_started(attempt, micro_step, names))

    def step_result(self, attempt: Attempt, micro_step: str, outcomes: Mapping[str, Outcome]) -> None:
        self.desk.put(lambda: self.desk.step_result(attempt, micro_step, outcomes))


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
        **columns,  # type: ignore[arg-type]
    )
