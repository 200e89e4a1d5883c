"""An operation from beginning to end: may the user, claim the nodes, record, run, report.

Nothing here knows terminals or exit statuses. Listeners hear what happens, in the thread that launched the operation,
one event at a time; several operations can be launched side by side, in a thread each.
"""

from __future__ import annotations

import itertools
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import msgspec

from kadeploy import events, workflow
from kadeploy.caller import Account
from kadeploy.config.folder import Configuration
from kadeploy.errors import BrokenOffError, KadeployError, UserInterruptError
from kadeploy.events import (
    AttemptEnded,
    AttemptStarted,
    Began,
    Ended,
    Event,
    EventFile,
    Finished,
    LeftOut,
    Listener,
    Note,
    Report,
)
from kadeploy.nodeset import fold
from kadeploy.operations import (
    admission,
    claims,
    forecast,
    hooks,
    hostkeys,
    production,
    quarantine,
    record,
    runs,
    sources,
    staging,
)
from kadeploy.operations.guard import PATIENCE, Guard
from kadeploy.operations.recorder import Recorder, Results
from kadeploy.operations.requests import Wish
from kadeploy.operations.sources import Sources
from kadeploy.operations.staging import Staged
from kadeploy.operations.work import Resumption, Work
from kadeploy.remote import namespace
from kadeploy.remote.brokers import Brokers, together
from kadeploy.remote.fanout import Credentials
from kadeploy.runner.player import Player
from kadeploy.state import nodes
from kadeploy.workers.elsewhere import Elsewhere
from kadeploy.workflow import Attempt, Final, Outcome

# --- the story ------------------------------------------------------------------------------------------------------


def carry_out(
    request: Wish, configuration: Configuration, account: Account | None, listener: Listener, stop: threading.Event
) -> Report:
    """Do what *request* asks for; files that it names are opened with the rights of *account*.

    Without one they are those that the user's client has sent (see `sources.of`). Others may follow its events, even
    where it only looks at nodes.

    Raises:
        KadeployError: the request is refused; no node was touched.
    """
    work = replace(admission.admit(request, configuration), is_followed=True)
    return launch(work, sources.of(work, account), listener, stop)


def launch(work: Work, files: Sources, listener: Listener, stop: threading.Event) -> Report:
    """Do what was admitted; once *stop* is set it ends within seconds, with its nodes aborted and free.

    Raises:
        KadeployError: the request is refused after all (a file has changed or cannot be fetched); no node was touched.
        BrokenOffError: the operation had begun and cannot go on.
    """
    with namespace.inside(work.site.network_namespace):
        _free_nodes_of_the_dead(work, listener)
        with _folder(work.folder):
            staged = _stage(work, files, stop)
        with closing(staged), closing(EventFile(work.folder / events.FILE_NAME)) as file:
            work, tell = _with(work, staged), _to_all(file, listener)
            if work.only_looks:
                return _look(work, tell, stop)
            report = _claim_and_run(work, files.account, tell, stop)
        runs.purge(work.site, work.wid)
        return report


def go_on(
    work: Work, account: Account | None, left_out: Mapping[str, str], listener: Listener, stop: threading.Event
) -> Report:
    """Go on with *work* from its resumption; claims and journal are this process's already.

    When the files of the user are not what they were, its nodes are aborted.

    Raises:
        BrokenOffError: it cannot go on after all.
    """
    with namespace.inside(work.site.network_namespace), closing(EventFile(work.folder / events.FILE_NAME)) as file:
        tell = _to_all(file, listener)
        with _begun(work.wid), _released(work.wid):
            work, staged = _staged_again(work, account)
            with closing(staged):
                taken = [name for name in work.names if name not in left_out]
                report = _record_and_run(work.only(taken), left_out, tell, stop)
            tell(Ended(operation=work.operation, groups=work.groups, report=report))
    runs.purge(work.site, work.wid)
    return report


def _staged_again(work: Work, account: Account | None) -> tuple[Work, Staged]:
    """*work* with its images open; without them all of its nodes end."""
    try:
        staged = staging.reopen(work.assignments, work.folder, account)
    except KadeployError as error:
        found = cast("Resumption", work.resumption)
        lost = replace(work, resumption=found.give_up(found.going, str(error)))
        return lost, Staged(dict(work.assignments), {}, work.folder)
    return _with(work, staged), staged


def _with(work: Work, staged: Staged) -> Work:
    lent = {path: stream.fileno() for path, stream in staged.images.items()}
    return replace(work, assignments=staged.assignments, lent=lent)


def _free_nodes_of_the_dead(work: Work, tell: Listener) -> None:
    if work.only_looks:
        return
    for wid, names in claims.reap(work.site).items():
        tell(Note(text=f"workflow {wid} was left by a controller that died; its nodes are free again: {fold(names)}"))


