"""Style sheets and scripts of the pages, which anybody may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litestar import Response
from litestar.datastructures import CacheControlHeader
from litestar.static_files import create_static_files_router

_HOUR = 3600


async def _for_us_alone(response: Response[Any]) -> Response[Any]:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    return response


ROUTER = create_static_files_router(
    path="/ui/static",
    directories=[Path(__file__).with_name("static")],
    cache_control=CacheControlHeader(max_age=_HOUR, public=True),
    after_request=_for_us_alone,
    include_in_schema=False,
)
"""Pages name them with the version behind a question mark: no browser shows a new page with an old script."""
