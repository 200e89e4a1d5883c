"""Values in the administrator's YAML files, changed where they stand: comments, order and everything else stay."""

from __future__ import annotations

import copy
import difflib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kadeploy.config.folder import load_configuration
from kadeploy.errors import ConfigError
from kadeploy.files import replace_file

Place = tuple[str | int, ...]
"""Where a value is: ``("loader", "params")``, ``("nodes", 0, "mac")``."""


@dataclass(frozen=True)
class Edit:
    """What a file says, and what it is to say."""

    path: Path
    before: str
    after: str

    @property
    def diff(self) -> str:
        """The difference, for people; empty when there is none."""
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True),
            self.after.splitlines(keepends=True),
            str(self.path),
            f"{self.path} (new)",
        )
        return "".join(lines)


def edit(path: Path, values: Mapping[Place, Any]) -> Edit:
    """What the file at *path* says once *values* are set in it.

    Raises:
        ConfigError: it cannot be read, or its form is beyond us.
    """
    try:
        before = path.read_text(encoding="utf-8")
        after = edited(before, values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be changed: {error}.") from error
    except ValueError as error:
        told = ", ".join(f"{'.'.join(map(str, place))}: {_flow(value)}" for place, value in values.items())
        raise ConfigError(f"{path} cannot be changed by a program ({error}): write into it {told}.") from error
    return Edit(path, before, after)


def apply(folder: Path, edits: Sequence[Edit]) -> None:
    """Write *edits* to files of the configuration *folder*, but only if it is a good configuration with all of them.

    Owners and modes stay.

    Raises:
        ConfigError: it would not be, or a file has changed since it was read; nothing was written.
    """
    with tempfile.TemporaryDirectory(prefix="kadeploy-edit-") as trial:
        copied = Path(trial) / folder.name
        shutil.copytree(folder, copied)
        for each in edits:
            (copied / each.path.relative_to(folder)).write_text(each.after, encoding="utf-8")
        try:
            load_configuration(copied)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(copied), str(folder))) from error
    for each in edits:
        if each.path.read_text(encoding="utf-8") != each.before:
            raise ConfigError(f"{each.path} was changed by somebody else meanwhile: begin again.")
    for each in edits:
        status = each.path.stat()
        replace_file(each.path, each.after.encode(), status.st_mode & 0o7777)
        os.chown(each.path, status.st_uid, status.st_gid)


# --- text -----------------------------------------------------------------------------------------------------------


def edited(text: str, values: Mapping[Place, Any]) -> str:
    r"""The YAML *text* with *values* set: replaced where there are some, else added to what is there.

    A line that only has the key in a comment, such as ``# arch: ""``, gives it its place.

    >>> edited("loader:\n  params: quiet  # see the manual\n", {("loader", "params"): "console=ttyS1"})
    'loader:\n  params: console=ttyS1  # see the manual\n'

    Raises:
        ValueError: its form is beyond us: aliases, or a list where a name leads on.
    """
    for place, value in values.items():
        wanted = _with(yaml.safe_load(text), place, value)
        text = _set(text if text.endswith("\n") or not text else f"{text}\n", place, value)
        if yaml.safe_load(text) != wanted:
            raise ValueError("its form is unusual")
    return text


def _with(data: Any, place: Place, value: Any) -> Any:
    """A copy of *data* with *value* at *place*."""
    if not place:
        return value
    key, *rest = place
    if isinstance(key, int):
        if not isinstance(data, list) or key >= len(data):
            raise ValueError(f"there is no item {key}")
        return [_with(each, tuple(rest), value) if rank == key else each for rank, each in enumerate(data)]
    if data is not None and not isinstance(data, dict):
        raise ValueError(f"{key} would be inside of something else")
    return {**copy.copy(data or {}), key: _with((data or {}).get(key), tuple(rest), value)}


def _set(text: str, place: Place, value: Any) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return text + _block(_nested(place, value), 0)
    node, in_flow = root, _is_flow(root)
    for depth, key in enumerate(place):
        inner = _inside(node, key)
        if inner is None:
            return _added(text, node, in_flow, place[depth:], value)
        node, in_flow = inner, in_flow or _is_flow(inner)
    return _replaced(text, node, in_flow, value)


def _is_flow(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and node.flow_style is True


def _inside(node: yaml.Node, key: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for name, value in node.value if name.value == key), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
        found: yaml.Node = node.value[key]
        return found
    return None


def _nested(place: Sequence[str | int], value: Any) -> Any:
    for key in reversed(place):
        value = {key: value}
    return value


def _end(node: yaml.Node) -> int:
    """Where the text of *node* ends; what YAML calls the end of a block is where the next one begins."""
    if isinstance(node, yaml.CollectionNode) and node.value and not _is_flow(node):
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return end


def _replaced(text: str, node: yaml.Node, in_flow: bool, value: Any) -> str:
    start, end = node.start_mark.index, _end(node)
    if not in_flow and isinstance(value, list | dict) and value:
        return f"{_before_block(text[:start], value, node.start_mark.column)}{text[end:]}"
    new = _flow(value)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        new += "\n"
    elif start == end:  # nothing stands behind the colon
        new = f" {new}"
    return f"{text[:start]}{new}{text[end:]}"


def _before_block(before: str, value: Any, column: int) -> str:
    """*before* and the block behind it: on the same line as a block that was there, or below its key."""
    line = before[before.rfind("\n") + 1 :]
    if set(line) <= set(" -"):
        return before + _block(value, column).lstrip(" ").rstrip("\n")
    indented = len(line) - len(line.lstrip(" -")) + 2
    return f"{before.rstrip(' ')}\n{_block(value, indented)}".rstrip("\n")


def _added(text: str, node: yaml.Node, in_flow: bool, place: Sequence[str | int], value: Any) -> str:
    key, *rest = place
    inner = _nested(rest, value)
    if not isinstance(node, yaml.MappingNode):  # the key is there, and nothing behind it
        return _replaced(text, node, in_flow, _nested(place, value))
    if in_flow:
        at = node.end_mark.index - 1
        comma = ", " if node.value else ""
        return f"{text[:at].rstrip()}{comma}{_flow({key: inner})[1:-1]}{text[at:]}"
    column = node.start_mark.column
    line = _block({key: inner}, column)
    commented = re.compile(rf"^ {{{column}}}# ?{re.escape(str(key))}:(?: .*)?\n", re.MULTILINE)
    if found := commented.search(text, text.rfind("\n", 0, node.start_mark.index) + 1, _extent(text, node)):
        return f"{text[: found.start()]}{line}{text[found.end() :]}"
    end = _end(node)
    at = end if text[end - 1] == "\n" else text.find("\n", end) + 1 or len(text)
    return f"{text[:at]}{line}{text[at:]}"


def _extent(text: str, node: yaml.Node) -> int:
    """Up to where comments belong to the mapping *node*: the next line that is less indented."""
    column, at = node.start_mark.column, _end(node)
    if not column:
        return len(text)
    outside = re.compile(rf"^ {{0,{column - 1}}}\S", re.MULTILINE).search(text, at)
    return outside.start() if outside else len(text)


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1 << 20, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _block(value: Any, column: int) -> str:
    text = yaml.dump(
        value, Dumper=_Indented, default_flow_style=False, width=1 << 20, allow_unicode=True, sort_keys=False
    )
    return "".join(f"{' ' * column}{line}\n" for line in text.splitlines())


class _Indented(yaml.SafeDumper):
    """Lists are indented below their key, as in our files."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - PyYAML's
        """Never without indentation."""
        super().increase_indent(flow, False)
