"""What nodes are, in a cluster file: ``kadeploy-site inspect`` writes it, for people and programs to read."""

from __future__ import annotations

from typing import Annotated

from kadeploy.config.file import Struct
from kadeploy.config.rules import Count, expects
from kadeploy.errors import NodeListError
from kadeploy.nodeset import expand


def _is_range(text: str) -> bool:
    try:
        expand(text)
    except NodeListError:
        return False
    return True


Nodes = Annotated[str, expects(_is_range, "a range of nodes, such as gdx-[1-10]")]


class Processors(Struct, frozen=True, kw_only=True):
    """Model and number of the processors."""

    model: str = ""
    """As the kernel tells it."""
    sockets: Count = 0
    """Processors on the board."""
    cores: Count = 0
    """Of all of them."""
    threads: Count = 0
    """Likewise."""


class HardDisk(Struct, frozen=True, kw_only=True):
    """A disk that nodes have."""

    device: str
    """Its name in the deployment system, such as /dev/sda."""
    mib: Count = 0
    """Size in MiB."""
    model: str = ""
    """As the disk tells it."""
    bus: str = ""
    """How it is connected: sata, sas, nvme, virtio."""
    rotates: bool = False
    """Whether it has platters."""
    paths: tuple[str, ...] = ()
    """Links by where it is plugged in, which are the same on all of these nodes."""


class Card(Struct, frozen=True, kw_only=True):
    """A network card that nodes have."""

    name: str
    """Its name in the deployment system, such as eth0."""
    driver: str = ""
    """The kernel's module."""
    mbps: Count = 0
    """Speed of its link, in Mbit/s; 0: it has none, or none that is known."""
    boots: bool = False
    """Whether it is the one that nodes boot by."""


class Own(Struct, frozen=True, kw_only=True):
    """What one node has alone."""

    serial: str = ""
    """Serial number of the machine."""
    macs: dict[str, str] = {}
    """MAC addresses by card."""
    disks: dict[str, tuple[str, ...]] = {}
    """Links by what a disk is, below /dev/disk/by-id, by device."""


class Hardware(Struct, frozen=True, kw_only=True):
    """What nodes that are alike consist of."""

    nodes: Nodes
    """Which ones."""
    product: str = ""
    """Maker and model."""
    arch: str = ""
    """Architecture, such as x86_64."""
    firmware: str = ""
    """What they booted by: bios or uefi."""
    memory_mib: Count = 0
    """Memory in MiB."""
    processors: Processors = Processors()
    disks: tuple[HardDisk, ...] = ()
    """Disks that can be written to."""
    cards: tuple[Card, ...] = ()
    """Network cards."""
    own: dict[str, Own] = {}
    """What each node has alone: serial number, MAC addresses, links of disks by id."""
