"""kaenv2to3: print an environment of Kadeploy 2 in the form of Kadeploy 3."""

from __future__ import annotations

import sys
from typing import Annotated, cast, get_args

import typer

from kadeploy import files
from kadeploy.caller import caller
from kadeploy.cli import completion, shell
from kadeploy.environments import description, kadeploy2
from kadeploy.errors import OptionError

NAME = "kaenv2to3"

app = shell.Tool(
    "Print an environment of Kadeploy 2 as a description for kaenv3 -a.",
    examples={
        "kaenv2to3 -e debian4-x64 -k linux > debian4.dsc": "Translate what kaenvironments of Kadeploy 2 prints.",
        "kaenv2to3 -f debian4-xen.old -k xen | kaenv3 -a -": "Translate a file and record the result.",
    },
    about="Fields without a successor are left out and named on standard error.",
)


@app.command()
def kaenv2to3(
    *,
    name: Annotated[
        str | None,
        typer.Option("-e", "--env-name", metavar="NAME", help="Its name in kaenvironments of Kadeploy 2."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("-f", "--env-file", metavar="FILE", help="Its description; - is standard input."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "-k",
            "--env-kind",
            metavar="KIND",
            help="What it is: linux, xen or other.",
            autocompletion=completion.choices(*get_args(kadeploy2.Kind)),
        ),
    ] = None,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
) -> int:
    """Print an environment of Kadeploy 2 as a description for kaenv3 -a."""
    if kind not in get_args(kadeploy2.Kind):
        raise OptionError("Say which kind of environment it is: -k linux, -k xen or -k other.")
    if bool(name) == bool(file):
        raise OptionError("Choose the environment by its name, -e NAME, or by a file, -f FILE: one of them.")
    text, source = _read(file) if file else (kadeploy2.kaenvironments(name or ""), kadeploy2.KAENVIRONMENTS)
    translated = kadeploy2.translate(text, cast("kadeploy2.Kind", kind), source)
    print(description.write([translated.environment], "wiki"), end="")
    if translated.left_out:
        print(f"Left out, without a successor: {', '.join(translated.left_out)}.", file=sys.stderr)
    return 0


def _read(file: str) -> tuple[str, str]:
    """Text of the caller's *file*, and what it is called in messages."""
    who = caller()
    text = files.read_text(file, who, description.MAX_BYTES)
    plain = files.is_stream(file) or files.is_url(file)
    return text, file if plain else str(files.local_path(file, who))


def main() -> int:
    """Entry point."""
    return shell.run(app, NAME)
