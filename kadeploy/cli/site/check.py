"""``kadeploy-site check``: everything that can be known about a site before a node is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
import typer

from kadeploy.admin.findings import Finding, worst
from kadeploy.cli import completion, shell, usage
from kadeploy.client import sites
from kadeploy.config.folder import Configuration, configuration_folder, load_configuration
from kadeploy.errors import ConfigError, OptionError
from kadeploy.hints import did_you_mean

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def _topics(incomplete: str) -> list[str]:
    from kadeploy.admin.check import topics  # noqa: PLC0415 - not for other commands

    return completion.choices(*topics.TOPICS)(incomplete)


def check(
    *,
    topic: Annotated[
        list[str] | None,
        typer.Option("--topic", metavar="TOPIC", help="This topic alone; may be repeated.", autocompletion=_topics),
    ] = None,
    nodes: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--nodes",
            "--machine",
            metavar="MACHINE",
            help="These nodes alone, or a range; may be repeated.",
            autocompletion=completion.nodes,
        ),
    ] = None,
    files: shell.Files = None,
    interface: Annotated[
        str,
        typer.Option(
            "--interface",
            metavar="NAME",
            help="Ask DHCP servers there (default: the one that leads to the nodes).",
            rich_help_panel=usage.RUN,
        ),
    ] = "",
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Read all images, and compare checksums.", rich_help_panel=usage.RUN)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Only what is not ok.", rich_help_panel=usage.OUTPUT)
    ] = False,
    form: shell.Format = "text",
) -> int:
    """Look at everything that can be known before a node is lost, and say what to do. Nothing is changed."""
    names = shell.node_names(nodes, files)
    shown = []
    for finding in _found(_chosen(topic), names, interface, thorough):
        if finding.level == "ok" and quiet:
            continue
        shown.append(finding)
        if form == "text":
            print(_line(finding), flush=True)
    if form != "text":
        shell.emit(msgspec.to_builtins(shown), form)
    elif not quiet:
        print(_summary(shown))
    return 1 if worst(shown) == "fail" else 0


def _chosen(topic: Sequence[str] | None) -> list[str]:
    from kadeploy.admin.check import topics  # noqa: PLC0415 - not for other commands

    for name in topic or ():
        if name not in topics.TOPICS:
            known = ", ".join(topics.TOPICS)
            raise OptionError(f"--topic {name}: expected one of {known}.{did_you_mean(name, topics.TOPICS)}")
    return [*topic] if topic else [*topics.TOPICS]


def _found(wanted: Sequence[str], names: Sequence[str], interface: str, thorough: bool) -> Iterator[Finding]:
    from kadeploy.admin.check import topics  # noqa: PLC0415 - not for other commands
    from kadeploy.admin.check.subject import Subject  # noqa: PLC0415

    folder = configuration_folder()
    try:
        configuration = load_configuration(folder)
    except ConfigError as error:
        yield from topics.refused(error, folder)
        return
    subject = Subject(
        configuration=configuration,
        nodes=_known(configuration, names),
        socket=sites.socket_of(configuration.site, folder),
        interface=interface,
        thorough=thorough,
    )
    yield from topics.run(subject, wanted)


def _known(configuration: Configuration, names: Sequence[str]) -> tuple[str, ...]:
    """The whole names of *names*, or all nodes."""
    if not names:
        return tuple(configuration.cluster_of)
    whole = configuration.full_names(names)
    configuration.cluster_nodes(whole)
    return tuple(whole)


def _line(finding: Finding) -> str:
    level = shell.coloured(f"{finding.level:4}", _COLOURS[finding.level])
    advice = f" → {finding.advice}" if finding.advice else ""
    return f"{level}  {finding.topic:13}  {finding.text}{advice}"


def _summary(found: Sequence[Finding]) -> str:
    counts = Counter(each.level for each in found)
    return f"{counts['fail']} fail, {counts['warn']} warn, {counts['ok']} ok"
