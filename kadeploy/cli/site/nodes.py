"""``kadeploy-site nodes``: all nodes in one table, with who holds them and who may use them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
import typer

from kadeploy.admin import standing
from kadeploy.admin.standing import Node
from kadeploy.cli import shell
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean
from kadeploy.state.damage import sparing
from kadeploy.state.rights import Holder

_HEAD = ("NODE", "CLUSTER", "ADDRESS", "BMC", "STATE", "HELD BY", "ENVIRONMENT", "RIGHTS")
_NOTHING = "-"


def nodes(
    *,
    machines: shell.Machines = None,
    files: shell.Files = None,
    cluster: Annotated[
        list[str] | None,
        typer.Option("--cluster", metavar="NAME", help="Nodes of this cluster alone; may be repeated."),
    ] = None,
    held: Annotated[bool, typer.Option("--held", help="Only nodes that an operation holds.")] = False,
    form: shell.Format = "text",
) -> None:
    """Show all nodes: cluster, address, BMC, state, who holds them, environment, and who has rights until when."""
    configuration = load_configuration()
    standing.require_keeper(configuration, "kanodes3 -d, kanodes3 -l")
    names = chosen(configuration, shell.node_names(machines, files), cluster)
    with sparing():
        found = [node for node in standing.of_nodes(configuration, names) if node.held or not held]
        if form != "text":
            shell.emit(msgspec.to_builtins(found), form)
        elif found:
            print("\n".join(_table([_HEAD, *map(_cells, found)])))
        else:
            print("No operation holds a node of these." if held else "There is no such node.", file=sys.stderr)


def chosen(configuration: Configuration, names: Sequence[str], clusters: Sequence[str] | None = None) -> list[str]:
    """The whole names of *names*, or of all nodes; of *clusters* alone, where some are given.

    Raises:
        NodeListError: no node is called so.
        OptionError: no cluster is.
    """
    for name in clusters or ():
        if name not in configuration.clusters:
            known = ", ".join(configuration.clusters)
            hint = did_you_mean(name, configuration.clusters)
            raise OptionError(f"--cluster {name}: there is no such cluster. The clusters are {known}.{hint}")
    whole = configuration.full_names(names) if names else list(configuration.cluster_of)
    configuration.cluster_nodes(whole)
    return [name for name in whole if not clusters or configuration.cluster_of[name] in clusters]


def _cells(node: Node) -> tuple[str, ...]:
    return (
        node.node,
        node.cluster,
        node.address or _NOTHING,
        node.bmc or _NOTHING,
        node.state or _NOTHING,
        _holder(node),
        node.environment or _NOTHING,
        ", ".join(map(_right, node.rights)) or _NOTHING,
    )


def _holder(node: Node) -> str:
    if node.held is None:
        return _NOTHING
    left = ", left behind" if node.held.is_left else ""
    return f"{node.held.user} ({node.held.workflow} since {date(node.held.since)}{left})"


def _right(holder: Holder) -> str:
    return f"{holder.user}:{holder.part}{until(holder)}"


def until(holder: Holder) -> str:
    """The end of a right with a blank in front, empty where it has none.

    >>> until(Holder("ada", "/dev/sda3"))
    ''
    """
    return "" if holder.until is None else f" until {date(holder.until)}"


def date(seconds: int) -> str:
    """Unix seconds as local time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
