"""What DHCP servers offer nodes that boot: asked as the firmware of a node asks, and again as iPXE does."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from kadeploy.admin import probe, route
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.dhcp import packet
from kadeploy.admin.dhcp.packet import Offer
from kadeploy.admin.findings import Finding, Look
from kadeploy.boot import profile
from kadeploy.config.cluster import ARM64, Cluster, Node
from kadeploy.config.site import Site
from kadeploy.errors import KadeployError
from kadeploy.remote import namespace

ASKED = Look("dhcp", "asked")
SERVERS = Look("dhcp", "servers")
ADDRESS = Look("dhcp", "address")
FILE = Look("dhcp", "boot-file")
NEXT = Look("dhcp", "next-server")
IPXE = Look("dhcp", "ipxe")

_LINES = "kadeploy-site dhcp makes the lines for it"
_PROBES = 8
"""Clusters that are asked for at a time."""


class _Probe(NamedTuple):
    """A node as which DHCP is asked."""

    cluster: Cluster
    node: Node
    interface: str


def check(subject: Subject) -> Iterator[Finding]:
    """What is wrong with what nodes are offered, one of each cluster."""
    with namespace.inside(subject.site.network_namespace):
        probes: list[_Probe] = []
        for cluster, nodes in subject.members:
            chosen, found = _chosen(subject, cluster, nodes)
            probes += chosen
            yield from found
        with ThreadPoolExecutor(_PROBES) as pool:  # its threads are born in the namespace
            for found in pool.map(lambda each: list(_asked(subject.site, each)), probes):
                yield from found


def _chosen(subject: Subject, cluster: Cluster, nodes: Sequence[Node]) -> tuple[list[_Probe], list[Finding]]:
    """A node of the cluster and the interface that leads to it; or why there is none."""
    node = next((each for each in nodes if each.mac and each.address), None)
    if node is None:
        advice = "add mac and address to the nodes in the cluster file"
        return [], [ASKED.warn(f"{cluster.name}: no node has a mac and an address to ask with", advice)]
    if subject.interface:
        return [_Probe(cluster, node, subject.interface)], []
    if os.geteuid() != 0:
        return [], [ASKED.warn(f"{cluster.name}: it takes root to ask DHCP servers as a node", "run this as root")]
    interface, gateway = route.to(node.address)
    if gateway:
        text = f"{cluster.name}: its nodes are behind the router {gateway}: DHCP can be asked in their network alone"
        return [], [ASKED.warn(text, "see that the router relays DHCP (ip helper-address), and try a node")]
    if not interface:
        advice = "say which one does: --interface eth1"
        return [], [ASKED.warn(f"{cluster.name}: no interface of this machine leads to {node.address}", advice)]
    return [_Probe(cluster, node, interface)], []


def _asked(site: Site, each: _Probe) -> Iterator[Finding]:
    architecture = packet.BIOS
    if each.cluster.loader.firmware == "uefi":
        architecture = packet.UEFI_ARM64 if each.cluster.arch in ARM64 else packet.UEFI
    try:
        offers = probe.dhcp(each.interface, each.node.mac, architecture)
        again = probe.dhcp(each.interface, each.node.mac, architecture, packet.IPXE) if offers else []
    except KadeployError as error:
        yield ASKED.warn(f"{each.cluster.name}: {error}", "do what the text says, then check again")
        return
    yield from told(site, each.cluster, each.node, each.interface, offers)
    if again:
        yield from as_ipxe(each.cluster, each.node, again)


# --- what was offered ---------------------------------------------------------------------------------------------


def told(site: Site, cluster: Cluster, node: Node, interface: str, offers: Sequence[Offer]) -> Iterator[Finding]:
    """What is found of what a node's firmware was offered."""
    who = f"{node.name} ({node.mac}, {cluster.loader.firmware}) on {interface}"
    if not offers:
        yield SERVERS.fail(
            f"{who}: no DHCP server answers", f"start one in this network, or let it know the node: {_LINES}"
        )
        return
    leasing = {offer.server: offer for offer in offers if offer.address}
    booting = {offer.server: offer for offer in offers if offer.file}
    if len(leasing) > 1 or len(booting) > 1:
        servers = ", ".join(dict.fromkeys([*leasing, *booting]))
        yield SERVERS.fail(
            f"{who}: several DHCP servers answer ({servers}): whichever is first decides what the node boots",
            "stop all but one for these nodes",
        )
    else:
        yield SERVERS.ok(f"{who}: {', '.join(dict.fromkeys([*leasing, *booting]))} answers")
    yield from _addresses(who, node, list(leasing.values()))
    yield from _boot_file(site, who, cluster, list(booting.values()))


