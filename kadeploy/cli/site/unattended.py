"""What commands have in common that take long, and that timers run as well as people."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from kadeploy.cli import shell, usage
from kadeploy.errors import OptionError

Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing when all goes well.", rich_help_panel=usage.OUTPUT)]

BootTimeout = Annotated[
    str,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        help="Seconds that a boot may take (default: timeouts.reboot of the cluster file).",
        rich_help_panel=usage.RUN,
        show_default=False,
    ),
]


def require_one_form(quiet: bool, form: shell.Form) -> None:
    """Refuse to say nothing in a format."""
    if quiet and form != "text":
        raise OptionError(f"--quiet and --format {form} contradict each other: choose one.")


def end_tidily() -> None:
    """Have SIGTERM and SIGHUP, as systemd and a closed terminal send them, end this process as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
