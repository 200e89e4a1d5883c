"""A workflow of another process: what it tells, from its beginning, and how it is stopped."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from types import TracebackType
from typing import Self

from kadeploy import events
from kadeploy.config.site import Site
from kadeploy.errors import BrokenOffError, KadeployError, OptionError
from kadeploy.events import Began, Ended, Listener, Report
from kadeploy.operations.work import run_folder
from kadeploy.process import is_alive, is_here
from kadeploy.state import controllers

_POLL = 0.2
"""Seconds between two looks at the file of a workflow that goes on."""
_PIECE = 1 << 20
_ENDED = b'{"event":"ended"'


class Tail:
    """The end of a run's file of events, as it grows.

    Raises:
        OptionError: nothing of the workflow is kept any more.
    """

    def __init__(self, site: Site, wid: str, after: int = 0) -> None:
        self.site, self.wid, self.after = site, wid, after
        self.ended = False
        """Whether the last event has been read."""
        self._dead: KadeployError | None = None
        try:
            if not _FORM.fullmatch(wid):
                raise FileNotFoundError(wid)
            self._file = (run_folder(site, wid) / events.FILE_NAME).open("rb", buffering=0)
        except OSError as error:
            raise OptionError(
                f"{wid}: its events are not kept any more; kastat3 -d -w {wid} tells how it ended."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    def read(self) -> list[tuple[int, bytes]]:
        """The lines that are there and were not read yet, each with the number of bytes up to its end."""
        self._file.seek(self.after)
        content = self._file.read(_PIECE)
        lines = content.split(b"\n")[:-1]  # what is behind the last line end is not finished
        found = []
        for line in lines:
            self.after += len(line) + 1
            found.append((self.after, line))
            self.ended = self.ended or line.startswith(_ENDED)
        return found

    def why_dead(self) -> KadeployError | None:
        """Why nothing more will come, for a workflow that was not brought to an end.

        It is known the second time that this is asked: the controller may have said its last words in between.
        """
        if self._dead is not None:
            return self._dead
        who = controllers.dead(self.site).get(self.wid)
        over = who is None and controllers.running(self.site, self.wid) is None
        if who is not None or over:
            why = controllers.gone(self.site, self.wid, who) if who else "its controller died"
            self._dead = BrokenOffError(f"{self.wid} was not brought to an end: {why}.")
        return None


def begun_by(site: Site, wid: str) -> str:
    """The user whose workflow it is, by its own events: the journal does not tell of one that only looks at nodes.

    Empty where they are not kept.
    """
    path = run_folder(site, wid) / events.FILE_NAME
    first = next(events.read(path), None) if _FORM.fullmatch(wid) and path.is_file() else None
    return first.user if isinstance(first, Began) else ""


_FORM = re.compile(r"[A-Z]-[0-9a-z]{1,32}")
"""What a workflow id looks like; it becomes the name of a folder."""


def attach(site: Site, wid: str, listener: Listener, stop: threading.Event) -> Report | None:
    """Tell *listener* what the workflow *wid* has told and tells, in this thread; None once *stop* is set.

    Raises:
        OptionError: nothing of it is kept any more.
        KadeployError: its controller died.
    """
    with Tail(site, wid) as tail:
        while not stop.is_set():
            found = tail.read()
            for _, line in found:
                event = events.parsed(line)
                if event is not None:
                    listener(event)
                if isinstance(event, Ended):
                    return event.report
            if not found:
                if (error := tail.why_dead()) is not None:
                    raise error
                time.sleep(_POLL)
    return None


def cancel(site: Site, wid: str) -> bool:
    """Have the workflow *wid* end within seconds, its nodes aborted and free; False when it has ended already.

    Raises:
        OptionError: its process is on another machine.
    """
    who = controllers.running(site, wid)
    if who is None:
        return False
    if not is_here(who):
        raise OptionError(f"{wid} runs on {who.host}: cancel it there.")
    if is_alive(who):
        os.kill(who.pid, signal.SIGTERM)
    return True
