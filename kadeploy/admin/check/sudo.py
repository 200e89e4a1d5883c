"""What sudo lets accounts do: the site's own commands that begin with it, and our tools."""

from __future__ import annotations

import getopt
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

from kadeploy.admin import keeper
from kadeploy.admin.check import site_commands, sudoers, unit_files
from kadeploy.admin.check.asked import ask
from kadeploy.admin.check.site_commands import SiteCommand
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.check.sudoers import Rule, Sudoers
from kadeploy.admin.findings import Finding, Look
from kadeploy.caller import Account
from kadeploy.errors import KadeployError

COMMANDS = Look("sudo", "commands")
TOOLS = Look("sudo", "tools")


def check(subject: Subject) -> Iterator[Finding]:
    """What sudo refuses that the site needs, and allows that it should not."""
    yield from _commands(subject)
    yield from _tools(subject)


# --- commands of the site that begin with sudo ----------------------------------------------------------------------


class _Runner(NamedTuple):
    """Who runs a command."""

    account: Account | None
    """None: whoever calls."""
    unit: str = ""
    """In whose sandbox; empty: in none."""


def _commands(subject: Subject) -> Iterator[Finding]:
    """Whether commands that begin with sudo can do so: nobody is there to type a password."""
    wanted = [each for each in site_commands.of(subject.configuration) if _begins_with_sudo(each)]
    if wanted and shutil.which("sudo") is None:
        yield COMMANDS.fail(
            f"sudo is not installed, and it begins {_places(wanted)}",
            "apt install sudo, or have commands that need none",
        )
        return
    by_runner: dict[_Runner, list[SiteCommand]] = {}
    for each in wanted:
        by_runner.setdefault(_runner(each, subject), []).append(each)
    for runner, theirs in by_runner.items():
        yield from _of_runner(runner, theirs)


def _begins_with_sudo(command: SiteCommand) -> bool:
    try:
        return Path(command.argv()[0]).name == "sudo"
    except KadeployError:
        return False  # `configuration` tells it


def _places(wanted: Sequence[SiteCommand]) -> str:
    return ", ".join(each.place for each in wanted)


def _runner(command: SiteCommand, subject: Subject) -> _Runner:
    owner, site = subject.owner, subject.site
    is_service = owner is not None and owner.uid != 0
    if command.console_of and not is_service:
        return _Runner(keeper.named(command.console_of.console_account))
    if command.console_of and not site.service.consoles_as_service:
        unit = unit_files.CONSOLES if unit_files.find(unit_files.CONSOLES) else ""
        return _Runner(keeper.named(unit_files.account(unit) if unit else ""), unit)
    in_unit = is_service and unit_files.find(unit_files.SERVICE) is not None
    return _Runner(owner, unit_files.SERVICE if in_unit else "")


def _of_runner(runner: _Runner, theirs: Sequence[SiteCommand]) -> Iterator[Finding]:
    account, places = runner.account, _places(theirs)
    if runner.unit and unit_files.is_on(runner.unit, "NoNewPrivileges"):
        yield COMMANDS.fail(
            f"{places}: {runner.unit} has NoNewPrivileges, with which sudo cannot become anybody",
            "let the command ask a daemon that has the right: see docs/service.md",
        )
    elif account is None:
        yield COMMANDS.warn(
            f"{places}: it runs as whoever opens the console, and who of them may use sudo is not looked at",
            "try it as one of them, or set console_account",
        )
    elif account.uid == 0:
        yield COMMANDS.ok(f"{places}: root runs it, whom sudo asks nothing")
    elif os.geteuid() != 0:
        yield COMMANDS.warn(f"{places}: what sudo lets {account.name} do cannot be looked at", "run this as root")
    else:
        for each in theirs:
            yield _permission(account, each)


_SHORT = "ABbEHKkNnPSsiC:D:g:h:p:R:r:T:t:u:U:"
_LONG = (
    *("askpass", "background", "non-interactive", "preserve-env", "set-home", "stdin", "login", "shell", "bell"),
    *("user=", "group=", "host=", "prompt=", "chdir=", "chroot=", "close-from=", "command-timeout="),
)
"""Options of sudo(8)."""


