"""kaconsole3: open the console of a node."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from kadeploy import commands
from kadeploy.caller import Account, account, caller
from kadeploy.cli import completion, console, shell
from kadeploy.config.cluster import Cluster
from kadeploy.config.folder import load_configuration
from kadeploy.config.partition import partition_device
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, KadeployError, NodeListError, OptionError, RightsError
from kadeploy.nodeset import expand
from kadeploy.remote import namespace
from kadeploy.state import rights

NAME = "kaconsole3"

app = shell.Tool(
    "Open the console of a node; ESC typed four times leaves it.",
    examples={"kaconsole3 -m gdx-25.site": "Open the console of a node."},
    statuses=shell.STATUSES | {1: "The request is refused, the console's command failed, or your rights ended."},
    about="You need the right to deploy on the node; the console is closed within seconds when that right ends. The "
    "site's cluster file says which command opens a console; it runs as you, or as the account of "
    "console_account, and never as root for somebody else.",
)


@app.command()
def kaconsole3(
    first: Annotated[str | None, typer.Argument(hidden=True, metavar="NODE", autocompletion=completion.nodes)] = None,
    *,
    machine: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--machine",
            metavar="MACHINE",
            help="Node whose console is opened.",
            autocompletion=completion.nodes,
        ),
    ] = None,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
    _server: shell.Server = None,
    _multi_server: shell.MultiServer = False,
) -> int:
    """Open the console of a node; ESC typed four times leaves it."""
    if machine and first:
        raise NodeListError(f"-m {machine} and {first}: a console is of one node.")
    node = _one(machine or first)
    configuration = load_configuration()
    site, who = configuration.site, caller()
    (node,) = configuration.full_names([node])
    (name,) = configuration.cluster_nodes([node])
    cluster = configuration.clusters[name]
    part = partition_device(cluster.disk.device, cluster.disk.number("deploy"))
    rights.require(site, who.name, [node], part)
    if not cluster.console:
        raise ConfigError(f"clusters/{name}.yml: console is not set: the command that opens a node's console.")
    argv = commands.argv(cluster.console, commands.node_values(node), f"console in clusters/{name}.yml")
    program_account = _account(cluster, who)
    if not console.is_terminal():
        raise OptionError("A console needs a terminal: run the command in one (over ssh: ssh -t).")
    with namespace.inside(site.network_namespace):
        print(f"Console of {node}; ESC typed four times leaves it.", flush=True)
        end = console.attach(argv, partial(_may_stay, site, who.name, node, part), program_account)
    print()
    if end.reason == "revoked":
        raise RightsError(f"Console closed: {who.name} does not have the right to use {part} of {node} any more.")
    if end.status:
        raise KadeployError(f"{argv[0]} ended with status {end.status}: see above, and `console` in the cluster file.")
    print("Console closed.")
    return 0


def _one(machine: str | None) -> str:
    if not machine:
        raise NodeListError("No node: name it with -m NODE.")
    names = expand(machine)
    if len(names) != 1:
        raise NodeListError(f"-m {machine}: {len(names)} nodes; a console is of one node.")
    return names[0]


def _account(cluster: Cluster, who: Account) -> Account:
    """As whom the console's program runs: the caller, or the account that the cluster names for it.

    Raises:
        ConfigError: no such account, or root's: people would be root with the program's escapes.
    """
    if not cluster.console_account:
        return who
    try:
        found = account(cluster.console_account)
    except OptionError as error:
        raise ConfigError(f"clusters/{cluster.name}.yml: console_account: {error}") from error
    if found.uid == 0 and who.uid != 0:
        raise ConfigError(
            f"clusters/{cluster.name}.yml: console_account: root is refused, for whoever opens a console would be root "
            "with the escapes of its program: name an account that can do nothing else."
        )
    return found


def _may_stay(site: Site, user: str, node: str, part: str) -> bool:
    return not rights.missing(site, user, [node], part)


def main() -> int:
    """Run the tool."""
    return shell.run(app, NAME)
