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


class Line(dict[str, Any]):
    """A mapping that is written on one line, though a list or a mapping around it has several."""


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

    Owners and modes stay. All of them are written, or none.

    Raises:
        ConfigError: it would not be, or cannot be tried, or a file has changed since it was read; nothing was written.
        OSError: one cannot be written, and all are as they were.
    """
    with tempfile.TemporaryDirectory(prefix="kadeploy-edit-") as trial:
        copied = Path(trial) / folder.name
        _copy(folder, copied)
        for each in edits:
            (copied / each.path.relative_to(folder)).write_text(each.after, encoding="utf-8")
        changed = {str(each.path.relative_to(folder)) for each in edits}
        try:
            found = load_configuration(copied)
            found.require_sound([name for name, cluster in found.clusters.items() if cluster.file in changed])
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(copied), str(folder))) from error
    for each in edits:
        if each.path.read_text(encoding="utf-8") != each.before:
            raise ConfigError(f"{each.path} was changed by somebody else meanwhile: begin again.")
    written: list[Edit] = []
    try:
        for each in edits:
            written.append(each)
            _write(each.path, each.after)
    except BaseException:
        for each in written:
            if each.path.read_text(encoding="utf-8") != each.before:
                _write(each.path, each.before)
        raise


def _copy(folder: Path, copied: Path) -> None:
    """Copy *folder*, without what others made there for a moment: an editor's files and the links of its locks.

    Raises:
        ConfigError: something that is there cannot be copied.
    """
    try:
        shutil.copytree(folder, copied, ignore_dangling_symlinks=True)
    except shutil.Error as error:
        for source, _, reason in error.args[0]:
            if os.path.lexists(source):
                raise ConfigError(f"{os.fspath(source)} cannot be read to try the change: {reason}") from error


def _write(path: Path, text: str) -> None:
    status = path.stat()
    replace_file(path, text.encode(), status.st_mode & 0o7777)
    os.chown(path, status.st_uid, status.st_gid)


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


def with_items(text: str, place: Place, changes: Mapping[int, Sequence[Mapping[str, str]]]) -> str:
    r"""The YAML *text* in which each item that *changes* names, of the list at *place*, is these items; others stay.

    The item behind the last one is new. One that becomes one item keeps its form, and what it says besides.

    >>> apart = {0: [{"name": "n-1", "mac": "a"}, {"name": "n-2"}]}
    >>> with_items("nodes:\n  # two\n  - name: n-[1-2]\n", ("nodes",), apart)
    'nodes:\n  # two\n  - {name: n-1, mac: a}\n  - {name: n-2}\n'

    Raises:
        ValueError: its form is beyond us.
    """
    text = text if text.endswith("\n") else f"{text}\n"
    items = _at(yaml.safe_load(text), place)
    if not isinstance(items, list):
        raise ValueError(f"{'.'.join(map(str, place))} is no list")  # noqa: TRY004 - of the text
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in place:
        node = _inside(node, key) if node else None
    assert isinstance(node, yaml.SequenceNode)  # noqa: S101 - it is a list
    wanted: list[Any] = []
    for rank, item in enumerate([*items, None]):
        wanted += changes.get(rank, [] if item is None else [item])
    for rank in sorted(changes, reverse=True):  # from the end: what is before a change stays where it was
        text = _with_item(text, node, rank, changes[rank])
    if _at(yaml.safe_load(text), place) != wanted:
        raise ValueError("its form is unusual")
    return text


def _with_item(text: str, node: yaml.SequenceNode, rank: int, new: Sequence[Mapping[str, str]]) -> str:
    if rank == len(node.value):
        last = node.value[-1]
        start = _end(last) if _is_flow(node) else text.index("\n", _end(last) - 1)
        return f"{text[:start]}{_lines(text, last, node, new, is_first=False)}{text[start:]}"
    item = node.value[rank]
    if len(new) == 1 and isinstance(item, yaml.MappingNode):
        known = {key.value: value for key, value in item.value}
        for key in reversed([key for key in new[0] if key not in known]):  # each goes in front of the one before
            text = _added(text, item, _is_flow(item) or _is_flow(node), [key], new[0][key])
        for key, value in reversed(known.items()):
            if key in new[0] and new[0][key] != value.value:
                text = _replaced(text, value, _is_flow(item) or _is_flow(node), new[0][key])
        return text
    return f"{text[: item.start_mark.index]}{_lines(text, item, node, new, is_first=True)}{text[_end(item) :]}"


def _lines(
    text: str, item: yaml.Node, node: yaml.SequenceNode, new: Sequence[Mapping[str, str]], *, is_first: bool
) -> str:
    """*new* in the place of an *item* of the list *node*, or behind it."""
    start: int = item.start_mark.index
    before = text[text.rfind("\n", 0, start) + 1 : start]
    if not _is_flow(node) and set(before) - set(" -"):
        raise ValueError("its form is unusual")
    between = ", " if _is_flow(node) else f"\n{before}"
    return ("" if is_first else between) + between.join(_flow(dict(each)) for each in new)


def _at(data: Any, place: Place) -> Any:
    for key in place:
        data = data[key]
    return data


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
    text = yaml.dump(
        value, Dumper=_Indented, default_flow_style=True, width=1 << 20, allow_unicode=True, sort_keys=False
    )
    return str(text).removesuffix("\n").removesuffix("\n...")


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

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's
        """What is said twice is written twice."""
        return True


_Indented.add_representer(
    Line, lambda dumper, line: dumper.represent_mapping("tag:yaml.org,2002:map", line.items(), flow_style=True)
)
