"""``kadeploy-site inspect``: what nodes are, written into the cluster file; and nodes that a sweep of BMCs finds."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from kadeploy.cli import completion, shell, usage
from kadeploy.cli.site import unattended
from kadeploy.client import sites
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.errors import MissingOptionError, OptionError, UserInterruptError
from kadeploy.hints import did_you_mean
from kadeploy.nodeset import fold, natural_key, told

if TYPE_CHECKING:
    from kadeploy.admin.edit import Edit
    from kadeploy.admin.findings import Finding
    from kadeploy.admin.hardware import Machine
    from kadeploy.admin.sweep import Swept
    from kadeploy.config.cluster import Cluster

NOT_WRITTEN = 2
"""Exit status when a file would have to be changed, and nobody has agreed."""
SOME_KO = 3
_COLOURS = {"ok": "green", "new": "cyan", "warn": "yellow", "fail": "red"}


def inspect(
    nodes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NODES]...",
            help="Nodes or ranges gdx-[5-12].site; with --sweep, names for the machines that are found.",
            show_default=False,
            autocompletion=completion.nodes,
        ),
    ] = None,
    *,
    sweep: Annotated[
        str,
        typer.Option(
            "--sweep",
            metavar="ADDRESSES",
            help="Look for BMCs at 10.0.3.[1-254] or 10.0.3.0/24 that no cluster file names.",
            show_default=False,
        ),
    ] = "",
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster",
            metavar="NAME",
            help="Whose user and password BMCs are tried with, and whose nodes they become (default: the only one).",
            show_default=False,
        ),
    ] = "",
    addresses: Annotated[
        str,
        typer.Option(
            "--addresses",
            metavar="RANGE",
            help="Addresses for the machines that --sweep finds, in the order of their names.",
            show_default=False,
        ),
    ] = "",
    macs: Annotated[
        bool,
        typer.Option(
            "--macs",
            help="Learn the MAC addresses that the cluster file lacks: reboot these nodes one after the other, and "
            "hear their cards ask for an address.",
        ),
    ] = False,
    interface: Annotated[
        str,
        typer.Option(
            "--interface",
            metavar="NAME",
            help="Where --macs listens (default: the one that leads to the nodes).",
            show_default=False,
        ),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Write the cluster file without asking.")] = False,
    no_reboot: Annotated[
        bool,
        typer.Option(
            "--no-reboot",
            help="They are in the deployment system already: read them there.",
            rich_help_panel=usage.RUN,
        ),
    ] = False,
    stay: Annotated[
        bool, typer.Option("--stay", help="Leave them in the deployment system.", rich_help_panel=usage.RUN)
    ] = False,
    timeout: unattended.BootTimeout = "",
    form: shell.Format = "text",
) -> int:
    """Boot nodes into the deployment system, and write what they are into the cluster file; the difference first."""
    unattended.end_tidily()
    configuration = load_configuration()
    names = shell.node_names(nodes, None)
    if macs and (sweep or no_reboot or stay):
        raise OptionError("--macs reboots nodes whose cards are not known: leave out --sweep, --no-reboot and --stay.")
    if interface and not macs:
        raise OptionError("--interface goes with --macs alone.")
    if not sweep:
        if addresses or cluster:
            raise OptionError(f"{'--addresses' if addresses else '--cluster'} goes with --sweep alone.")
        if not names:
            raise MissingOptionError("Name the nodes to inspect, or a range of BMCs with --sweep.")
        if macs:
            return _learn(configuration, names, interface, timeout, yes, form)
        return _inspect(configuration, names, yes, no_reboot, stay, timeout, form)
    if no_reboot or stay or timeout:
        raise OptionError("--sweep asks BMCs alone and boots no node: leave out --no-reboot, --stay and --timeout.")
    return _sweep(configuration, _cluster(configuration, cluster), sweep, names, addresses, yes, form)


# --- nodes ----------------------------------------------------------------------------------------------------------


def _inspect(
    configuration: Configuration,
    words: Sequence[str],
    yes: bool,
    no_reboot: bool,
    stay: bool,
    timeout: str,
    form: shell.Form,
) -> int:
    from kadeploy.admin import cluster_files, contradictions, inspection  # noqa: PLC0415 - not for other commands

    names = configuration.full_names(words)
    configuration.cluster_nodes(names)
    found = inspection.inspect(
        sites.service(),
        configuration,
        names,
        boot=not no_reboot,
        back=not (stay or no_reboot),
        timeout=timeout,
        say=_say,
    )
    odd = [*contradictions.found(configuration, found.machines), *_failed(found.ko, found.left)]
    odd += cluster_files.unwritten(configuration, found.machines)
    if form == "text":
        _show(found.machines)
        print("".join(f"{_line(each)}\n" for each in odd), end="")
    edits = cluster_files.with_machines(configuration, found.machines)
    written = not found.machines or _written(configuration, edits, yes, form)
    if form != "text":
        machines = {node: msgspec.to_builtins(machine) for node, machine in found.machines.items()}
        _emit({"nodes": machines, "ko": found.ko, "findings": msgspec.to_builtins(odd)}, edits, written, form)
    if found.ko:
        return SOME_KO
    return 0 if written else NOT_WRITTEN


def _failed(ko: Mapping[str, str], left: Mapping[str, str]) -> Iterator[Finding]:
    from kadeploy.admin.findings import Look, grouped  # noqa: PLC0415

    boot, back = Look("inspect", "boot"), Look("inspect", "back")
    advice = "kadeploy-site try NODE shows where one of them breaks"
    yield from grouped({node: boot.fail(reason, advice) for node, reason in ko.items()})
    advice = "kareboot3 -r simple_reboot -l hard brings them back"
    yield from grouped({node: back.warn(f"not as it was before: {reason}", advice) for node, reason in left.items()})


def _line(finding: Finding) -> str:
    level = shell.coloured(f"{finding.level:4}", _COLOURS[finding.level])
    return f"{level}  {finding.text}{f' → {finding.advice}' if finding.advice else ''}"


def _show(machines: Mapping[str, Machine]) -> None:
    """A line for all nodes that are alike."""
    alike: dict[str, list[str]] = {}
    for node in sorted(machines, key=natural_key):
        alike.setdefault(_told(machines[node]), []).append(node)
    for text, nodes in alike.items():
        print(f"{told(nodes)}: {text}")


def _told(machine: Machine) -> str:
    cpu = machine.processors
    parts = [
        machine.product,
        machine.firmware,
        f"{cpu.sockets} x {cpu.model or machine.arch}, {cpu.cores} cores" if cpu.cores else "",
        f"{machine.memory_mib} MiB" if machine.memory_mib else "",
        *map(str, machine.disks),
        " ".join(f"{card.name} ({card.driver})" if card.driver else card.name for card in machine.cards),
    ]
    return "; ".join(filter(None, parts))


# --- MAC addresses --------------------------------------------------------------------------------------------------


def _learn(
    configuration: Configuration, words: Sequence[str], interface: str, timeout: str, yes: bool, form: shell.Form
) -> int:
    from kadeploy.admin import cluster_files, mac_addresses  # noqa: PLC0415 - not for other commands
    from kadeploy.admin.known_node import KnownNode  # noqa: PLC0415

    names = configuration.full_names(words)
    configuration.cluster_nodes(names)
    chosen = [node for node in (KnownNode(configuration, name) for name in names) if not node.node.mac]
    patience = _seconds(timeout) if timeout else mac_addresses.PATIENCE
    learned: dict[str, str] = {}
    ko: dict[str, str] = {}
    odd: list[Finding] = []
    is_interrupted = False
    try:
        for heard in mac_addresses.learn(sites.service(), chosen, interface=interface, patience=patience, say=_say):
            if heard.question:
                learned[heard.node.name] = heard.question.mac
                odd += mac_addresses.contradictions(heard)
                _say(f"{heard.node.name}: {heard.question.mac}")
            else:
                ko[heard.node.name] = heard.why
    except KeyboardInterrupt:  # each node takes minutes: those before are not to be lost
        if not learned:
            raise
        is_interrupted = True
    odd += _failed(ko, {})
    if form == "text":
        print("".join(f"{_line(each)}\n" for each in odd), end="")
    edits = cluster_files.with_macs(configuration, learned)
    written = bool(ko and not learned) or _written(configuration, edits, yes, form)
    if form != "text":
        _emit({"macs": learned, "ko": ko, "findings": msgspec.to_builtins(odd)}, edits, written, form)
    elif edits and written:
        print("Next: kadeploy-site dhcp, and restart the DHCP server, so that it knows them")
    if is_interrupted:
        left = [node.name for node in chosen if node.name not in learned and node.name not in ko]
        raise UserInterruptError(f"Interrupted: {told(left)} are still to be asked, the same command does it.")
    if ko:
        return SOME_KO
    return 0 if written else NOT_WRITTEN


def _seconds(text: str) -> float:
    if not text.isdigit() or not int(text):
        raise OptionError(f"--timeout {text}: with --macs it is a number of seconds, such as 300.")
    return float(text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- machines that a sweep finds ------------------------------------------------------------------------------------


def _cluster(configuration: Configuration, name: str) -> Cluster:
    known = configuration.clusters
    if name in known:
        return known[name]
    if name:
        raise OptionError(f"--cluster {name}: there are {', '.join(known)}.{did_you_mean(name, known)}")
    if len(known) > 1:
        raise MissingOptionError(f"There are the clusters {', '.join(known)}: say by --cluster whose BMCs are meant.")
    return next(iter(known.values()))


def _sweep(
    configuration: Configuration,
    cluster: Cluster,
    pattern: str,
    names: Sequence[str],
    addresses: str,
    yes: bool,
    form: shell.Form,
) -> int:
    from kadeploy.admin import cluster_files, sweep  # noqa: PLC0415 - not for other commands

    sweep.addresses(pattern)
    if addresses and not names:
        raise MissingOptionError("--addresses: name the machines as well, in the order of the BMCs.")
    found = sweep.sweep(configuration, cluster, pattern)
    new = sweep.proposed(found)
    if form == "text":
        print("\n".join(_lines(found)))
    edits: list[Edit] = []
    written = True
    if names and new:
        edits = [cluster_files.with_nodes(configuration, cluster, sweep.entries(new, names, addresses))]
        written = _written(configuration, edits, yes, form)
    elif new and form == "text":
        span = f"[1-{len(new)}]" if len(new) > 1 else "1"
        print(
            f"Choose names, in the order of these addresses:  kadeploy-site inspect --sweep {shlex.quote(pattern)} "
            f"--cluster {cluster.name} --addresses … '{cluster.name}-{span}'"
        )
    if form != "text":
        _emit({"bmcs": msgspec.to_builtins(found), "proposed": [each.address for each in new]}, edits, written, form)
    elif edits and written:
        print(f"Next:  kadeploy-site inspect '{fold(names)}'")
    return 0 if written else NOT_WRITTEN


def _lines(found: Sequence[Swept]) -> Iterator[str]:
    """What there is at each address: new machines, then those that are known, silent ones among them."""
    if not found:
        yield "No BMC answers there, and no cluster file names one."
    for each in found:
        identity = each.identity
        words = [identity.vendor, identity.product, f"serial {identity.serial}" if identity.serial else ""]
        words += [f"MAC {identity.mac}" if identity.mac else "", *(f"card {mac}" for mac in identity.cards)]
        level, who = _standing(each)
        text = "; ".join(filter(None, [" ".join(filter(None, words)), each.reason]))
        yield f"{shell.coloured(f'{level:4}', _COLOURS[level])}  {each.address}  {who}{f': {text}' if text else ''}"


def _standing(each: Swept) -> tuple[str, str]:
    if each.node:
        return ("ok" if each.entered else "fail"), each.node
    return ("new", "of no cluster file") if each.entered else ("warn", "of no cluster file, and lets nobody in")


# --- the file -------------------------------------------------------------------------------------------------------


def _written(configuration: Configuration, edits: Sequence[Edit], yes: bool, form: shell.Form) -> bool:
    """Whether the files say it now: what changes is shown, and somebody is asked at a terminal."""
    from kadeploy.admin.edit import apply  # noqa: PLC0415

    if not edits:
        if form == "text":
            print("The cluster file says so already.")
        return True
    stream = sys.stdout if form == "text" else sys.stderr
    for each in edits:
        print("".join(_coloured_difference(each.diff)), end="", file=stream, flush=True)
    if not yes:
        if not sys.stdin.isatty():
            shell.warn("Nothing was written: there is nobody to ask. Say --yes to write it.")
            return False
        if not typer.confirm("Change the cluster file so?", err=True):
            return False
    apply(configuration.folder, edits)
    if form == "text":
        print(f"Written: {', '.join(str(each.path) for each in edits)}")
    return True


def _coloured_difference(difference: str) -> Iterator[str]:
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in difference.splitlines():
        yield f"{shell.coloured(line, colours[line[0]]) if line[:1] in colours else line}\n"


def _emit(data: dict[str, Any], edits: Sequence[Edit], written: bool, form: shell.Form) -> None:
    changes = {str(each.path): each.diff for each in edits}
    shell.emit({**data, "changes": changes, "written": bool(edits) and written}, form)
