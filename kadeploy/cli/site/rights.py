"""``kadeploy-site rights``: who may use nodes, and until when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
import typer

from kadeploy.admin import standing
from kadeploy.admin.standing import Entitled
from kadeploy.cli import completion, shell
from kadeploy.cli.site.nodes import chosen, until
from kadeploy.config.folder import load_configuration
from kadeploy.nodeset import fold
from kadeploy.state.damage import sparing
from kadeploy.state.rights import ANY, Holder


def rights(
    nodes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NODES]...",
            help="Nodes or ranges gdx-[5-12].site (default: all).",
            show_default=False,
            autocompletion=completion.nodes,
        ),
    ] = None,
    *,
    form: shell.Format = "text",
) -> None:
    """Show who has rights on which partitions of nodes, and until when; nodes with the same rights together."""
    configuration = load_configuration()
    standing.require_keeper(configuration, "karights3 -s, kanodes3 -l")
    asked = [each for each in nodes or () if each != ANY]
    names = chosen(configuration, shell.node_names(asked, None))
    with sparing():
        found = standing.of_rights(configuration, names)
        if form == "text":
            print("\n".join(_lines(found)))
        else:
            shell.emit(msgspec.to_builtins(found), form)
    if configuration.site.rights == "dummy":
        shell.warn("rights: dummy in site.yml: everybody may use all nodes, whatever is listed here")


def _lines(found: Sequence[Entitled]) -> Iterator[str]:
    for each in found:
        yield fold(each.nodes)
        rows = [
            *((holder, "") for holder in each.rights),
            *((holder, "given for all nodes (*)") for holder in each.everywhere),
        ]
        users = max((len(holder.user) for holder, _ in rows), default=0)
        for holder, why in rows:
            yield f"  {holder.user:{users}}  {_part(holder)}{until(holder)}{f'  {why}' if why else ''}"
        if not rows:
            yield "  nobody has a right here: karights3 -a gives one"


def _part(holder: Holder) -> str:
    return "all partitions (*)" if holder.part == ANY else holder.part
