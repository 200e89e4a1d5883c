"""Ranges that tell of the same nodes, paired one by one: names, addresses, BMCs, MAC addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from kadeploy.errors import NodeListError, PairingError
from kadeploy.nodeset import expand, fold


def paired(name: str, others: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of the range *name*, and by key the values of the *others* in the same order; empty ones stay so.

    >>> paired("n-[1-2]", {"address": "10.0.0.[7-8]", "mac": ""})
    {'name': ['n-1', 'n-2'], 'address': ['10.0.0.7', '10.0.0.8'], 'mac': ['', '']}

    Raises:
        PairingError: one is no range, has another length, or an order in which it would not be paired.
    """
    names = _values("name", name)
    columns = {"name": names}
    for key, pattern in others.items():
        columns[key] = values = _values(key, pattern) if pattern else [""] * len(names)
        if len(values) != len(names):
            raise PairingError.of(key, _unequal(pattern, len(values), name, len(names)))
    return columns


def _unequal(pattern: str, count: int, name: str, nodes: int) -> str:
    values = "value" if count == 1 else "values"
    colons = "; a range of MAC addresses is written with dashes" if "[" in pattern and ":" in pattern else ""
    return f"{pattern!r} has {count} {values} for {nodes} nodes in {name!r}{colons}."


_WITH_PORT = re.compile(r"([^:]*\[[^:]*\][^:]*):(\d+)")
ValueT = TypeVar("ValueT")


def extremes(pattern: str, values: Sequence[ValueT]) -> Sequence[ValueT]:
    """Those of the *values* of a range that are right only if all are: its least and its greatest numbers."""
    return values if "," in _BRACKETS.sub("", pattern) else (values[0], values[-1])


def _values(key: str, pattern: str) -> list[str]:
    prefix, separator, rest = pattern.partition("://")
    try:
        if separator:  # a base URL per node
            return [f"{prefix}://{value}" for value in _slashed(key, rest)]
        if with_port := _WITH_PORT.fullmatch(pattern):
            return [f"{value}:{with_port[2]}" for value in _in_order(key, with_port[1])]
        return [pattern] if ":" in pattern else _in_order(key, pattern)
    except PairingError:
        raise
    except NodeListError as error:
        advice = " Write a range as in n-[1-10]." if "[" in pattern else ""
        raise PairingError.of(key, f"{error}{advice}") from error


def _slashed(key: str, rest: str) -> list[str]:
    """Expand a URL's host part, keep its port and path."""
    host = rest.split("/", 1)[0].rsplit(":", 1)[0]
    return [rest.replace(host, value, 1) for value in _in_order(key, host)]


_BRACKETS = re.compile(r"\[[^\]]*\]")


def _in_order(key: str, pattern: str) -> list[str]:
    """What a range stands for; lists are sorted by that, and are refused where that changes who is paired with whom."""
    values = expand(pattern)
    if "," not in pattern:
        return values
    masked = _BRACKETS.sub(lambda match: match[0].replace(",", ";"), pattern)
    written = [value for part in masked.split(",") for value in expand(part.replace(";", ","))]
    starts = [[int(span.split("-")[0]) for span in each[1:-1].split(",")] for each in _BRACKETS.findall(pattern)]
    if written != values or any(numbers != sorted(numbers) for numbers in starts):
        raise PairingError.of(
            key, f"{pattern!r} is not in order and would be paired as {fold(values)!r}: give each of its nodes a line."
        )
    return values
