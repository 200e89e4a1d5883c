"""kadeploy-worker: carries out parts of large operations for a controller on another machine."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from kadeploy.cli import shell
from kadeploy.workers import settings

NAME = "kadeploy-worker"

app = shell.Tool(
    "Carry out parts of large operations for a controller on another machine.",
    examples={
        "kadeploy-worker run": "Serve the clusters of /etc/kadeploy/worker.yml until SIGTERM.",
        "kadeploy-worker run --settings /srv/worker.yml": "With other settings.",
    },
    about="The machine has to reach the nodes and their BMCs, the controller's service and its database. Nothing stays "
    "on it of what it does. `kadeploy-site workers` shows on the controller which workers there are.",
)


@app.callback()
def kadeploy_worker(_version: shell.Version = False, _completion: shell.Completion = None) -> None:
    """Options of the command itself."""


@app.command()
def run(
    path: Annotated[
        Path,
        typer.Option(
            "--settings", metavar="FILE", help="Another file than /etc/kadeploy/worker.yml.", show_default=False
        ),
    ] = settings.PATH,
) -> int:
    """Serve until SIGTERM; what is under way has half a minute then, and goes on elsewhere."""
    from kadeploy.workers.worker import Serving  # noqa: PLC0415 - half a second that help and completion need not pay

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("procrastinate").setLevel(logging.WARNING)  # it tells the keys of leases
    Serving(path).run()
    return 0


def main() -> int:
    """Run the tool."""
    return shell.run(app, NAME)
