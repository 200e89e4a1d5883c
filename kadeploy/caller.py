"""Who calls: the person whose files are opened and whose rights count.

The kernel keeps user and groups per thread; it is the C library that changes all threads alike (nptl(7)). `as_user`
asks the kernel itself, so that threads can work for different users at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypedDict

from kadeploy.errors import OptionError


class Account(NamedTuple):
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    home: Path


def caller(environment: Mapping[str, str] | None = None) -> Account:
    """The real user of this process; under sudo, who called sudo. The home folder is that of ``$HOME``.

    ``SUDO_UID`` counts for root alone: only root could have been put there by sudo, and root may claim anything anyway.

    Raises:
        OptionError: the user has no account on this machine.
    """
    variables = (_given or os.environ) if environment is None else environment
    uid = _called_by(variables)
    try:
        entry = pwd.getpwuid(uid)
    except (KeyError, OverflowError) as error:
        raise OptionError(
            f"The user number {uid} has no account on this machine: run as a user who has one."
        ) from error
    own = variables.get("HOME", "") if uid == os.getuid() else ""  # under sudo it may be root's
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(own if own.startswith("/") else entry.pw_dir))


def _called_by(variables: Mapping[str, str]) -> int:
    sudo = variables.get("SUDO_UID", "")
    return int(sudo) if os.getuid() == 0 and sudo.isascii() and sudo.isdecimal() else os.getuid()


def account(name: str) -> Account:
    """The account of this machine that is called *name*.

    Raises:
        OptionError: there is none.
    """
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError) as error:
        raise OptionError(f"The user {name} has no account on this machine: name one who has.") from error
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


def numbered(uid: int) -> Account:
    """The account with this number, also where it has no entry any more."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # its account was removed, and what it had is still there
        return Account(str(uid), uid, uid, Path("/"))
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


_NAME = re.compile(r"[^\s/:.-][^\s/:]{0,254}")


def is_user_name(text: str) -> bool:
    """Whether *text* may be the name of a user, who need not have an account here.

    It stands in messages, in names of folders and in front of the colon of HTTP basic authentication.

    >>> [is_user_name(each) for each in ("ada", "ada@paris", "", "ada b", "../ada", "-a", "a:b")]
    [True, True, False, False, False, False, False]
    """
    return text.isprintable() and _NAME.fullmatch(text) is not None


def own() -> Account:
    """The account that this process runs as.

    Raises:
        OptionError: there is none any more.
    """
    return account(pwd.getpwuid(os.geteuid()).pw_name)


# --- the caller's environment ---------------------------------------------------------------------------------------

_KEPT = re.compile(
    r"TERM|COLORTERM|COLUMNS|LINES|LANG|LANGUAGE|LC_[A-Z]+|TZ|NO_COLOR"
    r"|SUDO_(UID|GID|USER|COMMAND)|KADEPLOY_(CONFIG_DIR|PLAIN)|OAR_NODE_?FILE|_KADEPLOY_COMPLETE|COMP_(WORDS|CWORD)"
)
"""Variables that a process with more rights than its caller takes from them; `PATH` is looked at, see below."""
_PLAIN = re.compile(r"TERM|COLORTERM|LANG|LANGUAGE|LC_[A-Z]+")
"""Those of them that name no file: programs take a value with a slash for one."""
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_given: dict[str, str] = {}
"""The environment as the caller has set it, where it was shed."""


def shed_environment() -> None:
    """Forget what the caller has put into the environment of a process that has more rights than they have.

    Such a process is root's under sudo, or one that changes its user. Ansible, Python, the shell, libraries for TLS and
    for databases, and many programs of a site take the names of code, of servers or of proxies from there. Root itself
    keeps its environment: nobody else has set it.
    """
    if _called_by(os.environ) == os.geteuid():
        return
    _given.update(os.environ)
    own = pwd.getpwuid(os.geteuid())
    kept = {name: value for name, value in _given.items() if _KEPT.fullmatch(name) and not _names_file(name, value)}
    os.environ.clear()
    os.environ.update(kept)
    os.environ.update(HOME=own.pw_dir, USER=own.pw_name, LOGNAME=own.pw_name, PATH=_safe_path(_given.get("PATH", "")))


def take_back(names: Iterable[str]) -> None:
    """Have the variables *names*, which the configuration names, as the caller has set them after all."""
    os.environ.update({name: _given[name] for name in names if name in _given})


