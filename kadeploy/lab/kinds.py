"""The kinds of labs, as a table: what their nodes are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kadeploy.lab import light, sim, virtual
from kadeploy.lab.lab import FAULTS, Lab, LabNode
from kadeploy.lab.machine import Machine
from kadeploy.lab.service import Service
from kadeploy.lab.virtual import Payload, Say

_OF_ALL = ("dead", "mute", "small-disk", "bad-disk")


@dataclass(frozen=True)
class Kind:
    """What a lab of this kind needs, prepares and runs."""

    summary: str
    requirements: Mapping[str, str]
    """Program (or file, when it begins with ``/``) → Debian package."""
    prepare: Callable[[Lab, Path, Say], Payload]
    """Make what outlives a power cycle (images, loaders, disks); images come from the cache folder."""
    services: Callable[[Lab], list[Service]]
    machine: Callable[[Lab, LabNode], Machine]
    environments: tuple[str, ...] = ("tiny", "debian12-min")
    """What is built to be deployed, unless the user says otherwise."""
    faults: tuple[str, ...] = _OF_ALL
    """Keys of `FAULTS` that its nodes can have."""


KINDS: Mapping[str, Kind] = {
    "vm": Kind(
        summary="QEMU machines with BMC, PXE and disk",
        requirements=virtual.REQUIREMENTS,
        prepare=virtual.prepare,
        services=virtual.services,
        machine=virtual.machine,
        faults=(*_OF_ALL, *(fault for fault in FAULTS if fault.startswith("bmc-"))),
    ),
    "light": Kind(
        summary="namespaces with loop devices as disks; reboot and PXE are acted",
        requirements=light.REQUIREMENTS,
        prepare=light.prepare,
        services=light.services,
        machine=light.machine,
    ),
    "sim": Kind(
        summary="addresses where ssh answers; disks, boots and power are acted, faults on demand",
        requirements=sim.REQUIREMENTS,
        prepare=sim.prepare,
        services=sim.services,
        machine=sim.machine,
        environments=("sim",),
        faults=tuple(FAULTS),
    ),
}
