"""A YAML file of the administrator's, read as a strict and read-only object.

What is wrong with one is told by file, line, key, what is allowed and what was probably meant:

    /etc/kadeploy/clusters/gdx.yml:14: power.driver: unknown word ipmii; expected one of ipmi, redfish, command. …
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec

from kadeploy.config.lines import Lines, Place, parse
from kadeploy.config.rules import Rule, Wrong, dotted
from kadeploy.config.structure import explain
from kadeploy.errors import ConfigError, MalformedError


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """What every configuration object is: read-only, and strict about unknown keys."""

    def contradictions(self) -> Iterable[Wrong]:
        """What its keys say against each other, at places within it."""
        return ()


StructT = TypeVar("StructT", bound=Struct)
Further = Callable[[StructT], Iterable[Wrong]]
"""What is wrong with an object beyond its own rules."""


def read_yaml(path: Path) -> Any:
    """Parse one YAML file safely; raises ConfigError that names the file and the line."""
    return as_yaml(path, text_of(path))


def as_yaml(path: Path, text: str) -> Any:
    """Parse *text*, which was read from *path*, safely; raises as `read_yaml` does."""
    return _parsed(path, text, strict=False)


def read_struct(path: Path, kind: type[StructT], further: Further[StructT] = lambda _: (), **defaults: Any) -> StructT:
    """Read one YAML file as a *kind*, for which *further* rules hold, with *defaults* of this file.

    Raises:
        ConfigError: names the file, the line, the key and what was expected.
    """
    return as_struct(path, text_of(path), kind, further, **defaults)


def as_struct(
    path: Path, text: str, kind: type[StructT], further: Further[StructT] = lambda _: (), **defaults: Any
) -> StructT:
    """Understand *text*, which was read from *path*, as a *kind*, for which *further* rules hold, with *defaults*.

    Raises:
        ConfigError: names the file, the line, the key and what was expected.
    """
    found, wrong = _examined(path, text, kind, further, **defaults)
    if wrong:
        raise _refusal(path, Lines(text), wrong)
    return found


def examine(
    path: Path, kind: type[StructT], further: Further[StructT] = lambda _: (), **defaults: Any
) -> tuple[StructT, list[Wrong]]:
    """Read one YAML file as `read_struct` does, and tell which rules it breaks.

    Raises:
        ConfigError: it is no *kind* at all: its structure, or the kind of a value, is another.
    """
    return _examined(path, text_of(path), kind, further, **defaults)


def _examined(
    path: Path, text: str, kind: type[StructT], further: Further[StructT], **defaults: Any
) -> tuple[StructT, list[Wrong]]:
    data = _parsed(path, text, strict=True)
    if isinstance(data, dict):
        data |= {key: value for key, value in defaults.items() if data.get(key, "") == ""}
    try:
        found = msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        lines = Lines(text)
        raise _refusal(path, lines, [explain(error, kind, data, lines)]) from error
    return found, [*_wrong(found, ()), *further(found)]


def refusal(path: Path, wrong: Iterable[Wrong]) -> ConfigError:
    """The refusal of the file at *path*, which could be read: a line for all that is *wrong* with it, by its lines."""
    return _refusal(path, Lines(text_of(path)), wrong)


def _refusal(path: Path, lines: Lines, wrong: Iterable[Wrong]) -> ConfigError:
    told = {_at(path, lines.line(each.line_of or each.place), each): each for each in wrong}
    ranked = sorted(told, key=lambda said: lines.line(told[said].line_of or told[said].place))
    more = [f"{path}: {len(ranked) - _MOST} more."] if len(ranked) > _MOST else []
    return ConfigError("\n".join(ranked[:_MOST] + more))


_MOST = 20
"""Lines of one refusal."""


def _at(path: Path, line: int, wrong: Wrong) -> str:
    return f"{path}:{line}: {dotted(wrong.place)}{': ' if wrong.place else ''}{wrong.said}"


def text_of(path: Path) -> str:
    """What a file of the configuration says; raises ConfigError where it cannot be read, or is not UTF-8."""
    content = b""
    try:
        content = path.read_bytes()
        return content.decode()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Set KADEPLOY_CONFIG_DIR to the configuration folder.") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8: byte {content[error.start]:#04x}; save it as UTF-8.") from error


def _parsed(path: Path, text: str, *, strict: bool) -> Any:
    try:
        return parse(text, strict=strict)
    except MalformedError as error:
        raise ConfigError(_at(path, error.line, Wrong(error.place, str(error)))) from error


# --- rules ------------------------------------------------------------------------------------------------------

_Check = Callable[[Any, Place], Iterator[Wrong]]


def _wrong(value: Struct, place: Place) -> Iterator[Wrong]:
    """What breaks the rules of the keys of *value*, and of what is in it; defaults break none."""
    for name, key, default, check in _checks(type(value)):
        held = getattr(value, name)
        if held is not default and held != default:
            yield from check(held, (*place, key))
    for wrong in value.contradictions():
        line_of = (*place, *wrong.line_of) if wrong.line_of else ()
        yield Wrong((*place, *wrong.place), wrong.said, line_of)


@cache
def _checks(kind: type[Struct]) -> list[tuple[str, str, Any, _Check]]:
    """Attribute, key, default and check of what has rules."""
    fields = msgspec.structs.fields(kind)
    found = ((each.name, each.encode_name, each.default, _check(each.type)) for each in fields)
    return [(name, key, default, check) for name, key, default, check in found if check]


def _check(kind: Any) -> _Check | None:
    """The check of all values of a type; None where none can be wrong."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _wrong
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        rule = next((each for each in inner[1:] if isinstance(each, Rule)), None)
        return _by(rule) if rule else _check(inner[0])
    checks = [_check(each) for each in inner if each is not Ellipsis]
    if origin is tuple:
        return _of_members(checks[0]) if checks and checks[0] else None
    if origin is dict:
        return _of_pairs(checks[0], checks[1]) if any(checks) else None
    ways = [(get_origin(each) or each, check) for each, check in zip(inner, checks, strict=True) if check]
    return _of_any(ways) if ways else None


def _by(rule: Rule) -> _Check:
    def check(value: Any, place: Place) -> Iterator[Wrong]:
        if isinstance(value, str) and (said := rule.broken(value)):
            yield Wrong(place, said)

    return check


def _of_any(ways: Sequence[tuple[Any, _Check]]) -> _Check:
    """The check of a value that may be of several types; only texts and numbers have rules with a type around."""

    def check(value: Any, place: Place) -> Iterator[Wrong]:
        for kind, of_kind in ways:
            if kind is Annotated or isinstance(value, kind):
                yield from of_kind(value, place)

    return check


def _of_members(check: _Check) -> _Check:
    return lambda values, place: (wrong for rank, each in enumerate(values) for wrong in check(each, (*place, rank)))


def _of_pairs(of_key: _Check | None, of_value: _Check | None) -> _Check:
    def check(values: Any, place: Place) -> Iterator[Wrong]:
        for key, value in values.items():
            for each, one in ((of_key, key), (of_value, value)):
                yield from each(one, (*place, key)) if each else ()

    return check
