"""A node's console in the browser: a terminal that is joined to the WebSocket of `kadeploy.server.consoles`."""

from __future__ import annotations

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from kadeploy.server.web.visit import Visit


class Console(Controller):
    """The page; what is typed and shown goes over the WebSocket, which asks for the same rights again."""

    path = "/ui/nodes/{name:str}/console"
    include_in_schema = False

    @get("/", sync_to_thread=True)
    def page(self, visit: NamedDependency[Visit], name: FromPath[str]) -> Response[str]:
        """The console of a node, for those who may open it."""
        opened = visit.served.console(name).opened
        socket = f"/ui/nodes/{opened.node}/socket"
        return visit.page("console.html", f"Console of {opened.node}", opened=opened, socket=socket)
