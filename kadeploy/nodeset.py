"""Node ranges: expand ``gdx-[5-12].site`` and fold names back, with ClusterShell's NodeSet.

The grammar is ClusterShell's (several brackets, padding, steps), minus what would reach for groups
or set arithmetic: only letters, digits, ``. - _ [ ] ,`` are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod

from ClusterShell.NodeSet import NodeSet, NodeSetException

from kadeploy.errors import NodeListError

MOST = 100_000
"""Names that a list of nodes may stand for, where the site says nothing else."""

_ALLOWED = re.compile(r"[A-Za-z0-9._\[\],-]+\Z")
_DIGITS = re.compile(r"\d{16,}")
"""Longer numbers than any node has; they are names for no machine."""


def expand(pattern: str, most: int = MOST) -> list[str]:
    """Names in *pattern*, in order and without duplicates; they are counted before they are made.

    >>> expand("gdx-[5-7].site")
    ['gdx-5.site', 'gdx-6.site', 'gdx-7.site']

    Raises:
        NodeListError: malformed pattern, one that stands for no node at all, or for more than *most*.
    """
    text = pattern.strip()
    if not _ALLOWED.match(text):
        raise NodeListError(
            f"Invalid node range {_short(pattern)!r}: letters, digits, '.', '-', '_', '[', ']' and ',' only."
        )
    if _DIGITS.search(text):
        raise NodeListError(f"Invalid node range {_short(pattern)!r}: it has a number of more than 15 digits.")
    if odd := _malformed(text):
        raise NodeListError(f"Invalid node range {_short(pattern)!r}: {odd} is not of the form [1-10] or [1,3,5-10].")
    require_few(count(text), most, pattern)
    try:
        names = list(NodeSet(text, resolver=None))
    except (NodeSetException, ValueError) as error:
        raise NodeListError(f"Invalid node range {_short(pattern)!r}: {_short(str(error))}.") from error
    if not names:
        raise NodeListError(f"The node range {_short(pattern)!r} stands for no node.")
    return names


_BRACKETS = re.compile(r"\[([^\]]*)\]")
_SPAN = re.compile(r"(\d+)(?:-(\d+))?")


def count(pattern: str) -> int:
    """How many names *pattern* stands for, duplicates included, without making any.

    >>> count("n-[1-10]-[1-10],m-1")
    101
    """
    outside = _BRACKETS.sub(lambda match: match[0].replace(",", ";"), pattern)
    return sum(_product(part.replace(";", ",")) for part in outside.split(","))


def _product(part: str) -> int:
    return prod(sum(map(_length, ranges.split(","))) for ranges in _BRACKETS.findall(part))


def _length(span: str) -> int:
    """Numbers in ``1-10`` or ``7``; 1 for what is malformed."""
    found = _SPAN.fullmatch(span)
    return max(0, int(found[2] or found[1]) - int(found[1]) + 1) if found else 1


def _malformed(pattern: str) -> str:
    """What of *pattern* is in brackets and no span of numbers; ClusterShell takes ``1-2-99`` for negative numbers."""
    spans = [span for ranges in _BRACKETS.findall(pattern) for span in ranges.split(",")]
    return next((f"[{_short(span)}]" for span in spans if not _SPAN.fullmatch(span)), "")


def require_few(found: int, most: int, named: str) -> None:
    """Refuse a list of *found* names, called *named*, when *most* may be named.

    Raises:
        NodeListError: says which key of the site it is about.
    """
    if found > most:
        raise NodeListError(
            f"{_short(named)}: {found} nodes, and at most {most} are taken at a time (limits.nodes in site.yml). "
            "Name fewer."
        )


def _short(text: str) -> str:
    """*text* as far as one line of a message has room for it."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


_SHOWN = 200


def fold(names: Iterable[str]) -> str:
    """The shortest range for *names*, for people to read.

    >>> fold(["n-1.site", "n-2.site", "n-4.site"])
    'n-[1-2,4].site'
    """
    listed = list(names)
    try:
        return str(NodeSet.fromlist(_ranges(listed), resolver=None))
    except (NodeSetException, ValueError):  # names of no node, which somebody gave as such
        return ",".join(listed)


_NUMBERED = re.compile(r"([A-Za-z._-]*)(0|[1-9]\d{0,14})([A-Za-z._-]*)", re.ASCII)
"""A name with one number, without zeros in front."""


def _ranges(names: Iterable[str]) -> Iterator[str]:
    """*names* as ranges, names of other forms as they are: ClusterShell has a tenth of the work."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for name in names:
        if found := _NUMBERED.fullmatch(name):
            numbers.setdefault((found[1], found[3]), set()).add(int(found[2]))
        elif "[" in name:  # no node is called so, and ClusterShell would make each name that it stands for
            raise ValueError(name)
        else:
            yield name
    for (before, behind), found_numbers in numbers.items():
        yield f"{before}[{','.join(_spans(sorted(found_numbers)))}]{behind}"


def _spans(numbers: Sequence[int]) -> Iterator[str]:
    """``1-3`` and ``7-7`` for 1, 2, 3 and 7."""
    ends = [rank for rank, number in enumerate(numbers, start=1) if numbers[rank : rank + 1] != [number + 1]]
    return (f"{numbers[begin]}-{numbers[end - 1]}" for begin, end in pairwise([0, *ends]))


def told(names: Iterable[str]) -> str:
    """*names* folded, as far as one line of a message has room for them."""
    return _short(fold(names))


@lru_cache(maxsize=1 << 15)
def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts ``gdx-2`` before ``gdx-10``."""
    return tuple(map(_part_key, filter(None, re.split(r"(\d+)", name))))


def _part_key(part: str) -> tuple[int, int, str]:
    """Numbers before words, by their value however long they are."""
    digits = part.lstrip("0")
    return (0, len(digits), digits) if part.isdecimal() else (1, 0, part)


def parse_lines(text: str, most: int = MOST) -> list[str]:
    """Names from a node file: one range per line, ``#`` comments and blank lines ignored, duplicates once.

    Raises:
        NodeListError: a malformed range, more than *most* names, or lines that name the same nodes again and again.
    """
    names: dict[str, None] = {}
    lines = dict.fromkeys(line.split("#", 1)[0].strip() for line in text.splitlines())
    made = 0
    for content in filter(None, lines):
        found = expand(content, most)
        made += len(found)
        names.update(dict.fromkeys(found))
        require_few(len(names), most, "The list of nodes")
        if made > _REPEATED * most:
            raise NodeListError(f"The list of nodes names the same ones more than {_REPEATED} times: name each once.")
    return list(names)


_REPEATED = 10
"""How often lines that differ may stand for the same nodes, on average, where there are as many as may be."""
