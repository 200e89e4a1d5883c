"""The newest lines of the audit log, for administrators."""

from __future__ import annotations

import msgspec
from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from kadeploy.server import audit
from kadeploy.server.audit import Entry
from kadeploy.server.web.visit import Visit
from kadeploy.state import rights

MOST = 100
"""Lines on one page."""


class Wanted(msgspec.Struct, frozen=True):
    """Which lines are to be shown; what is empty does not restrict."""

    user: str = ""
    text: str = ""
    """What they hold anywhere, whether in capitals or not."""

    def fits(self, entry: Entry) -> bool:
        """Whether *entry* is one of them."""
        if self.user not in ("", entry.user):
            return False
        told = (entry.user, entry.how, entry.source, entry.what, entry.object, str(entry.status), entry.reason)
        return not self.text or self.text.casefold() in "\n".join(told).casefold()


class Audit(Controller):
    """The audit log."""

    path = "/ui/audit"
    include_in_schema = False

    @get("/", sync_to_thread=True)
    def show(
        self,
        visit: NamedDependency[Visit],
        user: FromQuery[str] = "",
        text: FromQuery[str] = "",
        before: FromQuery[str] = "",
    ) -> Response[str]:
        """The newest lines, or those that came *before*; for administrators."""
        rights.require_almighty(visit.served.site, visit.user)
        wanted = Wanted(user.strip(), text.strip())
        part = audit.newest(visit.served.site, MOST, wanted.fits, before)
        return visit.page("audit.html", "Audit", wanted=wanted, part=part, before=before)
