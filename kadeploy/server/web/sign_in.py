"""Signing in and out: a token or a password is shown once, a session's cookie from then on."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery
from litestar.response import Redirect

from kadeploy.errors import AuthenticationError, KadeployError, TooManyAttemptsError
from kadeploy.server import site
from kadeploy.server.audited import CALLER, REASON
from kadeploy.server.auth import Caller
from kadeploy.server.site import Site
from kadeploy.server.web import rendering
from kadeploy.server.web.forms import Form
from kadeploy.server.web.sessions import LONGEST
from kadeploy.server.web.visit import COOKIE, begun, cookie_of, require_own_page, see, signing_in

HOME = "/ui/runs"
"""The page that people see first."""
_HERE = re.compile(r"/ui(/[!-\[\]-~]*)?")
"""A path of ours: in ASCII, without a backslash, which browsers take for a slash."""
Asked = Request[Any, Any, Any]


class SignIn(Controller):
    """Who sits at a browser."""

    path = "/ui"
    include_in_schema = False

    @get("/", sync_to_thread=False)
    def home(self) -> Redirect:
        """Lead to the first page."""
        return see(HOME)

    @get("/sign-in", sync_to_thread=True)
    def ask(self, request: Asked, then: FromQuery[str] = "") -> Response[Any]:
        """Ask who it is, unless that is known."""
        try:
            begun(request)
        except AuthenticationError:
            return _asking(site.of(request), then)
        return see(_way(then))

    @post("/sign-in")
    async def take(self, request: Asked) -> Response[Any]:
        """Take a token, or a name and a password."""
        require_own_page(request)
        return await _taken(request, Form.read(await request.body()))

    @post("/sign-out", sync_to_thread=False)
    def leave(self, request: Asked, form: NamedDependency[Form]) -> Response[Any]:  # noqa: ARG002 - checked by being asked for
        """End the session."""
        site.of(request).sessions.end(cookie_of(request))
        answer = see("/ui/sign-in")
        answer.delete_cookie(COOKIE, path="/ui")
        return answer


async def _taken(request: Asked, form: Form) -> Response[Any]:
    at, then = site.of(request), form.text("then")
    try:
        caller, proof = await _shown(at, request, form)
    except KadeployError as error:
        request.scope["state"][REASON] = str(error)
        status = 429 if isinstance(error, TooManyAttemptsError) else 401
        return _asking(at, then, str(error), status, form.text("user"))
    request.scope["state"][CALLER] = caller
    answer = see(_way(then))
    cookie = at.sessions.begin(caller.user, caller.how, proof)
    answer.set_cookie(COOKIE, cookie, path="/ui", secure=True, httponly=True, samesite="lax", max_age=int(LONGEST))
    return answer


async def _shown(at: Site, request: Asked, form: Form) -> tuple[Caller, str]:
    """Who it is by what the form says, and what shows later that this still counts."""
    word = _word(form)
    return await asyncio.to_thread(at.authenticator.sign_in, signing_in(site.shown(request), word))


def _word(form: Form) -> str:
    """What a program would show as ``Authorization``."""
    if token := form.text("token"):
        return f"Bearer {token}"
    if user := form.text("user"):
        pair = f"{user}:{form.exact('password')}"
        return f"Basic {b64encode(pair.encode()).decode()}"
    raise AuthenticationError("Type a token, or your name and password.")


def _asking(at: Site, then: str, said: str = "", status: int = 200, user: str = "") -> Response[str]:
    has_passwords = bool(at.configuration.site.service.htpasswd)
    text = rendering.render(
        "sign_in.html",
        title="Sign in",
        visit=None,
        site=at.configuration.site.name,
        then=_way(then),
        said=said,
        user=user,
        has_passwords=has_passwords,
    )
    return rendering.answer(text, status)


def _way(then: str) -> str:
    """The page to go to, if it is one of ours."""
    return then if _HERE.fullmatch(then) and not then.startswith("/ui/sign-") else HOME