def _stage(work: Work, files: Sources, stop: threading.Event) -> Staged:
    """Open the user's files, in a thread: where a file system hangs, it holds up the thread, and not who interrupts.

    Raises:
        UserInterruptError: *stop* was set meanwhile.
    """
    job: Future[Staged] = Future()

    def run() -> None:
        try:
            job.set_result(staging.stage(work.assignments, work.folder, files, work.uploads))
        except BaseException as error:  # it is raised where it is waited for
            job.set_exception(error)

    threading.Thread(target=run, name="staging", daemon=True).start()
    while not stop.is_set():
        with suppress(TimeoutError):
            return job.result(timeout=_PATIENCE)
    raise UserInterruptError("Interrupted; no node was touched.")


_PATIENCE = 0.2
"""Seconds between two looks at the stop event while files are read."""


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make the folder of a workflow; a request that is refused leaves none behind."""
    path.mkdir(mode=0o700, parents=True)
    with _gone_if_refused(path):
        yield


@contextmanager
def _gone_if_refused(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _look(work: Work, tell: Listener, stop: threading.Event) -> Report:
    """Ask nodes something: whoever holds them goes on, and nothing of it is recorded or kept."""
    try:
        report = _run(work, {}, Results(work), tell, stop)
        tell(Ended(operation=work.operation, groups=work.groups, report=report))
        return report
    finally:
        if not work.is_followed:  # monitoring looks every minute
            shutil.rmtree(work.folder, ignore_errors=True)


def _claim_and_run(work: Work, account: Account | None, tell: Listener, stop: threading.Event) -> Report:
    with _gone_if_refused(work.folder):
        wanted = work.admitted
        others = nodes.holders(work.site, wanted) if work.force else []
        claimed, busy = nodes.claim(work.site, wanted, work.wid, work.user, work.force, work.parts)
    left_out = {**work.quarantined, **busy}
    with _begun(work.wid), _released(work.wid):
        if others:
            tell(Note(text=f"nodes are taken from {', '.join(others)}: {PATIENCE:g} s to let go of them"))
            stop.wait(PATIENCE)
        if left_out:
            tell(LeftOut(reasons=left_out))
        report = Report(work.wid, ko=left_out)
        if claimed:
            record.write(work, account, claimed, left_out)
            report = _record_and_run(work.only(claimed), left_out, tell, stop)
        tell(Ended(operation=work.operation, groups=work.groups, report=report))
        return report


@contextmanager
def _released(wid: str) -> Iterator[None]:
    """Give the nodes back in the end."""
    try:
        yield
    finally:
        nodes.release(wid)


@contextmanager
def _begun(wid: str) -> Iterator[None]:
    """From here on nothing is a refusal any more: what stops the operation says that nodes may be touched.

    Raises:
        BrokenOffError: in place of what is raised inside.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads the output any more
        raise
    except (KadeployError, OSError) as error:
        reason = str(error).rstrip(".")
        raise BrokenOffError(
            f"{wid} broke off after it had begun, and its nodes may be in any state: {reason}. Run it again afterwards."
        ) from error


def _record_and_run(work: Work, left_out: Mapping[str, str], listener: Listener, stop: threading.Event) -> Report:
    report = _run(work, left_out, Recorder(work), listener, stop)
    if work.host_keys:
        report = msgspec.structs.replace(report, host_keys=tuple(hostkeys.lines(work, report)))
    if work.production is not None:
        production.count_failures(work.site, work.production, report)
    if work.operation == "deploy" and (judged := quarantine.judge(work.site, report)):
        listener(Note(text=judged))
    if said := hooks.run(work.hook, work.wid, work.site.end_hook_timeout):
        listener(Note(text=said))
    return report


def _run(
    work: Work, left_out: Mapping[str, str], results: Results, listener: Listener, stop: threading.Event
) -> Report:
    tell = _to_all(results, listener)
    _open(work, tell, listener)
    try:
        _run_clusters(work, tell, results.keep_alive, stop)
    finally:
        if lost := results.lost():
            tell(Finished(finals=lost))
        results.close()
    return results.report(left_out)


def _open(work: Work, tell: Listener, aside: Listener) -> None:
    """Tell that the operation begins, or goes on; what is of no concern to the database is told to *aside* alone."""
    found = work.resumption
    if found is None:
        tell(_began(work))
        return
    if not found.announced:
        aside(_began(work))
    tell(Note(text=f"workflow {work.wid} goes on after its controller died", resumed=True))
    for names, hear in ((found.given_up, tell), (found.taken_away, aside)):
        if names:
            hear(Finished(finals=found.finals(sorted(names))))


