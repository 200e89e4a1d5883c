"""The rules of sudo, as its own ``cvtsudoers`` reads their files (sudoers(5)); those of a directory are not seen.

Whether a rule holds is for ``sudo -l`` to say; what is asked here is what that does not tell: whether a password is
wanted, and which programs the rules name.
"""

from __future__ import annotations

import fnmatch
import grp
import os
import pwd
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kadeploy.admin.check.asked import ask
from kadeploy.caller import Account
from kadeploy.errors import KadeployError

FILE = Path("/etc/sudoers")
ALL = "ALL"


class _Who(msgspec.Struct):
    """An account, or several."""

    username: str = ""
    usergroup: str = ""
    userid: int | None = None
    usergid: int | None = None
    negated: bool = False


class _Command(msgspec.Struct):
    command: str = ""
    negated: bool = False


class _Host(msgspec.Struct):
    hostname: str = ""
    negated: bool = False


class _Spec(msgspec.Struct, rename={"commands": "Commands", "options": "Options"}):
    commands: list[_Command] = []
    runasusers: list[_Who] = []
    options: list[dict[str, Any]] = []


class _Entry(msgspec.Struct, rename={"users": "User_List", "hosts": "Host_List", "specs": "Cmnd_Specs"}):
    users: list[_Who] = []
    hosts: list[_Host] = []
    specs: list[_Spec] = []


class _Defaults(msgspec.Struct, rename={"binding": "Binding", "options": "Options"}):
    binding: list[_Who] = []
    options: list[dict[str, Any]] = []


class Rule(NamedTuple):
    """A command that somebody may run on this machine, or may not."""

    who: tuple[str, ...]
    """Accounts, ``%groups`` and ``ALL``."""
    runs_as: tuple[str, ...]
    """Likewise, as whom."""
    command: str
    """A program, with arguments or without, a folder of programs, or ``ALL``; it may be a pattern of a shell."""
    is_refused: bool
    asks_password: bool | None
    """None: as the defaults say."""
    takes_variables: bool
    """Whether the caller may set whatever variable they like."""


class Sudoers(msgspec.Struct, rename={"defaults": "Defaults", "entries": "User_Specs"}):
    """All rules."""

    defaults: list[_Defaults] = []
    entries: list[_Entry] = []

    def rules(self) -> Iterator[Rule]:
        """Those for this machine, in their order: the last one that matches counts."""
        for entry in self.entries:
            if not _is_here(entry.hosts):
                continue
            for spec in entry.specs:
                options = {name: value for each in spec.options for name, value in each.items()}
                for each in spec.commands:
                    yield Rule(
                        who=_names(entry.users),
                        runs_as=_names(spec.runasusers) or ("root",),
                        command=each.command,
                        is_refused=each.negated,
                        asks_password=options.get("authenticate"),
                        takes_variables=options.get("setenv", False),
                    )

    def asks_password(self, account: Account, runs_as: str, argv: Sequence[str]) -> bool | None:
        """Whether *account* is asked for a password before it runs *argv*, a whole path first; None: who knows."""
        found = [
            rule
            for rule in self.rules()
            if _means(rule.who, account) and {runs_as, ALL} & {*rule.runs_as} and _allows(rule.command, argv)
        ]
        if not found:
            return None
        asked = found[-1].asks_password
        return self._is_set("authenticate", account, True) if asked is None else asked

    def kept_variables(self) -> list[str]:
        """Names of variables that everybody may pass on; ``*``: all are."""
        options = [each for default in self.defaults if not default.binding for each in default.options]
        if any(each.get("env_reset") is False for each in options):
            return ["*"]
        return [name for each in options if isinstance(kept := each.get("env_keep"), list) for name in kept]

    def _is_set(self, name: str, account: Account, default: bool) -> bool:
        """What a default says, of *account* if it says so."""
        for each in self.defaults:
            if not each.binding or _means(_names(each.binding), account):
                default = next((option[name] for option in reversed(each.options) if name in option), default)
        return default


def read() -> Sudoers:
    """The rules of this machine.

    Raises:
        KadeployError: they cannot be read, and why.
    """
    ended = ask("cvtsudoers", "-e", "-f", "json", str(FILE))
    if ended is None:
        raise KadeployError("cvtsudoers, which comes with sudo, is not installed")
    if ended.rc != 0:
        raise KadeployError(next(iter(ended.stderr.splitlines()), ended.reason))
    try:
        return msgspec.json.decode(ended.stdout, type=Sudoers)
    except msgspec.MsgspecError as error:
        raise KadeployError(f"cvtsudoers says what cannot be understood: {error}") from error


# --- who and what ---------------------------------------------------------------------------------------------------


def _names(members: Iterable[_Who]) -> tuple[str, ...]:
    """Those that are not left out, as sudoers writes them."""
    return tuple(_name(each) for each in members if not each.negated)


def _name(who: _Who) -> str:
    if who.userid is not None:
        with suppress(KeyError):
            return pwd.getpwuid(who.userid).pw_name
        return f"#{who.userid}"
    if who.usergid is not None:
        return f"%{_group(who.usergid)}"
    return f"%{who.usergroup}" if who.usergroup else who.username


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"#{gid}"


def _means(who: Iterable[str], account: Account) -> bool:
    groups = {f"%{_group(gid)}" for gid in os.getgrouplist(account.name, account.gid)}
    return bool({ALL, account.name, *groups} & {*who})


def _is_here(hosts: Iterable[_Host]) -> bool:
    own = socket.gethostname()
    ours = {ALL, own, own.partition(".")[0]}
    found = [not each.negated for each in hosts if each.hostname in ours or not each.hostname]
    return bool(found) and found[-1]


def _allows(command: str, argv: Sequence[str]) -> bool:
    """Whether a rule about *command* is about *argv* too."""
    program, _, arguments = command.partition(" ")
    if program != ALL and not is_about(program, Path(argv[0])):
        return False
    return not arguments or fnmatch.fnmatchcase(" ".join(argv[1:]), "" if arguments == '""' else arguments)


def is_about(pattern: str, program: Path) -> bool:
    """Whether the program or the folder that a rule names is, or holds, *program*, by whichever way to its folder."""
    place, name = os.path.split(pattern)
    return os.path.realpath(place) == os.path.realpath(program.parent) and (
        not name or fnmatch.fnmatchcase(program.name, name)
    )
