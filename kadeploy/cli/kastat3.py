"""kastat3: statistics about past deployments."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from kadeploy import dates
from kadeploy.cli import completion, shell, together, usage
from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean
from kadeploy.nodeset import require_few
from kadeploy.operations.service import Rows, Service
from kadeploy.pictures import drawing
from kadeploy.pictures.past import Past
from kadeploy.printable import printable
from kadeploy.state.damage import sparing
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
        "kastat3 -d -w D-9xfnm17rxv -F hostname,error --sort error": "What came of one workflow.",
        "kastat3 -a 3 -s 1": "Deployments with three retries or more of the first macro-step.",
        "kastat3 --plot past.svg": "Failure rates, durations and how busy the site was, as a picture.",
    },
    about=f"The fields are {', '.join(FIELDS + MORE_FIELDS)}. A retry is a try after the first; -s, repeated, asks for "
    "retries of each of these macro-steps. Dates are local time and may also be written 'yyyy-mm-dd hh:mm'. A day "
    "alone, yyyy-mm-dd, is its first second with -x and its last with -y. Line ends within a value are written \\n and "
    "\\r. Commas are not escaped: use --format json if values may contain them. Operations that were aborted, by "
    "Ctrl-C or with their controller, are listed, but no node's failures: -b, -c and --plot leave them out. The plot "
    "draws the durations of each image apart.",
    aliases={
        "--all": "--list-all",
        "--failure-rate": "--list-failure-rate",
        "--min-retries": "--list-min-retries",
        "--retry-steps": "--step",
        "-r": "--list-min-retries",
    },
    gone={"--last": "the newest lines, newest first: kastat3 -d -m NODE --sort -start -l 1."},
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
    limit: int | None = None
    order: tuple[str, ...] = ()


@app.command()
def kastat3(
    *,
    everything: Annotated[bool, typer.Option("-d", "--list-all", help="All deployments.")] = False,
    machines: shell.Machines = None,
    retries: Annotated[
        str | None,
        typer.Option(
            "-a",
            "--list-min-retries",
            metavar="[NB]",
            help="Deployments that needed NB retries or more.",
            rich_help_panel=usage.SELECTION,
        ),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option("-b", "--list-failure-rate", metavar="[RATE]", help="Failure rates, from RATE (0 to 1) on."),
    ] = None,
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
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            "--field",
            metavar="FIELD",
            help="With -a, -d: only this field; or a file of nodes.",
            autocompletion=completion.choices(*FIELDS, *MORE_FIELDS),
        ),
    ] = None,
    field_lists: Annotated[
        list[str] | None,
        typer.Option(
            "-F",
            "--fields",
            metavar="FIELDS",
            help="The same, several with commas.",
            rich_help_panel=usage.OUTPUT,
            autocompletion=completion.choices(*FIELDS, *MORE_FIELDS, several=True),
        ),
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option(
            "-s",
            "--step",
            metavar="STEP",
            help="With -a: of this macro-step, 1 to 3.",
            rich_help_panel=usage.SELECTION,
            autocompletion=completion.choices("1", "2", "3"),
        ),
    ] = None,
    wid: Annotated[
        str | None,
        typer.Option(
            "-w",
            "--workflow-id",
            metavar="WID",
            help="Only this workflow.",
            rich_help_panel=usage.SELECTION,
            autocompletion=completion.workflows,
        ),
    ] = None,
    date_min: Annotated[
        str | None,
        typer.Option("-x", "--date-min", metavar="DATE", help="From this date, such as 2026-02-12."),
    ] = None,
    date_max: Annotated[
        str | None,
        typer.Option("-y", "--date-max", metavar="DATE", help="To this date, inclusive."),
    ] = None,
    operation: Annotated[
        Literal["deploy", "reboot", "power", "all"] | None,
        typer.Option(
            "-o",
            "--operation",
            metavar="KIND",
            help="deploy (default), reboot, power or all.",
            rich_help_panel=usage.SELECTION,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("-l", "--limit", metavar="N", help="Only the first N lines.", min=0, rich_help_panel=usage.OUTPUT),
    ] = None,
    sort: Annotated[
        list[str] | None,
        typer.Option(
            "--sort",
            metavar="FIELDS",
            help="Order of the lines; -start is newest first.",
            rich_help_panel=usage.OUTPUT,
            autocompletion=completion.ordered(*FIELDS, *MORE_FIELDS),
        ),
    ] = None,
    plot_file: Annotated[
        str | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw rates, durations and load (.png or .svg).",
            rich_help_panel=usage.OUTPUT,
        ),
    ] = None,
    form: shell.Format = "text",
    multi_server: shell.MultiServer = False,
    all_or_nothing: shell.AllOrNothing = False,
    server: shell.Server = None,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
) -> int:
    """Print statistics about past deployments."""
    chosen = _only(
        {
            "-a": bool(retries),
            "-b": rates is not None,
            "-c": min_rate is not None,
            "-d": everything or retries == "",
            "--plot": plot_file is not None,
        }
    )
    names, lists = _fields_and_files(fields or (), field_lists or ())
    columns = {"-s": bool(steps), "-f": bool(names), "-l": limit is not None, "--sort": bool(sort)}
    for option, used in columns.items():
        if used and chosen not in _USES[option]:
            raise OptionError(f"{option} goes with {' and '.join(_USES[option])}.")
    if form != "text" and chosen == "--plot":
        raise OptionError("--format goes with -a, -b, -c and -d; the name of the --plot file tells png or svg.")
    service = together.asked(server, multi_server, all_or_nothing)
    question = Question(
        selection=Selection(
            (None if wid else "deploy") if operation is None else None if operation == "all" else operation,
            _nodes(service, machines, lists),
            None if date_min is None else dates.moment("-x", date_min),
            None if date_max is None else dates.moment("-y", date_max, day_ends=True),
            wid,
        ),
        fields=names or (RETRY_FIELDS if chosen == "-a" else FIELDS),
        retries=_retries(retries or "0"),
        steps=tuple(_step(word) for text in steps or () for word in text.split(",")),
        rate=_share(rates) if rates else min_rate or 0,
        plot=plot_file or "",
        form=form,
        limit=limit,
        order=tuple(_order(word) for text in sort or () for word in text.split(",")),
    )
    if wid is not None:
        service.require_workflow(wid)
    with sparing():
        return together.status(service, _OPERATIONS[chosen](service, question))


def _nodes(service: Service, machines: Sequence[str] | None, lists: Sequence[str]) -> list[str] | None:
    """The whole names of what is named; nodes that the site has no more count for as long as the log tells of them.

    Raises:
        NodeListError: neither the site nor the log knows any node of one of *machines*, or of *lists*.
    """
    if not machines and not lists:
        return None
    configuration = service.configuration
    most = configuration.site.limits.nodes
    groups = [shell.node_names([pattern], None, most) for pattern in machines or ()]
    if lists:  # read once: one of them may be standard input
        groups.append(shell.node_names(None, lists, most))
    require_few(len({name for group in groups for name in group}), most, "All of -m and -f")
    found: list[str] = []
    for names in map(configuration.full_names, groups):
        known = any(name in configuration.cluster_of for name in names)
        if not known and len(service.strangers(names)) == len(names):
            configuration.cluster_nodes(names)
        found += names
    return list(dict.fromkeys(found))


def _only(given: dict[str, bool]) -> str:
    chosen = [name for name, asked in given.items() if asked]
    if len(chosen) != 1:
        raise OptionError("Choose one of -a (retries), -b and -c (failure rates), -d (everything) and --plot.")
    return chosen[0]


_USES: dict[str, tuple[str, ...]] = {"-s": ("-a",), "-f": ("-a", "-d"), "-l": ("-a", "-d"), "--sort": ("-a", "-d")}
"""Operations that each of these options makes sense for."""


def _fields_and_files(words: Sequence[str], lists: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The fields of ``-f`` and ``-F``; and what ``-f`` names that is no field, but a file of nodes."""
    known = FIELDS + MORE_FIELDS
    files = [word for word in words if word not in known and (Path(word).suffix or "/" in word or word == "-")]
    names = [word for word in words if word not in files] + [name for text in lists for name in text.split(",")]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise OptionError(
                f"-f {name}: no such field, nor ./FILE of nodes. The fields are {', '.join(known)}.{hint}"
            )
    return tuple(names), files


