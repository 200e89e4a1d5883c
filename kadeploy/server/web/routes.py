"""What can be asked for below ``/ui``."""

from __future__ import annotations

from litestar.types import ControllerRouterHandler

from kadeploy.server.web import static
from kadeploy.server.web.acting import Acting, Cancelling
from kadeploy.server.web.console import Console
from kadeploy.server.web.deploy import Deploy
from kadeploy.server.web.sign_in import SignIn

ROUTES: list[ControllerRouterHandler] = [
    SignIn,
    Deploy,
    Acting,
    Cancelling,
    Console,
    static.ROUTER,
]
