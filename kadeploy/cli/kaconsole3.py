"""kaconsole3: open the console of a node."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from kadeploy.caller import caller
from kadeploy.cli import completion, console, pace, replay, shell, together, usage
from kadeploy.errors import AuthenticationError, KadeployError, NodeListError, OptionError, RightsError
from kadeploy.files import open_as_user
from kadeploy.operations import recording
from kadeploy.operations.console import End, Opened
from kadeploy.operations.service import Service
from kadeploy.printable import printable

NAME = "kaconsole3"

app = shell.Tool(
    "Open the console of a node; ESC typed four times leaves it.",
    examples={
        "kaconsole3 -m gdx-25.site": "Open the console of a node.",
        "kaconsole3 --list": "What was recorded: recording, user, date, length.",
        "kaconsole3 --replay gdx-25.site --speed 4": "Play the last recording of a node's console, four times as fast.",
    },
    statuses=shell.STATUSES | {1: "The request is refused, the console's command failed, or your rights ended."},
    about="You need the right to deploy on the node; the console is closed within seconds when that right ends. The "
    "site's cluster file says which command opens a console; it runs as you, or as the account of "
    "console_account, and never as root for somebody else. A site may record what consoles show "
    "(service.record_consoles), but not what is typed. --list shows recordings of your own and of nodes on which you "
    "have rights; only who opened a console may play its recording, and administrators. A recording is played on the "
    "terminal as it was shown, with pauses of two seconds at most, until Ctrl-C; if the output is no terminal, its "
    "text is written at once.",
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
    played: Annotated[
        str | None,
        typer.Option(
            "--replay",
            metavar="RECORDING",
            help="Play a recording: a node's last, one of --list, or a file.",
            rich_help_panel=usage.OUTPUT,
            autocompletion=completion.nodes,
        ),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            "--speed", metavar="N", help="With --replay: N times as fast as it was.", rich_help_panel=usage.OUTPUT
        ),
    ] = None,
    listing: Annotated[
        bool,
        typer.Option("--list", help="List recordings; with -m, of this node.", rich_help_panel=usage.OUTPUT),
    ] = False,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
    server: shell.Server = None,
    multi_server: shell.MultiServer = False,
) -> int:
    """Open the console of a node; ESC typed four times leaves it."""
    if machine and first:
        raise NodeListError(f"-m {machine} and {first}: a console is of one node.")
    node = machine or first
    _check(node, played, speed, listing)
    service = together.asked(server, multi_server)
    if listing:
        _list(service, node)
    elif played is not None:
        _replay(service, played, speed or 1.0)
    else:
        _open(service, node or "")
    return 0


def _check(node: str | None, played: str | None, speed: float | None, listing: bool) -> None:
    if played is not None and (listing or node):
        raise OptionError("--replay goes alone: it names a node itself, or a recording of --list.")
    if speed is not None and played is None:
        raise OptionError("--speed is that of a recording: name one with --replay.")
    if speed is not None:
        pace.require_speed(speed)


# --- a console ------------------------------------------------------------------------------------------------------


def _open(service: Service, node: str) -> None:
    admitted = service.console(node)
    if not console.is_terminal():
        raise OptionError("A console needs a terminal: run the command in one (over ssh: ssh -t).")
    stream = admitted.open(console.size_of(0))
    console.greet(admitted.opened.node)
    end = console.attach(stream, admitted.may_stay)
    print()
    tell(end, service.user, admitted.opened)


def tell(end: End, user: str, opened: Opened) -> None:
    """Say how a console ended.

    Raises:
        RightsError: the user may use the node no more.
        AuthenticationError: the service lets the user in no more.
        KadeployError: the program failed, or the console was lost.
    """
    if end.reason == "revoked" and end.message:
        raise AuthenticationError(f"Console closed. {end.message}")
    if end.reason == "revoked":
        raise RightsError(
            f"Console closed: {user} does not have the right to use {opened.part} of {opened.node} any more."
        )
    if end.reason == "unchecked":
        raise KadeployError("Console closed: the rights to it cannot be looked up. Tell the site's administrators.")
    if end.reason == "lost":
        raise KadeployError("Console closed: the connection to it is lost. Open the console again.")
    if end.status:
        raise KadeployError(
            f"{opened.program} ended with status {end.status}: see above, and `console` in the cluster file."
        )
    print("Console closed.")


# --- recordings -----------------------------------------------------------------------------------------------------


def _list(service: Service, node: str | None) -> None:
    for each in service.recordings(node or ""):
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.date))
        minutes, seconds = divmod(int(each.seconds), 60)
        print(each.name, printable(each.user) or "-", date, f"{minutes}:{seconds:02}")


def _replay(service: Service, word: str, speed: float) -> None:
    with service.recording(word) or open_as_user(word, caller()) as file:
        header, pieces = recording.read(file, word)
        if shell.is_plain(sys.stdout):
            replay.write_plain(pieces, sys.stdout)
        else:
            replay.play(header, pieces, speed)
            print()


def main() -> int:
    """Run the tool."""
    return shell.run(app, NAME)
