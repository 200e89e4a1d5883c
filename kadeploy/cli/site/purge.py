"""``kadeploy-site purge``: what is old and of no use goes."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from kadeploy.admin import purge as purges
from kadeploy.cli import shell, usage
from kadeploy.cli.site import unattended
from kadeploy.cli.site.backup import size
from kadeploy.config.folder import configuration_folder


def purge(
    *,
    days: Annotated[
        int, typer.Option("--days", metavar="N", help="What was of no use for so long goes.", min=1, max=36_500)
    ] = purges.DAYS,
    statistics_days: Annotated[
        int,
        typer.Option(
            "--statistics-days",
            metavar="N",
            help="Forget statistics (kastat3) that are older (default: keep all).",
            min=1,
            max=36_500,
            show_default=False,
        ),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would go.", rich_help_panel=usage.GENERAL)
    ] = False,
    quiet: unattended.Quiet = False,
    form: shell.Format = "text",
) -> None:
    """Remove what is old and of no use: run folders, files, boot profiles, ended rights and tokens."""
    unattended.require_one_form(quiet, form)
    unattended.end_tidily()
    wish = purges.Wish(days=days, statistics_days=statistics_days, dry_run=dry_run)
    gone = purges.purge(configuration_folder(), wish)
    if form != "text":
        shell.emit(msgspec.to_builtins(gone), form)
    elif not quiet:
        _show([each for each in gone if each.number], dry_run)


def _show(gone: list[purges.Gone], dry_run: bool) -> None:
    for each in gone:
        room = "" if each.kind in purges.ROWS else size(each.bytes)
        print(f"{each.number:>6}  {room:>9}  {purges.KINDS[each.kind]}")
    total = size(sum(each.bytes for each in gone))
    if gone:
        print(f"{total} would be free." if dry_run else f"{total} are free.")
    else:
        print("There is nothing to remove.")
