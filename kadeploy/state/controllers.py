"""The controllers of a site's workflows, and which of them are dead.

One of this machine is dead when its process is gone; one of another machine when it gave no sign of life for
``purge_deployment_timer`` seconds. What a dead one left goes on in another process (`take_over`) where the daemon
watches over the site, and is else ended by :func:`kadeploy.state.nodes.reap`; until then, whoever reads tells it as
what it is.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from kadeploy.commands import last_line
from kadeploy.config.site import Site
from kadeploy.printable import printable
from kadeploy.process import Controller, is_alive, is_here, this
from kadeploy.state import watch
from kadeploy.state.database import DB, connect, fetch, transaction
from kadeploy.state.tables import Claim, Row, Workflow

_COLUMNS = ("host", "pid", "process_start", "boot_id")


RECORD = "workflow.json"
"""File of a run folder that holds what another process needs to go on with the workflow."""


def dead(site: Site) -> dict[str, Controller]:
    """Dead controllers, by workflow, of workflows that claim nodes or are not closed."""
    return {wid: who for wid, (who, _) in _dead(site).items()}


def alive(site: Site) -> dict[str, Controller]:
    """Controllers that are not `dead`, by workflow."""
    connect(site)
    gone = dead(site)
    return {wid: who for wid, (who, _) in _all().items() if wid not in gone}


def left(site: Site) -> dict[str, Controller]:
    """Those of `dead` whose workflows nobody will go on with."""
    found = _dead(site)
    since = watch.watched_since(site) if found else None
    if since is not None:
        oldest = time.time() - site.purge_deployment_timer
        waiting = [wid for wid in resumable(site) if wid in found and max(since, found[wid][1]) >= oldest]
        found = {wid: entry for wid, entry in found.items() if wid not in waiting}
    return {wid: who for wid, (who, _) in found.items()}


def resumable(site: Site) -> dict[str, Controller]:
    """Dead controllers of this machine, by workflow, that have left what it takes to go on."""
    here = {wid: who for wid, who in dead(site).items() if is_here(who) and _has_record(site, wid)}
    open_ = Workflow.select(Workflow.wid).where(Workflow.wid.in_(list(here)), Workflow.ended.is_null())
    return {wid: here[wid] for (wid,) in fetch(open_)}


def _has_record(site: Site, wid: str) -> bool:
    """Of the service's operations its account has; what root began before that is root's."""
    return os.access(site.run_folders / wid / RECORD, os.R_OK, effective_ids=True)


def take_over(site: Site, wid: str, before: Controller) -> list[str] | None:
    """Make this process the controller of *wid* in place of *before*: the nodes that the workflow still holds.

    None when another process was faster, or has ended the workflow: of several at once, one at most gets it.
    """
    connect(site)
    mine = this()._asdict()
    with transaction():
        row = Workflow.update(seen=int(time.time()), **mine).where(Workflow.wid == wid, Workflow.ended.is_null())
        if not row.where(*_is(Workflow, before)).execute():
            return None
        Claim.update(**mine).where(Claim.wid == wid).execute()
        return [node for (node,) in fetch(Claim.select(Claim.node).where(Claim.wid == wid))]


def still(wid: str, who: Controller) -> bool:
    """Whether *who* is still the controller of *wid*; within a transaction, and true until its end."""
    of_workflow = Workflow.select(*_columns(Workflow)).where(Workflow.wid == wid)
    of_claims = Claim.select(*_columns(Claim)).where(Claim.wid == wid)
    found = [Controller(*row) for query in (of_workflow, of_claims) for row in fetch(_locking(query))]
    return bool(found) and found[0] == who


def of(site: Site, wid: str) -> tuple[Controller, bool] | None:
    """The controller of *wid*, and whether the workflow has ended; None: there is no such workflow."""
    connect(site)
    rows = fetch(Workflow.select(*_columns(Workflow), Workflow.ended).where(Workflow.wid == wid))
    return next(((Controller(*who), ended is not None) for *who, ended in rows), None)


def goes_on(site: Site, wid: str) -> bool:
    """Whether *wid* runs, or will: its controller lives, or somebody will go on in its place."""
    found = of(site, wid)
    return found is not None and not found[1] and wid not in left(site)


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


def _dead(site: Site) -> dict[str, tuple[Controller, int]]:
    connect(site)
    oldest = time.time() - site.purge_deployment_timer
    return {wid: (who, seen) for wid, (who, seen) in _all().items() if _is_dead(who, seen, oldest)}


def _all() -> dict[str, tuple[Controller, int]]:
    """Each controller, and when it last gave a sign of life (Unix)."""
    claims = Claim.select(Claim.wid, *_columns(Claim), Claim.since).distinct()
    running = Workflow.select(Workflow.wid, *_columns(Workflow), Workflow.seen)
    found = {wid: (Controller(*who), since) for wid, *who, since in fetch(claims)}
    # A workflow tells more than its claims: it is the one that goes on giving signs of life.
    rows = running.where(Workflow.ended.is_null() | Workflow.wid.in_(list(found)))
    found.update({wid: (Controller(*who), seen) for wid, *who, seen in fetch(rows)})
    return found


def _is_dead(who: Controller, seen: int, oldest: float) -> bool:
    return not is_alive(who) if is_here(who) else seen < oldest


def _columns(table: type[Row]) -> list[Any]:
    return [getattr(table, name) for name in _COLUMNS]


def _is(table: type[Row], who: Controller) -> list[Any]:
    return [column == value for column, value in zip(_columns(table), who, strict=True)]


def _locking(query: Any) -> Any:
    return query.for_update() if DB.for_update else query
