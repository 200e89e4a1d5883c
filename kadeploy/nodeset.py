"""Node ranges: expand ``gdx-[5-12].site`` and fold names back, with ClusterShell's NodeSet.

The grammar is ClusterShell's (several brackets, padding, steps), minus what would reach for groups
or set arithmetic: only letters, digits, ``. - _ [ ] ,`` are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ClusterShell.NodeSet import NodeSet, NodeSetException

from kadeploy.errors import NodeListError

_ALLOWED = re.compile(r"[A-Za-z0-9._\[\],-]+\Z")


def expand(pattern: str) -> list[str]:
    """Names in *pattern*, in order and without duplicates.

    >>> expand("gdx-[5-7].site")
    ['gdx-5.site', 'gdx-6.site', 'gdx-7.site']

    Raises:
        NodeListError: malformed pattern, or one that stands for no node at all.
    """
    text = pattern.strip()
    if not _ALLOWED.match(text):
        raise NodeListError(f"Invalid node range {pattern!r}: letters, digits, '.', '-', '_', '[', ']' and ',' only.")
    try:
        names = list(NodeSet(text, resolver=None))
    except NodeSetException as error:
        raise NodeListError(f"Invalid node range {pattern!r}: {error}.") from error
    if not names:
        raise NodeListError(f"The node range {pattern!r} stands for no node.")
    return names


def fold(names: Iterable[str]) -> str:
    """The shortest range for *names*, for people to read.

    >>> fold(["n-1.site", "n-2.site", "n-4.site"])
    'n-[1-2,4].site'
    """
    return str(NodeSet.fromlist(list(names), resolver=None))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts ``gdx-2`` before ``gdx-10``."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def parse_lines(text: str) -> list[str]:
    """Names from a node file: one range per line, ``#`` comments and blank lines ignored, duplicates once."""
    names: dict[str, None] = {}
    for line in text.splitlines():
        content = line.split("#", 1)[0].strip()
        if content:
            names.update(dict.fromkeys(expand(content)))
    return list(names)
