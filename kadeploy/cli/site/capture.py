"""``kadeploy-site capture``: a node's system as a new environment."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from kadeploy.admin import capture as capturing
from kadeploy.admin.capture import Reach
from kadeploy.admin.known_node import KnownNode
from kadeploy.admin.ready_environment import require_name
from kadeploy.caller import caller
from kadeploy.cli import shell, usage
from kadeploy.cli.site import unattended
from kadeploy.client import sites
from kadeploy.config.folder import load_configuration
from kadeploy.config.partition import split_partition
from kadeploy.environments import description as descriptions
from kadeploy.errors import OptionError
from kadeploy.remote import namespace

_TELL = 2.0
"""Seconds between two words about how far it is."""


def capture(
    *,
    node: Annotated[str, typer.Argument(metavar="NODE", help="Node, by a name that ssh reaches.", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new environment.", show_default=False)],
    version: Annotated[int, typer.Option("--env-version", metavar="NUMBER", help="Its version.", min=1)] = 1,
    text: Annotated[str, typer.Option("--description", metavar="TEXT", help="What it is, in a line.")] = "",
    ssh: Annotated[
        str,
        typer.Option(
            "--ssh",
            metavar="COMMAND",
            help="How to enter the node: 'ssh -i key -J gateway' (default: ssh as root).",
            rich_help_panel=usage.MACHINES,
            show_default=False,
        ),
    ] = "ssh",
    partition: Annotated[
        str,
        typer.Option(
            "-p",
            "--partition",
            metavar="DEVICE",
            help="The system on this partition, such as /dev/sda3, of a node in the deployment system; for "
            "administrators.",
            rich_help_panel=usage.MACHINES,
        ),
    ] = "",
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATH", help="Path or pattern that stays behind; repeated."),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Record the environment, as kaenv3 -a does.")
    ] = True,
    output: Annotated[
        Path,
        typer.Option(
            "--output", metavar="FOLDER", help="Where image and description go.", rich_help_panel=usage.OUTPUT
        ),
    ] = Path(),
    form: shell.Format = "text",
) -> None:
    """Make an environment of a node's system: of the one that runs, entered by ssh as root, or of its disk."""
    unattended.end_tidily()
    require_name(name)
    if not text.isprintable():
        raise OptionError("--description: expected one line.")
    if node.startswith("-") or not node.isprintable() or any(map(str.isspace, node)):
        raise OptionError(f"{node[:60]!r} is no name of a node.")
    with _reached(node, ssh, partition) as reach:
        found = capturing.facts(reach)
        made = capturing.capture(
            reach,
            found,
            name,
            version,
            output,
            excluded=tuple(exclude or ()),
            description=text,
            author=caller().name,
            say=_progress(found.size),
        )
    if record:
        sites.service().add_environments(descriptions.load(made.description, caller(), shell.warn))
    _show(made, record, form)


@contextmanager
def _reached(node: str, ssh: str, partition: str) -> Iterator[Reach]:
    """How the system is reached; that on a disk is mounted meanwhile."""
    if not partition:
        try:
            words = shlex.split(ssh)
        except ValueError as error:
            raise OptionError(f"--ssh {ssh}: {error}.") from error
        yield Reach(node, (*words, "-l", "root", "--", node))
        return
    if not split_partition(partition)[1]:
        raise OptionError(f"--partition {partition}: expected a partition, such as /dev/sda3.")
    known = KnownNode.named(load_configuration(), node)
    with (
        namespace.inside(known.site.network_namespace),
        known.ssh() as command,
        capturing.mounted(known.name, command, partition) as reach,
    ):
        yield reach


def _progress(size: int) -> Callable[[int], None]:
    """Tells on a terminal how much has come, of what the node's file system holds."""
    last = time.monotonic()
    of = f" of about {size >> 20} MiB" if size else ""

    def say(come: int) -> None:
        nonlocal last
        if sys.stderr.isatty() and time.monotonic() - last > _TELL:
            last = time.monotonic()
            print(f"\r  {come >> 20} MiB{of}\x1b[K", end="", file=sys.stderr, flush=True)

    return say


def _show(made: capturing.Captured, recorded: bool, form: shell.Form) -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if form != "text":
        shell.emit(msgspec.to_builtins(made), form)
        return
    print(f"{made.image}  {made.image_bytes / (1 << 20):.1f} MiB, {made.system or 'a system'}")
    for place in made.left_out:
        shell.warn(f"{place} is a file system of its own, and is not in it.")
    if recorded:
        print(f"Recorded as {made.name}, version {made.version}:  kadeploy3 -e {made.name} -m …")
    else:
        print(f"Record it:  kaenv3 -a {shlex.quote(made.description)}")