def _addresses(who: str, node: Node, leasing: Sequence[Offer]) -> Iterator[Finding]:
    if not leasing:
        yield ADDRESS.fail(f"{who}: no server offers an address", f"let the DHCP server know the node: {_LINES}")
    for offer in leasing:
        if offer.address == node.address:
            yield ADDRESS.ok(f"{who}: {offer.address} is offered, as in the cluster file")
        else:
            yield ADDRESS.fail(
                f"{who}: {offer.server} offers {offer.address}, and the cluster file has {node.address}: its profile "
                "would not be found",
                f"give the node a fixed address: {_LINES}",
            )


def _boot_file(site: Site, who: str, cluster: Cluster, booting: Sequence[Offer]) -> Iterator[Finding]:
    if not booting:
        yield FILE.fail(f"{who}: no boot file is offered: the node goes on to its disk", f"name one: {_LINES}")
    for offer in booting:
        if "://" in offer.file:
            yield _fetched(who, offer.file)
            continue
        if offer.next_server and _resolved(offer.next_server) != _resolved(site.server_address):
            yield NEXT.fail(
                f"{who}: the boot file is to come from {offer.next_server}, and the site's is {site.server_address}",
                f"set next-server to {site.server_address}: {_LINES}",
            )
            continue
        yield _on_disk(site, who, cluster, offer)


def _resolved(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return name


def _fetched(who: str, url: str) -> Finding:
    try:
        size = probe.http(url).size
    except KadeployError as error:
        return FILE.fail(f"{who}: {url} is offered, and does not come: {error}", f"put the file there, or: {_LINES}")
    return FILE.ok(f"{who}: {url} is offered, and comes ({size} bytes)")


def _on_disk(site: Site, who: str, cluster: Cluster, offer: Offer) -> Finding:
    path = Path(site.boot.tftp_root) / offer.file.lstrip("/")
    if not path.is_file():
        return FILE.fail(f"{who}: {offer.file} is offered, and there is no {path}", f"put it there, or: {_LINES}")
    if path.name == "pxelinux.0" and cluster.loader.firmware == "bios":
        return FILE.warn(
            f"{who}: {offer.file} is offered to ROMs that may have no HTTP, which kernels come by",
            f"unless all cards have iPXE, hand out undionly.kpxe first: {_LINES}",
        )
    return FILE.ok(f"{who}: {offer.file} is offered, and is there")


def as_ipxe(cluster: Cluster, node: Node, offers: Sequence[Offer]) -> Iterator[Finding]:
    """What is found of what iPXE is offered, which asks again once it has been loaded."""
    who = f"{node.name} as iPXE"
    wanted = profile.file_name("ipxe", node.address)
    for offer in offers:
        if not offer.file:
            continue
        file = offer.file.replace("${ip}", node.address)
        is_profile = file.endswith((wanted, ".ipxe"))
        if Path(file).name.startswith(("undionly", "ipxe.", "snponly")) and not file.endswith(".ipxe"):
            yield IPXE.fail(
                f"{who}: {file} is offered again, for ever", f"tell iPXE from other ROMs by its class: {_LINES}"
            )
        elif cluster.loader.profiles == "ipxe" and not is_profile:
            yield IPXE.fail(
                f"{who}: {file} is offered, and loader.profiles is ipxe: its profile is {wanted}",
                f"let iPXE have ipxe/${{ip}}.ipxe: {_LINES}",
            )
        elif cluster.loader.profiles != "ipxe" and is_profile:
            yield IPXE.fail(
                f"{who}: {file} is offered, and loader.profiles is {cluster.loader.profiles}: nobody writes it",
                f"set loader.profiles: ipxe, or: {_LINES}",
            )
        else:
            yield IPXE.ok(f"{who}: {file} is offered")
