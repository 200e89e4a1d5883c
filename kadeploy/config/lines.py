"""A YAML text: what it says, and in which line it says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from kadeploy.errors import MalformedError

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

_MERGE = "tag:yaml.org,2002:merge"

Place = tuple[str | int, ...]
"""Where a value is: ``("disk", "partitions", 0, "size")``."""


def parse(text: str, *, strict: bool) -> Any:
    """What *text* says; where it is *strict*, no key may be given twice.

    Raises:
        MalformedError: it is no YAML, or has a key twice.
    """
    loader = _Loader(text)
    try:
        data = loader.get_single_data()
    except yaml.YAMLError as error:
        raise _malformed(error, text) from error
    except RecursionError as error:
        raise MalformedError(1, (), "it is nested too deeply.") from error
    except (ValueError, OverflowError) as error:  # 2024-13-45 looks like a date, 0x_ like a number
        raise MalformedError(*_unreadable(text), f"{error}: put the value in quotes.") from error
    finally:
        loader.dispose()
    if strict and loader.may_repeat and (found := Lines(text).repeated()):
        raise found
    return data


class _Loader(SafeLoader):
    """Notes whether a mapping has fewer keys than pairs: the last one of a key that is given twice counts."""

    may_repeat = False

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):  # or a merge, ``<<``, whose keys are written anew
            self.may_repeat = True
        return found


class Lines:
    """Where everything is in a text that `parse` can read."""

    def __init__(self, text: str) -> None:
        self._root = yaml.compose(text, Loader=SafeLoader)

    def line(self, place: Place) -> int:
        """The line of what is at *place*, from 1; where nothing is there, that of what would hold it."""
        return self._find(place)[0] + 1

    def written(self, place: Place) -> str | None:
        """How the plain value at *place* is written, without quotes; None where none is."""
        _, node, rest = self._find(place)
        return node.value if isinstance(node, yaml.ScalarNode) and not rest else None

    def repeated(self) -> MalformedError | None:
        """The refusal of the first key that is given twice in one mapping."""
        for place, node in self._mappings(self._root, (), set()):
            known: dict[tuple[str, str], int] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                    continue
                line, mark = key.start_mark.line + 1, (key.tag, key.value)
                if mark in known:
                    said = f"given in line {known[mark]} already; remove one of them."
                    return MalformedError(line, (*place, key.value), said)
                known[mark] = line
        return None

    def _find(self, place: Place) -> tuple[int, Any, Place]:
        """Line from 0, node, and what of *place* is not there."""
        node = self._root
        line = node.start_mark.line if node else 0
        for depth, part in enumerate(place):
            found = _child(node, part)
            if found is None:
                return line, node, place[depth:]
            line, node = found
        return line, node, ()

    def _mappings(self, node: Any, place: Place, seen: set[int]) -> Iterator[tuple[Place, Any]]:
        if id(node) in seen:  # an alias
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield place, node
            for key, value in node.value:
                yield from self._mappings(value, (*place, str(key.value)), seen)
        elif isinstance(node, yaml.SequenceNode):
            for rank, value in enumerate(node.value):
                yield from self._mappings(value, (*place, rank), seen)


def _child(node: Any, part: str | int) -> tuple[int, Any] | None:
    """Line from 0, and node, of a key or member."""
    if isinstance(node, yaml.MappingNode):
        pairs = [pair for pair in node.value if pair[0].value == str(part)]
        if pairs:
            return pairs[-1][0].start_mark.line, pairs[-1][1]
        merged = (value for key, value in node.value if key.tag == _MERGE)
        return next((found for value in merged if (found := _child(value, part))), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line, node.value[part]
    return None


# --- what is no YAML --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cause:
    """What the parser says, and what to do."""

    problem: str
    advice: str


_CAUSES = (
    _Cause(
        "mapping values are not allowed",
        "put a value that holds a colon and a blank in quotes, and check the indentation",
    ),
    _Cause("cannot start any token", "put a value that begins with @, `, % or a tab in quotes, and indent with blanks"),
    _Cause("did not find expected key", "check the indentation, and the quotes of the lines above"),
    _Cause("did not find expected", "close each bracket and quote"),
    _Cause("unexpected end of stream", "close each bracket and quote"),
    _Cause("undefined alias", "put a value that begins with * or & in quotes"),
    _Cause("could not determine a constructor", "put a value that begins with ! in quotes"),
)
"""The first one that fits counts."""


def _malformed(error: yaml.YAMLError, text: str) -> MalformedError:
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    position = getattr(error, "position", None)
    if mark is not None:
        line = min(mark.line, max(text.count("\n") - text.endswith("\n"), 0))
    else:
        line = text.encode()[: position or 0].count(b"\n")
    lines = text.splitlines()
    indentation = lines[line][: len(lines[line]) - len(lines[line].lstrip())] if line < len(lines) else ""
    advice = next((f"; {cause.advice}" for cause in _CAUSES if cause.problem in problem), "")
    if "\t" in indentation:
        advice = "; indent with blanks, not with tabs"
    return MalformedError(line + 1, (), f"not valid YAML: {problem}{advice}.")


def _unreadable(text: str) -> tuple[int, Place]:
    """Line and place of the first value that looks like a number or a date, and is none."""
    return next(_broken(yaml.compose(text, Loader=SafeLoader), ()), (1, ()))


def _broken(node: Any, place: Place) -> Iterator[tuple[int, Place]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _broken(key, place)
            yield from _broken(value, (*place, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for rank, value in enumerate(node.value):
            yield from _broken(value, (*place, rank))
    else:
        try:
            yaml.SafeLoader("").construct_object(node)
        except (ValueError, OverflowError):
            yield node.start_mark.line + 1, place
