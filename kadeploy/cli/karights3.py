"""karights3: give, take back and show rights."""

from __future__ import annotations

import pwd
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec
import typer

from kadeploy import dates
from kadeploy.cli import completion, shell, together
from kadeploy.config.cluster import Disk
from kadeploy.config.folder import Configuration
from kadeploy.config.partition import split_partition
from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean
from kadeploy.operations.service import Grant, Service
from kadeploy.state import rights
from kadeploy.state.damage import sparing

NAME = "karights3"
_STAMP = "%Y-%m-%d %H:%M:%S"

app = shell.Tool(
    "Give (-a), take back (-d) or show (-s) the rights of a user. For administrators.",
    examples={
        "karights3 -a -m 'gdx-[25-32].site' -p /dev/sda3 -u johnsmith": "Let a user deploy on a partition of some "
        "nodes.",
        "karights3 -a -m gdx-2.site -p '*' -u johnsmith --until '2026-03-31 19:00'": "Until the reservation ends.",
        "karights3 -a -m '*' -p '*' -u root": "All rights on all nodes.",
        "karights3 -a -m gdx-25.site -p /dev/sda3 -u johnsmith -o": "Take the node from whoever had rights on it, "
        "except those given with *.",
        "karights3 -d -m gdx-25.site -p /dev/sda3 -u johnsmith": "Take a right back.",
        "karights3 -s -u johnsmith": "Show the rights of a user; your own need no administrator.",
        "karights3 -s": "As administrator: the rights of all users.",
    },
    aliases={"-l": "--show-rights", "--list": "--show-rights"},
    statuses=shell.STATUSES | {1: "The request is refused, or there was no right to add, to delete or to show."},
)


@dataclass(frozen=True)
class Wish:
    """What the options ask for."""

    user: str
    """Empty stands for all users."""
    nodes: list[str]
    parts: list[str]
    until: int | None
    overwrite: bool
    form: shell.Form


@app.command()
def karights3(
    *,
    add: Annotated[bool, typer.Option("-a", "--add", help="Add some rights to a user.")] = False,
    delete: Annotated[bool, typer.Option("-d", "--delete", help="Delete some rights of a user.")] = False,
    show: Annotated[bool, typer.Option("-s", "--show-rights", help="Show the rights of a user.")] = False,
    user: Annotated[
        str | None,
        typer.Option(
            "-u",
            "--user",
            metavar="USERNAME",
            help="Whose rights; with -s all users' without.",
            autocompletion=completion.users,
        ),
    ] = None,
    machines: shell.Machines = None,
    files: shell.Files = None,
    parts: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--part",
            metavar="PARTNAME",
            help="Partition as /dev/sda3, or *; repeatable.",
            autocompletion=completion.devices,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("-o", "--overwrite-rights", help="With -a: replace all users' rights there."),
    ] = False,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="DATE", help="With -a: last day, or 'YYYY-MM-DD HH:MM'."),
    ] = None,
    form: shell.Format = "text",
    multi_server: shell.MultiServer = False,
    all_or_nothing: shell.AllOrNothing = False,
    server: shell.Server = None,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
) -> int:
    """Give (-a), take back (-d) or show (-s) the rights of a user. For administrators."""
    chosen = [name for name, given in (("-a", add), ("-d", delete), ("-s", show)) if given]
    if len(chosen) != 1:
        raise OptionError("Choose one of -a (add), -d (delete) and -s (show).")
    if user is None and not show:
        raise OptionError(f"{chosen[0]} needs a user: -u USERNAME.")
    if (overwrite or until is not None) and not add:
        raise OptionError("-o and --until go with -a.")
    end = None if until is None else _end(until)
    name, service = "" if user is None else _user(user), together.asked(server, multi_server, all_or_nothing)
    wish = Wish(name, _nodes(service, machines, files), list(parts or ()), end, overwrite, form)
    operate = _OPERATIONS[chosen[0]]
    if show:
        return together.status(service, operate(service, wish))
    return together.apart(service, lambda one, nodes: operate(one, replace(wish, nodes=list(nodes))), wish.nodes)


def _user(name: str) -> str:
    if not name or not name.isprintable() or name != name.strip():
        raise OptionError(f"-u {name!r} is not a user name.")
    return name


def _nodes(service: Service, machines: Sequence[str] | None, files: Sequence[str] | None) -> list[str]:
    """Names, ``*`` among them when it was given."""
    ranges = [machine for machine in machines or () if machine.strip() != rights.ANY]
    if not ranges and not files:
        return [rights.ANY] if machines else []
    names = service.configuration.full_names(shell.node_names(ranges, files, service.site.limits.nodes))
    return [rights.ANY, *names] if len(ranges) < len(machines or ()) else names


def _end(text: str) -> int:
    end = dates.moment("--until", text, day_ends=True)
    if end <= time.time():
        raise OptionError(f"--until {text}: this date is over.")
    return end


def _grant(wish: Wish) -> Grant:
    nodes, parts = tuple(wish.nodes), tuple(wish.parts)
    return Grant(user=wish.user, nodes=nodes, parts=parts, until=wish.until, overwrite=wish.overwrite)


