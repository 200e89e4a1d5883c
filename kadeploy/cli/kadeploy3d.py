"""kadeploy3d: the service of a site, and who may call it."""

from __future__ import annotations

import getpass
import os
import pwd
import socket
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from kadeploy import dates
from kadeploy.caller import caller, is_user_name
from kadeploy.cli import completion, shell
from kadeploy.client import sites
from kadeploy.config.folder import configuration_folder, load_site
from kadeploy.config.site import Site
from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean
from kadeploy.state import rights, tokens
from kadeploy.state.damage import sparing

NAME = "kadeploy3d"
_SHORTEST = 8
"""Characters of a password."""
_LONGEST_NOTE = 255

app = shell.Tool(
    "Serve this site to accounts that are not root's, here and on other machines.",
    examples={
        "kadeploy3d run": "Serve until SIGTERM.",
        "kadeploy3d token create ada --until 2027-01-31 --note 'CI of the paris team'": "A token for a program that "
        "calls over HTTPS as ada.",
        "kadeploy3d token list": "All tokens, and when they were last used.",
        "kadeploy3d password ada": "Give ada a password for HTTPS, or a new one.",
    },
    about="Tokens and passwords are for administrators: root, the service's account and almighty_users of site.yml. "
    "Whoever has a token of a user, or their password, calls as this user from anywhere.",
)
token = shell.Tool("Make, list and revoke the tokens with which programs call over HTTPS.")
app.add_typer(token, name="token")

User = Annotated[
    str, typer.Argument(metavar="USER", help="Name of the user.", show_default=False, autocompletion=completion.users)
]


@app.callback()
def kadeploy3d(_version: shell.Version = False, _completion: shell.Completion = None) -> None:
    """Options of the command itself."""


@app.command()
def run() -> int:
    """Serve until SIGTERM."""
    sites.require_own_state()
    folder = configuration_folder().resolve()
    served: int = _of_the_service("daemon").run(folder, sites.socket_of(load_site(folder), folder))
    return served


@app.command()
def consoles() -> int:
    """Run the programs of consoles for the service, under this account, which is not its own; systemd starts it."""
    from kadeploy.remote import console_account  # noqa: PLC0415 - for this command alone
    from kadeploy.server.notify import listen_fds  # noqa: PLC0415

    if os.geteuid() == 0:
        raise OptionError("Consoles are not root's: let their unit run as kadeploy-console.")
    given = [socket.socket(fileno=number) for number in listen_fds()]
    if [each.type for each in given] != [console_account.KIND]:
        raise OptionError("systemd starts this: systemctl enable --now kadeploy3d-consoles.socket.")
    console_account.serve(given[0])


# --- tokens -----------------------------------------------------------------------------------------------------


def _ids(incomplete: str) -> list[str]:
    return completion.choices(*(each.id for each in tokens.listed(_site()) if _state(each) == "valid"))(incomplete)


@token.command()
def create(
    *,
    user: User,
    until: Annotated[str, typer.Option("--until", metavar="DATE", help="Its end: a last day, or 'YYYY-MM-DD HH:MM'.")],
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="What it is for.", show_default=False)] = "",
) -> None:
    """Make a token for a user and print it. It is shown this once: only a digest is kept."""
    site = _site()
    _require_name(user)
    end = dates.moment("--until", until, day_ends=True)
    if end <= time.time():
        raise OptionError(f"--until {until}: this date is over.")
    if not note.isprintable() or len(note) > _LONGEST_NOTE:
        raise OptionError(f"--note: expected one line of at most {_LONGEST_NOTE} characters.")
    _warn_of_typo(site, user)
    print(tokens.create(site, user, end, note))


@token.command("list")
def list_tokens(
    user: Annotated[
        str | None, typer.Argument(metavar="USER", help="Of one user alone.", autocompletion=completion.users)
    ] = None,
    form: shell.Format = "text",
) -> None:
    """Show the tokens: id, user, state, end, last use and note, but never the token itself."""
    with sparing():
        _show(tokens.listed(_site(), user), user, form)


