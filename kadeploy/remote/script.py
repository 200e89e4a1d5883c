"""A script in the form in which it travels to a node: this module needs no ssh, and loads fast."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from functools import lru_cache

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def program(script: bytes, env: Mapping[str, str] | None = None) -> bytes:
    """*script* behind the export of *env*, values quoted; a failure inside a pipeline counts.

    Raises:
        ValueError: a name that is no variable name, or a NUL byte, which bash cannot hold.
    """
    exports = "".join(_export(name, value) for name, value in (env or {}).items())
    text = exports.encode("utf-8", "surrogateescape") + b"set -o pipefail\n" + script
    if b"\0" in text:
        raise ValueError("A script or a variable for it holds a NUL byte.")
    return text


@lru_cache(maxsize=256)
def _export(name: str, value: str) -> str:
    """The nodes of a step have nearly all variables in common."""
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is not the name of an environment variable.")
    return f"export {name}={shlex.quote(value)}\n"
