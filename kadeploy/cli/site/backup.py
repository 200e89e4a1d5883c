"""``kadeploy-site backup``: what cannot be made anew of a site, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from kadeploy.admin import archive
from kadeploy.admin import backup as backups
from kadeploy.cli import shell
from kadeploy.cli.site import unattended
from kadeploy.config.folder import configuration_folder


def backup(
    target: Annotated[
        Path,
        typer.Argument(metavar="FILE|FOLDER", help="File to write, or folder to put it into.", show_default=False),
    ],
    *,
    runs: Annotated[
        bool, typer.Option("--runs", help="Also what is kept of operations that have ended (state_dir/runs).")
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", metavar="N", help="Remove this site's oldest backups in FOLDER until N are left.", min=1
        ),
    ] = None,
    quiet: unattended.Quiet = False,
    form: shell.Format = "text",
) -> None:
    """Back up the site while it runs: configuration, database, keys, password files and audit log."""
    unattended.require_one_form(quiet, form)
    unattended.end_tidily()
    made = backups.make(configuration_folder(), target, runs, keep or 0)
    if form != "text":
        shell.emit(as_data(made), form)
        return
    for why in made.manifest.left_out:
        shell.warn(f"left out: {why}.")
    if not quiet:
        print("\n".join(lines(made)))


def as_data(made: backups.Made) -> dict[str, Any]:
    """What programs read of a backup; paths, sizes in bytes, times in Unix seconds."""
    found: dict[str, Any] = msgspec.to_builtins(made)
    return found


def lines(made: backups.Made) -> list[str]:
    """The same for people."""
    found = [f"{made.path}: {size(made.size)}", *contents(made.manifest)]
    return found + [f"removed: {path}" for path in made.removed]


def contents(manifest: archive.Manifest) -> list[str]:
    """What is in a backup, a line for each kind."""
    what = {"configuration": manifest.configuration, "database": f"{manifest.database}, schema {manifest.schema}"}
    found = []
    for kind, words in archive.KINDS.items():
        members = manifest.of_kind(kind)
        if members:
            number = f"{len(members)} file{'s' if len(members) != 1 else ''}"
            more = f" ({what[kind]})" if kind in what else ""
            found.append(f"  {number:>9}  {size(sum(each.size for each in members)):>9}  {words}{more}")
    return found


def size(number: int) -> str:
    """Bytes for people.

    >>> size(999), size(1_500_000)
    ('999 B', '1.5 MB')
    """
    amount, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
