"""Refusals as pages: what was wrong, and the way on."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import urlencode

from litestar import Request, Response
from litestar.connection import ASGIConnection

from kadeploy.errors import AuthenticationError
from kadeploy.server.web import rendering
from kadeploy.server.web.visit import VISIT, Visit, see

PREFIX = "/ui"
_TITLES = {401: "Sign in", 403: "Not allowed", 404: "Not found", 409: "In use", 429: "Too many attempts"}


def is_below(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    """Whether a page is asked for, rather than a resource of an API."""
    path = connection.url.path
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def answer(request: Request[Any, Any, Any], error: Exception, message: str, status: int) -> Response[Any]:
    """The page that says *message*; who is not known is led to where they sign in."""
    if isinstance(error, AuthenticationError) and request.method == "GET":
        return _sign_in(request)
    title, visit = _TITLES.get(status, "Not done"), request.scope["state"].get(VISIT)
    if visit:
        return cast("Visit", visit).page("error.html", title, status, message=message)
    return rendering.answer(rendering.render("error.html", title=title, visit=None, message=message), status)


def _sign_in(request: Request[Any, Any, Any]) -> Response[Any]:
    """Lead there; a script that only wanted a part of a page has the whole page replaced."""
    here = request.headers.get("hx-request")
    query = f"?{request.url.query}" if request.url.query else ""
    way = "/ui/sign-in?" + urlencode({"then": request.url.path + query})
    if here:
        return Response("", status_code=401, headers={"HX-Redirect": "/ui/sign-in", "Cache-Control": "no-store"})
    return see(way)
