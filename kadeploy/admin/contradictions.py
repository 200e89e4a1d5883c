"""What a configuration says of nodes, and they do not: each is told, and none is changed by itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from kadeploy.admin.cluster_files import can_log_in
from kadeploy.admin.findings import Finding, Look, grouped
from kadeploy.admin.hardware import Machine
from kadeploy.config.cluster import Cluster, Node
from kadeploy.config.folder import Configuration
from kadeploy.power import bmc

FIRMWARE = Look("inspect", "firmware")
DISK = Look("inspect", "disk")
ARCH = Look("inspect", "arch")
MAC = Look("inspect", "mac")
BMC = Look("inspect", "bmc")


def found(configuration: Configuration, machines: Mapping[str, Machine]) -> Iterator[Finding]:
    """All of them, of the nodes that have told what they are."""
    for name, nodes in configuration.cluster_nodes(list(machines)).items():
        cluster = configuration.clusters[name]
        for look in (_firmware, _disk, _layout, _arch, _mac, _bmc):
            pairs = ((node, look(cluster, cluster.members[node], machines[node])) for node in nodes)
            told = {node: each for node, each in pairs if each is not None}
            yield from grouped(
                {node: finding for node, (finding, _) in told.items()}, {n: v for n, (_, v) in told.items()}
            )


_Told = tuple[Finding, str] | None
"""A finding, and what differs in it from node to node."""


def _firmware(cluster: Cluster, _: Node, machine: Machine) -> _Told:
    loader = cluster.loader
    if machine.firmware == loader.firmware:
        return None
    also = "loader.profiles: grub, and a gpt table with an efi partition" if machine.firmware == "uefi" else ""
    text = f"it booted by {machine.firmware}, and loader.firmware is {loader.firmware}"
    advice = (
        f"set loader.firmware: {machine.firmware} in {cluster.file}"
        f"{f' (with {also})' if also else ''}, or change the firmware's own setting"
    )
    return FIRMWARE.warn(text, advice), ""


def _disk(cluster: Cluster, _: Node, machine: Machine) -> _Told:
    device = cluster.disk.device
    if any(device in disk.names for disk in machine.disks):
        return None
    there = ", ".join(map(str, machine.disks)) or "none that can be written to"
    text = f"there is no {device}, which is disk.device; its disks are"
    advice = f"set disk.device in {cluster.file}, or add the disk's driver: kadeploy-site build --module"
    return DISK.fail(text, advice), there


def _layout(cluster: Cluster, _: Node, machine: Machine) -> _Told:
    needed = sum(part.mib for part in cluster.disk.partitions)
    disk = next((disk for disk in machine.disks if cluster.disk.device in disk.names), None)
    if disk is None or disk.mib >= needed:
        return None
    text = f"disk.partitions need {needed / 1024:.1f} GiB, more than there are"
    return DISK.fail(text, f"make partitions smaller in {cluster.file}"), str(disk)


def _arch(cluster: Cluster, _: Node, machine: Machine) -> _Told:
    both = {cluster.arch, machine.arch}
    if not cluster.arch or len(both) == 1 or any(both <= words for words in _SAME):
        return None
    text = f"its architecture is {machine.arch}, and arch is {cluster.arch}"
    return ARCH.warn(text, f"set arch in {cluster.file}"), ""


_SAME = (frozenset({"aarch64", "arm64"}), frozenset({"x86_64", "amd64"}))
"""Words for one architecture."""


def _mac(cluster: Cluster, node: Node, machine: Machine) -> _Told:  # noqa: ARG001 - as the others
    known = node.mac.lower().replace("-", ":")
    if not known or not machine.boot_mac or known == machine.boot_mac.lower():
        return None
    has = any(card.mac.lower() == known for card in machine.cards)
    text = (
        "it booted by another of its cards than the mac of the cluster file says"
        if has
        else "none of its cards has the mac of the cluster file: it may be another machine than its name says"
    )
    advice = "have it boot from the right card, or take the new mac; then kadeploy-site dhcp"
    return MAC.warn(text, advice), f"{known}, and not {machine.boot_mac.lower()}"


def _bmc(cluster: Cluster, node: Node, machine: Machine) -> _Told:
    if not node.bmc and machine.bmc and not can_log_in(cluster):
        text = "it has a BMC, and power in the cluster file has nobody to log in as: its address is not written"
        return BMC.warn(text, "set power.user, and power.password_file, then inspect it again"), machine.bmc
    if not node.bmc or not machine.bmc or cluster.power.driver == "command":
        return None
    host = urlsplit(node.bmc).hostname if "://" in node.bmc else bmc.split_address(node.bmc, 0)[0]
    try:
        address = socket.gethostbyname(host or "")
    except OSError:
        return None  # `check` tells it
    if address == machine.bmc:
        return None
    text = "the BMC that it has is another one than the cluster file says: orders for it would switch another machine"
    return BMC.warn(text, "correct bmc in the cluster file"), f"{machine.bmc}, and not {host}"
