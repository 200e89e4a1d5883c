"""Files and folders: whose they are, and who may read and write them."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from kadeploy.admin import keeper
from kadeploy.admin.check import unit_files
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look
from kadeploy.caller import Account, as_user

CONFIGURATION = Look("files", "configuration")
SECRETS = Look("files", "secrets")
STATE = Look("files", "state")
PATH = Look("files", "path")
ACCOUNT = Look("files", "account")
BOOT = Look("files", "boot")

_SHOWN = 5


def check(subject: Subject) -> Iterator[Finding]:
    """What is wrong with files."""
    yield from _configuration(subject.configuration.folder)
    yield from _secrets(subject)
    yield from _state(subject)
    yield from _account(subject)
    yield from _boot(subject)


def _configuration(folder: Path) -> Iterator[Finding]:
    """Whoever can change the configuration runs commands as the account of the service, and as root."""
    paths = [folder, *sorted(folder.resolve().rglob("*"))]
    open_ones = [path for path in paths if not path.is_symlink() and _is_writable_by_others(path)]
    owners = {
        path: status.st_uid for path in paths if (status := _status(path)) and status.st_uid not in (0, os.geteuid())
    }
    if open_ones:
        names = " ".join(shlex.quote(str(path)) for path in open_ones[:_SHOWN])
        more = f" and {len(open_ones) - _SHOWN} more" if len(open_ones) > _SHOWN else ""
        yield CONFIGURATION.fail(
            f"others may change {names}{more}, and so run commands as this site",
            f"chmod -R go-w {shlex.quote(str(folder))}",
        )
    if owners:
        path, uid = next(iter(owners.items()))
        yield CONFIGURATION.fail(
            f"{path} belongs to {user_name(uid)}, who can change it", f"chown -R root: {shlex.quote(str(folder))}"
        )
    if not open_ones and not owners:
        yield CONFIGURATION.ok(f"{folder}: {len(paths)} files and folders that nobody else can change")


def _is_writable_by_others(path: Path) -> bool:
    status = _status(path)
    return status is not None and bool(
        status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if status.st_gid != 0 and not _is_own_group(status) else 0))
    )


def _is_own_group(status: os.stat_result) -> bool:
    """Whether the group of a file is its owner's private one, in which nobody else is."""
    try:
        group, owner = grp.getgrgid(status.st_gid), pwd.getpwuid(status.st_uid)
    except KeyError:
        return False
    return group.gr_name == owner.pw_name and not set(group.gr_mem) - {owner.pw_name}


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def user_name(uid: int) -> str:
    """The name of an account, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the account {uid}"


# --- secrets ----------------------------------------------------------------------------------------------------


def _secrets(subject: Subject) -> Iterator[Finding]:
    good = []
    for what, path in secrets(subject).items():
        found = list(_secret(what, path, subject))
        yield from found
        if not found:
            good.append(path)
    if good:
        yield SECRETS.ok(f"{', '.join(str(path) for path in good)}: for {_reader(subject)} alone")


def secrets(subject: Subject) -> dict[str, Path]:
    """Files of the site that nobody else may read, by the setting that names them."""
    site, folder = subject.site, subject.configuration.folder
    found = {"ssh.private_key": Path(site.ssh.private_key)}
    for cluster in subject.configuration.clusters.values():
        if cluster.power.password_file and cluster.power.driver != "command":
            found[f"{cluster.file}: power.password_file"] = folder / cluster.power.password_file
    if site.service.https:
        found["service.https.private_key"] = Path(site.service.https.private_key)
    if site.notifications.mail and site.notifications.mail.password_file:
        found["notifications.mail.password_file"] = folder / site.notifications.mail.password_file
    if site.service.htpasswd:
        found["service.htpasswd"] = Path(site.service.htpasswd)
    return found


def _reader(subject: Subject) -> str:
    return subject.owner.name if subject.owner else "its account"


def _secret(what: str, path: Path, subject: Subject) -> Iterator[Finding]:
    quoted = shlex.quote(str(path))
    try:
        status = path.stat()
    except PermissionError:
        yield SECRETS.warn(f"{what}: {path} cannot be looked at as {user_name(os.geteuid())}", "run this as root")
        return
    except OSError as error:
        yield SECRETS.fail(f"{what}: {path}: {error.strerror}", "correct the path, or put the file there")
        return
    if status.st_mode & 0o077:
        yield SECRETS.fail(
            f"{what}: others may read {path} (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod 600 {quoted}"
        )
    owner = subject.owner
    if owner and not can(owner, path, os.O_RDONLY):
        yield SECRETS.fail(
            f"{what}: {owner.name}, who carries out operations, cannot read {path}, which belongs to "
            f"{user_name(status.st_uid)}",
            f"chown {owner.name}: {quoted}, and let {owner.name} pass through the folders above it",
        )


# --- the state --------------------------------------------------------------------------------------------------


def _state(subject: Subject) -> Iterator[Finding]:
    state = subject.site.state
    try:
        status = state.stat()
    except FileNotFoundError:
        if state.parent.is_dir():
            yield STATE.warn(
                f"state_dir: there is no folder {state}",
                f"install -d -m 700 {shlex.quote(str(state))}, as {keeper.NAME}'s where there is a service "
                f"(-o {keeper.NAME})",
            )
        else:
            yield STATE.fail(
                f"state_dir: there is no folder {state}, nor {state.parent}", "correct state_dir in site.yml"
            )
        return
    except OSError as error:
        yield STATE.warn(f"state_dir: {state}: {error.strerror}", "run this as root")
        return
    if _is_writable_by_others(state):
        yield STATE.fail(f"state_dir: others may write in {state}", f"chmod 700 {shlex.quote(str(state))}")
    elif status.st_mode & 0o007:
        yield STATE.warn(
            f"state_dir: others may look into {state} (mode {stat.S_IMODE(status.st_mode):04o})",
            f"chmod 700 {shlex.quote(str(state))}",
        )
    else:
        yield STATE.ok(f"state_dir: {state} of {user_name(status.st_uid)}")
    yield from _strangers(state, status.st_uid)
    if subject.owner:
        yield from _path(state, subject.owner)


def _strangers(state: Path, owner: int) -> Iterator[Finding]:
    """What root has left behind, where it was not root's: the service cannot write it any more."""
    found = [path for path in sorted(state.glob("*")) if (status := _status(path)) and status.st_uid != owner]
    if found:
        names = ", ".join(str(path) for path in found[:_SHOWN])
        yield STATE.fail(
            f"state_dir: {names} does not belong to {user_name(owner)} as the folder does",
            f"chown -R {user_name(owner)}: {shlex.quote(str(state))}",
        )