def _permission(account: Account, command: SiteCommand) -> Finding:
    """Whether *account* may run it, and without a password."""
    place = command.place
    try:
        runs_as, argv = _parted(command.argv()[1:])
    except getopt.GetoptError as error:
        return COMMANDS.fail(f"{place}: sudo: {error}", "correct the command; see sudo(8)")
    advice = f"visudo -f /etc/sudoers.d/kadeploy: {account.name} ALL=({runs_as}) NOPASSWD: {shutil.which(argv[0])}"
    ended = ask("sudo", "-n", "-l", "-U", account.name, "-u", runs_as, "--", *argv)
    if ended is None or ended.rc != 0:
        why = f": {ended.said}" if ended and ended.said else ""
        return COMMANDS.fail(f"{place}: sudo does not let {account.name} run this as {runs_as}{why}", advice)
    asks: bool | str | None
    try:
        asks = sudoers.read().asks_password(account, runs_as, [ended.stdout.split()[0], *argv[1:]])
    except KadeployError as error:
        asks = str(error)
    if asks is True:
        said = f"{place}: sudo asks {account.name} for a password, which nobody is there to type"
        return COMMANDS.fail(said, advice)
    if asks is False:
        return COMMANDS.ok(f"{place}: {account.name} may run this as {runs_as} without a password")
    said = f"{place}: whether sudo asks {account.name} for a password is not known: {asks or 'no rule that is seen'}"
    return COMMANDS.warn(said, f"runuser -u {account.name} -- sudo -n …, as the command says")


def _parted(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """As whom sudo, called with *arguments*, runs something, and what that is.

    Raises:
        getopt.GetoptError: sudo takes no such option, or nothing is run.
    """
    options, words = getopt.getopt([*arguments], _SHORT, _LONG)
    argv = [*dropwhile(lambda word: "=" in word, words)]  # settings of variables come first
    if not argv:
        raise getopt.GetoptError("it has no command to run")
    return next((value for name, value in options if name in ("-u", "--user")), "root"), argv


# --- our tools by sudo ----------------------------------------------------------------------------------------------

_ADMINISTRATORS = ("kadeploy-site", "kadeploy3d", "kadeploy-bootserver", "kadeploy-worker", "kadeploy-lab")
_OF_PYTHON = ("PYTHON", "LD_")


def _tools(subject: Subject) -> Iterator[Finding]:
    """Rules that let people run our tools as another account."""
    if shutil.which("sudo") is None:
        yield TOOLS.ok("sudo is not installed: nobody runs the tools as root by it")
        return
    if os.geteuid() != 0:
        yield TOOLS.warn("which tools people may run by sudo cannot be looked at", "run this as root")
        return
    try:
        found = sudoers.read()
    except KadeployError as error:
        yield TOOLS.warn(f"which tools people may run by sudo is not known: {error}", "visudo -c")
        return
    told = [*_told(found, subject)]
    yield from told or [TOOLS.ok("no rule of sudo is about the tools, but for administrators")]


def _told(found: Sudoers, subject: Subject) -> Iterator[Finding]:
    trusted = {"root", *subject.site.almighty_users}
    kept = [name for name in found.kept_variables() if name == "*" or name.startswith(_OF_PYTHON)]
    by_kind: dict[tuple[tuple[str, ...], tuple[str, ...], bool], list[str]] = {}
    for rule in found.rules():
        tools = [] if rule.is_refused or {*rule.who} <= trusted else _named(rule)
        if tools:
            by_kind.setdefault((rule.who, rule.runs_as, rule.takes_variables), []).extend(tools)
    for (who, runs_as, takes), tools in by_kind.items():
        variables = ["SETENV"] if takes else kept
        yield _meaning(", ".join(who), runs_as, [*dict.fromkeys(tools)], variables, subject.owner)


def _named(rule: Rule) -> list[str]:
    """Our tools that a rule names, or whose folder it does."""
    own = [each.name for each in entry_points(group="console_scripts") if each.value.startswith("kadeploy.")]
    program = rule.command.partition(" ")[0]
    places = [Path(sys.executable).parent, Path("/usr/bin")]
    return [
        name
        for name in own
        if Path(program).name == name
        or any(sudoers.is_about(program, place / name) for place in places if (place / name).exists())
    ]


def _meaning(
    who: str, runs_as: Sequence[str], tools: Sequence[str], variables: Sequence[str], owner: Account | None
) -> Finding:
    """What it means that *who* may run *tools* as *runs_as*; *variables* are kept that Python, or the loader, reads."""
    may, out = f"sudo lets {who} run {', '.join(tools)} as", "take the rule out: with the service, nobody needs sudo"
    if owner and owner.uid != 0 and {owner.name, sudoers.ALL} & {*runs_as}:
        return TOOLS.fail(f"{may} {owner.name}: whatever file they name is opened, the site's key as well", out)
    if variables:
        return TOOLS.fail(
            f"{may} {' or '.join(runs_as)} with variables of their own ({', '.join(variables)}), by which Python runs "
            "their code",
            "take SETENV, and what env_keep keeps of these, out of sudoers; env_reset has to stay",
        )
    if found := [name for name in tools if name in _ADMINISTRATORS]:
        return TOOLS.warn(
            f"{may} {' or '.join(runs_as)}: whoever may run {', '.join(found)} so owns the site",
            "name them in almighty_users if that is meant; else take the rule out",
        )
    return TOOLS.warn(
        f"{may} {' or '.join(runs_as)}: sudo's word on who they are is believed, and their own rights count; yet each "
        "process is root's",
        out,
    )
