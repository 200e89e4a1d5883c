"""kastat3: statistics about past deployments."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kadeploy.cli import completion, plot, shell
from kadeploy.config.folder import load_configuration, load_site
from kadeploy.config.site import Site
from kadeploy.errors import OptionError
from kadeploy.state import history
from kadeploy.state.history import FIELDS, MORE_FIELDS, RETRY_FIELDS, Selection

NAME = "kastat3"
NOTHING = "No information is available"
_BATCH = 2000
"""Rows that are written at a time."""
_LISTS = {"json": ("[\n", ",\n", "", "\n]\n", "[]\n"), "yaml": ("", "\n", "- ", "\n", "[]\n")}
"""How a list is written: before it, between items, before an item, after the list; and an empty list."""

app = shell.Tool(
    "Print statistics about past deployments.",
    examples={
        "kastat3 -d -m 'gdx-[25-130].site'": "All deployments of some nodes, one line per node and deployment.",
        "kastat3 -d -f hostname -f env -f success": "Some fields of all deployments.",
        "kastat3 -b -x 2026:02:12:08:00:00 -y 2026:02:13:08:00:00": "Failure rate of each node within a day.",
        "kastat3 -c 25 -x 2026-02-12": "Nodes that failed in at least 25 % of their deployments since a day.",
        "kastat3 -a 3 -s 1": "Deployments with three retries or more of the first macro-step.",
        "kastat3 --plot past.svg": "Failure rates and durations as a picture.",
    },
    about=f"The fields are {', '.join(FIELDS + MORE_FIELDS)}. A retry is a try after the first. Dates are local time "
    "and may also be written 'yyyy-mm-dd hh:mm'. A day alone, yyyy-mm-dd, is its first second with -x and its last "
    "with -y. Line ends within a value are written \\n and \\r. Commas are not escaped: use --format json if values "
    "may contain them.",
)


@dataclass(frozen=True)
class Question:
    """What the options ask for."""

    selection: Selection
    fields: tuple[str, ...]
    retries: int
    steps: tuple[int, ...]
    rate: int
    plot: str
    form: shell.Form


@app.command()
def kastat3(
    *,
    retries: Annotated[
        int | None,
        typer.Option(
            "-a",
            "--list-min-retries",
            metavar="NB",
            min=0,
            help="Deployments that needed NB retries or more.",
        ),
    ] = None,
    rates: Annotated[bool, typer.Option("-b", "--list-failure-rate", help="Failure rate of the nodes.")] = False,
    min_rate: Annotated[
        int | None,
        typer.Option(
            "-c",
            "--list-min-failure-rate",
            metavar="RATE",
            min=0,
            max=100,
            help="Nodes that fail in RATE percent or more.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("-d", "--list-all", help="All deployments.")] = False,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            "--field",
            metavar="FIELD",
            help="With -a and -d: only this field; repeatable. A wrong name lists them all.",
            autocompletion=completion.choices(*FIELDS, *MORE_FIELDS),
        ),
    ] = None,
    machines: shell.Machines = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            "-s",
            "--step",
            metavar="STEP",
            min=1,
            max=3,
            help="With -a: retries of this macro-step; of each, when repeated.",
        ),
    ] = None,
    date_min: Annotated[
        str | None,
        typer.Option("-x", "--date-min", metavar="DATE", help="From this date: yyyy:mm:dd:hh:mm:ss."),
    ] = None,
    date_max: Annotated[
        str | None,
        typer.Option("-y", "--date-max", metavar="DATE", help="To this date, inclusive."),
    ] = None,
    operation: Annotated[
        Literal["deploy", "reboot", "power", "all"],
        typer.Option("--operation", metavar="KIND", help="deploy, reboot, power or all."),
    ] = "deploy",
    plot_file: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE", help="Draw rates and durations (.png or .svg)."),
    ] = None,
    form: shell.Format = "text",
    _server: shell.Server = None,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
) -> int:
    """Print statistics about past deployments."""
    chosen = _only(
        {
            "-a": retries is not None,
            "-b": rates,
            "-c": min_rate is not None,
            "-d": everything,
            "--plot": plot_file is not None,
        }
    )
    if steps and chosen != "-a":
        raise OptionError("-s goes with -a.")
    if fields and chosen not in {"-a", "-d"}:
        raise OptionError("-f goes with -a and -d.")
    if form != "text" and chosen == "--plot":
        raise OptionError("--format goes with -a, -b, -c and -d; the name of the --plot file tells png or svg.")
    selection = Selection(
        None if operation == "all" else operation,
        _nodes(machines),
        None if date_min is None else shell.moment("-x", date_min),
        None if date_max is None else shell.moment("-y", date_max, day_ends=True),
    )
    question = Question(
        selection=selection,
        fields=_fields(fields or (RETRY_FIELDS if chosen == "-a" else FIELDS)),
        retries=retries or 0,
        steps=tuple(steps or ()),
        rate=min_rate or 0,
        plot=plot_file or "",
        form=form,
    )
    return _OPERATIONS[chosen](load_site(), question)


def _nodes(machines: Sequence[str] | None) -> list[str] | None:
    """The whole names of what is named; a node that the site has no more may still be in the log."""
    if not machines:
        return None
    configuration = load_configuration()
    return configuration.full_names(shell.node_names(machines, None, configuration.site.limits.nodes))


def _only(given: dict[str, bool]) -> str:
    chosen = [name for name, asked in given.items() if asked]
    if len(chosen) != 1:
        raise OptionError("Choose one of -a (retries), -b and -c (failure rates), -d (everything) and --plot.")
    return chosen[0]


def _fields(names: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in FIELDS + MORE_FIELDS]
    if unknown:
        raise OptionError(f"-f {unknown[0]}: no such field. The fields are {', '.join(FIELDS + MORE_FIELDS)}.")
    return tuple(names)


def _list(site: Site, question: Question) -> int:
    rows = history.rows(site, question.selection, question.fields, question.retries, question.steps)
    if question.form == "text":
        _write(_lines(rows))
    else:
        _write_records(
            ({name: _truth(name, value) for name, value in zip(question.fields, row, strict=True)} for row in rows),
            question.form,
        )
    return 0


def _lines(rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """One line per row, whatever the values hold."""
    for row in rows:
        yield ",".join(map(str, row)).replace("\n", "\\n").replace("\r", "\\r")


def _truth(name: str, value: Any) -> Any:
    return value == "true" if name in {"success", "anonymous_env"} else value


def _write(lines: Iterator[str]) -> None:
    """Print *lines* a few thousand at a time: the output may have millions of them."""
    first = True
    while batch := list(islice(lines, _BATCH)):
        first = False
        sys.stdout.write("\n".join(batch) + "\n")
    if first:
        print(NOTHING)


def _write_records(records: Iterable[dict[str, Any]], form: shell.Form) -> None:
    """One record per line, within a JSON list, or as items of a YAML one (JSON objects are YAML)."""
    texts = (json.dumps(record, ensure_ascii=False) for record in records)
    opening, between, start, closing, nothing = _LISTS[form]
    rank = -1
    for rank, text in enumerate(texts):
        sys.stdout.write(f"{between if rank else opening}{start}{text}")
    sys.stdout.write(nothing if rank < 0 else closing)


def _rates(site: Site, question: Question) -> int:
    found = [rate for rate in history.failure_rates(site, question.selection) if rate.failures >= question.rate]
    if question.form == "text":
        _write(f"{rate.hostname}: {rate.failures}%" for rate in found)
    else:
        _write_records((rate._asdict() | {"failure_rate": rate.failures} for rate in found), question.form)
    return 0


def _plot(site: Site, question: Question) -> int:
    form = Path(question.plot).suffix.lower().lstrip(".")
    if form not in {"png", "svg"}:
        raise OptionError(f"--plot {question.plot}: the file's name ends in .png or .svg.")
    rates = history.failure_rates(site, question.selection)
    if not rates:
        print(NOTHING)
        return 0
    total = sum(rate.operations for rate in rates)
    title = f"{site.name}: {total} node operations ({question.selection.operation or 'all kinds'})"
    picture = plot.draw(rates, history.durations(site, question.selection), title, form)
    shell.write_bytes(question.plot, picture)
    print(f"{question.plot} written")
    return 0


_OPERATIONS: dict[str, Callable[[Site, Question], int]] = {
    "-a": _list,
    "-b": _rates,
    "-c": _rates,
    "-d": _list,
    "--plot": _plot,
}


def main() -> int:
    """Entry point."""
    return shell.run(app, NAME)