def _path(folder: Path, account: Account) -> Iterator[Finding]:
    """Folders on the way that an account may not pass through; it is the first that matters."""
    for above in reversed(folder.parents):
        if not _can_pass(account, above):
            yield PATH.fail(
                f"{account.name} cannot reach {folder}: it may not pass through {above}",
                f"chmod o+x {shlex.quote(str(above))}, or move the folder",
            )
            return


def _can_pass(account: Account, folder: Path) -> bool:
    try:
        with as_user(account):
            return os.access(folder, os.X_OK, effective_ids=True)
    except OSError:
        return True  # this process may not take its place, and cannot tell


def can(account: Account, path: Path, flags: int) -> bool:
    """Whether *account* may open *path* so; True where this process may not take its place, and cannot tell."""
    if os.geteuid() not in (0, account.uid):
        return True
    try:
        with as_user(account):
            os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


# --- the account ------------------------------------------------------------------------------------------------


def _account(subject: Subject) -> Iterator[Finding]:
    """Whose the state is, where the units of the service are installed; `accounts` tells whether theirs is there."""
    if unit_files.find(unit_files.SERVICE) is None:
        return
    name, owner = unit_files.account(unit_files.SERVICE), subject.owner
    entry = keeper.named(name)
    if entry is None:
        return
    if owner and owner.uid != entry.uid:
        yield ACCOUNT.fail(
            f"the service runs as {name}, and {subject.site.state} belongs to {owner.name}",
            f"while nothing runs: chown -R {name}: {shlex.quote(str(subject.site.state))}",
        )
    else:
        yield ACCOUNT.ok(f"the service has the account {name}, and the state is its own")


# --- boot folders -----------------------------------------------------------------------------------------------


def _boot(subject: Subject) -> Iterator[Finding]:
    owner = subject.owner
    for setting, text in (
        ("boot.tftp_root", subject.site.boot.tftp_root),
        ("boot.http_root", subject.site.boot.http_root),
    ):
        folder = Path(text)
        quoted = shlex.quote(text)
        status = _status(folder)
        if status is None or not stat.S_ISDIR(status.st_mode):
            yield BOOT.fail(f"{setting}: there is no folder {folder}", f"mkdir -p {quoted}, or correct {setting}")
        elif owner and not can_write_in(owner, folder):
            yield BOOT.fail(
                f"{setting}: {owner.name}, who carries out operations, cannot write in {folder} of "
                f"{user_name(status.st_uid)}: no profile of a node can be written",
                f"chown {owner.name}: {quoted}; chmod 755 {quoted}",
            )
        elif not status.st_mode & stat.S_IXOTH:
            yield BOOT.warn(
                f"{setting}: {folder} is closed to other accounts, such as that of a boot server", f"chmod 755 {quoted}"
            )
        else:
            yield BOOT.ok(f"{setting}: {folder}, writable for {owner.name if owner else 'its account'}")


def can_write_in(account: Account, folder: Path) -> bool:
    """Whether *account* can make files in *folder*; one without a name is made, which is gone at once."""
    if os.geteuid() not in (0, account.uid):
        return True
    try:
        with as_user(account):
            if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
                return False
            return not os.statvfs(folder).f_flag & os.ST_RDONLY
    except OSError:
        return False
