"""Commands that the configuration names: which setting, and what its placeholders would stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from kadeploy import commands
from kadeploy.config.cluster import Cluster
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site

_OF_SITE: commands.Values = MappingProxyType({"WORKFLOW_ID": "D-0123456789"})


@dataclass(frozen=True)
class SiteCommand:
    """One of them."""

    place: str
    """File and key."""
    text: str
    values: commands.Values
    console_of: Cluster | None = None
    """The cluster whose consoles it shows; None: it shows none."""

    def argv(self) -> list[str]:
        """Its arguments for some node or workflow; raises ConfigError as `commands.argv` does."""
        return commands.argv(self.text, self.values, self.place)


def of_site(site: Site, node: str) -> Iterator[SiteCommand]:
    """Those of ``site.yml``; *node* is any."""
    for name, text in msgspec.structs.asdict(site.hooks).items():
        if text:
            yield SiteCommand(f"site.yml: hooks.{name}", text, _OF_SITE)
    if site.vlan:
        values = {"NODES": ["-m", node], "VLAN_ID": ["1"], "USER": ["root"]}
        yield SiteCommand("site.yml: vlan.set_command", site.vlan.set_command, values)


def of_cluster(cluster: Cluster) -> Iterator[SiteCommand]:
    """Those of a cluster file, as they are for the first node."""
    where, values = cluster.file, commands.node_values(next(iter(cluster.members)))
    if cluster.power.driver == "command":
        for name, text in msgspec.structs.asdict(cluster.power.commands).items():
            if text:
                yield SiteCommand(f"{where}: power.commands.{name}", text, values)
    if cluster.console:
        yield SiteCommand(f"{where}: console", cluster.console, values, console_of=cluster)
    if cluster.broadcast_command:
        yield SiteCommand(f"{where}: broadcast_command", cluster.broadcast_command, {})


def of(configuration: Configuration) -> Iterator[SiteCommand]:
    """All of them."""
    yield from of_site(configuration.site, next(iter(configuration.cluster_of)))
    for cluster in configuration.clusters.values():
        yield from of_cluster(cluster)
