"""The application: who asks is found out, then a resource answers; refusals become answers in one place."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

from litestar import Litestar, Request, Response, WebSocket, websocket
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.params import FromPath
from litestar.types import ASGIApp, Receive, Send

from kadeploy.config.folder import Configuration
from kadeploy.errors import (
    AuthenticationError,
    ConfigError,
    DatabaseError,
    FileBusyError,
    KadeployError,
    NodeHeldError,
    RightsError,
    TooManyAttemptsError,
)
from kadeploy.files import MEGA
from kadeploy.operations.service import Refusal
from kadeploy.server import openapi, pages
from kadeploy.server.api import CONTROLLERS
from kadeploy.server.audit import Audit
from kadeploy.server.audited import CALLER, REASON, Audited, note
from kadeploy.server.auth import Authenticator, Caller, Connection, grouped
from kadeploy.server.consoles import Consoles
from kadeploy.server.original import refusals
from kadeploy.server.original.controllers import CONTROLLERS as ORIGINALS
from kadeploy.server.peers import SCOPE, Peer
from kadeploy.server.served import THING, Served

_LOG = logging.getLogger("kadeploy.server")

STATUSES: dict[type[KadeployError], int] = {
    AuthenticationError: 401,
    RightsError: 403,
    FileBusyError: 409,
    NodeHeldError: 409,
    TooManyAttemptsError: 429,
    ConfigError: 503,
    DatabaseError: 503,
}
"""HTTP status of refusals; all others are 400."""


class Site:
    """The site that is served, with what belongs to its configuration of the moment."""

    def __init__(self, configuration: Callable[[], Configuration]) -> None:
        self.consoles, self.audit = Consoles(), Audit(configuration().site)
        self._configuration = configuration
        self._authenticator: tuple[Configuration, Authenticator] | None = None

    @property
    def configuration(self) -> Configuration:
        """As it is now."""
        return self._configuration()

    @property
    def authenticator(self) -> Authenticator:
        """By what the configuration says now; what it remembers of failures lasts until that changes."""
        now, known = self.configuration, self._authenticator
        if known is None or known[0].site != now.site:
            known = self._authenticator = (now, Authenticator(now.site.service, now.site))
        return known[1]

    def caller(self, connection: ASGIConnection[Any, Any, Any, Any]) -> Caller:
        """Who asks."""
        state = connection.scope["state"]
        peer: Peer = state[SCOPE]
        headers = grouped(connection.scope["headers"])
        found = self.authenticator.authenticate(Connection(peer.uid, peer.pid, peer.address, peer.certificate, headers))
        state[CALLER] = found
        pages.require_own(found, headers)
        return found


_SITE = "kadeploy_site"
"""Key of `Site` in the state of a request's scope."""


def application(configuration: Callable[[], Configuration]) -> ASGIApp:
    """Serve the site that *configuration* tells at any time."""
    site, resources = Site(configuration), _resources()

    async def answer(scope: Any, receive: Receive, send: Send) -> None:
        scope["state"][_SITE] = site
        await resources(scope, receive, send)

    return Audited(answer, site.audit)


@functools.cache
def _resources() -> Litestar:
    """What answers, for the site that a request's scope names; to make it takes a fifth of a second."""
    return Litestar(
        route_handlers=[*CONTROLLERS, *ORIGINALS, _console],
        dependencies={
            "caller": Provide(_caller, sync_to_thread=True),
            "served": Provide(_served, sync_to_thread=False),
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
        signature_types=[Served, Caller],
    )


def _site(connection: ASGIConnection[Any, Any, Any, Any]) -> Site:
    site: Site = connection.scope["state"][_SITE]
    return site


def _caller(request: Request[Any, Any, Any]) -> Caller:
    return _site(request).caller(request)


def _served(request: Request[Any, Any, Any], caller: NamedDependency[Caller]) -> Served:
    return Served(caller, _site(request).configuration, request.scope["state"])


@websocket("/v1/nodes/{node:str}/console")
async def _console(socket: WebSocket[Any, Any, Any], node: FromPath[str]) -> None:
    """The console of a node (see `kadeploy.server.consoles`)."""
    site = _site(socket)

    async def noted(error: KadeployError | None) -> None:
        socket.scope["state"] |= {THING: node, REASON: str(error or "")}
        await asyncio.to_thread(note, site.audit, socket.scope, 101 if error is None else status_of(error))

    try:
        found = await asyncio.to_thread(site.caller, socket)
    except KadeployError as error:
        await noted(error)
        await socket.close()  # before it is accepted: HTTP 403
    else:
        await site.consoles.serve(socket, found.user, node, site.configuration, noted)


def _refused(request: Request[Any, Any, Any], error: KadeployError) -> Response[Any]:
    headers = _headers(_site(request), error)
    request.scope["state"][REASON] = str(error)
    if not _is_ours(request):
        return refusals.answer(error, headers, request.method, request.url.path)
    return Response(Refusal.of(error), status_code=status_of(error), headers=headers)


def _is_ours(request: Request[Any, Any, Any]) -> bool:
    """Whether what is asked for is below ``/v1``, rather than one of the original's resources."""
    return request.url.path.startswith(openapi.OURS)


def status_of(error: KadeployError) -> int:
    """HTTP status of the answer to a request that *error* has refused."""
    return next((code for kind, code in STATUSES.items() if isinstance(error, kind)), 400)


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
    if not _is_ours(request):
        return refusals.not_understood(refusal.message, error.status_code)
    return Response(refusal, status_code=error.status_code)


def _unreadable(request: Request[Any, Any, Any], error: RecursionError | UnicodeDecodeError) -> Response[Any]:
    """A body of brackets within brackets without end, or with bytes that are no text."""
    why = "it is nested too deeply" if isinstance(error, RecursionError) else "it is not UTF-8"
    return _not_understood(request, HTTPException(detail=why, status_code=400))


def _failed(request: Request[Any, Any, Any], error: Exception) -> Response[Refusal]:
    _LOG.error("%s %s", request.method, request.url.path, exc_info=error)
    told = Refusal(error="ServiceError", message="The service failed; its log says why. Tell an administrator.")
    return Response(told, status_code=500)
