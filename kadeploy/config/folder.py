"""The site and its clusters, read from YAML and validated.

A configuration folder (``$KADEPLOY_CONFIG_DIR``, else ``/etc/kadeploy``) holds ``site.yml``, one ``clusters/NAME.yml``
per cluster and, if the site adds macro-steps of its own, ``playbooks/`` and ``roles/``. No secret is ever a value in
these files: they name the file or environment variable that holds it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path

import msgspec

from kadeploy.config.cluster import DEFAULT_MACRO_STEPS, Cluster
from kadeploy.config.file import Struct, read_struct
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, NodeListError
from kadeploy.nodeset import told

DEFAULT_FOLDER = Path("/etc/kadeploy")


class Configuration(Struct, frozen=True, kw_only=True):
    """Everything read from one configuration folder."""

    folder: Path
    site: Site
    clusters: dict[str, Cluster]

    @cached_property
    def cluster_of(self) -> dict[str, str]:
        """Name of each node's cluster."""
        return {node: cluster.name for cluster in self.clusters.values() for node in cluster.members}

    @cached_property
    def _short_names(self) -> dict[str, list[str]]:
        """Full names by what they may be called: all that comes before one of their dots."""
        found: dict[str, list[str]] = {}
        for name in self.cluster_of:
            for short in itertools.accumulate(name.split(".")[:-1], "{}.{}".format):
                found.setdefault(short, []).append(name)
        return found

    def full_names(self, names: Iterable[str]) -> list[str]:
        """*names* with the node's whole name where its beginning was given; unknown ones stay as they are.

        Raises:
            NodeListError: several nodes begin so.
        """
        found = {name: [name] if name in self.cluster_of else self._short_names.get(name, [name]) for name in names}
        for name, full in found.items():
            if len(full) > 1:
                raise NodeListError(f"{name} is the beginning of several nodes: {told(full)}. Write its whole name.")
        return list(dict.fromkeys(full for (full,) in found.values()))

    def cluster_nodes(self, names: list[str]) -> dict[str, list[str]]:
        """*names* grouped by cluster; raises NodeListError naming the nodes that no cluster has."""
        unknown = [name for name in names if name not in self.cluster_of]
        if unknown:
            where = self.folder / "clusters"
            raise NodeListError(f"Unknown node: {told(unknown)}. The nodes of this site are those in {where}.")
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(self.cluster_of[name], []).append(name)
        return groups


def configuration_folder() -> Path:
    """The configuration folder of this process."""
    return Path(os.environ.get("KADEPLOY_CONFIG_DIR", DEFAULT_FOLDER))


def load_site(where: Path | None = None) -> Site:
    """Read ``site.yml`` alone: what tools that need no node list want.

    Raises:
        ConfigError: names the file, the key and what was expected.
    """
    return read_struct((where or configuration_folder()) / "site.yml", Site)


def load_configuration(where: Path | None = None) -> Configuration:
    """Read and validate the whole configuration folder.

    Raises:
        ConfigError: names the file, the key and what was expected.
    """
    root = where or configuration_folder()
    site = load_site(root)
    clusters: dict[str, Cluster] = {}
    owner: dict[str, str] = {}
    for path in sorted((root / "clusters").glob("*.yml")):
        cluster = _load_cluster(path)
        for node in cluster.members:
            if node in owner:
                raise ConfigError(f"{path}: nodes: {node} belongs to cluster {owner[node]} already.")
            owner[node] = cluster.name
        clusters[cluster.name] = cluster
    if not clusters:
        raise ConfigError(f"{root}/clusters: no cluster file (NAME.yml) found.")
    return Configuration(folder=root, site=site, clusters=clusters)


def _load_cluster(path: Path) -> Cluster:
    cluster = read_struct(path, Cluster)
    if not cluster.name:
        cluster = msgspec.structs.replace(cluster, name=path.stem)
    try:
        members = cluster.members
    except NodeListError as error:
        raise ConfigError(f"{path}: nodes: {error}") from error
    if not members:
        raise ConfigError(f"{path}: nodes: expected at least one node.")
    if cluster.disk.number("deploy") is None:
        raise ConfigError(f"{path}: disk.partitions: expected one partition with role 'deploy'.")
    missing = [step for step in DEFAULT_MACRO_STEPS if not cluster.macro_steps.get(step)]
    if missing:
        raise ConfigError(f"{path}: macro_steps: expected at least one implementation of {', '.join(missing)}.")
    return cluster


@cache
def collection() -> Path:
    """The folder of our playbooks, roles and plugins: a checkout, or the collection inside site-packages."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "playbooks" / "deploy.yml").is_file():
        return checkout
    return checkout / "ansible_collections" / "kadeploy" / "core"