def environment_of(who: Account) -> dict[str, str]:
    """The environment as the caller has set it, for a program that runs as *who*: under sudo its home may be root's."""
    return dict(_given or os.environ) | {"HOME": str(who.home), "USER": who.name, "LOGNAME": who.name}


def _names_file(name: str, value: str) -> bool:
    if name == "TZ":
        return value.startswith(("/", ":")) or ".." in value
    return _PLAIN.fullmatch(name) is not None and ("/" in value or "%" in value)


def _safe_path(path: str) -> str:
    """The folders of *path* in which nobody but root can put a program."""
    safe = [folder for folder in path.split(":") if folder.startswith("/") and _is_roots(Path(folder))]
    return ":".join(safe) or _SYSTEM_PATH


def _is_roots(folder: Path) -> bool:
    try:
        real = folder.resolve()
        return all(_is_kept_by_root(each.stat(), each != real) for each in (real, *real.parents))
    except OSError:
        return False


def _is_kept_by_root(status: os.stat_result, sticky_will_do: bool) -> bool:
    is_open = bool(status.st_mode & stat.S_IWOTH) and not (sticky_will_do and status.st_mode & stat.S_ISVTX)
    return status.st_uid == 0 and not is_open


# --- the account of a program ---------------------------------------------------------------------------------------


class _Whose(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


_NOBODY = 65534


def powerless() -> _Whose:
    """How `subprocess.Popen` starts a program that reads a user's data: with nobody's rights, where root calls."""
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


# --- the user of one thread -----------------------------------------------------------------------------------------


class _Numbers(NamedTuple):
    """System calls of a machine (``asm/unistd.h``)."""

    setgroups: int
    setresuid: int
    setresgid: int
    capget: int


_MACHINES = {"x86_64": _Numbers(116, 117, 119, 125), "aarch64": _Numbers(159, 147, 149, 90)}
_SAME = -1
"""Leaves a user or group as it is (setresuid(2))."""
_CAPABILITY_VERSION_3 = 0x20080522


class _Rights(NamedTuple):
    """What the kernel looks at when a thread opens a file."""

    uid: int
    gid: int
    groups: Sequence[int]


@contextmanager
def as_user(user: Account) -> Iterator[None]:
    """Let the calling thread open and make files with exactly the rights of *user*, and no other thread.

    Blocks may be nested: the innermost user counts. A thread or process started inside has these rights for good, and
    an ``await`` inside would lend them to other tasks of the thread: keep the block short. A process that is not
    root's stays who it is when asked for root.

    Raises:
        OSError: this process may not change its user, or the kernel did not take root's privileges away.
    """
    if os.geteuid() == user.uid or (user.uid == 0 and os.getuid() != 0):
        yield
        return
    before = _Rights(os.geteuid(), os.getegid(), os.getgroups())
    wanted = _Rights(user.uid, user.gid, os.getgrouplist(user.name, user.gid))
    try:
        _take(wanted)
        yield
    finally:
        _take(before)


def _take(rights: _Rights) -> None:
    """Change the calling thread; as root first, for only root may choose its groups."""
    numbers = _numbers()
    _call(numbers.setresuid, _SAME, 0, _SAME)
    groups = (ctypes.c_uint32 * len(rights.groups))(*rights.groups)
    _call(numbers.setgroups, len(rights.groups), groups)
    _call(numbers.setresgid, _SAME, rights.gid, _SAME)
    _call(numbers.setresuid, _SAME, rights.uid, _SAME)
    if rights.uid != 0 and _is_privileged(numbers):
        raise PermissionError(errno.EPERM, "this process keeps root's privileges whoever it is (securebits)")


def _is_privileged(numbers: _Numbers) -> bool:
    """Whether the thread has any effective capability, for instance to pass over permissions (capget(2))."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for capabilities from 32 on
    _call(numbers.capget, header, sets)
    return bool(sets[0] or sets[3])


def _numbers() -> _Numbers:
    machine = os.uname().machine
    if machine not in _MACHINES or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"the user of a thread cannot be changed on this kind of machine ({machine})")
    return _MACHINES[machine]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(number: int, *arguments: int | ctypes.Array[ctypes.c_uint32]) -> None:
    """syscall(2); whole words, since it takes any number of arguments."""
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if _libc.syscall(ctypes.c_long(number), *words) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
