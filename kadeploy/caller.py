"""Who calls: the person whose files are opened and whose rights count."""

from __future__ import annotations

import os
import pwd
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kadeploy.errors import OptionError


class Account(NamedTuple):
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    home: Path


def caller(environment: Mapping[str, str] | None = None) -> Account:
    """The real user of this process; under sudo, who called sudo.

    ``SUDO_UID`` counts for root alone: only root could have been put there by sudo, and root may claim anything anyway.

    Raises:
        OptionError: the user has no account on this machine.
    """
    variables = os.environ if environment is None else environment
    sudo = variables.get("SUDO_UID", "")
    uid = int(sudo) if os.getuid() == 0 and sudo.isdecimal() else os.getuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError as error:
        raise OptionError(
            f"The user number {uid} has no account on this machine: run as a user who has one."
        ) from error
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


_changing = threading.RLock()


@contextmanager
def as_user(user: Account) -> Iterator[None]:
    """Open files with the rights of *user* rather than root's.

    All threads of the process have these rights meanwhile: keep it short, and let no other thread open files.
    """
    with _changing:
        if os.geteuid() != 0 or user.uid == 0:
            yield
            return
        groups, group = os.getgroups(), os.getegid()
        try:
            os.setgroups(os.getgrouplist(user.name, user.gid))
            os.setegid(user.gid)
            os.seteuid(user.uid)
            yield
        finally:
            os.seteuid(0)
            os.setegid(group)
            os.setgroups(groups)
