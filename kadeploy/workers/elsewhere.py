"""The controller's side: shards of a cluster are given to workers, and followed until they end."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kadeploy.boot import secret
from kadeploy.config import logins
from kadeploy.config.cluster import Cluster
from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError
from kadeploy.events import Event, Listener, StepResult
from kadeploy.runner.player import Part
from kadeploy.state.database import url_of
from kadeploy.workers import jobs, lease, presence
from kadeploy.workers.jobs import Job
from kadeploy.workers.lease import Lease, Report, Reports, Told
from kadeploy.workflow import Again, Outcome, Verdict

UNTAKEN = 30.0
"""Seconds for which a shard waits for a worker where none is alive; one that only would rather have one waits less."""
RATHER = 5.0
LOSSES = 3
"""How often a node may be lost with its worker in one try; then it is KO."""
_ASK = 10.0
"""Seconds between two questions to the queue."""
_LOOK = 0.1
"""Seconds between two looks at what a worker reports."""


class Elsewhere:
    """Has shards of one cluster in one workflow carried out by workers."""

    def __init__(self, site: Site, cluster: Cluster, wid: str, stop: threading.Event, taken: Mapping[str, str]) -> None:
        self.site = site
        self.cluster = cluster
        self.wid = wid
        self.stop = stop
        self.taken = taken
        self._losses: Counter[str] = Counter()
        self._given: set[_Given] = set()
        self._lock = threading.Lock()

    @property
    def must(self) -> bool:
        """Whether this machine does not reach the nodes."""
        return self.cluster.workers == "only"

    def perform(self, part: Part, tell: Listener) -> dict[str, Outcome] | None:
        """Have a worker carry out *part*: an outcome for each of its nodes. None: it is to be done here.

        A node whose worker is lost is LOST, unless it had another verdict already; the third time in a try it is KO.
        """
        if not self.must and not presence.serves(self.site, self.cluster.name):
            return None
        given = _Given(part, self._lease(part), tell)
        given.write()
        with self._lock:
            self._given.add(given)
        try:
            job = Job(self.wid, part.folder.name, given.lease.key)
            number = given.number = jobs.defer(url_of(self.site), self.cluster.name, job)
            try:
                return self._followed(given)
            finally:
                with suppress(DatabaseError):  # what came of it is known, and the next one that withdraws clears away
                    jobs.withdraw(url_of(self.site), number)
        except DatabaseError as error:
            return (
                self._outcomes(given, Outcome(Verdict.KO, f"{part.attempt.implementation}: {error}"))
                if self.must
                else None
            )
        finally:
            given.withdraw()
            given.end()
            with self._lock:
                self._given.discard(given)

    def take(self, reasons: Mapping[str, str]) -> list[Future[None]]:
        """Take nodes from the workers: each is done once nothing is done to some of them any more."""
        with self._lock:
            return [each.take(reasons) for each in self._given if not reasons.keys().isdisjoint(each.lease.nodes)]

    def _lease(self, part: Part) -> Lease:
        request = part.request
        attempt = part.attempt
        if request.cluster.loader.show_secret:  # who writes profiles and who waits for nodes are two machines
            secret.make(Path(request.workflow_dir), attempt)
        power = request.cluster.power
        files = [request.site.ssh.private_key]
        files += [str(part.config_dir / power.password_file)] if power.password_file else []
        files += [str(logins.path(request.site, request.cluster.name))] if request.cluster.inventory else []
        images = [each for each in (request.image, *request.partition_images) if each]
        return Lease(
            key=secrets.token_urlsafe(32),
            cluster=request.cluster.name,
            nodes=part.nodes,
            attempt=attempt,
            images={image.sha256: image.path for image in images},
            secrets=tuple(files),
            taken={node: self.taken[node] for node in part.nodes if node in self.taken},
        )

    def _followed(self, given: _Given) -> dict[str, Outcome] | None:
        """Until the worker is through, or lost, or the shard is nobody's business any more."""
        clock = _Clock()
        while True:
            for report in given.new():
                clock.heard(report.worker)
                if report.outcomes is not None:
                    self._found(given.lease.nodes)
                    return given.outcomes(report.outcomes)
                if report.fault:
                    return self._lost(given, f"worker {report.worker}: {report.fault}")
            if self.stop.is_set() or all(node in self.taken for node in given.lease.nodes):
                given.withdraw()
                clock.stopped()
            if clock.is_out_of_patience:
                return self._outcomes(given, Outcome(Verdict.KO, f"{given.part.attempt.implementation}: aborted"))
            if clock.worker and clock.silence > lease.LOST:
                return self._lost(given, f"worker {clock.worker} has said nothing for {lease.LOST:g} s")
            if not clock.worker and (end := self._untaken(given, clock)):
                return end.outcomes
            clock.touch(given.part.folder)
            time.sleep(_LOOK)

    def _found(self, nodes: Iterable[str]) -> None:
        """Losses count within one try."""
        for node in nodes:
            self._losses.pop(node, None)

    def _untaken(self, given: _Given, clock: _Clock) -> _End | None:
        """What becomes of a shard that no worker has taken yet; None: it waits."""
        if not self.must:
            if clock.silence < RATHER:
                return None
            given.withdraw()
            return None if lease.is_claimed(given.part.folder) else _End(None)
        if clock.silence < UNTAKEN:
            return None
        if presence.serves(self.site, self.cluster.name):
            return self._between(given, clock)
        name, cluster = given.part.attempt.implementation, self.cluster.name
        reason = (
            f"{name}: no worker serves cluster {cluster}: start kadeploy-worker on a machine that reaches its nodes "
            "(kadeploy-site workers shows which there are)"
        )
        return _End(self._outcomes(given, Outcome(Verdict.KO, reason, again="never")))

    def _between(self, given: _Given, clock: _Clock) -> _End | None:
        """A job that a worker has taken, and died before it had claimed the shard, waits for nobody."""
        if not clock.is_time_to_ask:
            return None
        with suppress(DatabaseError):
            if jobs.is_waiting(url_of(self.site), given.number):
                clock.missing_since = None
            elif clock.missing_since is None:
                clock.missing_since = time.monotonic()
            elif time.monotonic() - clock.missing_since > UNTAKEN and not lease.is_claimed(given.part.folder):
                given.withdraw()
                return _End(self._lost(given, "the worker that took it has not begun"))
        return None

    def _lost(self, given: _Given, reason: str) -> dict[str, Outcome]:
        """Of those that had no verdict yet: their try begins anew, unless that has happened too often."""
        name = given.part.attempt.implementation
        answer = dict(given.ended)
        for node in given.lease.nodes:
            if node not in answer:
                self._losses[node] += 1
                if self._losses[node] < LOSSES:
                    booted: Again = "before" if given.part.boots else ""
                    answer[node] = Outcome(Verdict.LOST, f"{name}: {reason}", again=booted)
                else:
                    answer[node] = Outcome(Verdict.KO, f"{name}: {reason}; {LOSSES} workers were lost with this node")
        return answer

    def _outcomes(self, given: _Given, otherwise: Outcome) -> dict[str, Outcome]:
        return {node: given.ended.get(node, otherwise) for node in given.lease.nodes}


