"""Nodes and ranges: machines from ranges that somebody typed, and the ranges of a cluster file from machines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from kadeploy.admin.sources.found import Entry
from kadeploy.commands import filled
from kadeploy.config.cluster import Cluster, Disk, NodeRange
from kadeploy.errors import NodeListError
from kadeploy.nodeset import MOST, count, expand, natural_key, require_few

COLUMNS = ("name", "address", "bmc", "mac")
_BETWEEN = re.compile(r",(?![^\[]*\])")
"""Commas that separate ranges, rather than the numbers of one."""
_URL = re.compile(r"(\w+://)([^/:]+)(.*)")
_HEX_RANGE = re.compile(r"(.*)\[([0-9a-f]{1,2})-([0-9a-f]{1,2})\](.*)", re.IGNORECASE)
_PLACEHOLDER = "HOSTNAME_"


# --- from ranges ------------------------------------------------------------------------------------------------------


def named(nodes: str, option: str) -> list[str]:
    """The names in *nodes*, in the order in which they are written.

    Raises:
        NodeListError: no range, or it names a node twice.
    """
    names = _expanded(nodes, option)
    if len(set(names)) < len(names):
        twice = next(name for name, number in Counter(names).items() if number > 1)
        raise NodeListError(f"{option}: {twice} is named twice.")
    return names


def column(pattern: str, names: Sequence[str], option: str) -> list[str]:
    """What *pattern* has for each node of *names*: as many values, or one with ``HOSTNAME_SHORT`` or ``…_FQDN`` in it.

    Raises:
        NodeListError: no range, or of another length.
    """
    if not pattern:
        return [""] * len(names)
    if _PLACEHOLDER in pattern:
        return [filled(pattern, name) for name in names]
    values = _expanded(pattern, option)
    if len(values) != len(names):
        raise NodeListError(
            f"{option} {pattern}: {len(values)} values for {len(names)} nodes: give one for each node, in their order."
        )
    return values


def _expanded(pattern: str, option: str) -> list[str]:
    try:
        require_few(count(pattern), MOST, pattern)
        return [value for part in _BETWEEN.split(pattern) for value in _part(part.strip())]
    except NodeListError as error:
        raise NodeListError(f"{option}: {error}") from error


def _part(part: str) -> list[str]:
    if url := _URL.fullmatch(part):
        return [f"{url[1]}{host}{url[3]}" for host in expand(url[2])]
    if ":" not in part:
        return expand(part)
    if "[" not in part:
        return [part]
    numbers = _HEX_RANGE.fullmatch(part)
    if numbers is None or int(numbers[2], 16) > int(numbers[3], 16):
        raise NodeListError(f"{part!r}: expected one range of two hexadecimal digits, such as 52:54:00:00:01:[00-1f].")
    width = len(numbers[2])
    span = range(int(numbers[2], 16), int(numbers[3], 16) + 1)
    return [f"{numbers[1]}{number:0{width}x}{numbers[4]}" for number in span]


def entries(nodes: str, addresses: str = "", bmcs: str = "", macs: str = "") -> list[Entry]:
    """The machines that these ranges, of one length, are about; *nodes* stands for ``--nodes`` and so on.

    Raises:
        NodeListError: they are no ranges, or of different lengths.
    """
    names = named(nodes, "--nodes")
    columns = [
        column(addresses, names, "--addresses"),
        column(bmcs, names, "--bmcs"),
        column(macs, names, "--macs"),
    ]
    return [
        Entry(name=name, address=address, bmc=bmc, mac=mac, where=f"--nodes {name}")
        for name, address, bmc, mac in zip(names, *columns, strict=True)
    ]


# --- to ranges --------------------------------------------------------------------------------------------------------


_DIGITS = re.compile(r"(\d+)")
_NOTHING = -1
"""Both texts are empty."""


def folded(machines: Iterable[Entry]) -> list[dict[str, str]]:
    """``nodes`` of a cluster file for *machines*, in natural order: ranges where all that is known of them has one.

    What `Cluster.members` reads from it are these machines.
    """
    return [part for run in _runs(in_order(machines)) for part in _parts(run)]


def in_order(machines: Iterable[Entry]) -> list[Entry]:
    """*machines* in the natural order of their names: ``gdx-2`` before ``gdx-10``."""
    return sorted(machines, key=lambda machine: natural_key(machine.name))


def _runs(ordered: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Consecutive machines in each of which the same numbers grow by one."""
    run: list[Entry] = []
    steps: list[int | None] = []
    for machine in ordered:
        found = [_step(*pair) for pair in zip(_values(run[-1]), _values(machine), strict=True)] if run else []
        if run and None not in found and (len(run) == 1 or found == steps):
            steps = found
        elif run:
            yield run
            run = []
        run.append(machine)
    if run:
        yield run


def _values(machine: Entry) -> list[str]:
    return [getattr(machine, column) for column in COLUMNS]


def _step(before: str, after: str) -> int | None:
    """Which part of *before*, a number, grows by one so that it becomes *after*; None: it does not."""
    if not before and not after:
        return _NOTHING
    first, second = _split(before), _split(after)
    differing = [rank for rank, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]]
    if len(first) != len(second) or len(differing) != 1 or differing[0] % 2 == 0:
        return None
    one, other = first[differing[0]], second[differing[0]]
    is_next = int(other) == int(one) + 1 and (len(one) == len(other) or one == str(int(one)))
    return differing[0] if is_next and other == str(int(other)).zfill(len(one)) else None


def _split(text: str) -> list[str]:
    """Digits at odd ranks, the rest at even ones; addresses with colons are no ranges."""
    return [text] if ":" in text and "://" not in text else _DIGITS.split(text)


def _parts(run: Sequence[Entry]) -> list[dict[str, str]]:
    """*run* as one range where that means the same, else as ranges of one machine each."""
    values = [_range(getattr(run[0], column), getattr(run[-1], column)) for column in COLUMNS]
    whole = _filled(dict(zip(COLUMNS, values, strict=True)))
    if len(run) == 1 or _stands_for(whole, run):
        return [whole]
    return [_filled(dict(zip(COLUMNS, _values(machine), strict=True))) for machine in run]


def _range(first: str, last: str) -> str:
    before, after = _split(first), _split(last)
    return "".join(one if one == other else f"[{one}-{other}]" for one, other in zip(before, after, strict=True))


def _filled(values: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}


def _stands_for(part: Mapping[str, str], machines: Sequence[Entry]) -> bool:
    try:
        members = Cluster(nodes=(msgspec.convert(part, NodeRange),), disk=Disk()).members
    except NodeListError:
        return False
    found = [tuple(msgspec.structs.astuple(node)) for node in members.values()]
    return found == [(each.name, each.address, each.bmc, each.mac) for each in machines]