def _add(service: Service, wish: Wish) -> int:
    rights.require_almighty(service.site, service.user)
    _check(wish, service.configuration)
    _warn_of_typos(service, wish)
    done = service.grant(_grant(wish))
    for node in done.skipped:
        print(f"Some rights are already set on the node {node}: skipped. Use -o to overwrite them.")
    if not done.new:
        if not done.skipped:
            print(f"The user {wish.user} has these rights already. To change their end, delete them (-d) first.")
        print("No rights added")
        return 1
    return 0


def _check(wish: Wish, configuration: Configuration | None = None) -> None:
    if not wish.nodes:
        raise OptionError('Give at least one node: -m MACHINE, -f FILE, or -m "*" for all nodes.')
    if not wish.parts:
        raise OptionError('Give at least one partition: -p /dev/sda3, or -p "*" for all partitions.')
    for part in wish.parts:
        if part != rights.ANY and not (part.startswith("/dev/") and part.isprintable() and " " not in part):
            raise OptionError(f'-p {part!r} is not a partition: expected a device such as /dev/sda3, or "*".')
    if configuration is not None:
        configuration.cluster_nodes([node for node in wish.nodes if node != rights.ANY])


def _warn_of_typos(service: Service, wish: Wish) -> None:
    """Tell what is allowed and rarely meant: the account or the partition may be of another machine, or of tomorrow."""
    configuration = service.configuration
    try:
        pwd.getpwnam(wish.user)
    except KeyError:
        hint = _similar(wish.user, service)
        shell.warn(f"{wish.user} has no account on this machine: see that the name is right.{hint}")
    named = [node for node in wish.nodes if node != rights.ANY]
    clusters = configuration.cluster_nodes(named) if named else configuration.clusters
    disks = [configuration.clusters[name].disk for name in clusters]
    for part in wish.parts:
        if part != rights.ANY and not any(_may_have(disk, part) for disk in disks):
            known = list(dict.fromkeys(device for disk in disks for device in disk.devices))
            shell.warn(
                f"{part} is not a partition of {', '.join(clusters)}: there {'are' if len(known) > 1 else 'is'} "
                f"{', '.join(known)}.{did_you_mean(part, known)}"
            )


def _similar(user: str, service: Service) -> str:
    """Whom an administrator probably meant: somebody with an account here, or with rights."""
    return did_you_mean(user, [*(account.pw_name for account in pwd.getpwall()), *service.rights()])


_DISK = re.compile(r"/dev/(?:(?:s|h|v|xv|das)d[a-z]+|nvme\d+n\d+|mmcblk\d+|(?:disk|mapper)/.+)")


def _may_have(disk: Disk, part: str) -> bool:
    """Whether *part* is in the layout; of other disks than the cluster's own their names alone are known."""
    device, number = split_partition(part)
    return part in disk.devices if device == disk.device and number else bool(_DISK.fullmatch(device))


def _delete(service: Service, wish: Wish) -> int:
    rights.require_almighty(service.site, service.user)
    _check(wish)
    unknown = service.revoke(_grant(wish)).unknown
    for right in unknown:
        print(f"The user {wish.user} has no right on {right.part} of {right.node}: nothing to delete there.")
    if unknown and not service.rights(wish.user)[wish.user]:
        print(f"The user {wish.user} has no rights at all.{_similar(wish.user, service)}")
    return 1 if unknown else 0


def _show(service: Service, wish: Wish) -> int:
    with sparing():
        return _show_all(service, wish.form) if not wish.user else _show_one(service, wish)


def _show_one(service: Service, wish: Wish) -> int:
    given = service.rights(wish.user)[wish.user]
    if wish.form != "text":
        shell.emit(msgspec.to_builtins(given), wish.form)
    elif given:
        print(f"The user {wish.user} has the deployment rights on the following nodes:")
        for node, texts in _by_node(given).items():
            print(f"### {node}:{', '.join(texts)}")
    else:
        print(f"No rights have been given for the user {wish.user}")
        if service.user != wish.user and (hint := did_you_mean(wish.user, service.rights())):
            print(hint.strip(), file=sys.stderr)
    return 0 if given else 1


def _show_all(service: Service, form: shell.Form) -> int:
    found = service.rights()
    if form != "text":
        shell.emit(msgspec.to_builtins(found), form)
    else:
        for user, given in found.items():
            for node, texts in _by_node(given).items():
                print(f"{user:15} {node:41} {','.join(texts)}")
    return 0 if found else 1


def _by_node(given: Sequence[rights.Given]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for right in given:
        end = "" if right.until is None else time.strftime(f" (until {_STAMP})", time.localtime(right.until))
        texts.setdefault(right.node, []).append(right.part + end)
    return texts


_OPERATIONS: dict[str, Callable[[Service, Wish], int]] = {"-a": _add, "-d": _delete, "-s": _show}


def main() -> int:
    """Entry point."""
    return shell.run(app, NAME)
