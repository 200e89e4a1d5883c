"""``kadeploy-site try``: one node, from its BMC to a login, rung by rung."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer

from kadeploy.admin import ladder
from kadeploy.admin.known_node import KnownNode
from kadeploy.cli import completion, shell, usage
from kadeploy.cli.site import unattended
from kadeploy.client import sites
from kadeploy.config.folder import load_configuration


def try_(
    *,
    node: Annotated[
        str, typer.Argument(metavar="NODE", help="Node to try.", show_default=False, autocompletion=completion.nodes)
    ],
    stay: Annotated[
        bool,
        typer.Option("--stay", help="Leave it in the deployment system, to look around.", rich_help_panel=usage.RUN),
    ] = False,
    timeout: unattended.BootTimeout = "",
    form: shell.Format = "text",
) -> int:
    """Take a node from its BMC to a login, and say where it breaks and what to do; nothing on its disk is changed."""
    unattended.end_tidily()
    known = KnownNode.named(load_configuration(), node)
    steps: list[ladder.Step] = []

    def tell(step: ladder.Step) -> None:
        steps.append(step)
        if form == "text":
            _show(step)

    whole = ladder.climb(sites.service(), known, back=not stay, tell=tell, timeout=timeout)
    if form != "text":
        shell.emit({"node": known.name, "whole": whole, "rungs": msgspec.to_builtins(steps)}, form)
    elif whole:
        print(f"{known.name} went the whole way.")
    return 0 if whole else 1


def _show(step: ladder.Step) -> None:
    word = "ok" if step.reached else "fail"
    mark = shell.coloured(f"{word:4}", "green" if step.reached else "red", sys.stdout)
    print(f"{mark} {step.seconds:6.1f} s  {step.rung:8} {ladder.MEANING[step.rung]}", flush=True)
    lines = step.seen.splitlines()[: 1 if step.reached else None]
    for line in [*lines, *([f"-> {step.advice}"] if step.advice else [])]:
        print(f"{'':23}{line}", flush=True)
