"""``kadeploy-site restore``: a site from its backup, here or on a new machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from kadeploy.admin import restore as restores
from kadeploy.cli import shell, usage
from kadeploy.cli.site import unattended
from kadeploy.cli.site.backup import contents
from kadeploy.config.folder import configuration_folder
from kadeploy.errors import MissingOptionError, OptionError
from kadeploy.nodeset import told

_COLOURS = {"new": "green", "changed": "yellow", "removed": "red"}


def restore(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="The backup; none: end a restore that was interrupted.", show_default=False
        ),
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FOLDER", help="Folder for the configuration (default: the site's).", show_default=False
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the site that is there; it is backed up first.")
    ] = False,
    backup: Annotated[
        Path | None,
        typer.Option(
            "--backup",
            metavar="FILE|FOLDER",
            help="Where that backup goes (default: backups in state_dir).",
            show_default=False,
        ),
    ] = None,
    without_backup: Annotated[
        bool, typer.Option("--without-backup", help="Lose what is there, where it cannot be backed up.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Verify the backup, show what would change, and do nothing.",
            rich_help_panel=usage.GENERAL,
        ),
    ] = False,
    form: shell.Format = "text",
) -> None:
    """Put a site back from its backup, all of it or nothing. Its service has to be stopped."""
    if backup and without_backup:
        raise OptionError("--backup and --without-backup contradict each other: choose one.")
    folder = config or configuration_folder()
    unattended.end_tidily()
    said = "" if dry_run else restores.resume(folder)
    if file is None:
        if not said:
            raise MissingOptionError(f"No restore was interrupted in {folder}: name the backup to put back.")
        shell.emit({"ended": said}, form) if form != "text" else print(said)
        return
    if said:
        shell.warn(said)
    wish = restores.Wish(replace=replace, dry_run=dry_run, to=backup, without_backup=without_backup)
    done = restores.restore(file, folder, wish)
    for warning in done.warnings:
        shell.warn(f"{warning}.")
    if form != "text":
        shell.emit(msgspec.to_builtins(done), form)
    else:
        _show(done, file)


def _show(done: restores.Done, file: Path) -> None:
    manifest = done.manifest
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.time))
    print(f"{file}: site {manifest.site} of {when}, made by Kadeploy {manifest.kadeploy} on {manifest.host}")
    print("\n".join(contents(manifest)))
    if done.dry_run:
        print("would be put in place:")
    for change in done.changes:
        if change.what != "same":
            print(f"{shell.coloured(f'{change.what:>9}', _COLOURS[change.what])}  {change.path}")
    if same := sum(change.what == "same" for change in done.changes):
        print(f"{'same':>9}  {same} file{'s' if same != 1 else ''}")
    if done.before:
        print(f"What was there is in {done.before}")
    for wid, nodes in done.aborted.items():
        print(f"{wid} ran when the backup was made, and is aborted{f': {told(nodes)}' if nodes else ''}.")
    if not done.dry_run:
        print("The site is put back. Look it over before its service starts: kadeploy-site check")
