"""Front ends: servers that have authenticated a user already and name them in a header, believed by their address.

A header that names a user and comes from anywhere else is somebody who tries to be another: it is refused rather than
passed over, so that a request never means something else than it says.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from kadeploy.caller import is_user_name
from kadeploy.config.service import FrontEnd
from kadeploy.errors import AuthenticationError, ConfigError

Headers = Mapping[str, Sequence[str]]
"""The values of each header, by its name in lower case."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

AS_USER = "x-kadeploy-user"
"""In which root, on the socket, names the user to act for."""
_NAMING = frozenset({AS_USER, "x-remote-ident", "x-api-user-cn"})
"""Headers that name a user, at this site or at others."""
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")


class FrontEnds:
    """The front ends of a site.

    Raises:
        ConfigError: one of their sources is no address and no network.
    """

    def __init__(self, configured: Sequence[FrontEnd]) -> None:
        self._sources: dict[str, list[Network]] = {}
        for rank, each in enumerate(configured):
            where = f"service.front_ends[{rank}].sources"
            found = [network(source, where) for source in each.sources]
            self._sources.setdefault(each.header.lower(), []).extend(found)

    @property
    def on_this_machine(self) -> bool:
        """Whether any account of this machine could speak as a front end: one of the sources is the machine itself."""
        own = [ipaddress.ip_network(each) for each in ("127.0.0.0/8", "::1/128")]
        sources = [each for found in self._sources.values() for each in found]
        return any(each.version == mine.version and each.overlaps(mine) for each in sources for mine in own)

    def uses(self, header: str) -> bool:
        """Whether one of them names users in *header*."""
        return header in self._sources

    def asserted(self, address: str, headers: Headers) -> str:
        """The user whom *headers* name; empty when they name none.

        Raises:
            AuthenticationError: they come from an *address* that may not say so, or say it more than once, or what
                they say is no name of a user.
        """
        names = {self._believed(name, address, headers[name]) for name in naming(headers, self._sources)}
        if len(names) > 1:
            raise AuthenticationError("The headers of the front end name different users: let it send one of them.")
        return next(iter(names), "")

    def refuse_any(self, headers: Headers, but: str = "") -> None:
        """Refuse *headers* where no front end is: on the socket; *but* this one may be there.

        Raises:
            AuthenticationError: they name a user.
        """
        for name in naming(headers, self._sources):
            if name != but:
                raise AuthenticationError(f"{name} counts from a front end over HTTPS alone: leave this header out.")

    def _believed(self, name: str, address: str, values: Sequence[str]) -> str:
        if not is_within(address, self._sources.get(name, ())):
            raise AuthenticationError(
                f"The header {name} is not believed from {address}: leave it out, or have an administrator name this "
                "address in service.front_ends."
            )
        return only_name(name, values)


def naming(headers: Headers, configured: Mapping[str, object]) -> list[str]:
    """Those of *headers* that name a user, *configured* ones among them."""
    return [name for name in headers if name in _NAMING or name in configured]


def only_name(header: str, values: Sequence[str]) -> str:
    """The name of a user that *header* has as its only value.

    Raises:
        AuthenticationError: it has none, or several.
    """
    if len(values) != 1:
        raise AuthenticationError(f"The header {header} comes {len(values)} times: send it once.")
    if not is_user_name(values[0]):
        raise AuthenticationError(f"The header {header} names no user: {values[0][:60]!r}.")
    return values[0]


def network(source: str, where: str) -> Network:
    """The network, or the address, that *source* names.

    Raises:
        ConfigError: it is neither; tells *where* it stands.
    """
    try:
        found = ipaddress.ip_network(source)
    except ValueError as error:
        raise ConfigError(
            f"{where}: {error}: expected an address such as 10.1.0.4 or a network 10.2.0.0/16."
        ) from error
    if isinstance(found, ipaddress.IPv6Network) and found.subnet_of(_MAPPED):  # type: ignore[arg-type]
        inner = found.network_address.ipv4_mapped
        return ipaddress.ip_network(f"{inner}/{found.prefixlen - _MAPPED.prefixlen}")
    return found


def plain(address: str) -> str:
    """*address* without what IPv6 sockets add: the interface, and the prefix of an IPv4 address.

    >>> plain("::ffff:10.1.0.4"), plain("fe80::1%eth0"), plain("10.1.0.4")
    ('10.1.0.4', 'fe80::1', '10.1.0.4')
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(getattr(found, "ipv4_mapped", None) or found)


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Whether the other end of a connection, of this *address*, is in one of *networks*."""
    try:
        found = ipaddress.ip_address(plain(address))
    except ValueError:
        return False
    return any(found in network for network in networks)