def _began(work: Work) -> Began:
    return Began(
        wid=work.wid,
        operation=work.operation,
        user=work.user,
        groups=work.groups,
        plans={cluster: work.plans[cluster] for cluster in work.groups},
        notes=work.notes,
        usual=forecast.usual(work),
        passing=work.passing,
    )


def _run_clusters(work: Work, tell: Listener, keep_alive: Callable[[], None], stop: threading.Event) -> None:
    """One automaton per cluster, all at the same time; what they say is dealt with here, one event after the other."""
    numbers = itertools.count(work.resumption.next_number if work.resumption else 1)
    channel = _Channel()
    guard = Guard(work, channel.put)
    workers = _workers(work, stop, guard)
    with _kept_connections(work) as keeper, guard.watching(_Hands(keeper, tuple(workers.values()))):
        threads = [
            threading.Thread(
                target=_run_cluster, args=(work, cluster, numbers, channel, stop, guard, keeper, workers), name=cluster
            )
            for cluster in work.groups
        ]
        for thread in threads:
            thread.start()
        try:
            channel.listen(len(threads), tell, keep_alive, max(1.0, work.site.purge_deployment_timer / 3))
        except BaseException:
            stop.set()
            raise
        finally:
            for thread in threads:
                thread.join()


def _run_cluster(
    work: Work,
    cluster: str,
    numbers: Iterator[int],
    channel: _Channel,
    stop: threading.Event,
    guard: Guard,
    keeper: Brokers,
    workers: Mapping[str, Elsewhere],
) -> None:
    player = Player(work.assignments[cluster], work.members, channel.put, stop, guard.taken, keeper.hold)
    if cluster in workers:
        player = replace(player, elsewhere=workers[cluster].perform)
    observer, leaving = _Observer(channel.put), guard.leaving[cluster]
    names, plan = work.groups[cluster], work.plans[cluster]
    try:
        ways = work.resumption.ways if work.resumption else None
        workflow.run(
            names,
            plan,
            player.perform,
            observer,
            stop,
            numbers=numbers,
            ways=ways,
            leaving=leaving,
            passing=work.passing,
        )
    finally:
        channel.leave()


def _workers(work: Work, stop: threading.Event, guard: Guard) -> dict[str, Elsewhere]:
    """By cluster: whoever has its shards carried out on other machines."""
    clusters = {name: work.assignments[name].cluster for name in work.groups if work.site.service.workers}
    return {
        name: Elsewhere(work.site, cluster, work.wid, stop, guard.taken)
        for name, cluster in clusters.items()
        if cluster.workers != "never"
    }


@dataclass(frozen=True)
class _Hands:
    """All through which nodes are acted on: the brokers here, and workers elsewhere."""

    keeper: Brokers
    workers: tuple[Elsewhere, ...]

    def take(self, reasons: Mapping[str, str]) -> Future[None]:
        """See `kadeploy.remote.broker.Broker.take`."""
        return together([self.keeper.take(reasons), *(done for each in self.workers for done in each.take(reasons))])


@contextmanager
def _kept_connections(work: Work) -> Iterator[Brokers]:
    """Keep ssh connections from one micro-step to the next; those of many nodes are parted between several cores."""
    shards = -(-len(work.names) // work.site.shard)
    keeper = Brokers(work.folder, Credentials.of(work.site), work.lent, min(shards, os.cpu_count() or 1))
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop()


# --- from many threads to one ---------------------------------------------------------------------------------------


def _to_all(*listeners: Listener) -> Listener:
    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


class _Channel:
    """Takes events from the threads of all automata to the thread that launched the operation.

    So the database sees one connection, and listeners need no locks.
    """

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def put(self, event: Event) -> None:
        """From any thread: pass *event* on."""
        self._events.put(event)

    def leave(self) -> None:
        """From the thread of an automaton: it has said all it has to say."""
        self._events.put(None)

    def listen(self, speakers: int, tell: Listener, idle: Callable[[], None], period: float) -> None:
        """Tell what comes until all *speakers* have left; call *idle* when nothing has come for *period* seconds."""
        while speakers:
            try:
                event = self._events.get(timeout=period)
            except queue.Empty:
                idle()
                continue
            if event is None:
                speakers -= 1
            else:
                tell(event)


@dataclass(frozen=True)
class _Observer:
    """What an automaton tells, as events."""

    tell: Listener

    def started(self, attempt: Attempt, names: tuple[str, ...]) -> None:
        self.tell(AttemptStarted(attempt=attempt, nodes=names))

    def ended(self, attempt: Attempt, outcomes: Mapping[str, Outcome], seconds: float) -> None:
        self.tell(AttemptEnded(attempt=attempt, outcomes=outcomes, seconds=seconds))

    def finished(self, finals: Mapping[str, Final]) -> None:
        self.tell(Finished(finals=finals))