@dataclass(frozen=True)
class _End:
    """How a shard ends that no worker has taken; without outcomes it is to be done on this machine."""

    outcomes: dict[str, Outcome] | None


class _Clock:
    """When something was heard last, and from whom."""

    def __init__(self) -> None:
        self.worker = ""
        self._heard = self._touched = time.monotonic()
        self._stopped: float | None = None
        self._asked = 0.0
        self.missing_since: float | None = None
        """Since when the shard has been in nobody's hands, and not in the queue either."""

    def heard(self, worker: str) -> None:
        self.worker, self._heard = worker, time.monotonic()

    def stopped(self) -> None:
        """What is under way has as long as a worker needs to notice that it is alone."""
        self._stopped = self._stopped or time.monotonic()

    @property
    def silence(self) -> float:
        return time.monotonic() - self._heard

    @property
    def is_out_of_patience(self) -> bool:
        if self._stopped is None:
            return False
        return not self.worker or time.monotonic() - self._stopped > lease.LOST

    @property
    def is_time_to_ask(self) -> bool:
        """Whether the queue was not asked lately."""
        if time.monotonic() - self._asked < _ASK:
            return False
        self._asked = time.monotonic()
        return True

    def touch(self, folder: Path) -> None:
        """Show the service now and then that we are alive."""
        if time.monotonic() - self._touched > lease.TOUCH:
            self._touched = time.monotonic()
            lease.touch(folder)


