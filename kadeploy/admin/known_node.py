"""One node of a site, entered as the controller does: with the site's key, into a system whose host key is known."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kadeploy.commands import last_line
from kadeploy.config import cluster as clusters
from kadeploy.config.cluster import Cluster, Node
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.errors import KadeployError
from kadeploy.nodeset import expand
from kadeploy.power import switch
from kadeploy.workflow import Verdict

_PATIENCE = 20


@dataclass(frozen=True)
class KnownNode:
    """A node, and what the configuration says of it."""

    configuration: Configuration
    name: str

    @classmethod
    def named(cls, configuration: Configuration, word: str) -> KnownNode:
        """The node that *word*, its name or the beginning of it, stands for.

        Raises:
            NodeListError: none of the site, or several.
            ConfigError: the file of its cluster has mistakes.
        """
        (name,) = configuration.full_names(expand(word)) or [word]
        configuration.require_sound(configuration.cluster_nodes([name]))
        return cls(configuration, name)

    @property
    def site(self) -> Site:
        """Its site."""
        return self.configuration.site

    @property
    def cluster(self) -> Cluster:
        """Its cluster."""
        return self.configuration.clusters[self.configuration.cluster_of[self.name]]

    @property
    def node(self) -> Node:
        """What the cluster file says."""
        return self.cluster.members[self.name]

    @property
    def address(self) -> str:
        """Where it answers."""
        return clusters.address(self.site, self.node)

    @property
    def names(self) -> set[str]:
        """What logs may call it."""
        return {self.address, self.name, self.name.split(".")[0], *filter(None, [self.node.address])}

    def power_state(self) -> tuple[str, bool]:
        """What its BMC, or the site's command, says of it, and whether it said anything."""
        outcomes = asyncio.run(
            switch.switch(self.site, self.cluster, [self.node], "status", config_dir=self.configuration.folder)
        )
        outcome = outcomes[self.name]
        known = outcome.verdict is Verdict.OK or outcome.answer in ("on", "off")
        return (f"the node is {outcome.answer}" if known else outcome.message), known

    @contextmanager
    def ssh(self) -> Iterator[tuple[str, ...]]:
        """The command that enters its deployment system, and no other system; the command to run there comes behind."""
        settings = self.site.ssh
        key = " ".join(settings.host_key.split()[:2])
        with tempfile.NamedTemporaryFile("w", suffix=".known_hosts") as known:
            known.write(f"[{self.address}]:{settings.port} {key}\n{self.address} {key}\n")
            known.flush()
            options = {
                "UserKnownHostsFile": known.name,
                "StrictHostKeyChecking": "yes",
                "IdentitiesOnly": "yes",
                "BatchMode": "yes",
                "ConnectTimeout": str(settings.connect_timeout),
                "LogLevel": "ERROR",
            }
            words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
            where = ("-p", str(settings.port), "-l", "root", "--", self.address)
            yield ("ssh", "-F", "none", *words, "-i", settings.private_key, *where)

    def output(self, command: str) -> str:
        """What *command* says in its deployment system.

        Raises:
            KadeployError: it cannot be entered, or the command fails.
        """
        with self.ssh() as ssh:
            try:
                done = subprocess.run(
                    [*ssh, command], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False
                )
            except subprocess.TimeoutExpired as error:
                raise KadeployError(f"{self.name} does not answer by ssh.") from error
        if done.returncode:
            said = last_line(done.stderr.decode(errors="replace")) or "no reason given"
            raise KadeployError(f"{self.name}: {said}")
        return done.stdout.decode(errors="replace")
