"""YAML that users write, read within bounds: a few lines can stand for gigabytes, or exhaust the parser's stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import yaml

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

MOST = 100_000
"""Values of a document, those that are repeated by an alias counted again each time."""

DEEPEST = 50
"""Levels of lists and mappings; libyaml, which puts each on the stack, ends the process somewhere beyond 5,000."""


class Document(NamedTuple):
    """One document of a text."""

    root: yaml.Node
    """Where its parts are in the text."""
    content: Any


def read(text: str) -> Iterator[Document]:
    """The documents of *text*, as plain data.

    Raises:
        yaml.YAMLError: malformed.
        ValueError: nested too deeply, too many values, one that contains itself, or a date that does not exist.
    """
    _require_shallow(text)
    loader = SafeLoader(text)
    try:
        while loader.check_node():
            root = cast("yaml.Node", loader.get_node())
            _require_few(_count(root, {}))
            yield Document(root, loader.construct_document(root))
    finally:
        loader.dispose()


def _require_shallow(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Values below *node* and itself; *known* holds what has been counted, 0 what is being counted."""
    if node not in known:
        known[node] = 0
        known[node] = 1 + sum(_count(part, known) for part in _parts(node))
    elif known[node] == 0:
        raise ValueError("a part of it contains itself")
    return known[node]


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _require_few(found: int) -> None:
    if found > MOST:
        raise ValueError(f"it stands for more than {MOST} values, repeated ones counted again")