def _show(found: Sequence[tokens.Listed], user: str | None, form: shell.Form) -> None:
    if form != "text":
        shell.emit([{**each._asdict(), "state": _state(each)} for each in found], form)
        return
    for each in found:
        used = "never used" if each.used is None else f"used {_date(each.used)}"
        line = f"{each.id}  {each.user:15} {_state(each):8} until {_date(each.until)}  {used:21}  {each.note}"
        print(line.rstrip())
    if not found:
        print(f"There are no tokens{f' of {user}' if user else ''}.", file=sys.stderr)


@token.command()
def revoke(
    which: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Id of the token, or the token itself.", show_default=False, autocompletion=_ids
        ),
    ],
) -> None:
    """End a token now. What was begun with it goes on."""
    site = _site()
    name = tokens.id_of(which)
    if not tokens.revoke(site, name):
        known = [each.id for each in tokens.listed(site)]
        why = "it was revoked before" if name in known else "there is none, see kadeploy3d token list"
        raise OptionError(f"The token {name[:40]} is not revoked: {why}.{did_you_mean(name, set(known) - {name})}")


def _state(each: tokens.Listed) -> str:
    if each.revoked is not None:
        return "revoked"
    return "valid" if each.until > time.time() else "over"


def _date(when: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


# --- passwords --------------------------------------------------------------------------------------------------


@app.command()
def password(
    user: User,
    show: Annotated[
        bool, typer.Option("--print", help="Print the line for the htpasswd file in place of writing it.")
    ] = False,
    delete: Annotated[bool, typer.Option("-d", "--delete", help="Take the user's password away.")] = False,
) -> None:
    """Give a user a password for HTTPS, read from the terminal or from standard input, or a new one."""
    site = _site()
    _require_name(user)
    if show and delete:
        raise OptionError("--print and --delete contradict each other: choose one.")
    if show:
        print(_of_the_service("htpasswd").line_of(user, _read_password()))
    elif delete:
        _delete(site, user)
    else:
        file = _file(site)
        _warn_of_typo(site, user)
        _of_the_service("htpasswd").set_password(file, user, _read_password(), like=site.state)


def _delete(site: Site, user: str) -> None:
    file = _file(site)
    if not _of_the_service("htpasswd").remove(file, user, like=site.state):
        raise OptionError(f"{user} has no password in {file}.")


def _file(site: Site) -> Path:
    if not site.service.htpasswd:
        raise OptionError(
            "This site takes no passwords: name a file as `service.htpasswd` in site.yml, or see the line with --print."
        )
    return Path(site.service.htpasswd)


def _of_the_service(name: str) -> Any:
    """A module of the service; its libraries are for those who run one.

    Raises:
        OptionError: they are not installed.
    """
    try:
        return import_module(f"kadeploy.server.{name}")
    except ImportError as error:
        raise OptionError(f"{error.name} is missing: pip install 'kadeploy[server]'.") from error


def _read_password() -> str:
    """What is typed, twice and unseen; or the first line of standard input."""
    if sys.stdin.isatty():
        found = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != found:
            raise OptionError("These were two different passwords: try again.")
    else:
        try:
            found = sys.stdin.readline().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise OptionError("The password on standard input is no text (UTF-8).") from error
    longest = _of_the_service("htpasswd").LONGEST
    if len(found) < _SHORTEST or len(found.encode(errors="replace")) > longest:
        raise OptionError(f"A password has at least {_SHORTEST} characters, and at most {longest} bytes.")
    if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in found):
        raise OptionError("The password is no text (UTF-8).")
    return found


# --- who --------------------------------------------------------------------------------------------------------


def _site() -> Site:
    """The site, whose secrets the caller keeps.

    Raises:
        RightsError: the caller does not.
    """
    site, me = load_site(), caller()
    if me.uid not in (0, sites.owner_of(site)):
        rights.require_almighty(site, me.name)
    return site


def _require_name(user: str) -> None:
    if not is_user_name(user):
        raise OptionError(f"{user[:60]!r} is no name of a user: it has no blanks, no / or : and begins with no . or -.")


def _warn_of_typo(site: Site, user: str) -> None:
    """Tell what is allowed, for users may be of other machines, and rarely meant."""
    accounts = {each.pw_name for each in pwd.getpwall()}
    known = accounts | set(rights.users(site))
    if user not in known:
        hint = did_you_mean(user, known)
        shell.warn(f"{user} has no account on this machine and no rights: see that the name is right.{hint}")


def main() -> int:
    """Run the tool."""
    return shell.run(app, NAME)
