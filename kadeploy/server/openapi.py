"""The table of ``/v1`` on the page for programmers, made from what the service's schema is made of.

``python -m kadeploy.server.openapi docs/api.md`` writes the table anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from litestar import Litestar
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig

from kadeploy import __version__
from kadeploy.server.api import CONTROLLERS
from kadeploy.server.auth import Caller
from kadeploy.server.original.controllers import CONTROLLERS as ORIGINALS
from kadeploy.server.served import Served

CONFIG = OpenAPIConfig(title="Kadeploy", version=__version__, path="/v1/schema", use_handler_docstrings=True)
HEAD = "| request | parameters | body | meaning |\n|---------|------------|------|---------|\n"
"""Of the table on the page."""


def schema() -> dict[str, Any]:
    """The schema of all resources (OpenAPI 3.1), made without a site."""
    app = Litestar(
        [*CONTROLLERS, *ORIGINALS],
        dependencies={
            "caller": Provide(_no_caller, sync_to_thread=False),
            "served": Provide(_no_site, sync_to_thread=False),
        },
        signature_types=[Served, Caller],
        openapi_config=CONFIG,
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
        row for path, methods in sorted(found.items()) if path.startswith("/v1") for row in _rows(path, methods)
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
