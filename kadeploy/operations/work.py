"""Work: a request that was found good, and what is recorded of its nodes meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kadeploy.config.cluster import StepTable
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.runner.request import Assignment, RequestNode
from kadeploy.state.nodes import Named, State
from kadeploy.workflow import Operation


@dataclass(frozen=True)
class States:
    """What is recorded of a node while an operation runs and after it; None: nothing, the node is as it was."""

    begun: State | None
    ok: State | None
    ko: State | None
    ok_environment: Named | None = None
    """Environment on the nodes that are OK; None leaves what is recorded."""
    environment: Named | None = None
    """Environment recorded at the beginning and for nodes that are KO."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A request that was found good: who does what to which nodes. Nothing has been touched yet."""

    wid: str
    operation: Operation
    user: str
    configuration: Configuration
    groups: Mapping[str, tuple[str, ...]]
    """Nodes by cluster."""
    plans: Mapping[str, StepTable]
    """By cluster."""
    assignments: Mapping[str, Assignment]
    """By cluster: what all its attempts have in common."""
    states: States
    environment: Environment | None = None
    anonymous: bool = False
    uploads: tuple[str, ...] = ()
    """Paths and URLs of files for the boot loader (``-x``)."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of what the user's client has sent, by name."""
    force: bool = False
    """Take nodes from the workflows that hold them."""
    hook: str = ""
    production: Mapping[str, Environment] | None = None
    """With ``kareboot3 -c``: the recorded environment that was on each node before, where there was one."""
    lent: Mapping[str, int] = field(default_factory=dict)
    """The user's images, open: descriptors by path."""
    host_keys: bool = False
    """Collect the host keys of the systems that were deployed."""
    notes: tuple[str, ...] = ()
    """What people should know: where a plan is not what the configuration says."""

    @property
    def site(self) -> Site:
        """The site, database URL included."""
        return self.configuration.site

    @property
    def folder(self) -> Path:
        """Where all there is to know about the workflow is kept."""
        return run_folder(self.site, self.wid)

    @property
    def only_looks(self) -> bool:
        """Whether nodes are asked something and left as they are: then others may hold them meanwhile."""
        return self.states.begun is None

    @property
    def names(self) -> list[str]:
        """All nodes."""
        return [name for names in self.groups.values() for name in names]

    @property
    def members(self) -> dict[str, RequestNode]:
        """All nodes, with what is known about each."""
        return {node.name: node for assignment in self.assignments.values() for node in assignment.nodes}

    def only(self, names: list[str]) -> Work:
        """The same for fewer nodes."""
        wanted = set(names)
        groups = {cluster: tuple(n for n in group if n in wanted) for cluster, group in self.groups.items()}
        return replace(self, groups={cluster: group for cluster, group in groups.items() if group})


def run_folder(site: Site, wid: str) -> Path:
    """Where all there is to know about a workflow is kept."""
    return site.run_folders / wid
