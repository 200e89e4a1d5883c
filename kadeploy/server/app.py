"""The application: who asks is found out, then a resource answers; refusals become answers in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig

from kadeploy import __version__
from kadeploy.config.folder import Configuration
from kadeploy.errors import (
    AuthenticationError,
    ConfigError,
    DatabaseError,
    KadeployError,
    RightsError,
)
from kadeploy.files import MEGA
from kadeploy.operations.service import Refusal
from kadeploy.server import caller
from kadeploy.server.api import CONTROLLERS
from kadeploy.server.caller import Asking
from kadeploy.server.peers import SCOPE
from kadeploy.server.served import Served

_LOG = logging.getLogger("kadeploy.server")

STATUSES: dict[type[KadeployError], int] = {
    AuthenticationError: 401,
    RightsError: 403,
    DatabaseError: 503,
    ConfigError: 503,
}
"""HTTP status of refusals; all others are 400."""


def application(configuration: Callable[[], Configuration]) -> Litestar:
    """Serve the site that *configuration* tells at any time."""

    def asking(request: Request[Any, Any, Any]) -> Asking:
        return caller.asking(request.scope["state"][SCOPE])

    def served(asking: Asking) -> Served:
        return Served(asking.user, configuration())

    return Litestar(
        route_handlers=list(CONTROLLERS),
        dependencies={
            "asking": Provide(asking, sync_to_thread=True),
            "served": Provide(served, sync_to_thread=True),
        },
        exception_handlers={KadeployError: _refused, HTTPException: _not_understood, Exception: _failed},
        request_max_body_size=MEGA,
        logging_config=None,
        openapi_config=OpenAPIConfig(title="Kadeploy", version=__version__, path="/v1/schema"),
        signature_types=[Served, Asking],
    )


def _refused(_: Request[Any, Any, Any], error: KadeployError) -> Response[Refusal]:
    status = next((code for kind, code in STATUSES.items() if isinstance(error, kind)), 400)
    return Response(Refusal.of(error), status_code=status)


def _not_understood(_: Request[Any, Any, Any], error: HTTPException) -> Response[Refusal]:
    """What Litestar refuses: a path that is not there, a body that is no request of ours."""
    extra = error.extra if isinstance(error.extra, list) else []
    details = [f"{each.get('key', 'body')}: {each.get('message', '')}" for each in extra if isinstance(each, dict)]
    said = "; ".join(details) or str(error.detail)
    return Response(
        Refusal(error="OptionError", message=f"The request is not understood: {said}."), status_code=error.status_code
    )


def _failed(request: Request[Any, Any, Any], error: Exception) -> Response[Refusal]:
    _LOG.error("%s %s", request.method, request.url.path, exc_info=error)
    told = Refusal(error="KadeployError", message="The service failed; its log says why. Tell an administrator.")
    return Response(told, status_code=500)
