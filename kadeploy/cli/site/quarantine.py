"""``kadeploy-site quarantine``: nodes that are put aside, by somebody or the site's rule, and their way back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
import typer

from kadeploy import dates
from kadeploy.admin import quarantine as quarantines
from kadeploy.admin import standing
from kadeploy.admin.quarantine import Listed
from kadeploy.cli import completion, shell
from kadeploy.cli.site.nodes import chosen
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.site import Site
from kadeploy.errors import OptionError
from kadeploy.nodeset import fold
from kadeploy.operations.reasons import kinds
from kadeploy.state.damage import sparing

_SUMMARY = "Show nodes in quarantine, and those that are proposed for it; put nodes there, and let them out."

quarantine = shell.Tool(_SUMMARY)

Nodes = Annotated[
    list[str],
    typer.Argument(metavar="NODES", help="Nodes or ranges gdx-[5-12].site.", autocompletion=completion.nodes),
]


@quarantine.callback(invoke_without_command=True)
def everything(context: typer.Context, *, form: shell.Format = "text") -> None:
    """Show nodes in quarantine, and those that are proposed for it; put nodes there, and let them out."""
    if not context.invoked_subcommand:
        _show(form)


@quarantine.command("list")
def listing(*, form: shell.Format = "text") -> None:
    """Show nodes in quarantine, and those that the site's rule proposes for it, with figures."""
    _show(form)


def _show(form: shell.Form) -> None:
    site = _configuration().site
    with sparing():
        found = quarantines.listed(site)
        if form == "text":
            print("\n".join(_lines(found, site)))
        else:
            shell.emit(msgspec.to_builtins(found), form)


def _lines(found: Listed, site: Site) -> Iterator[str]:
    stays = kinds({stay.node: stay.told for stay in found.quarantine})
    yield from _told(stays.items()) if stays else ["No node is in quarantine."]
    proposed = kinds({each.node: each.told for each in found.proposals})
    yield from _told((f"proposed: {text}", names) for text, names in proposed.items())
    if proposed:
        names = fold(each.node for each in found.proposals)
        yield f"To put them there: kadeploy-site quarantine add {names}; to begin anew with them: release"
    if site.quarantine is None:
        yield "Nobody looks for nodes that fail too often: there is no `quarantine` in site.yml."


def _told(texts: Iterable[tuple[str, list[str]]]) -> Iterator[str]:
    return (f"{fold(names)}: {text}" for text, names in texts)


@quarantine.command("add")
def add(
    nodes: Nodes,
    *,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why, for users (default: figures, where a node fails).")
    ] = "",
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="DATE", help="When it ends by itself (default: when they are released)."),
    ] = None,
    form: shell.Format = "text",
) -> None:
    """Put nodes into quarantine: operations leave them out, but those of administrators."""
    configuration = _configuration()
    names = _named(configuration, nodes)
    if not reason.isprintable():
        raise OptionError("--reason is one line of text: leave out what cannot be printed.")
    end = None if until is None else _end(until)
    stays = quarantines.add(configuration.site, names, reason.strip(), end)
    if form == "text":
        print("\n".join(_told(kinds({stay.node: stay.told for stay in stays}).items())))
    else:
        shell.emit(msgspec.to_builtins(stays), form)


def _end(text: str) -> int:
    end = dates.moment("--until", text, day_ends=True)
    if end <= time.time():
        raise OptionError(f"--until {text}: this date is over.")
    return end


@quarantine.command("release")
def release(nodes: Nodes, *, form: shell.Format = "text") -> None:
    """Let nodes out of quarantine; they begin anew: what they did before does not count."""
    configuration = _configuration()
    names = _named(configuration, nodes)
    released = quarantines.release(configuration.site, names)
    if form != "text":
        shell.emit(released, form)
        return
    if released:
        print(f"{fold(released)}: no longer in quarantine.")
    if others := [name for name in names if name not in released]:
        print(f"{fold(others)}: not in quarantine; what was before does not count any more all the same.")


def _configuration() -> Configuration:
    configuration = load_configuration()
    standing.require_keeper(configuration, "kanodes3 -l")
    return configuration


def _named(configuration: Configuration, nodes: list[str]) -> list[str]:
    return chosen(configuration, shell.node_names(nodes, None, configuration.site.limits.nodes))
