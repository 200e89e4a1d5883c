"""Which site a tool works for, and who answers for it: its service, or this process.

A tool asks the service that `KADEPLOY_SERVER` names, else the one of this machine's site if it listens; where there is
none it does the work itself, as an account that can read the site's secrets may.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kadeploy.caller import caller
from kadeploy.config.folder import DEFAULT_FOLDER, configuration_folder, load_site
from kadeploy.config.service import SOCKET
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError
from kadeploy.operations.service import Service

VARIABLE = "KADEPLOY_SERVER"
"""Names a service: the path of its socket."""


def service() -> Service:
    """The site that this process works for, for its caller.

    Raises:
        KadeployError: there is no site, or its service cannot be used.
    """
    if named := os.environ.get(VARIABLE):
        return _remote(named)
    if (found := _listening()) is not None:
        return _remote(str(found))
    from kadeploy.operations.local import Local  # noqa: PLC0415 - not where a service answers

    return Local(caller())


def _remote(where: str) -> Service:
    from kadeploy.client.remote import Remote  # noqa: PLC0415 - not where this process answers

    return Remote(where, caller())


def _listening() -> Path | None:
    """The socket of this machine's site, if there is one."""
    folder = configuration_folder()
    try:
        path = socket_of(load_site(folder), folder)
    except ConfigError:
        path = Path(SOCKET)
        if folder != DEFAULT_FOLDER or not _is_socket(path):
            raise
    return path if _is_socket(path) else None


def socket_of(site: Site, folder: Path) -> Path:
    """Where the service of a site listens: one per machine for ``/etc/kadeploy``, else with the site's state."""
    return Path(site.service.socket or (SOCKET if folder == DEFAULT_FOLDER else site.state / Path(SOCKET).name))


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False
