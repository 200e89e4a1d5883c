"""The configurations of several servers as one: clusters are called ``SERVER/CLUSTER`` in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from kadeploy.config.cluster import Cluster
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.errors import NodeListError


class Joined(Configuration, frozen=True, kw_only=True):
    """The configurations of several servers as one."""

    servers: Mapping[str, Sequence[str]]
    """Those that know a node."""
    missing: tuple[str, ...] = ()
    """Servers that might know other nodes."""

    def cluster_nodes(self, names: list[str]) -> dict[str, list[str]]:
        """*names* grouped by cluster.

        Raises:
            NodeListError: nodes that no server knows, or more than one.
        """
        for name in names:
            if len(known := self.servers.get(name, ())) > 1:
                raise NodeListError(f"{name} is a node of {' and of '.join(known)}: choose one of them with --server.")
        try:
            return super().cluster_nodes(names)
        except NodeListError as error:
            hint = f" It may be one of {', '.join(self.missing)}, which cannot be asked." if self.missing else ""
            raise NodeListError(f"{error}{hint}") from error


def join(configurations: Mapping[str, Configuration], site: Site, missing: tuple[str, ...]) -> Joined:
    """Those of servers, by their names, and *site* for all of them."""
    clusters: dict[str, Cluster] = {}
    servers: dict[str, list[str]] = {}
    for server, configuration in configurations.items():
        for cluster in configuration.clusters.values():
            name = f"{server}/{cluster.name}"
            clusters[name] = msgspec.structs.replace(cluster, name=name)
            for node in cluster.members:
                servers.setdefault(node, []).append(server)
    return Joined(folder=Path("/nonexistent"), site=site, clusters=clusters, servers=servers, missing=missing)
