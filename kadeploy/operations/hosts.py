"""Nodes as hosts of an Ansible inventory: the variables of each, and the groups that it is in.

All of it is what a `Service` tells whoever asks: no more than the tools show them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from kadeploy.config.cluster import Cluster, address
from kadeploy.config.folder import Configuration
from kadeploy.config.partition import partition_device
from kadeploy.errors import DatabaseError, OptionError
from kadeploy.hints import did_you_mean
from kadeploy.nodeset import expand
from kadeploy.operations.service import Service
from kadeploy.state.damage import sparing
from kadeploy.state.history import Last
from kadeploy.state.nodes import NodeRow
from kadeploy.state.quarantine import Stay
from kadeploy.state.rights import Holder

Variables = dict[str, Any]

GROUPED = {
    "cluster": "kadeploy_cluster",
    "state": "kadeploy_state",
    "environment": "kadeploy_environment",
    "user": "kadeploy_user",
}
"""Kinds of groups, each with the variable whose values tell them apart."""
ASIDE = "quarantine"
"""The kind of group that is one: nodes that operations leave out."""
KINDS = (*GROUPED, ASIDE)
"""All kinds of groups."""


def of(
    service: Service, ranges: Sequence[str], clusters: Sequence[str], warn: Callable[[str], None]
) -> dict[str, Variables]:
    """Variables of the nodes of *ranges* and *clusters*, by name; where one of the two is empty, it does not restrict.

    *warn* is told of what is damaged in the database and left out.

    Raises:
        KadeployError: a node or a cluster is unknown, or the service cannot answer.
    """
    names = chosen(service.configuration, ranges, clusters, service.site.limits.nodes)
    asked = names if ranges or clusters else None
    rows: dict[str, NodeRow] = {}
    last: dict[str, Last] = {}
    stays: dict[str, Stay] = {}
    holders: Mapping[str, Sequence[Holder]] = {}
    try:
        with sparing():
            rows = {row.hostname: row for row in service.states(asked)}
            last = {row.hostname: row for row in service.latest(asked)}
            stays = {stay.node: stay for stay in service.quarantine(asked)}
            holders = service.holders(asked)
    except DatabaseError as error:
        if not holders:
            raise
        warn(str(error))
    of_cluster = {name: _of_cluster(cluster) for name, cluster in service.configuration.clusters.items()}
    return {
        name: {
            **_of_machine(service.configuration, name),
            **of_cluster[service.configuration.cluster_of[name]],
            **_of_row(rows.get(name)),
            **_of_rights(holders.get(name, ())),
            "kadeploy_last": _of_log(last.get(name)),
            "kadeploy_quarantine": _of_stay(stays.get(name)),
        }
        for name in names
    }


def groups(variables: Variables, kinds: Iterable[str]) -> Iterator[str]:
    """Names of the groups of these *kinds* that a node with these *variables* is in."""
    for kind in kinds:
        if kind == ASIDE:
            if variables["kadeploy_quarantine"]["since"] is not None:
                yield ASIDE
        elif value := variables[GROUPED[kind]]:
            yield f"{kind}_{value}"


def chosen(configuration: Configuration, ranges: Iterable[str], clusters: Sequence[str], most: int) -> list[str]:
    """The whole names of nodes; *most* may be named.

    Raises:
        NodeListError: no node is called so.
        OptionError: no cluster is.
    """
    for name in clusters:
        if name not in configuration.clusters:
            hint = did_you_mean(name, configuration.clusters)
            raise OptionError(
                f"clusters: there is no cluster {name}. The clusters are {', '.join(configuration.clusters)}.{hint}"
            )
    named = configuration.full_names(name for pattern in ranges for name in expand(pattern, most))
    configuration.cluster_nodes(named)
    names = named or list(configuration.cluster_of)
    return [name for name in names if not clusters or configuration.cluster_of[name] in clusters]


def _of_machine(configuration: Configuration, name: str) -> Variables:
    """The address is told where the configuration is read; a service keeps it to itself."""
    cluster = configuration.clusters[configuration.cluster_of[name]]
    where = address(configuration.site, cluster.members[name])
    return {} if where == name else {"ansible_host": where}


def _of_cluster(cluster: Cluster) -> Variables:
    number = cluster.disk.number("deploy")
    return {
        "kadeploy_cluster": cluster.name,
        "kadeploy_arch": cluster.arch,
        "kadeploy_disk": cluster.disk.device,
        "kadeploy_partition": partition_device(cluster.disk.device, number),
    }


def _of_row(row: NodeRow | None) -> Variables:
    return {
        "kadeploy_state": row.state if row else "",
        "kadeploy_user": row.user if row else "",
        "kadeploy_environment": row.env_name if row else "",
        "kadeploy_environment_version": row.env_version if row else None,
        "kadeploy_environment_owner": row.env_owner if row else "",
        "kadeploy_environment_arch": row.env_arch if row else "",
        "kadeploy_since": row.date if row else None,
    }


def _of_rights(holders: Sequence[Holder]) -> Variables:
    ends = [holder.until for holder in holders if holder.until is not None]
    return {
        "kadeploy_rights": [msgspec.structs.asdict(holder) for holder in holders],
        "kadeploy_rights_end": max(ends) if ends and len(ends) == len(holders) else None,
    }


def _of_log(last: Last | None) -> Variables:
    return {
        "operation": last.operation if last else "",
        "success": last.success if last else None,
        "error": last.error if last else "",
        "start": last.start if last else None,
        "user": last.user if last else "",
        "environment": last.env if last else "",
        "workflow": last.wid if last else "",
    }


def _of_stay(stay: Stay | None) -> Variables:
    return {
        "reason": stay.reason if stay else "",
        "since": stay.since if stay else None,
        "until": stay.until if stay else None,
        "by": stay.put_by if stay else "",
    }
