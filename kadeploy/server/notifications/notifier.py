"""Tells users of operations that have ended, beside whatever else the service does.

What has ended is seen in the database, whoever carried it out: the service, or a tool of root's. Nothing of a run waits
for it. Each user's channel has one message under way at a time, so that one that is dead takes a thread and no more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError, KadeployError
from kadeploy.operations import ended
from kadeploy.server.notifications import sending
from kadeploy.state import database, flows, notifications
from kadeploy.state.damage import sparing
from kadeploy.state.journal import Flow
from kadeploy.state.notifications import LATEST, Channel, Delivery, Kept, Place

_LOG = logging.getLogger("kadeploy.server")
_PERIOD = 2.0
"""Seconds between two looks."""
WAITS = (10, 60, 600, 3600)
"""Seconds until a message is tried again, after each failure; behind the last it is given up."""
THREADS: Mapping[Channel, int] = {"mail": 2, "webhook": 16}
_OVERLAP = 600
"""Seconds before the last look from which ends are looked at again: clocks of controllers differ."""
_PARTING = 15.0
"""Seconds that the end of the service waits for messages that are under way."""


class Notifier:
    """A thread that does it, from `start` to `stop`."""

    def __init__(
        self,
        configuration: Callable[[], Configuration],
        waits: tuple[int, ...] = WAITS,
        period: float = _PERIOD,
    ) -> None:
        self._configuration = configuration
        self._waits = waits
        self._period = period
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
        self._pools = {name: ThreadPoolExecutor(most, f"notifier-{name}") for name, most in THREADS.items()}
        self._under_way: dict[Place, tuple[Delivery, Future[str]]] = {}
        self._looked_at: dict[str, int] = {}
        """Workflows that need no further look: when they ended."""
        self._since: int | None = None
        self._said = ""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, once what is under way is done, or has taken too long: another service goes on with it then."""
        self._stop.set()
        self._thread.join(_PARTING)
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            self._look()
        until = time.monotonic() + _PARTING
        while self._under_way and time.monotonic() < until:
            time.sleep(0.05)
            self._guarded(self._note_results)
        database.disconnect()

    def _look(self) -> None:
        """Once: what has ended goes into the outbox, what is due is sent."""
        self._guarded(self._note_results)
        self._guarded(self._find)
        self._guarded(self._send)

    def _guarded(self, what: Callable[[], None]) -> None:
        """What goes wrong is told once, not at each look."""
        try:
            what()
        except KadeployError as error:
            if str(error) != self._said:
                self._said = str(error)
                _LOG.error("notifications: %s", error)
        except Exception:
            _LOG.exception("notifications failed; they go on")

    # --- finding ----------------------------------------------------------------------------------------------------

    def _find(self) -> None:
        site, now = self._configuration().site, int(time.time())
        wanted = self._wanted(site)
        if not wanted:
            return
        since = now - LATEST if self._since is None else self._since - _OVERLAP
        for flow in notifications.ended(site, since):
            if flow.wid not in self._looked_at and self._is_done_with(site, flow, wanted.get(flow.user)):
                self._looked_at[flow.wid] = flow.ended or now
        self._looked_at = {wid: end for wid, end in self._looked_at.items() if end >= since}
        self._since = now

    def _wanted(self, site: Site) -> Mapping[str, Kept]:
        """What users have chosen, less rows that cannot be read, which are told."""
        found: Mapping[str, Kept] = {}
        try:
            with sparing():
                found = notifications.everybody(site)
        except DatabaseError as error:
            if not found:
                raise
            if str(error) != self._said:
                self._said = str(error)
                _LOG.error("notifications: %s", error)
        return found

    def _is_done_with(self, site: Site, flow: Flow, kept: Kept | None) -> bool:
        """Put *flow* into the outbox where its user wants to know of it; False: it has not told its last word."""
        if kept is None or flow.operation not in kept.choice.operations or (flow.ended or 0) < kept.since:
            return True
        run = ended.of(site, flow)
        if run is None:
            return False
        if run.has_failed or kept.choice.outcome == "always":
            notifications.put(site, {flow.wid: flow.user}, kept.choice.channels)
        return True

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        configuration = self._configuration()
        for delivery in notifications.due(configuration.site, self._under_way):
            if not notifications.take(configuration.site, delivery):
                continue
            place = delivery.user, delivery.channel
            pool = self._pools[cast("Channel", delivery.channel)]
            self._under_way[place] = delivery, pool.submit(_sent, configuration, delivery)

    def _note_results(self) -> None:
        site = self._configuration().site
        for place, (delivery, future) in list(self._under_way.items()):
            if future.done():
                del self._under_way[place]
                self._note(site, delivery, future)

    def _note(self, site: Site, delivery: Delivery, future: Future[str]) -> None:
        """A message that has not arrived is tried again, or given up."""
        why = future.result()
        if not why:
            notifications.sent(site, delivery)
            return
        is_late = time.time() - delivery.made > LATEST
        again = None if delivery.tries >= len(self._waits) or is_late else self._waits[delivery.tries]
        notifications.failed(site, delivery, why, again)
        then = "it is given up" if again is None else f"it is tried again in {again} s"
        _LOG.warning("%s of %s is not told by %s: %s %s", delivery.wid, delivery.user, delivery.channel, why, then)


def _sent(configuration: Configuration, delivery: Delivery) -> str:
    """Why it could not be, in a thread of its own."""
    try:
        return _tell(configuration, delivery)
    except KadeployError as error:
        return str(error)
    except Exception:
        _LOG.exception("%s is not told by %s", delivery.wid, delivery.channel)
        return "The service failed; its log says why."
    finally:
        database.disconnect()


def _tell(configuration: Configuration, delivery: Delivery) -> str:
    site, channel = configuration.site, cast("Channel", delivery.channel)
    kept, flow = notifications.of(site, delivery.user), flows.find(site, delivery.wid)
    if kept is None or channel not in kept.choice.channels:
        return "The user does not want it any more."
    run = ended.of(site, flow) if flow else None
    if run is None:
        return "Nothing is known of the operation any more."
    return sending.send(configuration, kept, channel, sending.of_run(run, site.notifications.page))
