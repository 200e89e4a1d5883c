"""Runs told again: what a run's page showed at any moment of it, from the events that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kadeploy.config.site import Site
from kadeploy.events import Event
from kadeploy.operations import follow
from kadeploy.server.web.lanes import Lanes, Picture
from kadeploy.server.web.recent import Recent


class Replayed:
    """A run as one reader sees it again. To go on costs what has happened meanwhile, to go back all from the start."""

    def __init__(self, site: Site, wid: str) -> None:
        self._site, self._wid = site, wid
        self._begin()

    def _begin(self) -> None:
        self._events: Iterator[tuple[int, Event]] = follow.opened(self._site, self._wid).read()
        self._lanes, self._told = Lanes(self._wid), 0.0
        self._next = next(self._events, None)

    def picture(self, moment: float) -> Picture:
        """As it was at *moment* (Unix seconds).

        Raises:
            UnknownWorkflowError: what was kept of it is gone, or damaged.
        """
        if moment < self._told:
            self._begin()
        while self._next and self._next[1].at <= moment:
            self._lanes.feed(self._next[1])
            self._next = next(self._events, None)
        self._told = moment
        return self._lanes.picture(moment, goes_on=self._next is not None)


_replayed: Recent[tuple[Replayed, Picture]] = Recent(period=0.0, idle=60.0)


def replayed(site: Site, wid: str, user: str, moment: float) -> Picture:
    """The run *wid* as it was at *moment*, for *user*, who most often looks at a later one next.

    Raises:
        UnknownWorkflowError: see `Replayed.picture`.
    """

    def renew(before: tuple[Replayed, Picture] | None) -> tuple[Replayed, Picture]:
        found = before[0] if before else Replayed(site, wid)
        return found, found.picture(moment)

    key: tuple[Path, str, str] = (site.state, wid, user)
    return _replayed.get(key, renew)[1]
