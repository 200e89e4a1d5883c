"""The site and its clusters, read from YAML and validated.

A configuration folder (``$KADEPLOY_CONFIG_DIR``, else ``/etc/kadeploy``) holds ``site.yml``, one ``clusters/NAME.yml``
per cluster and, if the site adds macro-steps of its own, ``playbooks/`` and ``roles/``. No secret is ever a value in
these files: they name the file or environment variable that holds it.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import socket
import urllib.parse
from collections.abc import Collection, Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path

from kadeploy.caller import take_back
from kadeploy.config import listing, trust
from kadeploy.config.cluster import IPMI_PORT, Cluster, Node, Power, address
from kadeploy.config.file import Struct, examine, read_struct, refusal
from kadeploy.config.rules import Wrong
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, NodeListError
from kadeploy.hints import did_you_mean, of_nodes
from kadeploy.nodeset import told

DEFAULT_FOLDER = Path("/etc/kadeploy")


class Configuration(Struct, frozen=True, kw_only=True):
    """Everything read from one configuration folder."""

    folder: Path
    site: Site
    clusters: dict[str, Cluster]
    faults: dict[str, str] = {}
    """What is wrong with the file of a cluster, a line for each mistake: its nodes are known, and left alone."""

    @property
    def has_consoles(self) -> bool:
        """Whether any cluster names a command that opens consoles."""
        return any(cluster.console for cluster in self.clusters.values())

    def require_sound(self, clusters: Iterable[str] | None = None) -> None:
        """Refuse to work on one of *clusters* whose file has mistakes; None: on any.

        Raises:
            ConfigError: tells the mistakes.
        """
        found = [name for name in self.faults if clusters is None or name in clusters]
        if found:
            said = "\n".join(self.faults[name] for name in found)
            raise ConfigError(f"{said}\nNothing is done with {', '.join(found)} until this is corrected.")

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
            hint = of_nodes(unknown, (*self.cluster_of, *self._short_names))
            raise NodeListError(f"Unknown node: {told(unknown)}.{hint} kanodes3 -l lists the nodes of this site.")
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(self.cluster_of[name], []).append(name)
        return groups


def configuration_folder() -> Path:
    """The configuration folder of this process.

    Raises:
        ConfigError: this process is root's, and others could write what ``KADEPLOY_CONFIG_DIR`` names: its commands
            would be theirs, run as root.
    """
    named = os.environ.get("KADEPLOY_CONFIG_DIR")
    if named is None:
        return DEFAULT_FOLDER
    if os.geteuid() != 0:
        return Path(named)
    folder = Path(named).resolve()  # once: a link on the way may be turned round
    for path, stays in _trusted(folder):
        trust.require_roots(
            path, "KADEPLOY_CONFIG_DIR", "unset the variable to use /etc/kadeploy, or ", sticky_will_do=stays
        )
    return folder


def _trusted(folder: Path) -> Iterator[tuple[Path, bool]]:
    """What a configuration consists of, and whether nobody but its owner can put another in its place (sticky)."""
    yield from ((path, True) for path in folder.parents)
    yield folder, False
    for name in ("site.yml", "clusters", "playbooks", "roles", "hooks", "action_plugins", "connection_plugins"):
        yield folder / name, False
        yield from ((path, False) for path in sorted((folder / name).rglob("*")))


def load_site(where: Path | None = None) -> Site:
    """Read ``site.yml`` alone: what tools that need no node list want.

    Raises:
        ConfigError: names the file, the line, the key and what was expected.
    """
    site = read_struct((where or configuration_folder()) / "site.yml", Site)
    take_back(site.kept_variables)
    return site


_OF_MACHINES = (("name",), ("nodes",), ("inventory",), ("power", "address"))
"""Places that say which machines a cluster has: by them one node is told from another."""


def load_configuration(where: Path | None = None) -> Configuration:
    """Read and validate the whole configuration folder.

    A mistake in a cluster file that leaves no doubt which machines the cluster has is no reason to refuse the others:
    it is among the `faults`, and whoever works on nodes asks `Configuration.require_sound`.

    Raises:
        ConfigError: names the file, the line, the key and what was expected.
    """
    root = where or configuration_folder()
    site = load_site(root)
    clusters: dict[str, Cluster] = {}
    faults: dict[str, str] = {}
    machines, names = _Machines(site), _Names(root)

    def further(cluster: Cluster) -> Iterator[Wrong]:
        yield from listing.give(cluster, root, site)
        yield from names.wrong(cluster)
        if cluster.workers != "never" and site.service.workers is None:
            said = f"{cluster.workers} is given, and nobody may work: name accounts as service.workers in site.yml."
            yield Wrong(("workers",), said)

    for path in sorted((root / "clusters").glob("*.yml")):
        cluster, wrong = examine(path, Cluster, further, name=path.stem)
        cluster.__dict__["file"] = f"clusters/{path.name}"  # where `Cluster.file` keeps what it tells
        if wrong:
            faults[cluster.name] = str(refusal(path, wrong))
        if any(each.place[: len(place)] == place for each in wrong for place in _OF_MACHINES):
            raise refusal(path, wrong)
        if cluster.name in clusters:
            said = f"{cluster.name} is the name of another cluster; expected one of its own, or none for the file's."
            raise refusal(path, [Wrong(("name",), said)])
        machines.add(cluster, path)
        clusters[cluster.name] = cluster
    take_back(cluster.power.password_env for cluster in clusters.values())
    if not clusters:
        raise ConfigError(f"{root}/clusters: no cluster file (NAME.yml) found.")
    return Configuration(folder=root, site=site, clusters=clusters, faults=faults)


class _Names:
    """Implementations of macro-steps and micro-steps that there are: ours, and the site's own."""

    def __init__(self, root: Path) -> None:
        self._playbooks = {path.stem for place in places(root, "playbooks") for path in place.glob("*.yml")}
        self._roles = {path.name for place in places(root, "roles") for path in place.glob("*")}

    def wrong(self, cluster: Cluster) -> Iterator[Wrong]:
        """What a cluster file names and is not there; roles of collections, which have a dot, may be."""
        for step, ways in cluster.macro_steps.items():
            known = [name for name in self._playbooks if name.startswith(step) and name != step]
            for rank, way in enumerate(ways):
                if known and way.name.startswith(step) and way.name not in known:
                    place = ("macro_steps", step, rank, "implementation")
                    yield Wrong(place, _unknown("implementation", way.name, known))
        for key, named in (("micro_timeouts", cluster.micro_timeouts), ("micro_retries", cluster.micro_retries)):
            for name in named:
                if name not in self._roles and "." not in name:
                    yield Wrong((key, name), _unknown("micro-step", name, self._roles))


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    return f"unknown {what} {name}; expected one of {', '.join(sorted(known))}.{did_you_mean(name, known)}"


