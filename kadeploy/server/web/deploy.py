"""Deployments from the page (see `kadeploy.server.web.acting`)."""

from __future__ import annotations

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from kadeploy.server.web import wishes
from kadeploy.server.web.acting import Action, Answer, Nodes
from kadeploy.server.web.forms import Form
from kadeploy.server.web.visit import Visit

ACTION = Action("Deploy", "/ui/deploy", "deploy.html", wishes.DEPLOY, wishes.deploy)


class Deploy(Controller):
    """An environment for nodes."""

    path = ACTION.path
    include_in_schema = False

    @get("/", sync_to_thread=True)
    def form(
        self, visit: NamedDependency[Visit], nodes: Nodes = None, environment: FromQuery[str] = ""
    ) -> Response[str]:
        """Which environment, and on which nodes."""
        return ACTION.form(visit, {"nodes": " ".join(nodes or ()), "environment": environment})

    @post("/", sync_to_thread=True, status_code=200)
    def deploy(self, visit: NamedDependency[Visit], form: NamedDependency[Form]) -> Answer:
        """Show the plan, or begin."""
        return ACTION.answer(visit, form)
