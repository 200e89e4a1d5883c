"""Cluster files that say what was found out of machines: changes of them, with all else as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import yaml

from kadeploy.admin import hardware
from kadeploy.admin.edit import Edit, edited, with_items
from kadeploy.admin.findings import Finding, Look
from kadeploy.admin.hardware import Machine
from kadeploy.admin.node_ranges import folded
from kadeploy.admin.sources.found import Entry
from kadeploy.config.cluster import Cluster, Node
from kadeploy.config.folder import Configuration
from kadeploy.config.inventory import Inventory, Variables
from kadeploy.errors import ConfigError
from kadeploy.nodeset import expand

INVENTORY = Look("inspect", "inventory")


def with_machines(configuration: Configuration, machines: Mapping[str, Machine]) -> list[Edit]:
    """The cluster files of *machines* once they say what these are; those that say so already are left out.

    MAC addresses are those of the cards that booted. Addresses of BMCs are set where none is known, and the cluster
    says how to log in. Where an inventory tells the nodes, `unwritten` says what is to be changed there.

    Raises:
        ConfigError: a file cannot be changed by a program; the text says what to write into it.
    """
    found = []
    for name, nodes in configuration.cluster_nodes(list(machines)).items():
        cluster = configuration.clusters[name]
        known = {node: machines[node] for node in nodes}
        members = {} if cluster.inventory else _members_as_found(cluster, known)
        found.append(_edit(configuration.folder / cluster.file, partial(_said, cluster, members, known)))
    return [each for each in found if each.before != each.after]


def unwritten(configuration: Configuration, machines: Mapping[str, Machine]) -> Iterator[Finding]:
    """What was found of nodes that an inventory tells, and that it does not say."""
    for name, nodes in configuration.cluster_nodes(list(machines)).items():
        cluster = configuration.clusters[name]
        if cluster.inventory is None:
            continue
        source = cluster.inventory.source
        for node, now in _members_as_found(cluster, {node: machines[node] for node in nodes}).items():
            if values := _variables(cluster.inventory, cluster.members[node], now):
                yield INVENTORY.warn(f"{node}: it is not as {source} says", f"set there, of the host {node}: {values}")


def with_macs(configuration: Configuration, macs: Mapping[str, str]) -> list[Edit]:
    """The cluster files once their nodes have these MAC addresses.

    Raises:
        ConfigError: a file cannot be changed by a program, or an inventory tells the nodes.
    """
    edits = []
    for name, nodes in configuration.cluster_nodes(list(macs)).items():
        cluster = configuration.clusters[name]
        _require_ranges(cluster, {node: {"mac": macs[node]} for node in nodes})
        members = {node: msgspec.structs.replace(cluster.members[node], mac=macs[node]) for node in nodes}
        edits.append(_edit(configuration.folder / cluster.file, partial(_with_members, cluster, members)))
    return edits


def with_nodes(configuration: Configuration, cluster: Cluster, entries: Sequence[Entry]) -> Edit:
    """The file of *cluster* with the nodes *entries* behind those that it has.

    Raises:
        ConfigError: it cannot be changed by a program, or an inventory tells its nodes.
    """
    _require_ranges(
        cluster, {each.name: {"address": each.address, "mac": each.mac, "bmc": each.bmc} for each in entries}
    )
    items = {len(cluster.nodes): folded(entries)}
    return _edit(configuration.folder / cluster.file, lambda text: with_items(text, ("nodes",), items))


def _require_ranges(cluster: Cluster, wanted: Mapping[str, Mapping[str, str]]) -> None:
    if cluster.inventory is None:
        return
    variables = cluster.inventory.variables
    lines = "".join(
        f"\n{host}: {_told(variables, {key: value for key, value in known.items() if value})}"
        for host, known in wanted.items()
    )
    raise ConfigError(f"{cluster.file}: its nodes are from {cluster.inventory.source}. Write there, by host:{lines}")


def _variables(inventory: Inventory, before: Node, now: Node) -> str:
    """What has changed, as variables of the host."""
    values = {key: getattr(now, key) for key in ("mac", "bmc") if getattr(now, key) != getattr(before, key)}
    return _told(inventory.variables, values)


def _told(variables: Variables, values: Mapping[str, str]) -> str:
    return ", ".join(f"{getattr(variables, key)}: {value}" for key, value in values.items())


def _edit(path: Path, change: Callable[[str], str]) -> Edit:
    try:
        before = path.read_text(encoding="utf-8")
        return Edit(path, before, change(before))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be changed: {error}.") from error
    except ValueError as error:
        raise ConfigError(
            f"{path} cannot be changed by a program ({error}): write nodes, and what they are, in block style without "
            "aliases, or see what --format json tells and write it yourself."
        ) from error


# --- nodes ----------------------------------------------------------------------------------------------------------


def _said(cluster: Cluster, members: Mapping[str, Node], machines: Mapping[str, Machine], text: str) -> str:
    text = _with_members(cluster, members, text)
    former = (yaml.safe_load(text) or {}).get("hardware") or []
    now = hardware.kept(former, machines)
    return edited(text, {("hardware",): now}) if now != former else text


def _with_members(cluster: Cluster, members: Mapping[str, Node], text: str) -> str:
    changes = _changes(cluster, members)
    return with_items(text, ("nodes",), changes) if changes else text


def _members_as_found(cluster: Cluster, machines: Mapping[str, Machine]) -> dict[str, Node]:
    return {node: _as_found(cluster, cluster.members[node], machine) for node, machine in machines.items()}


def _as_found(cluster: Cluster, node: Node, machine: Machine) -> Node:
    mac = node.mac if _same_mac(node.mac, machine.boot_mac) or not machine.boot_mac else machine.boot_mac
    bmc = node.bmc
    if not bmc and machine.bmc and can_log_in(cluster):
        bmc = f"https://{machine.bmc}" if cluster.power.driver == "redfish" else machine.bmc
    return msgspec.structs.replace(node, mac=mac, bmc=bmc)


def can_log_in(cluster: Cluster) -> bool:
    """Whether a cluster file may name BMCs: those of IPMI need a user or a password."""
    power = cluster.power
    return power.driver != "ipmi" or bool(power.user or power.password_file or power.password_env)


def _same_mac(one: str, other: str) -> bool:
    return one.lower().replace("-", ":") == other.lower()


def _changes(cluster: Cluster, found: Mapping[str, Node]) -> dict[int, list[dict[str, str]]]:
    """What becomes of the ranges in which a node has changed, by their ranks."""
    changes = {}
    for rank, part in enumerate(cluster.nodes):
        members = [cluster.members[name] for name in expand(part.name)]
        now = [found.get(node.name, node) for node in members]
        if now == members:
            continue
        items = folded(
            Entry(name=node.name, address=node.address, mac=node.mac, bmc=node.bmc, where=cluster.name) for node in now
        )
        if len(items) == 1 and not part.bmc and cluster.power.address:
            items[0].pop("bmc", None)  # it stays where it is for all
        changes[rank] = items
    return changes
