"""BMCs in a range of addresses: who answers, which node each belongs to, and what it tells of its machine.

Each address is asked for what a BMC tells everybody: its ways to log in (IPMI 2.0, 22.13), or the root of its Redfish
service. Those that answer are logged in to with the name and password of a cluster.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec

from kadeploy.admin.node_ranges import column
from kadeploy.admin.sources.found import Entry
from kadeploy.config.cluster import Cluster, Node
from kadeploy.config.folder import Configuration
from kadeploy.errors import NodeListError, OptionError
from kadeploy.nodeset import count, expand, natural_key, require_few, told
from kadeploy.power import bmc
from kadeploy.power.switch import password
from kadeploy.printable import printable
from kadeploy.remote import namespace

MOST = 1 << 16
"""Addresses of one sweep."""
LIMIT = 15.0
"""Seconds that a BMC may take to tell what its machine is."""
_ROUNDS = 3
"""How often those that are silent are asked: datagrams get lost, and BMCs are slow."""
ROUND = 1.0
"""Seconds that they have each time."""
_BURST, _BETWEEN = 64, 0.02
"""Addresses that are asked at once, and seconds before the next ones are."""
_CONNECT = 4.0
_REDFISH, _ROOT = b"RedfishVersion", 1 << 16
"""What the root of a Redfish service names, and bytes of it that are read."""
_CAPABILITIES = bytes.fromhex("0600ff07 00 00000000 00000000 09 20 18 c8 81 00 38 8e 04 b5")
"""Get Channel Authentication Capabilities of this channel, for an administrator, outside of a session."""
_RMCP = bytes.fromhex("0600ff07")


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """A BMC that answers, or that a cluster file names in this range."""

    address: str
    """As a cluster file says it."""
    node: str = ""
    """Whose it is by a cluster file; empty: nobody's."""
    answers: bool = True
    entered: bool = False
    """Whether the name and the password of the cluster let the site in."""
    reason: str = ""
    """Why not."""
    identity: bmc.Identity = bmc.Identity()


def addresses(pattern: str) -> list[str]:
    """The addresses in *pattern*, a range ``10.0.3.[1-254]`` or a network ``10.0.3.0/24``.

    >>> addresses("10.0.3.0/30"), addresses("10.0.3.[7-8]")
    (['10.0.3.1', '10.0.3.2'], ['10.0.3.7', '10.0.3.8'])

    Raises:
        OptionError: it is neither, or stands for too many.
    """
    try:
        if "/" in pattern:
            network = ipaddress.IPv4Network(pattern.strip(), strict=False)
            require_few(network.num_addresses, MOST, pattern)
            return [str(each) for each in network.hosts()]
        require_few(count(pattern), MOST, pattern)
        return [str(ipaddress.IPv4Address(each)) for each in sorted(expand(pattern), key=natural_key)]
    except NodeListError as error:
        said = f"more than {MOST} addresses" if "at most" in str(error) else str(error).rstrip(".")
        raise OptionError(f"--sweep {pattern[:60]}: {said}.") from error
    except ValueError as error:
        raise OptionError(
            f"--sweep {pattern[:60]}: expected addresses, such as 10.0.3.[1-254] or 10.0.3.0/24."
        ) from error


def sweep(configuration: Configuration, cluster: Cluster, pattern: str) -> list[Swept]:
    """The BMCs in *pattern*, logged in to as the BMCs of *cluster* are, in the order of their addresses.

    Raises:
        OptionError: no addresses, or the cluster has no BMCs that we speak to.
        ConfigError: the password cannot be read.
    """
    if cluster.power.driver == "command":
        raise OptionError(
            f"Cluster {cluster.name} is switched by commands (power.driver), and has no BMCs that can be asked: name "
            "another cluster with --cluster, or set power.driver."
        )
    wanted = addresses(pattern)
    secret = password(cluster.power, configuration.folder)
    with namespace.inside(configuration.site.network_namespace):
        return asyncio.run(_swept(configuration, cluster, wanted, secret))


async def _swept(configuration: Configuration, cluster: Cluster, wanted: Sequence[str], secret: str) -> list[Swept]:
    window = configuration.site.windows.check
    known = await asyncio.to_thread(_known, configuration, frozenset(wanted))
    if cluster.power.driver == "redfish":
        answering = await _with_redfish(wanted, cluster, window)
    else:
        answering = await _with_ipmi(wanted, cluster.power.port)
    slots = asyncio.Semaphore(window)
    credentials = bmc.credentials(cluster.power, secret)
    hidden = (cluster.power.password_env,)
    async with bmc.connect(f"kadeploy.power.{cluster.power.driver}", credentials, hidden) as bmcs:

        async def asked(host: str) -> Swept:
            async with slots:
                where = _written(cluster, host)
                answer = await bmcs.order(where, cluster.power.port, "identify", LIMIT)
            return Swept(
                address=where,
                node=known.get(host, ""),
                entered=not answer.reason,
                reason=printable(answer.reason),
                identity=answer.identity or bmc.Identity(),
            )

        found = await asyncio.gather(*(asked(host) for host in wanted if host in answering))
    silent = [
        Swept(address=_written(cluster, host), node=node, answers=False, reason="nobody answers")
        for host, node in known.items()
        if host not in answering
    ]
    return sorted([*found, *silent], key=lambda each: natural_key(each.address))


