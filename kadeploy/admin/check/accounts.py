"""Accounts that the units of the service run as: there, closed to people, and with no more rights than they need."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kadeploy.admin import keeper
from kadeploy.admin.check import files, unit_files
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look
from kadeploy.caller import Account

THERE = Look("accounts", "there")
LOGIN = Look("accounts", "login")
GROUPS = Look("accounts", "groups")
REACH = Look("accounts", "reach")

UNITS = (unit_files.SERVICE, unit_files.CONSOLES, unit_files.BOOT_SERVER)
SHADOW = Path("/etc/shadow")
_NO_SHELLS = ("nologin", "false")
_PEOPLE = range(1000, 60000)
"""Numbers of people's accounts (login.defs(5))."""


def check(subject: Subject) -> Iterator[Finding]:
    """What is wrong with accounts."""
    by_account: dict[str, list[str]] = {}
    for unit in filter(unit_files.find, UNITS):
        by_account.setdefault(unit_files.account(unit), []).append(unit)
    if not by_account:
        yield THERE.ok("no unit of the service is installed, and so none of its accounts is needed")
    for name, units in by_account.items():
        yield from _of_units(name, units, subject)


# --- the accounts of units ------------------------------------------------------------------------------------------


def _of_units(name: str, units: Sequence[str], subject: Subject) -> Iterator[Finding]:
    run = f"{' and '.join(units)} {'run' if len(units) > 1 else 'runs'}"
    account = keeper.named(name)
    if account is None:
        yield THERE.fail(
            f"{run} as {name}, and there is no such account",
            "systemd-sysusers, after copying contrib/systemd/kadeploy.sysusers to /etc/sysusers.d/kadeploy.conf",
        )
        return
    if account.uid == 0:
        yield THERE.fail(
            f"{run} as root: what goes wrong there goes wrong with all rights",
            f"systemctl edit {units[0]}: User= and an account of its own, see docs/service.md",
        )
        return
    yield THERE.ok(f"{run} as {name}")
    yield from _login(account)
    yield from _groups(account)
    yield from _reach(account, units, subject)


def _login(account: Account) -> Iterator[Finding]:
    """Whether somebody may log in, by its shell and its password."""
    shell, password = pwd.getpwnam(account.name).pw_shell, _password(account.name)
    if Path(shell).name not in _NO_SHELLS:
        how = "by a password" if password else "by a key, or by what else the machine takes"
        yield (LOGIN.fail if password else LOGIN.warn)(
            f"{account.name} has the shell {shell or '/bin/sh'}: whoever comes in {how} is this account",
            f"usermod --shell /usr/sbin/nologin --lock {account.name}",
        )
    elif password:
        yield LOGIN.warn(f"{account.name} has a password, which nobody needs", f"usermod --lock {account.name}")
    else:
        yield LOGIN.ok(f"nobody can log in as {account.name}")
    if account.uid in _PEOPLE:
        yield LOGIN.warn(
            f"{account.name} has the number {account.uid}, as people's accounts have: programs take it for somebody",
            "let systemd-sysusers make it: contrib/systemd/kadeploy.sysusers",
        )


def _password(name: str) -> bool:
    """Whether an account can be entered by a password, or without any; False where that cannot be seen."""
    try:
        lines = SHADOW.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    hashes = (line.split(":")[1] for line in lines if line.startswith(f"{name}:"))
    return any(not each.startswith(("!", "*")) for each in hashes)


_BECOME_ROOT = "whoever is in it can become root"
_READ_LOGS = "it reads what other services write to their logs"
GIVES: Mapping[str, str] = {
    "root": "files of root's group are its own",
    "sudo": _BECOME_ROOT,
    "wheel": _BECOME_ROOT,
    "admin": _BECOME_ROOT,
    "docker": _BECOME_ROOT,
    "podman": _BECOME_ROOT,
    "lxd": _BECOME_ROOT,
    "incus-admin": _BECOME_ROOT,
    "libvirt": _BECOME_ROOT,
    "disk": "it reads and writes all disks",
    "kmem": "it reads the memory of the machine",
    "shadow": "it reads the hashes of all passwords",
    "staff": "it writes programs that root runs (/usr/local)",
    "adm": _READ_LOGS,
    "systemd-journal": _READ_LOGS,
}
"""What a group gives to its members."""


def _groups(account: Account) -> Iterator[Finding]:
    names = [_group(gid) for gid in os.getgrouplist(account.name, account.gid)]
    found = [name for name in names if name in GIVES]
    for name in found:
        tell = GROUPS.warn if GIVES[name] == _READ_LOGS else GROUPS.fail
        yield tell(f"{account.name} is in the group {name}: {GIVES[name]}", f"gpasswd --delete {account.name} {name}")
    if not found:
        yield GROUPS.ok(f"{account.name} is in {', '.join(names)}: no group that gives it more")


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _reach(account: Account, units: Sequence[str], subject: Subject) -> Iterator[Finding]:
    """Whether it reads what it must, and nothing that is the service's alone."""
    if unit_files.SERVICE in units:
        return  # `files` tells what it must read and write
    if os.geteuid() != 0:
        yield REACH.warn(f"what {account.name} can read cannot be looked at", "run this as root")
        return
    wrong = [*_too_much(account, subject), *_too_little(account, units, subject)]
    yield from wrong or [REACH.ok(f"{account.name} reads no secret of the site")]


def _too_much(account: Account, subject: Subject) -> Iterator[Finding]:
    for path in (subject.site.state, *files.secrets(subject).values()):
        if path.exists() and files.can(account, path, os.O_RDONLY):
            yield REACH.fail(
                f"{account.name} can read {path}, which is for the service alone",
                f"chmod go-rwx {shlex.quote(str(path))}; see whose it is, and of which groups {account.name} is",
            )


def _too_little(account: Account, units: Sequence[str], subject: Subject) -> Iterator[Finding]:
    boot = subject.site.boot
    if unit_files.BOOT_SERVER in units:
        for setting, folder in (("tftp_root", boot.tftp_root), ("http_root", boot.http_root)):
            if Path(folder).is_dir() and not files.can(account, Path(folder), os.O_RDONLY | os.O_DIRECTORY):
                yield REACH.fail(
                    f"{account.name}, who serves boot.{setting}, cannot read {folder}",
                    f"chmod o+rx {shlex.quote(folder)}, and let others pass through the folders above it",
                )
    home = account.home
    if unit_files.CONSOLES in units and home.is_dir() and files.can_write_in(account, home):
        yield REACH.fail(
            f"{account.name} can write in its home folder {home}: what one user leaves there works in the console of "
            "another",
            f"chown -R root:{_group(account.gid)} {shlex.quote(str(home))}; chmod 750 {shlex.quote(str(home))}",
        )
