"""Templates become pages: every text in them is escaped, and no page runs or shows what is not ours."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from typing import Any

import jinja2
from litestar import MediaType, Response
from markupsafe import Markup

from kadeploy import __version__
from kadeploy.nodeset import fold
from kadeploy.printable import printable

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
"""What a browser may do for a page (Content Security Policy, level 3): nothing inline, nothing from elsewhere."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of each page beside its policy: it is one user's, and for no other server."""
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def answer(text: str, status: int = 200, policy: dict[str, str] | None = None) -> Response[str]:
    """The answer with a page's or a fragment's *text*; *policy* replaces directives of `POLICY`."""
    directives = "; ".join(f"{name} {value}" for name, value in (POLICY | (policy or {})).items())
    headers = {**HEADERS, "Content-Security-Policy": directives}
    return Response(text, status_code=status, headers=headers, media_type=MediaType.HTML)


def render(template: str, **values: Any) -> str:
    """The text of a template of this package."""
    return environment().get_template(template).render(**values)


@functools.cache
def environment() -> jinja2.Environment:
    """How templates are read; made once."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("kadeploy.server.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
        auto_reload=False,
    )
    found.filters |= {"when": when, "span": span, "size": size, "fold": folded}
    found.globals["version"] = __version__
    return found


def _harmless(value: Any) -> Any:
    """What stands in a template, without characters that do something in place of being seen."""
    return printable(value) if type(value) is str else value


def when(seconds: float | None) -> Markup:
    """A time in Unix seconds as the site's clocks show it; a dash for none."""
    if not seconds:
        return Markup("–")
    local = time.localtime(seconds)
    exact, shown = time.strftime("%Y-%m-%dT%H:%M:%S%z", local), time.strftime("%Y-%m-%d %H:%M", local)
    return Markup('<time datetime="{}">{}</time>').format(exact, shown)


def span(seconds: float | None) -> str:
    """How long something took.

    >>> [span(each) for each in (0.4, 65, 7260, 200_000, None)]
    ['0 s', '1 min 5 s', '2 h 1 min', '2 d 7 h', '–']
    """
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    shown = [f"{value} {unit}" for value, unit in parts if value]
    return " ".join(shown[:2]) or "0 s"


def size(count: float | None) -> str:
    """A number of bytes.

    >>> [size(each) for each in (0, 1023, 1536, 5 << 30, None)]
    ['0 B', '1023 B', '1.5 KiB', '5.0 GiB', '–']
    """
    if count is None:
        return "–"
    power = min(max(int(count).bit_length() - 1, 0) // 10, len(_SIZES) - 1)
    return f"{count / 1024**power:.{1 if power else 0}f} {_SIZES[power]}"


def folded(names: Iterable[str]) -> str:
    """Names of nodes in their short form: ``gdx-[1-4].site``."""
    return fold(names)
