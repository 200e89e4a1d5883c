"""Takes nodes from an operation while it runs: those on which its user's right ends, and those that another one took.

Every few seconds a thread asks the database. A node is taken only when the answer is a clear no: a database that does
not answer is asked again. A node is then aborted at once (`workflow.Leaving`), the broker ends what is done to it and
refuses what is asked for it later, and its claim is freed once nothing is under way any more (`events.LetGo`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from kadeploy.errors import DatabaseError
from kadeploy.events import LetGo, Listener, Taken
from kadeploy.operations import permission
from kadeploy.operations.work import Work
from kadeploy.state import database, nodes
from kadeploy.workflow import ABORTED, Leaving

PERIOD = 2.0
"""Seconds between two looks."""
PATIENCE = 5.0
"""Seconds within which an operation lets go of nodes, unless a BMC's order or a command of the site takes longer."""


class Hands(Protocol):
    """All through which nodes of a workflow are acted on."""

    def take(self, reasons: Mapping[str, str]) -> Future[None]:
        """From any thread: take nodes from them; done once nothing is done to these any more."""


class Guard:
    """Watches over the nodes of *work*, all of which it has claimed; *tell* may be called from any thread."""

    def __init__(self, work: Work, tell: Listener) -> None:
        self.work = work
        self.tell = tell
        self._ended = {name for name, way in work.resumption.ways.items() if way.final} if work.resumption else set()
        """Nodes whose end was told before the workflow's controller died."""
        self.taken: dict[str, str] = {}
        """Why each node was taken; grows while others read it."""
        self.leaving = {cluster: Leaving() for cluster in work.groups}
        self._over = threading.Event()

    @contextmanager
    def watching(self, keeper: Hands) -> Iterator[None]:
        """Look at once and every `PERIOD` seconds while it lasts; an operation that only looks at nodes holds none."""
        if self.work.only_looks:
            yield
            return
        self._look(keeper)
        thread = threading.Thread(target=self._watch, args=(keeper,), name="guard")
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self, keeper: Hands) -> None:
        try:
            while not self._over.wait(PERIOD):
                if not self._look(keeper):
                    database.disconnect()  # it may be back at the next look, by another connection
        finally:
            database.disconnect()

    def _look(self, keeper: Hands) -> bool:
        """Take what is lost; False when the database does not tell."""
        try:
            lost = self._lost()
        except DatabaseError:
            return False
        if lost:
            self._take(lost, keeper)
        return True

    def _lost(self) -> dict[str, str]:
        """Nodes that are not ours any more, and why."""
        work = self.work
        lost: dict[str, str] = {}
        for cluster, names in work.groups.items():
            left = [name for name in names if name not in self.taken and name not in self._ended]
            without = permission.missing(work.site, work.assignments[cluster], left)
            lost |= {
                node: f"{ABORTED}: {work.user} does not have the right to use {part} of {node} any more"
                for node, part in without.items()
            }
            lost |= {node: f"{ABORTED}: {why}" for node, why in nodes.lost(work.site, work.wid, left).items()}
        return lost

    def _take(self, lost: Mapping[str, str], keeper: Hands) -> None:
        self.taken |= lost
        self.tell(Taken(reasons=lost))
        for leaving in self.leaving.values():
            leaving.take(lost)
        keeper.take(lost).add_done_callback(partial(self._let_go, tuple(lost)))

    def _let_go(self, names: Iterable[str], done: Future[None]) -> None:
        if not done.cancelled() and done.exception() is None:
            self.tell(LetGo(nodes=tuple(names)))
