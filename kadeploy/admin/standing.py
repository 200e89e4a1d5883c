"""How the nodes of a site stand: what they are, who holds them, what is on them, and who may use them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kadeploy.admin import keeper
from kadeploy.caller import as_user
from kadeploy.config.folder import Configuration
from kadeploy.environments.reference import Reference
from kadeploy.errors import RightsError
from kadeploy.state import nodes, rights
from kadeploy.state.nodes import NodeRow
from kadeploy.state.rights import ANY, Holder


class Hold(msgspec.Struct, frozen=True):
    """The workflow that has a node."""

    workflow: str
    user: str
    since: int
    """Unix seconds."""
    is_left: bool
    """Whether its controller is dead: the next operation frees the node."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One node; what was never recorded of it is None."""

    node: str
    cluster: str
    address: str
    bmc: str
    state: str | None
    since: int | None
    """When the operation that led to its state began (Unix)."""
    user: str | None
    """Who deployed it last."""
    environment: str | None
    """``name@owner:version%arch``; None: none that is recorded."""
    held: Hold | None
    rights: tuple[Holder, ...]


class Entitled(msgspec.Struct, frozen=True):
    """Nodes on which the same users have the same rights."""

    nodes: tuple[str, ...]
    rights: tuple[Holder, ...]
    """Given for these nodes."""
    everywhere: tuple[Holder, ...]
    """Given for ``*``, and so on these nodes too."""


def require_keeper(configuration: Configuration, instead: str) -> None:
    """Refuse unless this process may read the state of the site itself; *instead* is the tool of everybody.

    Raises:
        RightsError: it may not.
    """
    try:
        keeper.of(configuration.site)
    except RightsError as error:
        raise RightsError(f"{error} Every account can ask: {instead}") from error


def of_nodes(configuration: Configuration, names: Sequence[str]) -> list[Node]:
    """How each of *names* stands, in this order.

    Raises:
        RightsError: this process is not of an account that keeps the state.
        DatabaseError: the state cannot be read.
    """
    site = configuration.site
    with as_user(keeper.of(site)):
        rows = {row.hostname: row for row in nodes.states(site, names)}
        claims = {claim.node: claim for claim in nodes.claims(site, names)}
        entitled = rights.holders(site, names)
    holds = {name: Hold(held.wid, held.user, held.since, held.is_left) for name, held in claims.items()}
    return [_node(configuration, name, rows.get(name), holds.get(name), entitled[name]) for name in names]


def _node(
    configuration: Configuration, name: str, row: NodeRow | None, hold: Hold | None, entitled: Sequence[Holder]
) -> Node:
    cluster = configuration.clusters[configuration.cluster_of[name]]
    machine = cluster.members[name]
    return Node(
        node=name,
        cluster=cluster.name,
        address=machine.address,
        bmc=machine.bmc,
        state=row.state if row else None,
        since=row.date if row else None,
        user=row.user if row else None,
        environment=_environment(row) if row else None,
        held=hold,
        rights=tuple(entitled),
    )


def _environment(row: NodeRow) -> str | None:
    if not row.env_name:
        return None
    return str(Reference(row.env_name, row.env_version, row.env_owner, row.env_arch))


def of_rights(configuration: Configuration, names: Sequence[str]) -> list[Entitled]:
    """Who has which rights on *names*; nodes on which they are the same are together.

    Raises:
        RightsError: this process is not of an account that keeps the state.
        DatabaseError: the state cannot be read.
    """
    site = configuration.site
    with as_user(keeper.of(site)):
        found = rights.holders(site, [*names, ANY])
    everywhere = tuple(found.pop(ANY))
    alike: dict[tuple[Holder, ...], list[str]] = {}
    for name in names:
        alike.setdefault(tuple(each for each in found[name] if each not in everywhere), []).append(name)
    return [Entitled(tuple(same), given, everywhere) for given, same in alike.items()]
