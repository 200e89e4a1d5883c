"""The application: who asks is found out, then a resource answers; refusals become answers in one place."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

from litestar import Litestar, Request, Response, WebSocket, websocket
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.params import FromPath
from litestar.types import ASGIApp, Receive, Send

from kadeploy.config.folder import Configuration
from kadeploy.errors import AuthenticationError, KadeployError, TooManyAttemptsError
from kadeploy.files import MEGA
from kadeploy.operations.service import Refusal
from kadeploy.server import openapi
from kadeploy.server.api import CONTROLLERS
from kadeploy.server.audited import REASON, Audited, note
from kadeploy.server.auth import Caller
from kadeploy.server.metrics import PATH, Measured, metrics
from kadeploy.server.original import refusals
from kadeploy.server.original.controllers import CONTROLLERS as ORIGINALS
from kadeploy.server.served import THING, Served
from kadeploy.server.site import SITE, Site
from kadeploy.server.site import of as site_of
from kadeploy.server.standing import Require
from kadeploy.server.statuses import status_of
from kadeploy.server.web import refusals as web
from kadeploy.server.web import visit
from kadeploy.server.web.forms import Form
from kadeploy.server.web.routes import ROUTES
from kadeploy.server.web.visit import Visit
from kadeploy.server.work import CONTROLLERS as WORK

_LOG = logging.getLogger("kadeploy.server")


def application(configuration: Callable[[], Configuration]) -> ASGIApp:
    """Serve the site that *configuration* tells at any time."""
    site, resources = Site(configuration), _resources()

    async def answer(scope: Any, receive: Receive, send: Send) -> None:
        scope["state"][SITE] = site
        await resources(scope, receive, send)

    return Measured(Audited(answer, site.audit))


@functools.cache
def _resources() -> Litestar:
    """What answers, for the site that a request's scope names; to make it takes a fifth of a second."""
    return Litestar(
        route_handlers=[*CONTROLLERS, *WORK, *ORIGINALS, *ROUTES, metrics, _console],
        dependencies={
            "caller": Provide(_caller, sync_to_thread=True),
            "served": Provide(_served, sync_to_thread=False),
            "visit": Provide(visit.begun, sync_to_thread=True),
            "form": Provide(visit.form_of),
        },
        exception_handlers={
            KadeployError: _refused,
            HTTPException: _not_understood,
            RecursionError: _unreadable,
            UnicodeDecodeError: _unreadable,
            Exception: _failed,
        },
        request_max_body_size=MEGA,
        logging_config=None,
        openapi_config=openapi.CONFIG,
        plugins=[openapi.Refusals()],
        signature_types=[Served, Caller, Visit, Form],
    )


def _caller(request: Request[Any, Any, Any]) -> Caller:
    return site_of(request).caller(request)


def _served(request: Request[Any, Any, Any], caller: NamedDependency[Caller]) -> Served:
    return Served(caller, site_of(request).configuration, request.scope["state"])


@websocket(["/v1/nodes/{node:str}/console", "/ui/nodes/{node:str}/socket"])
async def _console(socket: WebSocket[Any, Any, Any], node: FromPath[str]) -> None:
    """The console of a node (see `kadeploy.server.consoles`), for programs and for our own page."""
    site = site_of(socket)

    async def noted(error: KadeployError | None) -> None:
        socket.scope["state"] |= {THING: node, REASON: str(error or "")}
        await asyncio.to_thread(note, site.audit, socket.scope, 101 if error is None else status_of(error))

    try:
        found, require = await asyncio.to_thread(_entering, site, socket)
    except KadeployError as error:
        await noted(error)
        await socket.close()  # before it is accepted: HTTP 403
    else:
        await site.consoles.serve(socket, found.user, node, site.configuration, noted, require)


def _entering(site: Site, socket: WebSocket[Any, Any, Any]) -> tuple[Caller, Require]:
    """Who opens a WebSocket, and what refuses it later once they are let in no more."""
    if web.is_below(socket):
        caller = visit.at_page(site, socket)
        return caller, visit.standing(site, socket, caller)
    caller = site.caller(socket)
    return caller, site.standing(socket, caller)


def _refused(request: Request[Any, Any, Any], error: KadeployError) -> Response[Any]:
    request.scope["state"][REASON] = str(error)
    if web.is_below(request):
        return web.answer(request, error, str(error), status_of(error))
    headers = _headers(site_of(request), error)
    if not _is_ours(request):
        return refusals.answer(error, headers, request.method, request.url.path)
    return Response(Refusal.of(error), status_code=status_of(error), headers=headers)


def _is_ours(request: Request[Any, Any, Any]) -> bool:
    """Whether what is asked for is below ``/v1``, or the numbers, rather than one of the original's resources."""
    return request.url.path.startswith(openapi.OURS) or request.url.path == PATH


def _headers(site: Site, error: KadeployError) -> dict[str, str]:
    if isinstance(error, TooManyAttemptsError):
        return {"Retry-After": str(error.seconds)}
    if isinstance(error, AuthenticationError):
        return {"WWW-Authenticate": site.authenticator.challenge}
    return {}


def _not_understood(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """What Litestar refuses: a path that is not there, a body that is no request of ours."""
    extra = error.extra if isinstance(error.extra, list) else []
    details = [f"{each.get('key', 'body')}: {each.get('message', '')}" for each in extra if isinstance(each, dict)]
    said = "; ".join(details) or str(error.detail)
    refusal = Refusal(error="OptionError", message=f"The request is not understood: {said}.")
    request.scope["state"][REASON] = refusal.message
    if web.is_below(request):
        return web.answer(request, error, refusal.message, error.status_code)
    if not _is_ours(request):
        return refusals.not_understood(refusal.message, error.status_code)
    return Response(refusal, status_code=error.status_code)


def _unreadable(request: Request[Any, Any, Any], error: RecursionError | UnicodeDecodeError) -> Response[Any]:
    """A body of brackets within brackets without end, or with bytes that are no text."""
    why = "it is nested too deeply" if isinstance(error, RecursionError) else "it is not UTF-8"
    return _not_understood(request, HTTPException(detail=why, status_code=400))


def _failed(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    _LOG.error("%s %s", request.method, request.url.path, exc_info=error)
    told = Refusal(error="ServiceError", message="The service failed; its log says why. Tell an administrator.")
    return web.answer(request, error, told.message, 500) if web.is_below(request) else Response(told, status_code=500)
