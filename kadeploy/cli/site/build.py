"""``kadeploy-site build``: the deployment system for the hardware of a site."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from kadeploy.admin import deployment_system, ready_environment
from kadeploy.admin.edit import Edit
from kadeploy.caller import caller
from kadeploy.cli import shell, steps, usage
from kadeploy.cli.site import unattended
from kadeploy.config.cluster import Cluster
from kadeploy.config.folder import Configuration, configuration_folder, load_configuration
from kadeploy.errors import KadeployError, OptionError
from kadeploy.files import read_text
from kadeploy.hints import did_you_mean
from kadeploy.images import build_debian
from kadeploy.images.bootstrap import DEBIAN12, Origin
from kadeploy.images.container import build_container
from kadeploy.images.debian import LOCKED, Wanted

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
    _begin()
    configuration = load_configuration(configuration_folder())
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
    installed = deployment_system.install(built, configuration, clusters, edits)
    _show(installed, form)


@build.command("env")
def environment(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the environment.", show_default=False)],
    origin: Annotated[
        str,
        typer.Option(
            "--from", metavar="IMAGE", help="Container image: oci://REGISTRY/NAME:TAG (default: packages alone)."
        ),
    ] = "",
    package: Annotated[
        list[str] | None, typer.Option("--package", metavar="PACKAGE", help="Debian package to add; repeated.")
    ] = None,
    kernel: Annotated[
        str, typer.Option("--kernel", metavar="PACKAGE", help="Package of its kernel.")
    ] = "linux-image-amd64",
    version: Annotated[
        int, typer.Option("--env-version", metavar="NUMBER", help="Version of the environment.", min=1)
    ] = 1,
    description: Annotated[str, typer.Option("--description", metavar="TEXT", help="What it is, in a line.")] = "",
    release: Annotated[
        str,
        typer.Option("--release", metavar="NAME", help="Code name of the release.", rich_help_panel=usage.ENVIRONMENT),
    ] = DEBIAN12.release,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="SOURCE",
            help="Mirror, or line of sources.list, of another distribution; repeated.",
            rich_help_panel=usage.ENVIRONMENT,
        ),
    ] = None,
    keyring: Annotated[
        str,
        typer.Option(
            "--keyring", metavar="FILE", help="Keys that sign its packages.", rich_help_panel=usage.ENVIRONMENT
        ),
    ] = "",
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="The registry has no certificate that can be checked, or speaks HTTP.",
            rich_help_panel=usage.ENVIRONMENT,
        ),
    ] = False,
    root_password_file: Annotated[
        Path | None,
        typer.Option(
            "--root-password-file",
            metavar="FILE",
            help="Root's password on the console (default: none; root enters by ssh key).",
            rich_help_panel=usage.ENVIRONMENT,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", metavar="FOLDER", help="Where image and description go.", rich_help_panel=usage.OUTPUT
        ),
    ] = ready_environment.FOLDER,
    cache: Annotated[
        Path,
        typer.Option(
            "--cache", metavar="FOLDER", help="Where what was built is found again.", rich_help_panel=usage.GENERAL
        ),
    ] = deployment_system.CACHE,
    form: shell.Format = "text",
) -> None:
    """Build an environment from packages of Debian or Ubuntu, or from a container image."""
    _begin()
    wanted = Wanted(
        name=ready_environment.require_name(name),
        description=_line(description) or f"{release}, built from {origin.partition('://')[2] or 'its packages'}",
        version=version,
        kernel=_package(kernel),
        packages=tuple(map(_package, package or ())),
        origin=Origin(_release(release), tuple(map(_source, source or ())), keyring),
        password=_password(root_password_file),
    )
    say = steps.telling(sys.stdout if form == "text" else sys.stderr)
    built = (
        build_container(cache, origin, wanted, insecure=insecure, say=say)
        if origin
        else build_debian(cache, wanted, say=say)
    )
    published = ready_environment.publish(built, version, output)
    if form != "text":
        shell.emit(msgspec.to_builtins(published), form)
        return
    print(f"{published.image}  {published.image_bytes / (1 << 20):.1f} MiB")
    print(f"Record it:  kaenv3 -a {shlex.quote(published.description)}")


def _line(text: str) -> str:
    if not text.isprintable():
        raise OptionError("--description: expected one line.")
    return text


def _package(name: str) -> str:
    deployment_system.require_packages("--package", [name])
    return name


def _release(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise OptionError(f"--release {name[:60]}: expected a code name, such as bookworm.")
    return name


def _source(line: str) -> str:
    if not re.fullmatch(r"(?:deb (?:\[[^\]]*\] )?)?(?:https?|file)://\S+(?: [\w./-]+)*", line):
        raise OptionError(f"--source {line[:80]}: expected a mirror's URL or a line `deb URL RELEASE COMPONENT…`.")
    return line


def _password(path: Path | None) -> str:
    if path is None:
        return LOCKED
    return ready_environment.hashed(read_text(str(path), caller()).rstrip("\n"))


def _begin() -> None:
    """Refuse all but root; a closed terminal ends a build as Ctrl-C does."""
    unattended.end_tidily()
    if os.geteuid() != 0:
        raise KadeployError("A Debian system is built by root alone: run kadeploy-site build with sudo.")


def _chosen(configuration: Configuration, names: list[str]) -> list[Cluster]:
    for name in names:
        if name not in configuration.clusters:
            known = configuration.clusters
            raise OptionError(f"--cluster {name}: there are {', '.join(known)}.{did_you_mean(name, known)}")
    chosen = [each for each in configuration.clusters.values() if not names or each.name in names]
    configuration.require_sound([each.name for each in chosen])
    return chosen


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
