"""A visit: one request of a browser, by somebody who is known."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http.cookies import CookieError, SimpleCookie
from typing import Any

from litestar import Request, Response
from litestar.di import NamedDependency
from litestar.response import Redirect

from kadeploy.errors import AuthenticationError, KadeployError, RightsError
from kadeploy.server import pages, site
from kadeploy.server.audited import CALLER, REASON
from kadeploy.server.auth import Caller, Connection
from kadeploy.server.served import Served
from kadeploy.server.site import Asking, Site
from kadeploy.server.standing import Require
from kadeploy.server.statuses import status_of
from kadeploy.server.web import rendering
from kadeploy.server.web.forms import Form
from kadeploy.server.web.once import Once
from kadeploy.server.web.sessions import Session

VISIT = "kadeploy_visit"
"""Key of `Visit` in the state of a request's scope, once it is known."""
COOKIE = "__Secure-kadeploy"
"""Name of a session's cookie, which browsers take over HTTPS alone."""
PAGES = {
    "Runs": "/ui/runs",
    "Nodes": "/ui/nodes",
    "Environments": "/ui/environments",
    "Rights": "/ui/rights",
    "Statistics": "/ui/statistics",
    "Deploy": "/ui/deploy",
}
"""What every page leads to."""
_OF_ADMINISTRATORS = {"Audit": "/ui/audit"}


@dataclass(frozen=True)
class Visit:
    """Who looks at which page of which site."""

    served: Served
    """The site as it answers for this user."""
    csrf: str
    """What forms have to bring."""
    path: str
    is_signed_in: bool
    """Whether there is a session that can be ended: others are known by how their browser is connected."""
    noted: dict[str, Any]
    """What the audit log is told of the request."""
    once: Once
    """Keys of forms that begin something."""

    @property
    def user(self) -> str:
        """Who looks."""
        return self.served.user

    @property
    def is_administrator(self) -> bool:
        """Whether it is one of the site's almighty users."""
        return self.served.is_administrator

    @property
    def is_notified(self) -> bool:
        """Whether the site tells users of the ends of their operations, where they want it."""
        offered = self.served.site.notifications
        return offered.mail is not None or bool(offered.webhooks)

    def refused(self, error: KadeployError) -> int:
        """Note why a form is shown again: the HTTP status of the page that does so."""
        self.noted[REASON] = str(error)
        return status_of(error)

    def page(
        self, template: str, title: str, status: int = 200, policy: Mapping[str, str] | None = None, **values: Any
    ) -> Response[str]:
        """A whole page, called *title*; *policy* replaces directives of `rendering.POLICY`."""
        links = PAGES | (_OF_ADMINISTRATORS if self.is_administrator else {})
        text = rendering.render(template, title=title, visit=self, csrf=self.csrf, links=links, **values)
        return rendering.answer(text, status, dict(policy or {}))

    def fragment(self, template: str, **values: Any) -> Response[str]:
        """A part of a page, which takes the place of what was there."""
        return rendering.answer(rendering.render(template, visit=self, csrf=self.csrf, **values))


def see(path: str) -> Redirect:
    """Go to another page, behind a form."""
    return Redirect(path, status_code=303)


def begun(request: Request[Any, Any, Any]) -> Visit:
    """The visit that *request* is.

    Raises:
        AuthenticationError: nobody is known by it.
    """
    at = site.of(request)
    session = _session(at, request)
    caller = _caller(at, request, session)
    served = Served(caller, at.configuration, request.scope["state"])
    csrf = session.csrf if session else _token(at, caller)
    state = request.scope["state"]
    found = state[VISIT] = Visit(served, csrf, request.url.path, session is not None, state, at.once)
    return found


async def form_of(request: Request[Any, Any, Any], visit: NamedDependency[Visit]) -> Form:
    """What a form of a page of ours has sent.

    Raises:
        RightsError: it stood on another page.
    """
    require_own_page(request)
    form = Form.read(await request.body())
    form.require_own(visit.csrf)
    return form


def require_own_page(connection: Asking) -> None:
    """Refuse what a page of another server has a browser send.

    Raises:
        RightsError: names the page.
    """
    if page := pages.foreign(site.shown(connection).headers):
        raise RightsError(f"The page of {page} may ask for nothing here.")


def at_page(of: Site, socket: Asking) -> Caller:
    """Who opens a WebSocket from a page.

    Raises:
        AuthenticationError: nobody is known by it.
        RightsError: the page is another server's; browsers say so (RFC 6455, section 10.2).
    """
    require_own_page(socket)
    session = _session(of, socket)
    if session and not socket.headers.get("origin"):
        raise RightsError("A page says where it is from, in a header Origin: open the console from its own page.")
    return _caller(of, socket, session)


def standing(of: Site, socket: Asking, caller: Caller) -> Require:
    """Refuses, later on, what *caller* has opened from a page once their session is over; it is in use until then."""
    cookie = cookie_of(socket)
    begun = of.sessions.find(cookie) if cookie else None
    if begun is None:
        return of.standing(socket, caller)

    def require() -> None:
        if of.sessions.find(cookie) is None:
            raise AuthenticationError("You have signed out, or your session is over: sign in again.")
        if _session(of, socket) is None:
            raise AuthenticationError(
                f"The {begun.how} that you signed in with does not count any more: sign in again."
            )

    return require


def cookie_of(connection: Asking) -> str:
    """The value of the session's cookie; empty without one."""
    try:
        found = SimpleCookie(connection.headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _session(of: Site, connection: Asking) -> Session | None:
    """The session of whoever asks, if what was shown for it still holds."""
    cookie = cookie_of(connection)
    session = of.sessions.find(cookie) if cookie else None
    if session and not of.authenticator.still_holds(session.how, session.user, session.proof):
        of.sessions.end(cookie)
        return None
    return session


def _caller(of: Site, connection: Asking, session: Session | None) -> Caller:
    if session is None:
        return of.caller(connection)
    source = site.shown(connection).source
    found = connection.scope["state"][CALLER] = Caller(session.user, session.how, source)
    return found


def _token(of: Site, caller: Caller) -> str:
    """What forms bring whose reader has no session."""
    return hmac.new(of.secret, f"{caller.user}\0{caller.how}".encode(), "sha256").hexdigest()


def signing_in(connection: Connection, word: str) -> Connection:
    """*connection* as if its request had shown *word*, an ``Authorization`` header, and nothing else."""
    return replace(connection, certificate=None, headers={"authorization": [word]})
