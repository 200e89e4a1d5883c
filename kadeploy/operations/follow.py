"""The events of a run as they come, for who watches it from another process: from its file, which only grows.

Those of a run whose folder is gone are read from what was kept of it (see `kept_events`). An event's offset is the byte
behind its line, in both: who has lost the connection asks to go on from there.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path

from kadeploy import events
from kadeploy.config.site import Site
from kadeploy.errors import BrokenOffError, UnknownWorkflowError
from kadeploy.events import Began, Ended, Event, Listener, Report, decode
from kadeploy.operations import kept_events
from kadeploy.operations.work import run_folder
from kadeploy.process import is_alive, is_here
from kadeploy.state import controllers

PERIOD = 0.2
"""Seconds between two looks at the file, which cost a system call each while nothing happens."""
_BLOCK = 1 << 20
"""Bytes at the end of the file in which its last line is looked for."""
_PIECE = 1 << 16
"""Bytes that are read at a time: a follower who does not go on holds as much."""
_FORM = re.compile(r"[A-Z]-[0-9a-z]{1,32}")
"""What a workflow id looks like; it becomes the name of a folder."""
_LOOKS = 300.0
"""Seconds of silence after which an operation is over that only looks at nodes: the journal does not tell."""
_LAST = b'{"event":"ended",'
_PULSE = 1.0
"""Seconds between two looks whether the workflow still lives, while nothing happens."""


class Tail:
    """What has been added to a run's file since the last look; a line counts once it is whole."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        """Where the next look begins: behind the last whole line."""
        self._is_over = False
        """Whether all has been read of a file that does not grow any more."""

    @property
    def may_grow(self) -> bool:
        """Whether it is the file of a run folder, rather than what was kept of it."""
        return not kept_events.is_kept(self.path)

    def read(self) -> Iterator[tuple[int, Event]]:
        """New events with their offsets.

        Raises:
            UnknownWorkflowError: they were kept, and the file is damaged; what is before the damage has come.
        """
        for offset, line in self.lines():
            if event := decode(line):
                yield offset, event

    def is_complete(self) -> bool:
        """Whether the last line that was read is that of the end."""
        if not self.may_grow:
            return any(is_last(line) for offset, line in kept_events.lines(self.path) if offset <= self.offset)
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(max(0, self.offset - _BLOCK))
            return is_last(file.read(self.offset - file.tell()).rstrip(b"\n").rpartition(b"\n")[2])
        return False

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """New lines as they are, with their offsets; nothing before the file is there, or once it was purged.

        Raises:
            UnknownWorkflowError: see `read`.
        """
        if not self.may_grow:
            yield from self._kept_lines()
            return
        with suppress(FileNotFoundError):
            if self.path.stat().st_size <= self.offset:
                return
            with self.path.open("rb") as file:
                yield from self._lines(file.fileno())

    def _kept_lines(self) -> Iterator[tuple[int, bytes]]:
        if self._is_over:
            return
        for offset, line in kept_events.lines(self.path, self.offset):
            self.offset = offset
            yield offset, line
        self._is_over = True

    def _lines(self, descriptor: int) -> Iterator[tuple[int, bytes]]:
        begun, position = b"", self.offset
        while block := os.pread(descriptor, _PIECE, position):
            position += len(block)
            *lines, begun = (begun + block).split(b"\n")
            for line in lines:
                self.offset += len(line) + 1
                yield self.offset, line


def is_last(line: bytes) -> bool:
    """Whether *line* is that of `Ended`, after which nothing comes."""
    return line.startswith(_LAST)


def follow(
    path: Path, from_offset: int = 0, *, is_alive: Callable[[], bool], stopped: Callable[[], bool] = bool
) -> Generator[tuple[int, Event], None, bool]:
    """The events of the run whose file is *path*, from an offset on, each with its own; waits for those to come.

    The generator returns True at the end of the operation, after `Ended`, and False when no more will come: *is_alive*,
    which is asked about once a second while nothing happens, says that nobody will go on with the workflow, or
    *stopped* that nobody listens any more.
    """
    tail, pulse = Tail(path, from_offset), 0.0
    while not stopped():
        gone = False
        if time.monotonic() >= pulse:
            gone = not is_alive()  # asked before the look, so that no last word is lost
            pulse = time.monotonic() + _PULSE
        for offset, event in tail.read():
            if stopped():
                return False
            yield offset, event
            if isinstance(event, Ended):
                return True
        if gone:
            break
        time.sleep(PERIOD)
    return False


# --- a workflow by its id -------------------------------------------------------------------------------------------


def events_of(site: Site, wid: str) -> Path:
    """The file of its events: in its run folder, or what was kept of it. A `Tail` reads both.

    Raises:
        UnknownWorkflowError: nothing of it is kept any more, or it is kept for another account than this process's.
    """
    path = _file_of(site, wid) if _FORM.fullmatch(wid) else None
    if path is None:
        raise UnknownWorkflowError(f"{wid}: its events are not kept any more; kastat3 -d -w {wid} tells how it ended.")
    if not os.access(path, os.R_OK, effective_ids=True):
        raise UnknownWorkflowError(
            f"{wid}: its events are for the account alone that carries it out; kanodes3 -y tells how it stands."
        )
    return path


def _file_of(site: Site, wid: str) -> Path | None:
    """What was kept of it is whole; of its folder, who removes it may have left half."""
    kept, folder = kept_events.path_of(site, wid), run_folder(site, wid)
    if kept.is_file():
        return kept
    return folder / events.FILE_NAME if folder.is_dir() else None


def opened(site: Site, wid: str, offset: int = 0) -> Tail:
    """The events of the workflow *wid* from *offset* on, wherever they are: while it runs, when it has ended, or kept.

    Whether it may be told of them the caller has to see to.

    Raises:
        UnknownWorkflowError: see `events_of`.
    """
    return Tail(events_of(site, wid), offset)


def begun_by(site: Site, wid: str) -> str:
    """The user whose workflow it is, by its own events: the journal does not tell of one that only looks at nodes.

    Empty where they are not kept.
    """
    try:
        _, first = next(opened(site, wid).read(), (0, None))
    except UnknownWorkflowError:
        return ""
    return first.user if isinstance(first, Began) else ""


def goes_on(site: Site, wid: str, path: Path) -> bool:
    """Whether more events will come: its controller still tells the last ones once the journal has the end."""
    if kept_events.is_kept(path):
        return False
    found = controllers.of(site, wid)
    if found is None:
        return path.exists() and time.time() - path.stat().st_mtime < _LOOKS
    who, ended = found
    return is_here(who) and is_alive(who) if ended else controllers.goes_on(site, wid)


def broken_off(site: Site, wid: str) -> BrokenOffError:
    """Why a workflow has no end."""
    found = controllers.of(site, wid)
    why = controllers.gone(site, wid, found[0]) if found else "its controller is gone"
    return BrokenOffError(f"{wid} was not brought to an end: {why}.")


def attach(site: Site, wid: str, listener: Listener, stop: threading.Event) -> Report | None:
    """Tell *listener* what the workflow *wid* has told and tells, in this thread; None once *stop* is set.

    Raises:
        UnknownWorkflowError: nothing of it is kept any more, or what was kept is damaged.
        BrokenOffError: its controller died, and nobody goes on.
    """
    path = events_of(site, wid)
    for _, event in follow(path, is_alive=lambda: goes_on(site, wid, path), stopped=stop.is_set):
        listener(event)
        if isinstance(event, Ended):
            return event.report
    if stop.is_set():
        return None
    raise broken_off(site, wid)
