"""Which site a tool works for, and who answers for it: its service, or this process.

A tool asks the server that ``--server`` names, else `VARIABLE`, else ``client.yml`` as default, else the service of
this machine's site if it listens; where there is none it does the work itself, as the account to which
the site's state belongs.
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kadeploy.caller import Account, caller
from kadeploy.client import servers
from kadeploy.client.address import Address
from kadeploy.config.folder import DEFAULT_FOLDER, configuration_folder, load_site
from kadeploy.config.service import PORT, SOCKET
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, OptionError, ServiceError
from kadeploy.hints import did_you_mean
from kadeploy.operations.service import Service

VARIABLE = "KADEPLOY_SERVER"
"""Names a server as the option ``--server`` does."""


def service(server: str | None = None) -> Service:
    """Who answers for this process's caller, who may have named *server* (``--server``).

    Raises:
        KadeployError: there is no such server, or no site; or its service cannot be used.
    """
    who = caller()
    word, said = (server, "--server") if server else (os.environ.get(VARIABLE, ""), VARIABLE)
    if given := servers.literal(word):
        return _remote(servers.address_of(given, who), who)
    known = servers.known(who)
    word = word or known.default
    if word in known.named:
        return _named_in(known, word, who)
    if word and word != (here := _name_here()):
        raise OptionError(_unknown(f"{said} {word}", word, [*known.named, *([here] if here else [])], known.path))
    if (found := _listening()) is not None:
        return _remote(servers.address_of(servers.Server(url=str(found)), who), who)
    require_own_state()
    from kadeploy.operations.local import Local  # noqa: PLC0415 - not where a service answers

    return Local(who)


def every(all_or_nothing: bool, warn: Callable[[str], None]) -> Service:
    """All servers of ``client.yml`` as one; where it names none, who answers without a name.

    *warn* is told of those who cannot be asked.

    Raises:
        KadeployError: none can be asked; or not all of them, and it is *all_or_nothing*.
    """
    who = caller()
    known = servers.known(who)
    makers = {name: partial(_named_in, known, name, who) for name in known.named}
    if len(makers) < 2:
        return next(iter(makers.values()), service)()
    from kadeploy.client import several  # noqa: PLC0415 - rarely wanted

    return several.reach(makers, all_or_nothing, warn)


def _named_in(known: servers.Servers, name: str, who: Account) -> Service:
    return _remote(servers.address_of(known.named[name], who, name, known.path), who)


def require_own_state() -> None:
    """Root does not do the work where the state is the service's: what it writes there would be closed to that.

    Raises:
        ServiceError: says whose it is.
    """
    site = load_site(configuration_folder())
    owner = owner_of(site)
    if os.geteuid() == 0 and owner != 0:
        name = _name_of(owner)
        raise ServiceError(
            f"{site.state} belongs to {name}, and the service of this site does not answer. Is kadeploy3d running, "
            f"as {name}?"
        )


def owner_of(site: Site) -> int:
    """The account that keeps the site's state, the service's where there is one; root where there is no folder yet."""
    try:
        return site.state.stat().st_uid
    except OSError:
        return 0


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the account {uid}"


def names() -> list[str]:
    """Servers that can be named here."""
    here = _name_here()
    return list(dict.fromkeys([*servers.known(caller()).named, *([here] if here else [])]))


def _unknown(what: str, word: str, known: list[str], path: Path) -> str:
    if not known:
        return f"{what}: no such server. Name it in {path}, or give its address, https://HOST:{PORT}."
    return f"{what}: no such server. {path} and this machine know {', '.join(known)}.{did_you_mean(word, known)}"


def _name_here() -> str:
    """The name of this machine's site; empty where it has none, or none that the caller can read."""
    folder = configuration_folder()
    return load_site(folder).name if os.access(folder / "site.yml", os.R_OK) else ""


def _remote(address: Address, who: Account) -> Service:
    from kadeploy.client.remote import Remote  # noqa: PLC0415 - not where this process answers

    return Remote(address, who)


def _listening() -> Path | None:
    """The socket of this machine's site, if there is one; whoever can do without takes none that was left behind."""
    folder = configuration_folder()
    try:
        site = load_site(folder)
        path = socket_of(site, folder)
        if os.geteuid() == owner_of(site) and _is_left_behind(path):
            return None
    except ConfigError:
        path = Path(SOCKET)
        if folder != DEFAULT_FOLDER or not _is_socket(path):
            raise
    return path if _is_socket(path) else None


def socket_of(site: Site, folder: Path) -> Path:
    """Where the service of a site listens: one per machine for ``/etc/kadeploy``, else with the site's state."""
    return Path(site.service.socket or (SOCKET if folder == DEFAULT_FOLDER else site.state / Path(SOCKET).name))


def _is_left_behind(path: Path) -> bool:
    """Whether the service that made the socket *path* is gone, without having had the time to take it away."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False
