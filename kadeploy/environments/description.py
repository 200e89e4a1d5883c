"""The written forms of an environment: the wiki page's ``key : value`` lines, and the later YAML (or JSON) form.

`load` reads whichever it finds and `write` prints any of them; what is written can be read again. Each form has its
module: `lines` for the first, `document` for the second. `rules` holds what both share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, cast

from kadeploy import files
from kadeploy.caller import Account
from kadeploy.environments import document, lines
from kadeploy.environments.environment import Environment
from kadeploy.errors import EnvironmentRefusedError

Form = Literal["wiki", "yaml", "json"]

MAX_BYTES = 1 << 20
"""Size of a description above which it is refused unread."""

Warn = Callable[[str], object]
"""Told, in one sentence, what of a description is left out."""


def load(source: str, who: Account, warn: Warn) -> list[Environment]:
    """Read the environments described in a file or at a URL, with the rights of *who*; ``-`` is standard input.

    Raises:
        FileError: it cannot be read, or is a web page.
        EnvironmentRefusedError: it is malformed; the text names the line or the key.
    """
    text = files.read_text(source, who, MAX_BYTES)
    local = source != "-" and not files.is_url(source)
    return parse_all(text, source=str(files.local_path(source, who)) if local else source, warn=warn)


def parse(text: str, *, source: str, warn: Warn = lambda _: None) -> Environment:
    """The one environment that *text* describes; relative paths start at the folder of *source*.

    Raises:
        EnvironmentRefusedError: malformed, or several environments; the text names the line or the key.
    """
    environments = parse_all(text, source=source, warn=warn)
    if len(environments) != 1:
        raise EnvironmentRefusedError(
            f"{source}: {len(environments)} environments; expected one. Keep one in the file."
        )
    return environments[0]


def parse_all(text: str, *, source: str, warn: Warn = lambda _: None) -> list[Environment]:
    """The environments that *text* describes, at least one, in either form (see `parse`)."""
    content = text.removeprefix("\ufeff")
    return lines.read(content, source) if _is_wiki(content) else document.read(content, source, warn)


def write(environments: Iterable[Environment], form: Form) -> str:
    """*environments* in one of the written forms, which `parse_all` reads back; owner and checksums are left out.

    Raises:
        EnvironmentRefusedError: the wiki's form cannot hold one of them (see `lines.lost`).
    """
    given = list(environments)
    if form == "wiki" and (lost := lines.lost(given)):
        raise EnvironmentRefusedError(f"Lines of `key : value` cannot hold {', '.join(lost)}: use YAML.")
    return _WRITERS[form](given)


# --- which form -------------------------------------------------------------------------------------------------

_COMMENTS = re.compile(r"(\s*#.*\n)*\s*")
_OWN_KEY = re.compile(
    r"""^[ \t]*["']?(image|os|boot|postinstalls|destructive|partition_type|multipart|options|custom_variables)["']?"""
    r"[ \t]*:"
    r"|^[ \t]*(?P<wiki>tarball|environment_kind|postinstall|fdisktype)[ \t]*:",
    re.MULTILINE,
)
"""The first key that only one of the forms has."""


def _is_wiki(text: str) -> bool:
    """Whether *text* is of the wiki's form, rather than YAML or JSON."""
    if text.startswith(("{", "[", "---", "%YAML"), cast("re.Match[str]", _COMMENTS.match(text)).end()):
        return False
    found = _OWN_KEY.search(text)
    return found is None or bool(found["wiki"])


_WRITERS: Mapping[Form, Callable[[list[Environment]], str]] = {
    "wiki": lines.write,
    "yaml": document.to_yaml,
    "json": document.to_json,
}
