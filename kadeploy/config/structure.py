"""What msgspec finds wrong with the data of a file, told of its place, with what is allowed there."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import inspect

from kadeploy.config.lines import Lines, Place
from kadeploy.config.rules import Wrong, shown
from kadeploy.hints import choices, kinds, nearest, one_of, type_at, unknown

_MESSAGE = re.compile(r"(?P<said>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`)?", re.DOTALL)
_PART = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_MISSING = re.compile(r"Object missing required field `(.*)`")
_BOUND = re.compile(r"Expected `(?:int|float)` (?:[<>]=?) ")


def explain(error: msgspec.ValidationError, kind: Any, data: Any, lines: Lines) -> Wrong:
    """What *error*, which arose when *data* was read as a *kind*, says, and of which place."""
    found = _MESSAGE.fullmatch(str(error))
    path, said = (found["path"] or "", found["said"]) if found else ("", str(error))
    place = _place(kind, data, path, within_key=bool(found and found["key"]))
    if refused := unknown(error, kind):
        return Wrong(place, refused.said, (*place, refused.key) if refused.key else place)
    if missing := _MISSING.fullmatch(said):
        return Wrong(place, f"the key {missing[1]} is missing.")
    if found and found["key"]:
        return Wrong(place, f"{shown(place[-1])} is no name: put it in quotes." if place else "a key is no name.")
    if not place and data is None:
        return Wrong((), f"the file is empty; expected the keys {', '.join(_required(type_at(kind, '')))}.")
    value, expected = _value(data, place), type_at(kind, path)
    return Wrong(place, _told(value, lines.written(place), expected, said))


# --- where it is ------------------------------------------------------------------------------------------------


def _place(kind: Any, data: Any, path: str, *, within_key: bool) -> Place:
    """The place that *path* tells; msgspec does not say which value of a mapping it means: it is looked for."""
    place: Place = ()
    for key, rank in _PART.findall(path):
        kind = _unwrapped(kind, data)
        if key:
            kind, part = {each.encode_name: each.type for each in msgspec.structs.fields(kind)}[key], key
        elif rank == "...":
            kind = get_args(kind)[1]
            part = next((name for name, value in data.items() if not _is(value, kind)), "")
        else:
            kind, part = get_args(kind)[0], int(rank)
        place = (*place, part)
        data = data[part]
    if within_key:
        return (*place, str(next((name for name in data if not isinstance(name, str)), "")))
    return place


def _unwrapped(kind: Any, data: Any) -> Any:
    """*kind* without what is annotated; of several, the one that *data* may be."""
    if get_origin(kind) is Annotated:
        return _unwrapped(get_args(kind)[0], data)
    if get_origin(kind) not in (Union, UnionType):
        return kind
    wanted = (tuple,) if isinstance(data, list) else (dict, None)
    return next((each for each in get_args(kind) if get_origin(each) in wanted and each is not type(None)), kind)


def _is(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _value(data: Any, place: Place) -> Any:
    for part in place:
        data = data[part]
    return data


# --- what is said -----------------------------------------------------------------------------------------------


def _told(value: Any, written: str | None, expected: inspect.Type | None, said: str) -> str:
    """What is wrong with *value*, *written* so, where *expected* is; *said*: what msgspec says."""
    if words := choices(expected):
        if not isinstance(value, str) and str(value) in words:
            return f'{_what(value, written)}; expected one of {", ".join(words)}. Put it in quotes: "{written}".'
        return f"{_what(value, written)}; {one_of(str(value), words)}"
    kind = next((each for each in kinds(expected) if not isinstance(each, inspect.NoneType)), None)
    if isinstance(kind, inspect.StrType) and isinstance(value, bool | int | float):
        return f'{_what(value, written)}; expected text. Put it in quotes: "{written}".'
    allowed = next((tell(kind) for each, tell in _EXPECTED.items() if isinstance(kind, each)), "")
    if not allowed:
        return f"{' '.join(said.split()).rstrip('.')}."
    what = (
        f"wrong value {shown(written if written is not None else value)}"
        if _BOUND.match(said)
        else _what(value, written)
    )
    return f"{what}; expected {allowed}.{_hint(value, written, kind)}"


def _what(value: Any, written: str | None) -> str:
    """A value that is of the wrong kind."""
    if value is None:
        return "nothing is given"
    if isinstance(value, list):
        return "a list is given" if value else "an empty list is given"
    if isinstance(value, dict):
        return "a section with keys is given"
    kind = next((word for each, word in _KINDS if isinstance(value, each)), "a date")
    return f"{shown(written if written is not None else value)} is {kind}"


_KINDS: tuple[tuple[type, str], ...] = (
    (str, "text"),
    (bool, "true or false to YAML"),
    (int, "a number to YAML"),
    (float, "a number to YAML"),
)


def _hint(value: Any, written: str | None, kind: inspect.Type | None) -> str:
    if isinstance(kind, inspect.IntType | inspect.FloatType) and isinstance(value, str):
        number = re.fullmatch(r"\s*(\d+)\s*(?:s|sec|seconds?|mb|mib)?\s*", value, re.IGNORECASE)
        return f" Did you mean {number[1]}?" if number else ""
    if isinstance(kind, inspect.BoolType) and isinstance(value, str):
        meant = nearest(value, ("true", "false", "yes", "no"))
        return f" Did you mean {meant}?" if meant else ""
    if isinstance(kind, inspect.VarTupleType) and isinstance(value, str | int) and isinstance(kind.item_type, _PLAIN):
        return f" Did you mean [{shown(written)}]?"
    return ""


_PLAIN = (inspect.StrType, inspect.LiteralType)


def _number(kind: Any) -> str:
    what = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
    if kind.gt is not None:
        return f"{what} above {kind.gt:g}"
    if kind.ge is not None and kind.le is not None:
        return f"{what} from {kind.ge:g} to {kind.le:g}"
    return f"{what} of at least {kind.ge:g}" if kind.ge is not None else what


def _list(kind: Any) -> str:
    return "a list of at least one" if kind.min_length else "a list"


def _section(kind: Any) -> str:
    keys = [each.encode_name for each in kind.fields]
    return f"a section with the keys {', '.join(keys)}" if len(keys) <= _FEW else "a section with keys of its own"


_FEW = 10
_EXPECTED: dict[type[inspect.Type], Callable[[Any], str]] = {
    inspect.IntType: _number,
    inspect.FloatType: _number,
    inspect.StrType: lambda _: "text",
    inspect.BoolType: lambda _: "true or false",
    inspect.VarTupleType: _list,
    inspect.DictType: lambda _: "a section with keys of its own",
    inspect.StructType: _section,
}


def _required(kind: inspect.Type | None) -> list[str]:
    return [each.encode_name for each in kind.fields if each.required] if isinstance(kind, inspect.StructType) else []
