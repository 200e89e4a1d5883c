"""What is checked: a site, and those of its nodes that were chosen."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kadeploy.caller import Account
from kadeploy.config.cluster import Cluster, Node
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A site that is checked, and how."""

    configuration: Configuration
    nodes: tuple[str, ...]
    """Those that are looked at one by one."""
    socket: Path
    """Where the service of the site listens."""
    interface: str = ""
    """Network interface from which DHCP is asked; empty: the one that leads to the nodes."""
    thorough: bool = False
    """Read the images of environments to their end."""

    @property
    def site(self) -> Site:
        """The site."""
        return self.configuration.site

    @cached_property
    def members(self) -> list[tuple[Cluster, list[Node]]]:
        """The chosen nodes by cluster; clusters of which none was chosen are left out."""
        return [
            (self.configuration.clusters[name], [self.configuration.clusters[name].members[node] for node in names])
            for name, names in self.configuration.cluster_nodes(list(self.nodes)).items()
        ]

    @property
    def machines(self) -> list[Node]:
        """The chosen nodes of all clusters."""
        return [node for _, nodes in self.members for node in nodes]

    @property
    def owner(self) -> Account | None:
        """The account that keeps the state of the site, which carries out operations; None: it has no name."""
        try:
            entry = pwd.getpwuid(self.site.state.stat().st_uid)
        except FileNotFoundError:
            entry = pwd.getpwuid(os.geteuid())
        except (KeyError, OSError):
            return None
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


def local_addresses() -> frozenset[str]:
    """IPv4 addresses of this machine, in the network namespace of the thread; 127.0.0.0/8 is told by its network."""
    found = set()
    for line in Path("/proc/thread-self/net/fib_trie").read_text(encoding="ascii").splitlines():
        word = line.strip()
        if word.startswith("|-- "):
            last = word.removeprefix("|-- ")
        elif word == "/32 host LOCAL":
            found.add(last)
    return frozenset(found)


def is_local(address: str) -> bool:
    """Whether *address*, an IPv4 address, is one of this machine's."""
    return address.startswith("127.") or address in local_addresses()