def _order(word: str) -> str:
    known = FIELDS + MORE_FIELDS
    if word.removeprefix("-") not in known:
        hint = did_you_mean(word.removeprefix("-"), known)
        raise OptionError(f"--sort {word}: no such field. The fields are {', '.join(known)}.{hint}")
    return word


def _retries(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise OptionError(f"-a {text}: expected the number of retries, such as 3; -d is for all deployments.")
    return int(text)


def _step(text: str) -> int:
    if text not in ("1", "2", "3"):
        raise OptionError(f"-s {text}: the macro-steps are 1, 2 and 3.")
    return int(text)


def _share(text: str) -> int:
    """Percent of a rate from 0 to 1, as Kadeploy 3.3 has them."""
    if not re.fullmatch(r"0?\.[0-9]{1,9}|0|1(\.0{1,9})?", text):
        raise OptionError(f"-b {text}: expected a rate from 0 to 1, such as 0.25; -c takes percent.")
    return round(100 * float(text))


def _list(service: Service, question: Question) -> int:
    rows = service.rows(
        Rows(
            selection=question.selection,
            fields=question.fields,
            min_retries=question.retries,
            steps=question.steps,
            order=question.order,
            limit=question.limit,
        )
    )
    if question.form == "text":
        _write(_lines(rows))
    else:
        _write_records(
            ({name: _truth(name, value) for name, value in zip(question.fields, row, strict=True)} for row in rows),
            question.form,
        )
    return 0


def _lines(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """One line per row, whatever the values hold."""
    for row in rows:
        yield printable(",".join(map(str, row)).replace("\n", "\\n").replace("\r", "\\r"))


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


def _rates(service: Service, question: Question) -> int:
    found = [rate for rate in service.failure_rates(question.selection) if rate.failures >= question.rate]
    if question.form == "text":
        _write(f"{rate.hostname}: {rate.failures}%" for rate in found)
    else:
        _write_records(
            (msgspec.structs.asdict(rate) | {"failure_rate": rate.failures} for rate in found), question.form
        )
    return 0


def _plot(service: Service, question: Question) -> int:
    form = Path(question.plot).suffix.lower().lstrip(".")
    if form not in {"png", "svg"}:
        raise OptionError(f"--plot {question.plot}: the file's name ends in .png or .svg.")
    rates = service.failure_rates(question.selection)
    if not rates:
        print(NOTHING)
        return 0
    total = sum(rate.operations for rate in rates)
    title = f"{service.site.name}: {total} node operations ({question.selection.operation or 'all kinds'})"
    past = Past(rates, service.durations(question.selection), service.load(question.selection))
    try:
        picture = drawing.sheet(past, title, form)
    except ImportError as error:
        raise OptionError("--plot needs matplotlib: pip install 'kadeploy[plot]'.") from error
    shell.write_bytes(question.plot, picture)
    print(f"{question.plot} written")
    return 0


_OPERATIONS: dict[str, Callable[[Service, Question], int]] = {
    "-a": _list,
    "-b": _rates,
    "-c": _rates,
    "-d": _list,
    "--plot": _plot,
}


def main() -> int:
    """Entry point."""
    return shell.run(app, NAME)
