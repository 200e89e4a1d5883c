"""kapower3: switch nodes on or off, or ask whether they are on."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from kadeploy.caller import caller
from kadeploy.cli import completion, operation, shell, together, usage
from kadeploy.cli.display import Display
from kadeploy.errors import OptionError
from kadeploy.events import Ended, Report
from kadeploy.hints import did_you_mean
from kadeploy.nodeset import natural_key
from kadeploy.operations.requests import PowerOperation, PowerRequest

NAME = "kapower3"

app = shell.Tool(
    "Switch nodes on or off, or ask whether they are on.",
    examples={
        "kapower3 --status -m 'gdx-[25-35].site' -o nodes_up -n nodes_down": "Write which nodes are on and which are "
        "not.",
        "kapower3 --off -f machine_file": "Shut down the nodes of a file.",
        "kapower3 --on -m gdx-25.site --no-wait": "Switch a node on and return at once.",
    },
    statuses=shell.NODE_STATUSES | {3: "Finished, and some nodes are KO; with --status, some nodes are off or silent."},
    about="When a level fails, or the site has no command for it, the next one is tried: soft asks the system on the "
    "node, hard and very_hard use its BMC. An order is sent whatever the BMC says of its machine, and a node is OK "
    "when its BMC, or the site's status command, says that it is on or off as ordered. The site's window limits how "
    "many nodes are switched at a time. --status takes no node from anybody, and leaves no trace in kanodes3 and "
    "kastat3.",
    aliases={**operation.ALIASES, "--op-level": "--level"},
    gone=operation.OF_DEPLOYMENTS,
)


@app.command()
def kapower3(
    first: Annotated[
        str | None,
        typer.Argument(hidden=True, metavar="on|off|status", autocompletion=completion.choices("on", "off", "status")),
    ] = None,
    *,
    machines: shell.Machines = None,
    node_files: shell.Files = None,
    on: Annotated[bool, typer.Option("--on", help="Switch the nodes on.")] = False,
    off: Annotated[bool, typer.Option("--off", help="Shut the nodes down.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Tell which nodes are on (-o), or not (-n).")] = False,
    level: Annotated[
        Literal["soft", "hard", "very_hard"] | None,
        typer.Option("-l", "--level", metavar="VALUE", help="Level: soft (default), hard, very_hard."),
    ] = None,
    debug: operation.Debug = False,
    multi_server: shell.MultiServer = False,
    all_or_nothing: shell.AllOrNothing = False,
    ok_file: shell.OkFile = None,
    ko_file: shell.KoFile = None,
    script: operation.Script = None,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the end (default), or not.", rich_help_panel=usage.RUN)
    ] = True,
    server: shell.Server = None,
    verbosity: operation.Verbosity = None,
    wid_file: operation.Wid = None,
    force: operation.Force = False,
    cancel: operation.Cancel = None,
    attach: operation.Attach = None,
    speed: operation.Speed = 0.0,
    wait_for: operation.WaitFor = None,
    hook: operation.Hook = True,
    dry_run: operation.DryRun = False,
    form: operation.Format = "text",
) -> int:
    """Switch nodes on or off, or ask whether they are on."""
    who = caller()
    outputs = operation.Outputs(ok_file, ko_file, wid_file)
    if not dry_run:
        outputs.create()
    operation.require_end(form, dry_run, wait)
    if script:
        operation.check_script(script, who)
    other = operation.Other(cancel, attach, wait_for, speed)
    if wid := other.wid(machines or node_files):
        service = together.asked(server, multi_server, all_or_nothing)
        return operation.of_another(other, wid, service, NAME, outputs, script, form, verbosity, debug)
    chosen = _operation({"on": on, "off": off, "status": status}, first)
    service = together.asked(server, multi_server, all_or_nothing)
    names = operation.nodes(machines, node_files, service.site)
    if chosen == "status" and level is not None:
        raise OptionError("-l goes with --on and --off: there is one way to ask for the status.")
    if chosen == "status" and not wait:
        raise OptionError("--no-wait goes with --on and --off: a status is what one waits for.")
    request = PowerRequest(
        user=who.name,
        nodes=names,
        operation=chosen,
        level=level or "soft",
        wait=wait,
        ignore_nodes_deploying=force,
        debug=debug,
        hook=hook,
    )
    if dry_run:
        return operation.show(service, request)
    if not wait and not (ok_file or ko_file):
        return operation.in_background(service, request, NAME, outputs, script, together.words(server, multi_server))
    output = operation.apart(form)
    if chosen == "status":  # how it was found out is of interest only when asked for
        display = Display(verbosity or 0, debug, final=status_lines)
    else:
        display = operation.display_of(NAME, service, verbosity, debug)
    report = operation.carry_out(service, request, display, outputs)
    if script:
        operation.run_script(script, who)
    operation.answer(output, report)
    return operation.status(report, service.site)


def _operation(given: dict[PowerOperation, bool], first: str | None) -> PowerOperation:
    """The one that was asked for, by an option or as the *first* word."""
    chosen = [name for name, wanted in given.items() if wanted or name == first]
    if len(chosen) != 1 or first not in (None, *given):
        hint = "" if first in (None, *given) else did_you_mean(first or "", given)
        raise OptionError(f"Choose one of --on, --off and --status.{hint}")
    return chosen[0]


def status_lines(event: Ended) -> list[str]:
    """Cluster by cluster the nodes that are on, then the others, each with what its BMC or the site's command said."""
    lines = []
    on = set(event.report.ok)
    for cluster, names in event.groups.items():
        ordered = sorted(names, key=natural_key)
        for title, listed in (
            ("Nodes up", [name for name in ordered if name in on]),
            ("Nodes down or silent", [name for name in ordered if name not in on]),
        ):
            if listed:
                lines += [
                    f"{title} on cluster {cluster}",
                    *(f"{name} ({_answer(event.report, name)})" for name in listed),
                ]
    return lines


def _answer(report: Report, name: str) -> str:
    return report.answers.get(name) or report.ko.get(name, "on")


def main() -> int:
    """Run the tool."""
    return shell.run(app, NAME)