@dataclass(eq=False)
class _Given:
    """A shard that a worker may have."""

    part: Part
    lease: Lease
    tell: Callable[[Event], None]
    number: int = 0
    """Of its job."""
    ended: dict[str, Outcome] = field(default_factory=dict)
    """Nodes of which a worker has told a verdict that is none of OK."""
    leaving: list[tuple[set[str], Future[None]]] = field(default_factory=list)
    """Nodes that were taken and have not been let go, with whoever waits for that."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_ended: bool = False

    def __post_init__(self) -> None:
        self._reports = Reports(self.part.folder)

    def write(self) -> None:
        lease.write(self.part.folder, self.lease)

    def withdraw(self) -> None:
        """Nobody may do anything with it any more."""
        with self.lock:
            if not self.lease.is_over:
                self.lease = msgspec.structs.replace(self.lease, is_over=True)
                self.write()

    def take(self, reasons: Mapping[str, str]) -> Future[None]:
        done: Future[None] = Future()
        with self.lock:
            names = set(self.lease.nodes) & reasons.keys()
            if self.is_ended:
                done.set_result(None)
                return done
            self.leaving.append((names, done))
            taken = {**self.lease.taken, **{name: reasons[name] for name in names}}
            self.lease = msgspec.structs.replace(self.lease, taken=taken)
            self.write()
        return done

    def new(self) -> list[Report]:
        """What has been reported since the last time, told to whoever wants to know."""
        found = list(self._reports.new())
        for report in found:
            for event in report.events:
                if (told := self._ours(event)) is not None:
                    self.tell(told)
            self._let_go(set(report.let_go))
        return found

    def outcomes(self, told: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """Of our nodes alone, and of all of them: a worker's word about others does not count."""
        missing = Outcome(Verdict.KO, f"{self.part.attempt.implementation}: no verdict")
        return {node: told.get(node, missing) for node in self.lease.nodes}

    def end(self) -> None:
        """Nothing is done to any of the nodes any more."""
        with self.lock:
            self.is_ended = True
        self._let_go(set(self.lease.nodes))

    def _let_go(self, names: set[str]) -> None:
        with self.lock:
            for left, done in self.leaving:
                left.difference_update(names)
                if not left and not done.done():
                    done.set_result(None)
            self.leaving = [each for each in self.leaving if each[0]]

    def _ours(self, event: Told) -> Told | None:
        """*event* as far as it is about this attempt and these nodes."""
        known = set(self.lease.nodes)
        if isinstance(event, StepResult):
            outcomes = {node: outcome for node, outcome in event.outcomes.items() if node in known}
            for node, outcome in outcomes.items():
                if outcome.verdict is not Verdict.OK:
                    self.ended.setdefault(node, outcome)
            return msgspec.structs.replace(event, attempt=self.part.attempt, outcomes=outcomes) if outcomes else None
        nodes = tuple(node for node in event.nodes if node in known)
        return msgspec.structs.replace(event, attempt=self.part.attempt, nodes=nodes) if nodes else None
