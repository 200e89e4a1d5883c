"""Runs that somebody watches: their files are read, and what pages show of them is made, once a second for all."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kadeploy.config.site import Site
from kadeploy.nodeset import natural_key
from kadeploy.operations import follow, recording
from kadeploy.operations.follow import Tail
from kadeploy.operations.work import run_folder
from kadeploy.server.web.drawing import MARKS, WORDS, draw
from kadeploy.server.web.lanes import Lanes, Picture
from kadeploy.server.web.recent import Recent
from kadeploy.server.web.rendering import render
from kadeploy.server.web.stands import STATES, State

LINKED = 32
"""Nodes in one state up to which each is a link."""
SHOWN: dict[State, tuple[str, str]] = {
    "busy": ("busy", "on their way"),
    "ko": ("ko", "KO"),
    "aborted": ("unknown", "aborted"),
    "breakpoint": ("ok", "at the breakpoint"),
    "ok": ("ok", "OK"),
}
"""The class and the word of each state."""


class Parts(NamedTuple):
    """What a page shows of a run: what changes all the time, and what changes when something has happened."""

    now: str
    rest: str
    mark: str
    """Tells one *rest* from another."""


class Row(NamedTuple):
    """A node in the list that is made when somebody asks for it."""

    name: str
    state: State
    title: str
    micro_step: str
    reason: str


@dataclass
class Watched:
    """A run, as far as its file has been read; `look` before anything else."""

    site: Site
    wid: str
    path: Path

    def __post_init__(self) -> None:
        """Nothing is read yet."""
        self._tail, self._lanes = Tail(self.path), Lanes(self.wid)
        self._lock = threading.Lock()
        self._parts: dict[bool, Parts] = {}
        self.goes_on = True
        """Whether more may be told."""
        self.picture: Picture = self._lanes.picture(time.time())

    def look(self) -> Watched:
        """Read what is new, and picture it."""
        with self._lock:
            lives = self._lanes.ended is None and follow.goes_on(self.site, self.wid, self.path)
            for _, event in self._tail.read():  # after it was asked for, so that no last word is lost
                self._lanes.feed(event)
            self.goes_on = lives and self._lanes.ended is None
            self.picture = self._lanes.picture(time.time(), goes_on=self.goes_on)
            self._parts.clear()
        return self

    def parts(self, is_administrator: bool) -> Parts:
        """What pages show of it by the last look; where things are on the server is for administrators."""
        with self._lock:
            if is_administrator not in self._parts:
                self._parts[is_administrator] = self._made(is_administrator)
            return self._parts[is_administrator]

    def _made(self, is_administrator: bool) -> Parts:
        shown = self._shown(self.picture, is_administrator)
        rest = render("run_rest.html", **shown)
        mark = hashlib.sha256(rest.encode()).hexdigest()[:16]
        now = render("run_now.html", **shown, drawing=draw(self.picture), goes_on=self.goes_on, mark=mark)
        return Parts(now, rest, mark)

    def then(self, picture: Picture, is_administrator: bool, **values: Any) -> str:
        """What pages show of another *picture* of it, of a moment before; *values* are those of the template."""
        return render("run_then.html", **self._shown(picture, is_administrator), drawing=draw(picture), **values)

    def _shown(self, picture: Picture, is_administrator: bool) -> dict[str, Any]:
        """What templates want of a picture."""
        return {
            "picture": picture,
            "marks": MARKS,
            "words": WORDS,
            "shown": SHOWN,
            "linked": LINKED,
            "folder": run_folder(self.site, self.wid) if is_administrator else None,
            "recorded": {each.names[0] for each in picture.failures if self._is_recorded(each.names[0])},
            "tools": TOOLS,
            "sort": natural_order,
        }

    def _is_recorded(self, name: str) -> bool:
        """Whether a console of the node was recorded; who may see that is asked later."""
        return (recording.folder(self.site) / name).is_dir()

    def rows(self, state: str) -> list[Row]:
        """The nodes in *state* (empty: all), one by one."""
        with self._lock:
            stands, where = self._lanes.stands, self._lanes.where
            return [
                Row(name, stands.states[name], *where(name), stands.reasons.get(name, ""))
                for name in stands.ordered(state if state in STATES else "")
            ]


TOOLS = {"deploy": "kadeploy3", "reboot": "kareboot3", "power": "kapower3"}
"""The tool of each kind of run."""


def natural_order(names: Sequence[str]) -> list[str]:
    """*names* as people count."""
    return sorted(names, key=natural_key)


_watched: Recent[Watched] = Recent(most=256)
"""More than the list of runs shows, which looks at all of them."""


def watch(site: Site, wid: str) -> Watched:
    """The run *wid* as it is now, or was a second ago.

    Raises:
        UnknownWorkflowError: nothing of it is kept any more, or it is kept for another account.
    """
    path = follow.events_of(site, wid)
    return _watched.get(path, lambda before: (before or Watched(site, wid, path)).look())
