"""How options may be spelt: abbreviated while unique, by names of other times, without a value that may be left out.

A command line is read once from left to right and written anew with the names that the tool knows today.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kadeploy.errors import OptionError

WAIT, WAIT_FOR = "--wait", "--wait-for"
"""A flag; with the id of a workflow behind it, it is the option that takes one."""
_WID = re.compile(r"[DRP]-[0-9a-z]{6,32}")


def is_wid(word: str) -> bool:
    """Whether *word* looks like the id of a workflow."""
    return _WID.fullmatch(word) is not None


Value = Literal["none", "needed", "optional"]


@dataclass(frozen=True)
class Spelling:
    """The options of a tool, and other names for them."""

    values: Mapping[str, Value]
    """By each name of each option: whether a value comes with it."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Names of other times → names of today."""
    gone: Mapping[str, str] = field(default_factory=dict)
    """Options that there are no more → what to do in their place; with nothing to do they are passed over."""

    def today(self, argv: Sequence[str]) -> list[str]:
        """*argv* with today's names, all values filled in.

        Raises:
            OptionError: an option that is gone, or an abbreviation of several.
        """
        return list(self._words(list(argv)))

    def _words(self, rest: list[str]) -> Iterator[str]:
        while rest:
            word = rest.pop(0)
            if word == "--":
                yield from (word, *rest)
                return
            name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
            known = self._known(name)
            if known == WAIT and WAIT_FOR in self.values and is_wid(value or "".join(rest[:1])):
                yield f"{WAIT_FOR}={value or rest.pop(0)}"
                continue
            if known in self.gone:
                self._pass_over(name, known)
                continue
            yield f"{known}{equals}{value}"
            kind = self._kind(known)
            if equals or kind == "none":
                continue
            if kind == "needed" and rest:
                yield rest.pop(0)
            elif kind == "optional":
                yield rest.pop(0) if rest and (rest[0] == "-" or not rest[0].startswith("-")) else ""

    def _known(self, name: str) -> str:
        """Today's name, or one that is gone; what is no option stays as it is."""
        names = {known: known for known in self.values} | dict(self.aliases)
        if name in names or name in self.gone or not name.startswith("--"):
            return names.get(name, name)
        found = {known: today for known, today in names.items() if known.startswith(name)}
        found = found or {known: known for known in self.gone if known.startswith(name)}
        if len(set(found.values())) > 1:
            raise OptionError(f"{name} may be {_or(sorted(found))}: write more of it.")
        return next(iter(found.values()), name)

    def _pass_over(self, name: str, known: str) -> None:
        if self.gone[known]:
            raise OptionError(f"{name}: {self.gone[known]}")

    def _kind(self, name: str) -> Value:
        """Whether the word behind *name* is its value: of ``-dm`` it is, when ``-m`` takes one."""
        if name in self.values or name.startswith("--") or not name.startswith("-"):
            return self.values.get(name, "none")
        for rank, letter in enumerate(name[1:], start=2):
            kind = self.values.get(f"-{letter}", "none")
            if kind != "none":
                return "none" if len(name) > rank else kind
        return "none"


def of(parameters: Iterable[Any]) -> dict[str, Value]:
    """By each name of the options *parameters*, as typer has them, whether a value comes with it.

    A value that may be left out is one that the help shows in brackets.
    """
    found: dict[str, Value] = {}
    for each in parameters:
        if each.param_type_name != "option":
            continue
        optional = str(each.metavar or "").startswith("[")
        kind: Value = "none" if each.is_flag or each.count else "optional" if optional else "needed"
        found |= dict.fromkeys([*each.opts, *each.secondary_opts], kind)
    return found


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
