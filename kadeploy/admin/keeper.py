"""The account that keeps a site: its state belongs to it, and what root does for the site is done in its name."""

from __future__ import annotations

import grp
import os
import pwd
from contextlib import suppress
from pathlib import Path

from kadeploy.caller import Account, as_user, numbered
from kadeploy.config.site import Site
from kadeploy.errors import RightsError

NAME = "kadeploy"
"""The account of the service, where a machine has one."""


def of(site: Site) -> Account:
    """Whose the state folder is; where there is none yet, whose it will be.

    Raises:
        RightsError: this process is neither root's nor this account's.
    """
    try:
        found = numbered(site.state.stat().st_uid)
    except OSError:
        found = expected()
    require(found)
    return found


def expected() -> Account:
    """The service's account where there is one, else the one that this process runs as."""
    if os.geteuid() == 0:
        with suppress(KeyError):
            return numbered(pwd.getpwnam(NAME).pw_uid)
    return numbered(os.geteuid())


def require(keeper: Account) -> None:
    """Refuse unless this process is root's or *keeper*'s, and not that of somebody who may not be either.

    Raises:
        RightsError: says who may.
    """
    if os.geteuid() not in (0, keeper.uid):
        raise RightsError(f"This is for root, and for {keeper.name} who keeps the site: run it as root (sudo).")


def own() -> Account:
    """The account that this process runs as."""
    return numbered(os.geteuid())


def named(owner: str) -> Account | None:
    """The account that is called *owner* here; None: none is."""
    with suppress(KeyError):
        return numbered(pwd.getpwnam(owner).pw_uid)
    return None


def group_named(group: str) -> int | None:
    """The number of the group that is called so here; None: none is."""
    with suppress(KeyError):
        return grp.getgrnam(group).gr_gid
    return None


def names(status: os.stat_result) -> tuple[str, str]:
    """Owner and group of a file by name; by number where they have none."""
    with suppress(KeyError):
        return pwd.getpwuid(status.st_uid).pw_name, _group(status.st_gid)
    return str(status.st_uid), _group(status.st_gid)


def _group(gid: int) -> str:
    with suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)


def folder(site: Site, keeper: Account, name: str) -> Path:
    """The folder *name* of the state folder, made if it is not there: for *keeper* alone.

    Raises:
        OSError: it cannot be made.
    """
    path = site.state / name
    with as_user(keeper):
        path.mkdir(mode=0o700, exist_ok=True)
    return path
