"""``kadeploy-site``: what administrators do for a site besides operating it; one command per file of `cli.site`."""

from __future__ import annotations

import sys

from kadeploy.cli import shell
from kadeploy.cli.site import backup, build

NAME = "kadeploy-site"

app = shell.Tool(
    "Set up a site, find out what is wrong with it before a node is lost, and look after it.",
    examples={
        "kadeploy-site build --package firmware-bnx2x": "Build the deployment system for the hardware of the nodes.",
        "kadeploy-site backup /var/backups/kadeploy --keep 30": "Back up the site while it runs, from a timer for "
        "instance.",
    },
    about="It is for administrators: most of it needs root, on the controller.",
)


@app.callback()
def kadeploy_site(_version: shell.Version = False, _completion: shell.Completion = None) -> None:
    """Options of the command itself."""


app.add_typer(build.build, name="build")
app.command("backup")(backup.backup)


def main() -> int:
    """Entry point; exit status 0 done, 1 refused or something is wrong, 130 interrupted."""
    return shell.run(app, NAME)


if __name__ == "__main__":
    sys.exit(main())
