"""What a refused word was probably meant to be, and what is allowed in its place: sentences behind a refusal.

Whoever calls gives the names that may be suggested: only those that the user may see.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from msgspec import inspect

from kadeploy.nodeset import told

_LONGEST = 100
"""Characters of a word that may be a slip of the hand; comparing takes the square of them."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The name that is most like *word*, whatever its case; empty when none is.

    >>> nearest("Debain12", ["debian11", "debian12", "rocky9"])
    'debian12'
    """
    names = {name.casefold(): name for name in known}
    found = get_close_matches(word.casefold(), names, 1) if len(word) <= _LONGEST else []
    return names[found[0]] if found else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`nearest` as a sentence, with a blank in front of it; empty when there is none.

    >>> did_you_mean("hostnam", ["hostname", "user"])
    ' Did you mean hostname?'
    """
    found = nearest(word, known)
    return f" Did you mean {found}?" if found else ""


# --- nodes ------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\d+")


def of_nodes(unknown: Sequence[str], known: Collection[str]) -> str:
    """The same for names of nodes: those with the same numbers, else all that are called alike.

    >>> of_nodes(["gxd-1", "gxd-2"], ["gdx-1", "gdx-2", "gdx-3"])
    ' Did you mean gdx-[1-2]?'
    >>> of_nodes(["gdx-4"], ["gdx-1", "gdx-2", "gdx-3"])
    ' There are gdx-[1-3].'
    """
    alike: dict[str, dict[tuple[int, ...], str]] = {}
    for name in known:
        alike.setdefault(_NUMBER.sub("#", name), {})[_numbers(name)] = name
    series = alike.get(nearest(_NUMBER.sub("#", unknown[0]), alike), {})
    meant = [series[numbers] for numbers in map(_numbers, unknown) if numbers in series]
    if meant:
        return f" Did you mean {told(meant)}?"
    verb = "are" if len(series) > 1 else "is"
    return f" There {verb} {told(series.values())}." if series else ""


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, _NUMBER.findall(name)))


# --- what msgspec finds wrong -----------------------------------------------------------------------------------

_WORD = re.compile(r"Invalid enum value (?P<word>.*?)(?: - at `\$(?P<path>.*)`)?\Z", re.DOTALL)
_KEY = re.compile(r"Object contains unknown field `(?P<word>.*?)`(?: - at `\$(?P<path>.*)`)?\Z", re.DOTALL)
_PART = re.compile(r"\.([^.\[]+)|\[[^\]]*\]")


def explained(error: BaseException, kind: Any) -> str:
    """What *error*, which arose when data was read as a *kind*, says: which key, what is allowed, what was meant.

    >>> from kadeploy.config.site import Windows
    >>> explained(ValueError("Object contains unknown field `rebot`"), Windows)
    'unknown key rebot; the keys here are reboot, check, ssh. Did you mean reboot?'
    """
    if refused := unknown(error, kind):
        path, said, _ = refused
        return f"{path.removeprefix('.')}: {said}" if path else said
    text = " ".join(str(error).split())
    return f"{text.rstrip('.') or type(error).__name__}."


class Unknown(NamedTuple):
    """A word or a key that is none of those there are."""

    path: str
    """Where it stands, as msgspec writes it: ``.disk.partitions[0]``."""
    said: str
    key: str
    """The unknown key; empty for a word."""


def unknown(error: BaseException, kind: Any) -> Unknown | None:
    """The unknown word or key that *error*, which arose when data was read as a *kind*, is about; None: neither."""
    text = " ".join(str(error).split())
    if found := _WORD.match(text):
        word, words = found["word"].strip("'\""), choices(type_at(kind, found["path"]))
        if words:
            return Unknown(found["path"] or "", f"unknown word {_short(word)}; {one_of(word, words)}", "")
    if found := _KEY.match(text):
        keys = [key for each in kinds(type_at(kind, found["path"])) for key in _fields(each)]
        hint = did_you_mean(found["word"], keys)
        known = f"; the keys here are {', '.join(keys)}" if keys and (len(keys) <= _FEW or not hint) else ""
        return Unknown(found["path"] or "", f"unknown key {_short(found['word'])}{known}.{hint}", found["word"])
    return None


def one_of(word: str, words: Collection[str]) -> str:
    """What is expected in place of *word*.

    >>> one_of("ipmii", ["ipmi", "redfish", "command"])
    'expected one of ipmi, redfish, command. Did you mean ipmi?'
    """
    return f"expected one of {', '.join(words)}.{did_you_mean(word, words)}"


def _short(word: str) -> str:
    return word if len(word) <= _SHOWN else f"{word[:_SHOWN]}…"


_SHOWN = 60
_FEW = 10
"""Keys that are listed although one of them was probably meant."""


def type_at(kind: Any, path: str | None) -> inspect.Type | None:
    """What is to be at *path* of a *kind*."""
    found: inspect.Type | None = inspect.type_info(kind)
    for part in _PART.finditer(path or ""):
        inner = (_inside(each, part[1]) for each in kinds(found))
        found = next((each for each in inner if each is not None), None)
    return found


def _inside(kind: inspect.Type, key: str | None) -> inspect.Type | None:
    """What a *kind* has under *key*, or as a member when it is None."""
    if key is not None:
        return _fields(kind).get(key)
    if isinstance(kind, inspect.DictType):
        return kind.value_type
    return kind.item_type if isinstance(kind, inspect.ListType | inspect.VarTupleType) else None


def _fields(kind: inspect.Type) -> dict[str, inspect.Type]:
    return {each.encode_name: each.type for each in kind.fields} if isinstance(kind, inspect.StructType) else {}


def kinds(kind: inspect.Type | None) -> Iterator[inspect.Type]:
    """*kind*, or all that it may be."""
    if isinstance(kind, inspect.UnionType):
        yield from kind.types
    elif kind is not None:
        yield kind


def choices(kind: inspect.Type | None) -> list[str]:
    """The words that are allowed for a *kind*; none where it is no word of a few."""
    return [str(word) for each in kinds(kind) if isinstance(each, inspect.LiteralType) for word in each.values]
