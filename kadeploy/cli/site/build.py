"""``kadeploy-site build``: the deployment system for the hardware of a site."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from kadeploy.admin import deployment_system
from kadeploy.admin.edit import Edit, apply
from kadeploy.cli import shell, steps, usage
from kadeploy.config.cluster import Cluster
from kadeploy.config.folder import Configuration, configuration_folder, load_configuration
from kadeploy.errors import KadeployError, OptionError
from kadeploy.hints import did_you_mean

_DEFAULT = deployment_system.Recipe()

build = shell.Tool("Build the deployment system and put it where the nodes fetch it.")


@build.callback(invoke_without_command=True)
def system(
    context: typer.Context,
    *,
    cluster: Annotated[
        list[str] | None,
        typer.Option("--cluster", metavar="NAME", help="For this cluster alone; may be repeated (default: all)."),
    ] = None,
    kernel: Annotated[
        str,
        typer.Option(
            "--kernel", metavar="PACKAGE", help="Debian package of the kernel.", rich_help_panel=usage.MACHINES
        ),
    ] = _DEFAULT.kernel,
    module: Annotated[
        list[str] | None,
        typer.Option(
            "--module",
            metavar="MODULE",
            help="Kernel module besides the usual ones; repeated.",
            rich_help_panel=usage.MACHINES,
        ),
    ] = None,
    package: Annotated[
        list[str] | None,
        typer.Option(
            "--package",
            metavar="PACKAGE",
            help="Debian package to add, such as firmware; repeated.",
            rich_help_panel=usage.MACHINES,
        ),
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Option(
            "--command",
            metavar="COMMAND",
            help="Command of such a package that stays; repeated.",
            rich_help_panel=usage.MACHINES,
        ),
    ] = None,
    keyboard: Annotated[
        str,
        typer.Option(
            "--keyboard", metavar="LAYOUT", help="Keyboard: fr, de(nodeadkeys).", rich_help_panel=usage.MACHINES
        ),
    ] = "",
    console: Annotated[
        str,
        typer.Option("--console", metavar="LINE", help="Serial console: ttyS1,115200.", rich_help_panel=usage.MACHINES),
    ] = "",
    host_key: Annotated[
        Path | None,
        typer.Option(
            "--host-key",
            metavar="FILE",
            help=f"Its private host key (default: {deployment_system.HOST_KEY} beside ssh.private_key).",
            rich_help_panel=usage.GENERAL,
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        Path,
        typer.Option(
            "--cache", metavar="FOLDER", help="Where what was built is found again.", rich_help_panel=usage.GENERAL
        ),
    ] = deployment_system.CACHE,
    yes: Annotated[bool, typer.Option("--yes", help="Change site.yml and cluster files without asking.")] = False,
    form: shell.Format = "text",
) -> None:
    """Build the deployment system and put it where the nodes fetch it."""
    if context.invoked_subcommand:
        return
    if os.geteuid() != 0:
        raise KadeployError("A Debian system is built by root alone: run kadeploy-site build with sudo.")
    folder = configuration_folder()
    configuration = load_configuration(folder)
    clusters = _chosen(configuration, cluster or [])
    _require_line(console)
    recipe = deployment_system.Recipe(
        kernel=kernel,
        modules=tuple(module or ()),
        packages=tuple(package or ()),
        commands=tuple(command or ()),
        keyboard=keyboard,
    )
    say = steps.telling(sys.stdout if form == "text" else sys.stderr)
    built = deployment_system.build(configuration, recipe, cache, host_key, say)
    edits = deployment_system.edits(configuration, built, {each.name: console for each in clusters if console})
    if edits and not _may_write(edits, yes):
        raise KadeployError("Nothing was installed: the deployment system would not fit the configuration.")
    installed = deployment_system.install(built, configuration.site, clusters)
    apply(folder, edits)
    _show(installed, form)


def _chosen(configuration: Configuration, names: list[str]) -> list[Cluster]:
    for name in names:
        if name not in configuration.clusters:
            known = configuration.clusters
            raise OptionError(f"--cluster {name}: there are {', '.join(known)}.{did_you_mean(name, known)}")
    return [each for each in configuration.clusters.values() if not names or each.name in names]


def _require_line(console: str) -> None:
    if console and (not console.isascii() or any(letter.isspace() or letter in "\"\\'" for letter in console)):
        raise OptionError(f"--console {console!r}: expected a line and its speed, such as ttyS1,115200.")


def _may_write(edits: list[Edit], yes: bool) -> bool:
    """Whether the configuration may be changed so: the caller sees how, and is asked at a terminal."""
    for each in edits:
        print(each.diff, file=sys.stderr, end="")
    if yes:
        return True
    if not sys.stdin.isatty():
        raise OptionError("The configuration has to be changed as shown: say --yes.")
    return typer.confirm("Change the configuration so?", err=True)


def _show(installed: deployment_system.Installed, form: shell.Form) -> None:
    if form != "text":
        shell.emit(msgspec.to_builtins(installed), form)
        return
    for path, size in installed.files.items():
        print(f"{path}  {size / (1 << 20):.1f} MiB")
    print(f"Linux {installed.linux}; unpacked it takes {installed.memory >> 20} MiB of a node's memory.")
    for note in installed.notes:
        shell.warn(note)
