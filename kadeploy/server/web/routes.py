"""What can be asked for below ``/ui``."""

from __future__ import annotations

from litestar.types import ControllerRouterHandler

from kadeploy.server.web import static
from kadeploy.server.web.acting import Acting, Cancelling
from kadeploy.server.web.audit import Audit
from kadeploy.server.web.console import Console
from kadeploy.server.web.deploy import Deploy
from kadeploy.server.web.environments import Environments
from kadeploy.server.web.nodes import Nodes
from kadeploy.server.web.notifications import Notifications
from kadeploy.server.web.quarantine import Quarantine
from kadeploy.server.web.rights import Rights
from kadeploy.server.web.runs import Runs
from kadeploy.server.web.sign_in import SignIn
from kadeploy.server.web.statistics import Statistics

ROUTES: list[ControllerRouterHandler] = [
    SignIn,
    Runs,
    Nodes,
    Quarantine,
    Environments,
    Rights,
    Notifications,
    Statistics,
    Audit,
    Deploy,
    Acting,
    Cancelling,
    Console,
    static.ROUTER,
]
