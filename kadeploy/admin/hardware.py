"""What nodes have told of themselves, and the part of a cluster file that says so: nodes that are alike are a range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from kadeploy.admin.edit import Line
from kadeploy.config.rules import MAC
from kadeploy.errors import KadeployError
from kadeploy.nodeset import expand, fold, natural_key
from kadeploy.printable import printable

Text = Annotated[str, msgspec.Meta(max_length=300)]
Number = Annotated[int, msgspec.Meta(ge=0)]


class Processors(msgspec.Struct, frozen=True):
    """See `kadeploy.config.hardware`."""

    model: Text
    sockets: Number
    cores: Number
    threads: Number


class Disk(msgspec.Struct, frozen=True):
    """Likewise, with the links that this one has alone."""

    device: Text
    mib: Number
    model: Text
    bus: Text
    rotates: bool
    ids: tuple[Text, ...]
    paths: tuple[Text, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Whatever it may be called in a cluster file."""
        return (self.device, *self.ids, *self.paths)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.device, f"{self.mib >> 10} GiB", self.model)))


class Card(msgspec.Struct, frozen=True):
    """Likewise."""

    name: Text
    mac: Text
    driver: Text
    mbps: Number


class Machine(msgspec.Struct, frozen=True):
    """What `hardware_program` tells of a node."""

    arch: Text
    firmware: Text
    boot_mac: Text
    memory_mib: Number
    processors: Processors
    disks: tuple[Disk, ...]
    cards: tuple[Card, ...]
    bmc: Text
    product: Text
    serial: Text


def read(told: str) -> Machine:
    """What a node has *told*.

    Raises:
        KadeployError: it is not what the program tells.
    """
    try:
        found = msgspec.json.decode(told, type=Machine)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise KadeployError(f"what it tells is not what it was asked for: {printable(str(error))}") from error
    found = msgspec.convert(_fit(msgspec.to_builtins(found)), Machine)
    if found.boot_mac and MAC.broken(found.boot_mac):
        return msgspec.structs.replace(found, boot_mac="")
    return found


def _fit(value: Any) -> Any:
    """Words of firmware, fit to be shown and to be written into a file."""
    if isinstance(value, str):
        return printable(" ".join(value.split()))
    if isinstance(value, dict):
        return {key: _fit(each) for key, each in value.items()}
    return [_fit(each) for each in value] if isinstance(value, list | tuple) else value


# --- for the cluster file -------------------------------------------------------------------------------------------


def kept(former: Sequence[Mapping[str, Any]], machines: Mapping[str, Machine]) -> list[dict[str, Any]]:
    """``hardware`` of a cluster file: *machines* by node, and of the *former* one what it says of other nodes."""
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for part in former:
        names = expand(str(part["nodes"]))
        own = part.get("own") or {}
        if others := [name for name in names if name not in machines]:
            alike = {key: value for key, value in part.items() if key not in ("nodes", "own")}
            found.append((alike, {name: own.get(name, {}) for name in others}))
    for name, machine in machines.items():
        found.append((_alike(machine), {name: _own(machine)}))
    return list(_folded(found))


def _folded(found: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> Iterable[dict[str, Any]]:
    """Nodes of which the same is said are one item; items are in the order of their first nodes."""
    parts: dict[bytes, tuple[dict[str, Any], dict[str, Any]]] = {}
    for alike, own in found:
        key = msgspec.json.encode(alike, order="deterministic")
        parts.setdefault(key, (alike, {}))[1].update(own)
    for alike, own in sorted(parts.values(), key=lambda part: natural_key(min(part[1], key=natural_key))):
        lines = {name: _written(own[name]) for name in sorted(own, key=natural_key) if own[name]}
        yield {"nodes": fold(own), **_written(alike), **({"own": lines} if lines else {})}


def _alike(machine: Machine) -> dict[str, Any]:
    disks = [
        _set(device=each.device, mib=each.mib, model=each.model, bus=each.bus, rotates=each.rotates, paths=each.paths)
        for each in machine.disks
    ]
    cards = [
        _set(name=each.name, driver=each.driver, mbps=each.mbps, boots=each.mac == machine.boot_mac)
        for each in machine.cards
    ]
    return _set(
        product=machine.product,
        arch=machine.arch,
        firmware=machine.firmware,
        memory_mib=machine.memory_mib,
        processors=_set(**msgspec.to_builtins(machine.processors)),
        disks=disks,
        cards=cards,
    )


def _own(machine: Machine) -> dict[str, Any]:
    return _set(
        serial=machine.serial,
        macs={each.name: each.mac for each in machine.cards},
        disks={each.device: list(each.ids) for each in machine.disks if each.ids},
    )


def _set(**values: Any) -> dict[str, Any]:
    """What is not empty; a list for a tuple, as files have it."""
    return {key: list(each) if isinstance(each, tuple) else each for key, each in values.items() if each}


def _written(value: dict[str, Any]) -> dict[str, Any]:
    """*value* with each of its inner parts on a line."""
    return {
        key: [Line(member) for member in each]
        if isinstance(each, list)
        else Line(each)
        if isinstance(each, dict)
        else each
        for key, each in value.items()
    }
