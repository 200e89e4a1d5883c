"""Nodes from the configuration of ISC dhcpd: its ``host`` declarations, wherever they stand (dhcpd.conf(5))."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kadeploy.admin.sources.found import Entry, Found, LeftOut
from kadeploy.errors import FileError

_TOKEN = re.compile(
    r'(?P<blank>\s+|#[^\n]*)|(?P<text>"(?:\\.|[^"\\])*")|(?P<sign>[{};,])|(?P<word>[^\s{};,"]+)', re.DOTALL
)
_DEEPEST = 10
"""Files that include one another."""


class _Token(NamedTuple):
    text: str
    line: int
    is_sign: bool


@dataclass
class _Block:
    """What stands between braces, and the words before them."""

    head: list[str]
    line: int
    statements: list[list[str]] = field(default_factory=list)


def read(text: str, path: str, opened: Callable[[str], str], depth: int = 0) -> Found:
    """Nodes of *text*, which is in the file *path*; files that it includes are read by *opened*.

    Raises:
        FileError: braces or quotes do not match, or files include one another without end.
    """
    found = Found([], [])
    if depth > _DEEPEST:
        raise FileError(f"{path}: more than {_DEEPEST} files include one another: name the one that has the hosts.")
    for block in _blocks(text, path):
        if block.head[:1] == ["include"] and len(block.head) == 2:
            inner = read(opened(block.head[1]), block.head[1], opened, depth + 1)
            found.entries.extend(inner.entries)
            found.left_out.extend(inner.left_out)
        elif block.head[:1] == ["host"]:
            _take(block, f"{path}:{block.line}", found)
    return found


def _take(block: _Block, where: str, found: Found) -> None:
    """Add the node that a ``host`` block declares to what is *found*, or why it is none."""
    declared = " ".join(block.head[1:])
    values = {_key(words): words for words in block.statements}
    told = _value(values, "option host-name", 2)
    name = declared if declared.startswith(f"{told}.") else told or declared
    addresses = [word for word in values.get("fixed-address", values.get("fixed-address6", []))[1:] if word != ","]
    if not addresses:
        found.left_out.append(LeftOut(where=where, text=f"{declared} has no fixed-address"))
        return
    if len(addresses) > 1:
        text = f"{declared} has several addresses; {addresses[0]}, the first one, is taken"
        found.left_out.append(LeftOut(where=where, text=text))
    mac = _value(values, "hardware ethernet", 2)
    if not mac and any(key.startswith("hardware ") for key in values):
        found.left_out.append(LeftOut(where=where, text=f"the card of {declared} is none of Ethernet: no MAC is taken"))
    found.entries.append(Entry(name=name, address=addresses[0], mac=mac, where=where))


def _key(words: list[str]) -> str:
    """What a statement is about, in any case of letters."""
    return " ".join(words[:2] if words[0].lower() in {"hardware", "option"} else words[:1]).lower()


def _value(values: dict[str, list[str]], key: str, rank: int) -> str:
    words = values.get(key, [])
    return words[rank] if len(words) > rank else ""


def _blocks(text: str, path: str) -> Iterator[_Block]:
    """All blocks, each at its end, and ``include`` statements as blocks without content."""
    open_blocks = [_Block([], 1)]
    words: list[str] = []
    line = 1
    for token in _tokens(text, path):
        if not token.is_sign:
            line = line if words else token.line
            words.append(token.text)
            continue
        if token.text == ",":
            words.append(",")
        elif token.text == ";":
            if words[:1] == ["include"]:
                yield _Block(words, line)
            elif words:
                open_blocks[-1].statements.append(words)
            words = []
        elif token.text == "{":
            open_blocks.append(_Block(words, line if words else token.line))
            words = []
        else:
            if len(open_blocks) == 1:
                raise FileError(f"{path}:{token.line}: this }} closes nothing: is it a file of ISC dhcpd?")
            if words:
                raise FileError(f"{path}:{line}: {' '.join(words)[:80]!r} does not end with a semicolon.")
            yield open_blocks.pop()
    if len(open_blocks) > 1:
        raise FileError(f"{path}:{open_blocks[-1].line}: what is opened here by {{ is never closed.")


def _tokens(text: str, path: str) -> Iterator[_Token]:
    line, position = 1, 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise FileError(f'{path}:{line}: the text that begins here with " never ends.')
        if found["blank"] is None:
            word = re.sub(r"\\(.)", r"\1", found["text"][1:-1]) if found["text"] else found[0]
            yield _Token(word, line, found["sign"] is not None)
        line += found[0].count("\n")
        position = found.end()
