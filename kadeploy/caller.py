"""Who calls: the person whose files are opened and whose rights count.

The kernel keeps user and groups per thread; it is the C library that changes all threads alike (nptl(7)). `as_user`
asks the kernel itself, so that threads can work for different users at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import sys
from collections.abc import Iterator, Mapping, Sequence
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
    variables = os.environ if environment is None else environment
    sudo = variables.get("SUDO_UID", "")
    uid = int(sudo) if os.getuid() == 0 and sudo.isascii() and sudo.isdecimal() else os.getuid()
    try:
        entry = pwd.getpwuid(uid)
    except (KeyError, OverflowError) as error:
        raise OptionError(
            f"The user number {uid} has no account on this machine: run as a user who has one."
        ) from error
    own = variables.get("HOME", "") if uid == os.getuid() else ""  # under sudo it may be root's
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(own if own.startswith("/") else entry.pw_dir))


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


def environment_of(who: Account) -> dict[str, str]:
    """The variables of this process for a program that runs as *who*: under sudo its home may be root's."""
    return os.environ | {"HOME": str(who.home), "USER": who.name, "LOGNAME": who.name}


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
