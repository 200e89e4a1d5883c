"""The schema of the service, and the table of ``/v1`` on the page for programmers, which is made from it.

``python -m kadeploy.server.openapi docs/api.md`` writes the table anew.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from litestar import Litestar, MediaType
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.plugins import ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute

from kadeploy import __version__
from kadeploy.operations.service import Refusal
from kadeploy.server.api import CONTROLLERS
from kadeploy.server.auth import Caller
from kadeploy.server.original.controllers import CONTROLLERS as ORIGINALS
from kadeploy.server.served import Served

OURS = "/v1"
"""How the paths of our own resources begin; others are the original's."""
CONFIG = OpenAPIConfig(
    title="Kadeploy",
    version=__version__,
    path=f"{OURS}/schema",
    use_handler_docstrings=True,
    render_plugins=[JsonRenderPlugin()],  # the pages that show it would run scripts of strangers, in our name
)
HEAD = "| request | parameters | body | meaning |\n|---------|------------|------|---------|\n"
"""Of the table on the page."""


_REFUSED = {
    400: "It is refused, and nothing was done.",
    401: "Who asks has not shown who they are.",
    403: "It is for others.",
    429: "Who asks has failed to show who they are too often, and has to wait.",
}
"""Statuses with which any resource may refuse."""


class Refusals(ReceiveRoutePlugin):
    """Has the schema say how each resource refuses."""

    def receive_route(self, route: BaseRoute) -> None:
        """Tell it of the resource of *route*."""
        if isinstance(route, HTTPRoute):
            statuses = _statuses(route)
            for handler, _ in route.route_handler_map.values():
                handler.responses = {**statuses, **(handler.responses or {})}


def _statuses(route: HTTPRoute) -> dict[int, ResponseSpec]:
    """How the resource of *route* refuses: ours in JSON, the original's in a line of text."""
    is_ours = route.path.startswith(OURS)
    told = dict(_REFUSED)
    if route.path_parameters:
        told[404] = "There is nothing of this name."
    if {"POST", "PUT", "PATCH"} & set(route.methods):
        told[413] = "The body is too large."
    if is_ours:
        told[503] = "The configuration or the database of the site cannot be used."
    kind, form = (Refusal, MediaType.JSON) if is_ours else (str, MediaType.TEXT)
    return {status: ResponseSpec(kind, False, text, form) for status, text in sorted(told.items())}


@functools.cache
def schema() -> Mapping[str, Any]:
    """The schema of all resources (OpenAPI 3.1), made without a site, and once: that takes seconds."""
    app = Litestar(
        [*CONTROLLERS, *ORIGINALS],
        dependencies={
            "caller": Provide(_no_caller, sync_to_thread=False),
            "served": Provide(_no_site, sync_to_thread=False),
        },
        signature_types=[Served, Caller],
        openapi_config=CONFIG,
        plugins=[Refusals()],
    )
    return app.openapi_schema.to_schema()


def _no_caller() -> Caller:
    raise NotImplementedError


def _no_site() -> Served:
    raise NotImplementedError


def table() -> str:
    """The resources below ``/v1``, a row each."""
    found: Mapping[str, Mapping[str, Any]] = schema()["paths"]
    return HEAD + "".join(
        row for path, methods in sorted(found.items()) if path.startswith(OURS) for row in _rows(path, methods)
    )


def _rows(path: str, methods: Mapping[str, Any]) -> Iterator[str]:
    for method, operation in methods.items():
        queries = [f"`{each['name']}`" for each in operation.get("parameters", ()) if each["in"] == "query"]
        meaning = " ".join(operation.get("description", "").replace("``", "`").split())
        yield f"| {method.upper()} `{path}` | {', '.join(queries)} | {_body(operation)} | {meaning} |\n"


def _body(operation: Mapping[str, Any]) -> str:
    """The name of the schema that a body has to follow."""
    [kind] = operation.get("requestBody", {}).get("content", {"": {}}).values()
    name = kind.get("schema", {}).get("$ref", "").rpartition("/")[2]
    return f"`{name}`" if name else ""


def page(text: str) -> str:
    """*text* of the page with the table anew: from its head to the next empty line."""
    before, head, rest = text.partition(HEAD)
    if not head:
        raise ValueError("the page has no table of resources to begin with")
    _, gap, after = ("\n" + rest).partition("\n\n")
    return before + table() + gap[1:] + after


def main() -> int:
    """Write the page."""
    path = Path(sys.argv[1])
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
