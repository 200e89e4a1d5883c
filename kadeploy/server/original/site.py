"""The site and its nodes in the original's form."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Controller, get
from litestar.params import FromPath, QueryParameter

from kadeploy import __version__
from kadeploy.config.cluster import Cluster
from kadeploy.config.partition import partition_device
from kadeploy.nodeset import natural_key
from kadeploy.server.original import asked
from kadeploy.server.original.forms import rendered
from kadeploy.server.original.operations import TAG, Answer, Asked, Here
from kadeploy.server.served import Served
from kadeploy.state.damage import sparing
from kadeploy.state.nodes import NodeRow

HEADERS = "X-Kadeploy-"
"""How headers begin in which a client says who it is."""
_ROLES = ("deploy", "prod", "tmp", "swap")


class SiteController(Controller):
    """What a client asks first."""

    path = "/"
    tags = (TAG,)

    @get("/version", sync_to_thread=False)
    def version(self, request: Asked) -> Answer:
        """Which Kadeploy this is; everybody may ask."""
        return rendered(request, {"version": __version__})

    @get("/auth_headers_prefix", sync_to_thread=False)
    def prefix(self, request: Asked) -> Answer:
        """How headers begin in which a client says who it is; everybody may ask."""
        return rendered(request, HEADERS)

    @get("/info", sync_to_thread=True)
    def info(self, served: Here, request: Asked) -> Answer:
        """What the site offers."""
        clusters = served.configuration.clusters
        told = {
            "version": __version__,
            "site": served.site.name,
            "supported_fs": {name: list(each.supported_filesystems) for name, each in clusters.items()},
            "automata": {name: _automata(each) for name, each in clusters.items()},
        }
        return rendered(request, told)

    @get("/clusters", sync_to_thread=True)
    def clusters(self, served: Here, request: Asked) -> Answer:
        """The clusters: their nodes, disks and partitions."""
        return rendered(request, {name: _cluster(each) for name, each in served.configuration.clusters.items()})


class NodeController(Controller):
    """``/nodes``."""

    path = "/nodes"
    tags = (TAG,)

    @get("/", sync_to_thread=True)
    def states(
        self,
        served: Here,
        request: Asked,
        names: Annotated[list[str] | None, QueryParameter(name="nodes")] = None,
        only_names: Annotated[str | None, QueryParameter(name="list")] = None,
    ) -> Answer:
        """State of nodes, null of those that were never operated on; with *list*, their names alone."""
        found = _names(served, names or [])
        return rendered(request, found if asked.is_on(only_names) else _states(served, found))

    @get("/{node:str}", sync_to_thread=True)
    def one(self, served: Here, request: Asked, node: FromPath[str]) -> Answer:
        """State of one node."""
        [name] = _names(served, [node])
        return rendered(request, _states(served, [name])[name] or {"state": None})


def _names(served: Served, patterns: list[str]) -> list[str]:
    known = served.configuration
    found = known.full_names(asked.names(patterns, served)) if patterns else list(known.cluster_of)
    known.cluster_nodes(found)
    return sorted(found, key=natural_key)


def _states(served: Served, names: list[str]) -> dict[str, dict[str, Any] | None]:
    with sparing():
        rows = {row.hostname: row for row in served.states(names)}
    return {name: _state(rows[name]) if name in rows else None for name in names}


def _state(row: NodeRow) -> dict[str, Any]:
    environment = {"name": row.env_name, "version": row.env_version, "user": row.env_owner}
    return {
        "state": row.state,
        "user": row.user,
        "environment": environment if row.env_name else None,
        "date": row.date,
    }


def _cluster(cluster: Cluster) -> dict[str, Any]:
    disk = cluster.disk
    numbers = {role: disk.number(role) for role in _ROLES}
    parts = {f"{role}_part": partition_device(disk.device, each) for role, each in numbers.items() if each}
    return {"nodes": sorted(cluster.members, key=natural_key), "block_device": disk.device, **parts}


def _automata(cluster: Cluster) -> dict[str, list[dict[str, Any]]]:
    return {
        step: [{"name": way.name, "retries": way.retries, "timeout": way.timeout} for way in ways]
        for step, ways in cluster.macro_steps.items()
    }
