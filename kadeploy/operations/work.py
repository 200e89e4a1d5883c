"""Work: a request that was found good, and what is recorded of its nodes meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kadeploy.config.cluster import StepTable
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.runner.request import Assignment, RequestNode
from kadeploy.state.nodes import Recorded, State
from kadeploy.workflow import ABORTED, Final, Operation, Verdict, Way


@dataclass(frozen=True)
class States:
    """What is recorded of a node while an operation runs and after it; None: nothing, the node is as it was."""

    begun: State | None
    ok: State | None
    ko: State | None
    ok_environment: Recorded | None = None
    """Environment on the nodes that are OK; None leaves what is recorded."""
    environment: Recorded | None = None
    """Environment recorded at the beginning and for nodes that are KO."""


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """How far a workflow had come when its controller died."""

    ways: Mapping[str, Way]
    """Of each node that takes part."""
    begun: float
    """When the workflow began (Unix)."""
    next_number: int
    """Of the attempts that follow."""
    announced: bool = True
    """Whether its beginning was told."""
    given_up: frozenset[str] = frozenset()
    """Nodes that end here, aborted."""
    taken_away: frozenset[str] = frozenset()
    """Those that end because another workflow has them by now."""

    @property
    def going(self) -> frozenset[str]:
        """Nodes that are not at their end."""
        return frozenset(name for name, way in self.ways.items() if not way.final)

    def give_up(self, names: Iterable[str], reason: str, *, taken_away: bool = False) -> Resumption:
        """The same with those of *names* aborted that were not at their end."""
        given_up = self.going & frozenset(names)
        ways = dict(self.ways)
        for name in given_up:
            final = Final(Verdict.KO, f"{ABORTED}: {reason}", ways[name].history, aborted=True)
            ways[name] = replace(ways[name], final=final)
        if taken_away:
            return replace(self, ways=ways, taken_away=self.taken_away | given_up)
        return replace(self, ways=ways, given_up=self.given_up | given_up)

    def finals(self, names: Iterable[str]) -> dict[str, Final]:
        """The ends of those of *names* that are at theirs."""
        return {name: final for name in names if (final := self.ways[name].final)}


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
    passing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Nodes that leave out an implementation of their plan, by its name: it was chosen for others alone."""
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
    quarantined: Mapping[str, str] = field(default_factory=dict)
    """Nodes that take no part because they are in quarantine, and what the user is told of each."""
    lent: Mapping[str, int] = field(default_factory=dict)
    """The user's images, open: descriptors by path."""
    is_followed: bool = False
    """Others may read its events once it has ended, even where it only looked at nodes."""
    host_keys: bool = False
    """Collect the host keys of the systems that were deployed."""
    notes: tuple[str, ...] = ()
    """What people should know: where a plan is not what the configuration says."""
    resumption: Resumption | None = None
    """How far another process has come with it."""

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
    def admitted(self) -> list[str]:
        """Those that are not in quarantine."""
        return [name for name in self.names if name not in self.quarantined]

    @property
    def members(self) -> dict[str, RequestNode]:
        """All nodes, with what is known about each."""
        return {node.name: node for assignment in self.assignments.values() for node in assignment.nodes}

    @property
    def parts(self) -> dict[str, str]:
        """The partition that is worked on, by node; of several, the one that is booted."""
        return {node.name: each.deploy_part for each in self.assignments.values() for node in each.nodes}

    def only(self, names: list[str]) -> Work:
        """The same for fewer nodes."""
        wanted = set(names)
        groups = {cluster: tuple(n for n in group if n in wanted) for cluster, group in self.groups.items()}
        return replace(self, groups={cluster: group for cluster, group in groups.items() if group})


def run_folder(site: Site, wid: str) -> Path:
    """Where all there is to know about a workflow is kept."""
    return site.run_folders / wid