class _Machines:
    """All machines of a site, by what each of them has alone."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._known: dict[tuple[str, str], tuple[str, str]] = {}
        """Node and cluster, by kind of mark and mark."""

    def add(self, cluster: Cluster, path: Path) -> None:
        """Take note of the nodes of a cluster.

        Raises:
            ConfigError: one of them is a machine that another node stands for: who may use one would wipe the other.
        """
        for node in cluster.members.values():
            for kind, mark, shown in self._marks(cluster, node):
                other, its_cluster = self._known.setdefault((kind, mark), (node.name, cluster.name))
                if (other, its_cluster) == (node.name, cluster.name):
                    continue
                if kind == "name":
                    said = f"{node.name} belongs to cluster {its_cluster} already."
                else:
                    said = (
                        f"{node.name} has the {kind} {shown} of {other} (cluster {its_cluster}): "
                        "correct one of them, or leave one node out if both names mean one machine."
                    )
                raise refusal(path, [Wrong(cluster.place_of(node.name), said)])

    def _marks(self, cluster: Cluster, node: Node) -> Iterator[tuple[str, str, str]]:
        """Kind, comparable form, and text of what no other node may have."""
        yield "name", node.name.lower(), node.name
        where = address(self._site, node)
        yield "address", _comparable(where), where
        if node.mac:
            yield "MAC address", node.mac.lower().replace("-", ":"), node.mac
        if node.bmc and cluster.power.driver != "command":  # a command may name a machine otherwise
            yield "BMC", _bmc(node.bmc, cluster.power), node.bmc


def _comparable(where: str) -> str:
    """One text for all ways to write an address, or a name in any case; IPv4 as resolvers read it (inet_aton(3))."""
    try:
        return str(ipaddress.IPv6Address(where)) if ":" in where else socket.inet_ntoa(socket.inet_aton(where))
    except (ValueError, OSError):
        return where.lower()


def _bmc(where: str, power: Power) -> str:
    """One text for a BMC, whichever protocol it is spoken to by; it may stand for several machines behind other paths.

    Ports count where they are unusual.
    """
    if "://" not in where:
        return f"{_comparable(where)} {'' if power.port == IPMI_PORT else power.port} "
    try:
        parts = urllib.parse.urlsplit(where)
        port = "" if parts.port in (None, 80, 443) else parts.port
    except ValueError:  # the driver will say what is wrong with it
        return where.lower()
    return f"{_comparable(parts.hostname or '')} {port} {parts.path.strip('/').lower()}"


@cache
def collection() -> Path:
    """The folder of our playbooks, roles and plugins: a checkout, or the collection inside site-packages."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "playbooks" / "deploy.yml").is_file():
        return checkout
    return checkout / "ansible_collections" / "kadeploy" / "core"


def places(config_dir: Path, kind: str) -> list[Path]:
    """Where ``playbooks``, ``roles`` or ``templates/pxe`` are looked for: the site's folder first, then ours."""
    return [config_dir / kind, collection() / kind]
