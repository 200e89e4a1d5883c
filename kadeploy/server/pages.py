"""Pages of other web servers: a browser sends what they ask for with the password or certificate that it has for us."""

from __future__ import annotations

from kadeploy.errors import RightsError
from kadeploy.server.auth import Caller
from kadeploy.server.front_ends import Headers

_BY_ITSELF = {"password", "certificate"}
"""What a browser shows without being asked to; a page that has a token shows that on purpose."""
_OURS = {"same-origin", "none"}
"""Where browsers say a request comes from: a page of ours, or the user's own hand (Fetch Metadata, section 2.3)."""
_UNNAMED = "another server"


def require_own(caller: Caller, headers: Headers) -> None:
    """Refuse what a page of another server has *caller*'s browser ask for (RFC 6454, section 7.3).

    Raises:
        RightsError: names the page.
    """
    if caller.how in _BY_ITSELF and (page := foreign(headers)):
        raise RightsError(f"The page of {page} may ask for nothing here in the name of {caller.user}.")


def foreign(headers: Headers) -> str:
    """The other server whose page asks; empty when none does.

    >>> foreign({"host": ["kadeploy.site"], "origin": ["https://kadeploy.site"]})
    ''
    >>> foreign({"host": ["kadeploy.site"], "origin": ["https://elsewhere.site"]})
    'https://elsewhere.site'
    """
    host = "".join(headers.get("host", ()))
    for origin in headers.get("origin", ()):
        if origin.partition("://")[2] != host:
            return origin or _UNNAMED
    return _UNNAMED if set(headers.get("sec-fetch-site", ())) - _OURS else ""