# --- which are known ------------------------------------------------------------------------------------------------


def _known(configuration: Configuration, wanted: frozenset[str]) -> dict[str, str]:
    """Addresses in the range, and the node whose BMC each is by a cluster file."""
    pairs = (
        (_host(cluster, node), node.name)
        for cluster in configuration.clusters.values()
        if cluster.power.driver != "command"
        for node in cluster.members.values()
    )
    return {host: node for host, node in pairs if host in wanted}


def _host(cluster: Cluster, node: Node) -> str:
    """The address of a node's BMC; empty where it has none, or a name that does not resolve."""
    name = urlsplit(node.bmc).hostname if "://" in node.bmc else bmc.split_address(node.bmc, cluster.power.port)[0]
    if not name:
        return ""
    with suppress(OSError, UnicodeError):
        return socket.gethostbyname(name)
    return ""


def _written(cluster: Cluster, host: str) -> str:
    """A BMC as the other ones of the cluster are written: for Redfish a URL."""
    if cluster.power.driver != "redfish":
        return host
    first = next((node.bmc for node in cluster.members.values() if node.bmc), "")
    found = re.fullmatch(r"(https?://)(?:\[[^\]]*\]|[^/:\[]+)((?::\d+)?).*", first)
    return f"{found[1]}{host}{found[2]}" if found else f"https://{host}"


# --- who answers ----------------------------------------------------------------------------------------------------


class _Answers(asyncio.DatagramProtocol):
    """Collects who speaks RMCP."""

    def __init__(self) -> None:
        self.hosts: set[str] = set()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """An answer of whatever kind is one."""
        if data.startswith(_RMCP[:1]) and data[3:4] in (b"\x07", b"\x06"):
            self.hosts.add(addr[0])


async def _with_ipmi(wanted: Sequence[str], port: int) -> set[str]:
    loop = asyncio.get_running_loop()
    transport, answers = await loop.create_datagram_endpoint(_Answers, ("0.0.0.0", 0))  # noqa: S104 - only asks
    try:
        for _ in range(_ROUNDS):
            silent = [host for host in wanted if host not in answers.hosts]
            for at in range(0, len(silent), _BURST):
                for host in silent[at : at + _BURST]:
                    transport.sendto(_CAPABILITIES, (host, port))
                await asyncio.sleep(_BETWEEN)
            if silent:
                await asyncio.sleep(ROUND)
    finally:
        transport.close()
    return answers.hosts & {*wanted}


async def _with_redfish(wanted: Sequence[str], cluster: Cluster, window: int) -> set[str]:
    slots = asyncio.Semaphore(window)

    async def answers(host: str) -> bool:
        async with slots:
            with suppress(OSError, TimeoutError, ssl.SSLError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_CONNECT):
                    return _REDFISH in await _root(_written(cluster, host))
        return False

    found = await asyncio.gather(*map(answers, wanted))
    return {host for host, there in zip(wanted, found, strict=True) if there}


async def _root(url: str) -> bytes:
    """The root of a Redfish service, which needs no login and gets none: any certificate will do."""
    parts = urlsplit(url)
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    secure = parts.scheme == "https"
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port or (443 if secure else 80), ssl=anybody if secure else None
    )
    try:
        writer.write(b"GET /redfish/v1/ HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % parts.netloc.encode())
        said = b""
        while _REDFISH not in said and len(said) < _ROOT and (more := await reader.read(_ROOT)):
            said += more  # the body may come behind the header, and a BMC may leave the connection open
        return said
    finally:
        writer.close()


# --- proposals ------------------------------------------------------------------------------------------------------


def proposed(found: Sequence[Swept]) -> list[Swept]:
    """Those that let the site in and that no cluster file names."""
    return [each for each in found if each.entered and not each.node]


def entries(new: Sequence[Swept], names: Sequence[str], addresses_: str) -> list[Entry]:
    """The nodes that *new* ones become, *names* in the order of their addresses.

    Raises:
        OptionError: there are more or fewer names than machines.
        NodeListError: the addresses are no range, or as many.
    """
    if len(names) != len(new):
        raise OptionError(
            f"{len(names)} names ({told(names)}) for {len(new)} machines that no cluster file names: give one for "
            f"each, in the order of their addresses ({told(each.address for each in new)})."
        )
    places = column(addresses_, names, "--addresses")
    return [
        Entry(name=name, address=place, bmc=each.address, where=f"--sweep {each.address}")
        for name, place, each in zip(names, places, new, strict=True)
    ]
