"""That nothing works for a site: neither its service nor an operation."""

from __future__ import annotations

from kadeploy.admin import keeper
from kadeploy.caller import as_user
from kadeploy.config.site import Site
from kadeploy.errors import NodeHeldError
from kadeploy.state import controllers, database, watch

_MOST = 5


def require(site: Site, what: str) -> None:
    """Refuse *what* is to be done to *site* while anything works for it.

    Raises:
        NodeHeldError: something does.
        DatabaseError: the database does not tell.
    """
    if watch.is_watched(site):
        raise NodeHeldError(
            f"kadeploy3d runs for this site, and {what} is for one that stands still: "
            "systemctl stop kadeploy3d.socket kadeploy3d.service"
        )
    with as_user(keeper.of(site)), database.as_it_is(site):
        running = sorted(controllers.alive(site)) if database.has_tables() else []
    if running:
        more = f" and {len(running) - _MOST} more" if len(running) > _MOST else ""
        raise NodeHeldError(
            f"{what.capitalize()} is for a site that stands still, and these operations run: "
            f"{', '.join(running[:_MOST])}{more}. Wait for their end, or cancel them: kadeploy3 --cancel {running[0]}"
        )
