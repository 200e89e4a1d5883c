"""kanodes3: the state of nodes, and where running workflows stand."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Annotated, Any

import msgspec
import typer

from kadeploy.cli import completion, shell, together, usage
from kadeploy.errors import OptionError
from kadeploy.nodeset import fold, natural_key
from kadeploy.operations.reasons import kinds
from kadeploy.operations.service import Service
from kadeploy.state import nodes, rights
from kadeploy.state.damage import sparing

NAME = "kanodes3"
WATCH_SECONDS = 2.0

ALL = (
    "-y shows all that runs: the id of a deployment begins with D-, of a reboot with R-, of a power operation with P-."
)

app = shell.Tool(
    "Show the state of nodes (-d), the running workflows (-y) or the nodes of the site (-l).",
    examples={
        "kanodes3 -d": "State of all nodes: node, state, user, environment, its version and its owner.",
        "kanodes3 -y --watch": "Follow all running workflows until Ctrl-C.",
        "kanodes3 -d -m 'gdx-[1-30].site' -f machine_file": "State of some nodes.",
        "kanodes3 -y -w D-3hq7a2": "One workflow, running or ended, by the id of --write-workflow-id.",
        "kanodes3 -l": "All nodes of the site: node, cluster, and who has rights on which partition.",
    },
    about="The columns of -d are the node, its state, who deployed it last, and name, version and owner of the "
    f"environment on it. The states are: {'; '.join(f'{state}, {text}' for state, text in nodes.MEANINGS.items())}. "
    "Of each workflow -y shows the operation, its state (running, ended, aborted), when it began and ended, and the "
    "seconds it took; of one's own, and to administrators of all, also how many nodes are ok, ko and processing, and "
    "for each node why it is KO or what it answered (out), how much of the image has arrived (bytes, of size), when it "
    "came to its micro-step (since), the seconds in it, and when it came to its end. Times are Unix seconds. "
    "While an image is sent, progress tells in words how far it is. A workflow whose controller died does not run: "
    "-y leaves it out, -y -w says so with the key aborted, with the last line of its errors after --no-wait, and -d "
    "shows its nodes as aborted. Nodes in quarantine are told after the lists of -d and -l on standard error, and with "
    "--format json or yaml as quarantine of each node. Rights of others are shown to administrators.",
    aliases={"-s": "-d", "--get-nodes-state": "-d", "-a": "-y", "--get-all-status": "-y"},
    gone={
        **dict.fromkeys(("-r", "--get-reboots-status", "-p", "--get-powers-status", "--get-deployments-status"), ALL),
        **dict.fromkeys(("-c", "--get-consoles-status"), "open consoles are not listed; ps shows kaconsole3."),
    },
)


@app.command()
def kanodes3(
    *,
    state: Annotated[
        bool, typer.Option("-d", "--get-deploy-state", help="State of the nodes, last deployment, by whom.")
    ] = False,
    dump: Annotated[
        bool, typer.Option("-y", "--get-yaml-dump", help="Running workflows, node by node, in YAML.")
    ] = False,
    wid: Annotated[
        str | None,
        typer.Option(
            "-w",
            "--workflow-id",
            metavar="WID",
            help="With -y: this workflow, even if it has ended.",
            rich_help_panel=usage.OUTPUT,
            autocompletion=completion.workflows,
        ),
    ] = None,
    listing: Annotated[
        bool, typer.Option("-l", "--list", help="All nodes, their cluster, and who has rights.")
    ] = False,
    machines: shell.Machines = None,
    files: shell.Files = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Refresh the output every 2 seconds until Ctrl-C.", rich_help_panel=usage.OUTPUT),
    ] = False,
    form: shell.Format = "text",
    multi_server: shell.MultiServer = False,
    all_or_nothing: shell.AllOrNothing = False,
    server: shell.Server = None,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
) -> int:
    """Show the state of nodes (-d), the running workflows (-y) or the nodes of the site (-l)."""
    if sum((state, dump, listing)) != 1:
        raise OptionError("Choose one of -d (state of the nodes), -y (workflows) and -l (all nodes of the site).")
    if wid is not None and not dump:
        raise OptionError("-w goes with -y: kanodes3 -y -w WID.")
    service = together.asked(server, multi_server, all_or_nothing)
    names = _known(service, shell.node_names(machines, files, service.site.limits.nodes))
    show = _show_list if listing else _show_states if state else _show_workflows(wid)
    with sparing():
        if watch:
            return _watch(lambda: show(service, names, form))
        show(service, names, form)
    return together.status(service)


def _known(service: Service, names: list[str]) -> list[str] | None:
    """The whole names of nodes that the site has; None when none was named."""
    if not names:
        return None
    configuration = service.configuration
    whole = configuration.full_names(names)
    configuration.cluster_nodes(whole)
    return whole


def _show_states(service: Service, names: Sequence[str] | None, form: shell.Form) -> None:
    rows = sorted(service.states(names), key=lambda row: natural_key(row.hostname))
    aside = _aside(service, names)
    if form != "text":
        shell.emit([{**msgspec.to_builtins(row), "quarantine": aside.get(row.hostname)} for row in rows], form)
        return
    print("\n".join(map(_line, rows)) if rows else "No information concerning these nodes")
    _tell(aside)


def _aside(service: Service, names: Sequence[str] | None) -> dict[str, str]:
    """What there is to tell of nodes in quarantine."""
    return {stay.node: stay.told for stay in service.quarantine(names)}


def _tell(aside: Mapping[str, str]) -> None:
    """Tell people, for whom the columns have no room: programs read those."""
    for text, names in kinds(aside).items():
        print(f"{fold(names)}: {text}", file=sys.stderr)


def _line(row: nodes.NodeRow) -> str:
    version = "" if row.env_version is None else row.env_version
    return f"{row.hostname},{row.state},{row.user},{row.env_name},{version},{row.env_owner}"


def _show_workflows(wid: str | None) -> Callable[[Service, Sequence[str] | None, shell.Form], None]:
    def show(service: Service, names: Sequence[str] | None, form: shell.Form) -> None:
        workflows = service.workflows(wid, names)
        shell.emit(_merged(workflows) if form == "json" else workflows, "json" if form == "json" else "yaml")

    return show


def _merged(workflows: dict[str, Any]) -> dict[str, Any]:
    """The same with one mapping for each node; YAML keeps the lists of mappings with one key that programs know."""
    return {
        wid: flow | {"nodes": {node: _joined(stand) for node, stand in flow["nodes"].items()}}
        for wid, flow in workflows.items()
    }


def _joined(stand: Sequence[dict[str, str]]) -> dict[str, str]:
    return {key: value for each in stand for key, value in each.items()}


def _show_list(service: Service, names: Sequence[str] | None, form: shell.Form) -> None:
    """All nodes of the site, whether they were ever operated on or not."""
    cluster_of, holders = service.configuration.cluster_of, service.holders(names)
    aside = _aside(service, names)
    if form == "text":
        print("\n".join(f"{name},{cluster_of[name]},{_rights(found)}" for name, found in holders.items()))
        _tell(aside)
        return
    rows = [
        {
            "hostname": name,
            "cluster": cluster_of[name],
            "rights": [msgspec.structs.asdict(holder) for holder in found],
            "quarantine": aside.get(name),
        }
        for name, found in holders.items()
    ]
    shell.emit(rows, form)


def _rights(holders: Sequence[rights.Holder]) -> str:
    return " ".join(f"{holder.user}:{holder.part}" for holder in holders)


def _watch(show: Callable[[], None]) -> int:
    """Show again and again; on a terminal in place."""
    paint = "\n{}".format if shell.is_plain(sys.stdout) else _in_place
    try:
        while True:
            shown = io.StringIO()
            with redirect_stdout(shown), redirect_stderr(shown if paint is _in_place else sys.stderr):
                show()
            print(end=paint(shown.getvalue()), flush=True)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0


def _in_place(text: str) -> str:
    """What paints *text* over the terminal's screen, without a blank moment: no more lines than it has."""
    # Asked of the terminal itself: LINES and COLUMNS, where they are set, do not follow the window.
    width, height = os.get_terminal_size(sys.stdout.fileno())
    lines = text.splitlines()
    if len(lines) >= height:
        kept = height - 2
        lines[kept:] = [f"({len(lines) - kept} more lines: name fewer nodes with -m, or enlarge the window)"]
    rows = (f"\x1b[K{line[:width]}\n" for line in lines)
    return f"\x1b[H{''.join(rows)}\x1b[J"


def main() -> int:
    """Entry point."""
    return shell.run(app, NAME)
