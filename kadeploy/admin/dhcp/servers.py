"""The DHCP servers for which a configuration can be written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, get_args

from kadeploy.admin.dhcp import dnsmasq, isc, kea
from kadeploy.admin.dhcp.wanted import Wanted
from kadeploy.boot.loader_files import SHIM
from kadeploy.errors import OptionError
from kadeploy.nodeset import fold

Server = Literal["dnsmasq", "isc", "kea"]
SERVERS: tuple[Server, ...] = get_args(Server)

_LINES: Mapping[Server, Callable[[Wanted], Iterator[str]]] = {
    "dnsmasq": dnsmasq.lines,
    "isc": isc.lines,
    "kea": kea.lines,
}
_COMMENTS: Mapping[Server, str] = {"dnsmasq": dnsmasq.COMMENT, "isc": isc.COMMENT, "kea": kea.COMMENT}


def text(server: Server, wanted: Wanted, *, proxy: bool = False) -> str:
    """A file for *server* to include.

    Args:
        server: whose language it is.
        wanted: what is to be answered.
        proxy: boot files alone, beside a DHCP server that gives the addresses.

    Raises:
        OptionError: *server*, or a loader of the nodes, cannot do with another server beside it.
    """
    if proxy and server != "dnsmasq":
        raise OptionError(
            f"--proxy: {server} cannot stand beside another DHCP server; dnsmasq can: --server dnsmasq --proxy."
        )
    if proxy and any(answer.file == SHIM for group in wanted.groups for answer in group.answers):
        raise OptionError(
            "loader.secure_boot does not go with --proxy: Debian's signed GRUB looks for its files at the server that "
            "gave the address, whatever the proxy says. Name other clusters with --cluster."
        )
    return "".join(f"{line}\n" for line in _all(server, wanted, proxy))


def _all(server: Server, wanted: Wanted, proxy: bool) -> Iterator[str]:
    sign = _COMMENTS[server]
    yield f"{sign} Written by kadeploy-site dhcp: run it again when nodes or loaders have changed."
    for group in wanted.groups:
        if group.without_mac:
            yield f"{sign} {group.cluster}: told nothing, for want of a MAC address: {fold(group.without_mac)}"
    yield from (dnsmasq.proxy_lines if proxy else _LINES[server])(wanted)
