"""kaenv3: record, list, print, change and delete environments."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, cast, get_args

import msgspec
import typer

from kadeploy.caller import caller
from kadeploy.cli import completion, shell, together, usage
from kadeploy.environments.environment import Environment
from kadeploy.environments.reference import Reference
from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean
from kadeploy.operations.service import Service
from kadeploy.state.damage import sparing
from kadeploy.state.environments import EVERYBODY, Change, Part, Visibility

NAME = "kaenv3"

app = shell.Tool(
    "Record, list, print, change and delete environments.",
    examples={
        "kaenv3 -l": "Your environments and the public ones.",
        "kaenv3 -a my.dsc": "Record the environment that a file describes.",
        "kaenv3 -l -u '*' -s": "All versions of everybody's environments, except private ones.",
        "kaenv3 -p FreeBSD --env-version 3 -u johnsmith": "Print a description, which kaenv3 -a reads.",
        "kaenv3 -d FreeBSD --env-version 2": "Delete one version.",
        "kaenv3 --update-tarball-md5 sidx64-base": "Record the checksums of a tarball that was changed.",
        "kaenv3 --set-visibility-tag sidx64-base --env-version 3 -t shared": "Let others use it who name you with -u.",
        "kaenv3 --move-files -m /old/images:/new/images": "As administrator: the files of all environments have moved.",
    },
    about="Only its owner sees a private environment. Others can list and use a shared one with -u OWNER. Everybody "
    "lists and uses a public one; only administrators make an environment public. Checksums (MD5 and SHA-256) are "
    "recorded. A file that has changed since then is refused at deployment, until --update-tarball-md5, "
    "--update-preinstall-md5 or --update-postinstalls-md5 records its new checksums.",
    aliases={
        "--all-versions": "--show-all-versions",
        "--env-user": "--user",
        "--update-image-md5": "--update-tarball-md5",
        "--update-image-checksum": "--update-tarball-md5",
        "--update-preinstall-checksum": "--update-preinstall-md5",
        "--update-postinstalls-checksum": "--update-postinstalls-md5",
    },
    gone={
        "--toggle-destructive-tag": "--remove-demolishing-tag NAME takes the tag off; demolishing_env : 1 in a "
        "description puts it on.",
        "--migrate": "descriptions of all times are read as they are; kaenv3 -p NAME --format yaml prints YAML.",
    },
)


@dataclass(frozen=True)
class Wish:
    """What the options ask for; the name of *wanted* is the value of the operation: for ``-a`` a file."""

    wanted: Reference
    all_versions: bool
    visibility: Visibility | None
    moves: Sequence[tuple[str, str]]
    form: shell.Form

    @cached_property
    def described(self) -> list[Environment]:
        """What is in the file of ``-a``, which may be readable once only."""
        from kadeploy.environments import description  # noqa: PLC0415 - slow, and -l does without

        return description.load(self.wanted.name, caller(), shell.warn)


def _named(option: str, meaning: str, *others: str, group: str = usage.DAILY) -> typer.models.OptionInfo:
    info = typer.Option(
        option,
        *others,
        metavar="ENVNAME",
        help=meaning,
        autocompletion=completion.environments,
        rich_help_panel=group,
    )
    return cast("typer.models.OptionInfo", info)


@app.command()
def kaenv3(
    *,
    list_: Annotated[
        str | None,
        typer.Option("-l", "--list", metavar="[NAME]", help="List yours and the public ones; NAME may hold *."),
    ] = None,
    print_: Annotated[str | None, _named("-p", "Print an environment.", "--print")] = None,
    add: Annotated[
        str | None,
        typer.Option("-a", "--add", metavar="ENVFILE", help="Add the environments of a file or URL."),
    ] = None,
    delete: Annotated[str | None, _named("-d", "Delete all versions, or --env-version.", "--delete")] = None,
    user: Annotated[
        str | None,
        typer.Option(
            "-u",
            "--user",
            metavar="USERNAME",
            help="Owner; with -l, '*' is everybody.",
            rich_help_panel=usage.ENVIRONMENT,
            autocompletion=completion.owners,
        ),
    ] = None,
    env_version: Annotated[
        str | None, typer.Option("--env-version", metavar="NUMBER", help="Version.", rich_help_panel=usage.ENVIRONMENT)
    ] = None,
    env_arch: Annotated[
        str | None, typer.Option("--env-arch", metavar="ARCH", help="Architecture.", rich_help_panel=usage.ENVIRONMENT)
    ] = None,
    all_versions: Annotated[
        bool,
        typer.Option(
            "-s", "--show-all-versions", help="With -l and -p: all versions.", rich_help_panel=usage.ENVIRONMENT
        ),
    ] = False,
    set_visibility: Annotated[
        str | None,
        _named("--set-visibility-tag", "Set who sees it: -t TAG.", group=usage.CHANGES),
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option(
            "-t",
            "--visibility-tag",
            metavar="TAG",
            help="private, shared or public.",
            autocompletion=completion.choices(*get_args(Visibility)),
            rich_help_panel=usage.CHANGES,
        ),
    ] = None,
    remove_demolishing: Annotated[
        str | None,
        _named("--remove-demolishing-tag", "Set the demolishing counter to 0.", group=usage.CHANGES),
    ] = None,
    update_tarball: Annotated[
        str | None,
        _named("--update-tarball-md5", "Record the tarball's checksums anew.", group=usage.CHANGES),
    ] = None,
    update_preinstall: Annotated[
        str | None,
        _named("--update-preinstall-md5", "Record the preinstall's checksums anew.", group=usage.CHANGES),
    ] = None,
    update_postinstalls: Annotated[
        str | None,
        _named("--update-postinstalls-md5", "Record the postinstalls' checksums anew.", group=usage.CHANGES),
    ] = None,
    move_files: Annotated[
        bool,
        typer.Option("--move-files", help="Rewrite paths in all environments (-m).", rich_help_panel=usage.CHANGES),
    ] = False,
    files_to_move: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--files-to-move",
            metavar="FILES",
            help="For --move-files: src1:dst1,src2:dst2,...",
            rich_help_panel=usage.CHANGES,
        ),
    ] = None,
    form: shell.Format = "text",
    multi_server: shell.MultiServer = False,
    all_or_nothing: shell.AllOrNothing = False,
    server: shell.Server = None,
    _version: shell.Version = False,
    _completion: shell.Completion = None,
) -> int:
    """Record, list, print, change and delete environments."""
    given: dict[str, str | None] = {
        "-a": add,
        "-d": delete,
        "-l": list_,
        "-p": print_,
        "--remove-demolishing-tag": remove_demolishing,
        "--set-visibility-tag": set_visibility,
        "--update-tarball-md5": update_tarball,
        "--update-preinstall-md5": update_preinstall,
        "--update-postinstalls-md5": update_postinstalls,
        "--move-files": "" if move_files else None,
    }
    if not any(value is not None for value in given.values()):
        given["-l"] = ""
    operation, name = _chosen(given)
    if user == "":
        raise OptionError("-u: the name of the user is empty.")
    modifiers = {
        "-m": bool(files_to_move),
        "-s": all_versions,
        "-t": tag is not None,
        "-u": user is not None,
        "--env-version": env_version is not None,
        "--env-arch": env_arch is not None,
        "--format": form != "text",
    }
    _require_use(operation, [option for option, used in modifiers.items() if used])
    wish = Wish(
        wanted=Reference(name, None if env_version is None else _number(env_version), user, env_arch),
        all_versions=all_versions,
        visibility=None if tag is None else _visibility(tag),
        moves=[move for text in files_to_move or () for move in _moves(text)],
        form=form,
    )
    service, operate = together.asked(server, multi_server, all_or_nothing), _OPERATIONS[operation][0]
    if operation == "-p" or form != "text":
        return together.status(service, operate(service, wish))
    return together.apart(service, lambda one, _: operate(one, wish))


# --- options ----------------------------------------------------------------------------------------------------


def _chosen(given: dict[str, str | None]) -> tuple[str, str]:
    """The one operation and its value."""
    chosen = [(option, value) for option, value in given.items() if value is not None]
    if len(chosen) != 1:
        found = "" if not chosen else f", not {' and '.join(option for option, _ in chosen)} together"
        raise OptionError(f"Choose one operation{found}: {', '.join(given)}.")
    return chosen[0]


def _require_use(operation: str, modifiers: Sequence[str]) -> None:
    for modifier in modifiers:
        if modifier not in _OPERATIONS[operation][1]:
            users = [option for option, (_, known) in _OPERATIONS.items() if modifier in known]
            raise OptionError(f"{modifier} does not go with {operation}, but with {', '.join(users)}.")


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise OptionError(f"--env-version {text!r}: expected a number, such as 3.")
    return int(text)


def _visibility(text: str) -> Visibility:
    if text not in get_args(Visibility):
        known = get_args(Visibility)
        raise OptionError(f"-t {text!r}: expected one of {', '.join(known)}.{did_you_mean(text, known)}")
    return cast("Visibility", text)


_NEXT_MOVE = re.compile(r",(?=/|(?:https?|server)://)")
_MOVE = re.compile(r"((?:(?:https?|server)://|/).*?)::?(/(?!/).*|(?:https?|server)://.*)")
"""Kadeploy 3.3 wrote two colons."""


def _moves(text: str) -> list[tuple[str, str]]:
    """``src1:dst1,src2:dst2`` as pairs; the colon of a URL or of ``server:///PATH`` separates nothing."""
    matches = [(part, _MOVE.fullmatch(part)) for part in _NEXT_MOVE.split(text)]
    for part, match in matches:
        if match is None:
            raise OptionError(f"-m {part!r}: expected src:dst, both absolute paths, http(s) URLs or server:///PATH.")
    return [(match[1], match[2]) for _, match in matches if match]


