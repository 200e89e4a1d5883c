"""The controllers of a site's workflows, and which of them are dead.

One of this machine is dead when its process is gone; one of another machine when it gave no sign of life for
``purge_deployment_timer`` seconds. What a dead one left is ended by :func:`kadeploy.state.nodes.reap`; until then,
whoever reads tells it as what it is.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from kadeploy.commands import last_line
from kadeploy.config.site import Site
from kadeploy.printable import printable
from kadeploy.process import Controller, is_alive, is_here
from kadeploy.state.database import connect, fetch
from kadeploy.state.tables import Claim, Workflow

_COLUMNS = ("host", "pid", "process_start", "boot_id")


def dead(site: Site) -> dict[str, Controller]:
    """Dead controllers, by workflow, of workflows that claim nodes or are not closed."""
    connect(site)
    oldest = time.time() - site.purge_deployment_timer
    return {wid: who for wid, (who, seen) in _all().items() if _is_dead(who, seen, oldest)}


def running(site: Site, wid: str) -> Controller | None:
    """The controller of a workflow that has not ended, alive or dead."""
    connect(site)
    columns = [getattr(Workflow, name) for name in _COLUMNS]
    rows = fetch(Workflow.select(*columns).where(Workflow.wid == wid, Workflow.ended.is_null()))
    return Controller(*rows[0]) if rows else None


ERRORS = "errors"
"""File of a run folder that holds what the controller of the background said on its standard error."""
_TAIL = 4096


def gone(site: Site, wid: str, who: Controller) -> str:
    """What people are told of the dead one of *wid*."""
    return f"its controller (process {who.pid} on {who.host}) is gone{last_words(site, wid)}"


def last_words(site: Site, wid: str) -> str:
    """``: `` and the last line that the controller of *wid* said; empty where it said nothing, or in a terminal."""
    with suppress(OSError), (site.run_folders / wid / ERRORS).open("rb") as file:
        file.seek(-min(_TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
        said = last_line(printable(file.read().decode(errors="replace")))
        return f": {said}" if said else ""
    return ""


def _all() -> dict[str, tuple[Controller, int]]:
    """Each controller, and when it last gave a sign of life (Unix)."""
    claims = Claim.select(Claim.wid, *(getattr(Claim, name) for name in _COLUMNS), Claim.since).distinct()
    running = Workflow.select(Workflow.wid, *(getattr(Workflow, name) for name in _COLUMNS), Workflow.seen)
    found = {wid: (Controller(*who), since) for wid, *who, since in fetch(claims)}
    # A workflow tells more than its claims: it is the one that goes on giving signs of life.
    rows = running.where(Workflow.ended.is_null() | Workflow.wid.in_(list(found)))
    found.update({wid: (Controller(*who), seen) for wid, *who, seen in fetch(rows)})
    return found


def _is_dead(who: Controller, seen: int, oldest: float) -> bool:
    return not is_alive(who) if is_here(who) else seen < oldest
