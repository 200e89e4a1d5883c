"""``kadeploy-site upgrade``: the database brought to the schema of this version, with a backup before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from kadeploy import __version__
from kadeploy.admin import standstill
from kadeploy.admin import upgrade as upgrades
from kadeploy.cli import shell, usage
from kadeploy.cli.site import unattended
from kadeploy.config.folder import configuration_folder, load_site


def upgrade(
    *,
    backup: Annotated[
        Path | None,
        typer.Option(
            "--backup",
            metavar="FILE|FOLDER",
            help="Where the backup goes (default: backups in state_dir).",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what there is to do.", rich_help_panel=usage.GENERAL)
    ] = False,
    stands_still: Annotated[
        bool,
        typer.Option(
            "--stands-still",
            help="Tell alone whether an upgrade may begin: by the exit status.",
            rich_help_panel=usage.GENERAL,
        ),
    ] = False,
    form: shell.Format = "text",
) -> None:
    """Bring the site to this version of Kadeploy, with a backup first. Its service has to be stopped."""
    unattended.end_tidily()
    folder = configuration_folder()
    if stands_still:
        standstill.require(load_site(folder), "an upgrade")
        return
    stand = upgrades.stand(folder)[1] if dry_run else upgrades.upgrade(folder, backup)
    if form != "text":
        shell.emit({**msgspec.to_builtins(stand), "version": __version__}, form)
        return
    print(f"The configuration in {folder} is one for Kadeploy {__version__}.")
    if stand.schema is None:
        print(f"The database {stand.database} is not there yet: it is made at its first use.")
    elif stand.is_current:
        print(f"The database {stand.database} has schema version {stand.known}, which this Kadeploy knows.")
    elif dry_run:
        print(f"The database {stand.database} has schema version {stand.schema}: it would be brought to {stand.known}.")
    else:
        print(f"What was there is in {stand.backup}")
        print(f"The database {stand.database} was brought from schema version {stand.schema} to {stand.known}.")
