"""What can be asked for below ``/ui``, as the service's own handlers say: a page that is added is tried as well."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints
from urllib.parse import quote, urlencode

from litestar import Controller
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from kadeploy.server.web.routes import ROUTES

_GIVEN = {"return", "visit", "form", "request", "served", "caller"}
"""What handlers are given that is not in an address."""
_PART = re.compile(r"{(\w+)(:\w+)?}")


@dataclass(frozen=True)
class Place:
    """Something that can be asked for with GET."""

    path: str
    """With its parts in braces: ``/ui/nodes/{name:str}``."""
    query: tuple[str, ...]
    """Names of what may follow a question mark."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what is in braces."""
        return tuple(name for name, _ in _PART.findall(self.path))

    def address(self, parts: Mapping[str, str] = {}, **query: str) -> str:
        """Its address with these *parts*, and what follows the question mark."""
        path = _PART.sub(lambda found: quote(parts[found[1]], safe=""), self.path)
        return f"{path}?{urlencode(query)}" if query else path


def places() -> list[Place]:
    """All of them, in the order of their paths."""
    return sorted(_all(), key=lambda place: place.path)


def _all() -> Iterator[Place]:
    for controller in ROUTES:
        if not (isinstance(controller, type) and issubclass(controller, Controller)):
            continue  # static files
        for handler in vars(controller).values():
            if not (isinstance(handler, HTTPRouteHandler) and "GET" in handler.http_methods):
                continue
            for end in handler.paths or {"/"}:
                path = f"{controller.path.rstrip('/')}/{end.strip('/')}".rstrip("/")
                parts = {name for name, _ in _PART.findall(path)}
                hints = _hints(handler)
                yield Place(path, tuple(_asked(name, hints[name]) for name in hints if name not in _GIVEN | parts))


def _hints(handler: HTTPRouteHandler) -> dict[str, Any]:
    """Types by the names of what a handler takes, itself or by something that is made of it."""
    made = {name: each for name, each in (handler.dependencies or {}).items() if isinstance(each, Provide)}
    functions = [handler.fn, *(each.dependency for each in made.values())]
    found = {name: hint for each in functions for name, hint in get_type_hints(each, include_extras=True).items()}
    return {name: hint for name, hint in found.items() if name not in made}


def _asked(name: str, hint: Any) -> str:
    """What a parameter is called behind the question mark."""
    said = [each.name for each in getattr(hint, "__metadata__", ()) if isinstance(each, QueryParameter) and each.name]
    return said[0] if said else name