# --- seeing -----------------------------------------------------------------------------------------------------

_COLUMNS: dict[str, tuple[int, Callable[[Environment], str]]] = {
    "Name": (21, lambda each: each.name),
    "Version": (7, lambda each: str(each.version)),
    "Arch": (7, lambda each: each.arch),
    "User": (10, lambda each: each.user),
    "Description": (0, lambda each: each.description),
}
"""Title → least width, and what is in it; the architecture is shown where an environment has one."""


def _list(service: Service, wish: Wish) -> int:
    with sparing():
        if wish.form != "text":
            shell.emit(together.answers(service, lambda one: msgspec.to_builtins(_found(one, wish))), wish.form)
        elif found := _found(service, wish):
            _print_table(found)
        else:
            print("No environment has been found")
    return 0


def _found(service: Service, wish: Wish) -> list[Environment]:
    found = service.environments(wish.wanted.owner, wish.all_versions)
    if not wish.wanted.name:
        return found
    pattern = wish.wanted.name.replace("[", "[[]").replace("%", "*")
    return [each for each in found if fnmatchcase(each.name, pattern)]


def _print_table(found: Sequence[Environment]) -> None:
    titles = [title for title in _COLUMNS if title != "Arch" or any(each.arch for each in found)]
    rows = [[_COLUMNS[title][1](each) for title in titles] for each in found]
    table = [titles, ["#" * len(title) for title in titles], *rows]
    widths = [max(_COLUMNS[title][0], *(len(row[rank]) for row in table)) for rank, title in enumerate(titles)]
    for row in table:
        print(" ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _print(service: Service, wish: Wish) -> int:
    from kadeploy.environments import description, lines  # noqa: PLC0415 - slow, and -l does without

    wanted = service.versions(_mine(wish), wish.all_versions)
    form = service.site.environment_form if wish.form == "text" else wish.form
    if form == "wiki" and (lost := lines.lost(wanted)):
        print(f"Printed as YAML: lines of `key : value` cannot hold {', '.join(lost)}.", file=sys.stderr)
        form = "yaml"
    print(description.write(wanted, form), end="")
    return 0


# --- changing ---------------------------------------------------------------------------------------------------


def _add(service: Service, wish: Wish) -> int:
    for added in service.add_environments(wish.described):
        print(f"Added: {_told(added)}, {added.visibility}")
    return 0


def _delete(service: Service, wish: Wish) -> int:
    for gone in service.delete_environments(_mine(wish)):
        print(f"Deleted: {_told(gone)}")
    return 0


def _remove_demolishing(service: Service, wish: Wish) -> int:
    changed = service.reset_demolishing(_mine(wish))
    print(f"No longer demolishing: {_told(changed)}")
    return 0


def _set_visibility(service: Service, wish: Wish) -> int:
    if wish.visibility is None:
        raise OptionError("--set-visibility-tag needs a visibility: -t private, -t shared or -t public.")
    changed = service.set_visibility(_mine(wish), wish.visibility)
    print(f"Now {changed.visibility}: {_told(changed)}")
    return 0


def _update(part: Part) -> Callable[[Service, Wish], int]:
    def update(service: Service, wish: Wish) -> int:
        for change in service.update_checksums(_mine(wish), part):
            print(_told_checksum(change))
        return 0

    return update


def _told_checksum(change: Change) -> str:
    before, after = change.before, change.after
    where = f"{after.file} of {_told(change.environment)}"
    if (before.md5, before.sha256) == (after.md5, after.sha256):
        return f"Unchanged: {where}: MD5 {after.md5}, SHA-256 {after.sha256}"
    return f"Updated: {where}: MD5 {before.md5 or 'unknown'} -> {after.md5}, SHA-256 {after.sha256}"


def _move_files(service: Service, wish: Wish) -> int:
    if not wish.moves:
        raise OptionError("--move-files needs the files or folders: -m src1:dst1,src2:dst2.")
    changes = service.move_files(wish.moves)
    for change in changes:
        print(f"Moved: {change.before.file} -> {change.after.file} in {_told(change.environment)}")
    if not changes:
        print("No environment has such files: nothing moved.", file=sys.stderr)
    return 0 if changes else 1


def _mine(wish: Wish) -> Reference:
    """What the operation names: one environment."""
    if not wish.wanted.name:
        raise OptionError("The name of the environment is empty: kaenv3 -l lists what there is.")
    if wish.wanted.owner == EVERYBODY:
        raise OptionError("-u '*' goes with -l alone: name the owner.")
    return wish.wanted


def _told(environment: Environment) -> str:
    arch = f" for {environment.arch}" if environment.arch else ""
    return f"{environment.name} version {environment.version} of {environment.user}{arch}"


_OPERATIONS: dict[str, tuple[Callable[[Service, Wish], int], tuple[str, ...]]] = {
    "-a": (_add, ()),
    "-d": (_delete, ("-u", "--env-version", "--env-arch")),
    "-l": (_list, ("-s", "-u", "--format")),
    "-p": (_print, ("-s", "-u", "--env-version", "--env-arch", "--format")),
    "--remove-demolishing-tag": (_remove_demolishing, ("-u", "--env-version", "--env-arch")),
    "--set-visibility-tag": (_set_visibility, ("-t", "-u", "--env-version", "--env-arch")),
    "--update-tarball-md5": (_update("tarball"), ("-u", "--env-version", "--env-arch")),
    "--update-preinstall-md5": (_update("preinstall"), ("-u", "--env-version", "--env-arch")),
    "--update-postinstalls-md5": (_update("postinstalls"), ("-u", "--env-version", "--env-arch")),
    "--move-files": (_move_files, ("-m",)),
}
"""Operation → what does it, and the other options that go with it."""


def main() -> int:
    """Entry point."""
    return shell.run(app, NAME)
