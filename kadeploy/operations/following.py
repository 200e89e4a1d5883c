"""A workflow of another process: whose it is, and what it tells from its beginning to its end."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

from kadeploy import events
from kadeploy.config.site import Site
from kadeploy.errors import BrokenOffError, UnknownWorkflowError
from kadeploy.events import Began, Ended, Listener, Report
from kadeploy.operations.follow import follow
from kadeploy.operations.work import run_folder
from kadeploy.state import controllers

_FORM = re.compile(r"[A-Z]-[0-9a-z]{1,32}")
"""What a workflow id looks like; it becomes the name of a folder."""
_LOOKS = 300.0
"""Seconds of silence after which an operation is over that only looks at nodes: the journal does not tell."""


def events_of(site: Site, wid: str) -> Path:
    """The file of its events.

    Raises:
        UnknownWorkflowError: nothing of it is kept any more.
    """
    path = run_folder(site, wid) / events.FILE_NAME
    if not _FORM.fullmatch(wid) or not path.is_file():
        raise UnknownWorkflowError(f"{wid}: its events are not kept any more; kastat3 -d -w {wid} tells how it ended.")
    return path


def begun_by(site: Site, wid: str) -> str:
    """The user whose workflow it is, by its own events: the journal does not tell of one that only looks at nodes.

    Empty where they are not kept.
    """
    try:
        first = next(events.read(events_of(site, wid)), None)
    except UnknownWorkflowError:
        return ""
    return first.user if isinstance(first, Began) else ""


def goes_on(site: Site, wid: str, path: Path) -> bool:
    """Whether more events will come."""
    if controllers.of(site, wid) is None:
        return path.exists() and time.time() - path.stat().st_mtime < _LOOKS
    return controllers.goes_on(site, wid)


def broken_off(site: Site, wid: str) -> BrokenOffError:
    """Why a workflow has no end."""
    found = controllers.of(site, wid)
    why = controllers.gone(site, wid, found[0]) if found else "its controller is gone"
    return BrokenOffError(f"{wid} was not brought to an end: {why}.")


def attach(site: Site, wid: str, listener: Listener, stop: threading.Event) -> Report | None:
    """Tell *listener* what the workflow *wid* has told and tells, in this thread; None once *stop* is set.

    Raises:
        UnknownWorkflowError: nothing of it is kept any more.
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
