"""The written forms of an environment: the wiki page's ``key : value`` lines, and the later YAML (or JSON) form.

`load` reads whichever it finds and `write` prints any of them; what is written can be read again. Each form has its
module: `lines` for the first, `document` for the second. `rules` holds what both share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from kadeploy import files
from kadeploy.caller import Account
from kadeploy.environments import document, lines
from kadeploy.environments.environment import Environment
from kadeploy.errors import EnvironmentRefusedError

Form = Literal["wiki", "yaml", "json"]

MAX_BYTES = 1 << 20
"""Size of a description above which it is refused unread."""

_CONTENT_TYPES = (
    "text/plain",
    "text/yaml",
    "text/x-yaml",
    "application/octet-stream",
    "application/json",
    "application/yaml",
    "application/x-yaml",
)
"""What a web server may call a description; ``text/html`` would be an error page."""


def load(source: str, who: Account) -> list[Environment]:
    """Read the environments described in a file or at a URL, with the rights of *who*; ``-`` is standard input.

    Raises:
        FileError: it cannot be read.
        EnvironmentRefusedError: it is malformed; the text names the line or the key.
    """
    text = files.read_text(source, who, MAX_BYTES, content_types=_CONTENT_TYPES)
    local = source != "-" and not files.is_url(source)
    return parse_all(text, source=str(files.local_path(source, who)) if local else source)


def parse(text: str, *, source: str) -> Environment:
    """The one environment that *text* describes; relative paths start at the folder of *source*.

    Raises:
        EnvironmentRefusedError: malformed, or several environments; the text names the line or the key.
    """
    environments = parse_all(text, source=source)
    if len(environments) != 1:
        raise EnvironmentRefusedError(
            f"{source}: {len(environments)} environments; expected one. Keep one in the file."
        )
    return environments[0]


def parse_all(text: str, *, source: str) -> list[Environment]:
    """The environments that *text* describes, at least one, in either form (see `parse`)."""
    content = text.removeprefix("\ufeff")
    form = _form(content)
    return lines.read(content, source) if form == "wiki" else document.read(content, form, source)


def write(environments: Iterable[Environment], form: Form) -> str:
    """*environments* in one of the written forms, which `parse_all` reads back; owner and checksums are left out."""
    return _WRITERS[form](list(environments))


# --- which form -------------------------------------------------------------------------------------------------

_OWN_KEY = re.compile(
    r"""^["']?(?P<yaml>image|os|boot|postinstalls|destructive|partition_type|multipart|options)["']?[ \t]*:"""
    r"|^[ \t]*(?P<wiki>tarball|environment_kind|postinstall|fdisktype)[ \t]*:",
    re.MULTILINE,
)
"""The first key that only one of the forms has."""


def _form(text: str) -> Form:
    start = text.lstrip()
    if start.startswith(("{", "[")):
        return "json"
    if start.startswith("---"):
        return "yaml"
    found = _OWN_KEY.search(text)
    return "yaml" if found and found["yaml"] else "wiki"


_WRITERS: Mapping[Form, Callable[[list[Environment]], str]] = {
    "wiki": lines.write,
    "yaml": document.to_yaml,
    "json": document.to_json,
}
