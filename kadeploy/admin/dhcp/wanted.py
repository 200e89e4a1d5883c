"""What DHCP is to answer the nodes of a site, as data: who they are, and what each kind of firmware is to load.

A ROM that is not iPXE speaks TFTP alone. Where a cluster's loader needs HTTP from the firmware, it is told to load
iPXE, which asks once more and is then recognised. A machine that is no node is told nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import relpath

from kadeploy.admin.dhcp.packet import BIOS, UEFI, UEFI_ARM64, UEFI_BC, UEFI_HTTP, UEFI_HTTP_ARM64, mac_bytes
from kadeploy.boot import loader_files, profile
from kadeploy.boot.loader_files import GRUB_ARM64, GRUB_BIOS, GRUB_UEFI, PXELINUX, PXELINUX_EFI, SHIM, SNPONLY, UNDIONLY
from kadeploy.config.cluster import ARM64, Cluster, Node
from kadeploy.config.folder import Configuration
from kadeploy.config.site import BootFolders
from kadeploy.errors import ConfigError, OptionError
from kadeploy.hints import did_you_mean
from kadeploy.nodeset import told

LONGEST = 127
"""Characters of a file name that fit into the header of an answer."""
PROFILE = "ipxe/${ip}.ipxe"
"""The profile of a node, as iPXE finds it: it puts its own address in (see `profile`)."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one kind of firmware is told."""

    architectures: tuple[int, ...]
    """Of the client (RFC 4578)."""
    is_ipxe: bool | None
    """Whether iPXE asks; None: it makes no difference."""
    file: str
    """Name of the boot file at the TFTP server, or its URL."""
    over_http: bool = False
    """Whether the firmware asks for a URL, and wants to hear the class ``HTTPClient``."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A node that is known by its MAC address."""

    name: str
    """Whole name in the site."""
    mac: str
    """Lower case, with colons."""
    address: str

    @property
    def short_name(self) -> str:
        """What the node is told it is called: the name up to its first dot."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The nodes of one cluster."""

    cluster: str
    what: str
    """How they boot, for people."""
    hosts: tuple[Host, ...]
    without_mac: tuple[str, ...]
    """Names of nodes that no DHCP server can recognise."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be answered to whom."""

    site: str
    server: str
    """Address of the TFTP server."""
    groups: tuple[Group, ...]
    tftp_loaders: tuple[str, ...]
    """Loaders that have to be below ``boot.tftp_root``."""
    http_loaders: tuple[str, ...]
    """Loaders that have to be below ``boot.http_root``, for firmware that boots by HTTP."""

    @property
    def network(self) -> ipaddress.IPv4Network:
        """A network that holds all nodes and the server: a guess, for an example."""
        addresses = [host.address for group in self.groups for host in group.hosts] + [self.server]
        found = ipaddress.IPv4Network(f"{self.server}/24", strict=False)
        while found.prefixlen and not all(ipaddress.IPv4Address(each) in found for each in addresses):
            found = found.supernet()
        return found


# --- which loaders ----------------------------------------------------------------------------------------------

_CHAINS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("bios", "pxelinux"): (UNDIONLY, PXELINUX),
    ("bios", "ipxe"): (UNDIONLY, PROFILE),
    ("bios", "grub"): (GRUB_BIOS, GRUB_BIOS),
    ("uefi", "pxelinux"): (PXELINUX_EFI, PXELINUX_EFI),
    ("uefi", "ipxe"): (SNPONLY, PROFILE),
    ("uefi", "grub"): (GRUB_UEFI, GRUB_UEFI),
    ("arm64", "grub"): (GRUB_ARM64, GRUB_ARM64),
    ("secure", "grub"): (SHIM, SHIM),
}
"""What the ROM loads, and what iPXE loads, by firmware and ``loader.profiles``."""
_SECOND = {"bios": PXELINUX, "uefi": GRUB_UEFI}
"""What iPXE goes on to for a disk or a hypervisor (``templates/pxe/ipxe.j2``)."""
_BY_TFTP = {
    "bios": (BIOS,),
    "uefi": (UEFI, UEFI_BC),
    "secure": (UEFI, UEFI_BC),
    "arm64": (UEFI_ARM64,),
}
_BY_HTTP = {SNPONLY: UEFI_HTTP, GRUB_UEFI: UEFI_HTTP, GRUB_ARM64: UEFI_HTTP_ARM64}
"""Loaders that come up when the firmware has fetched them by HTTP. PXELINUX and Debian's signed GRUB do not."""


def of(configuration: Configuration, clusters: Iterable[str] = ()) -> Wanted:
    """What is to be answered to the nodes of *clusters*, all of the site's when none is named.

    Args:
        configuration: the site's.
        clusters: their names.

    Raises:
        OptionError: no cluster is called so.
        ConfigError: a cluster's loader cannot be loaded by its firmware, or an address or a name fits no DHCP server.
    """
    chosen = _chosen(configuration, clusters)
    boot = configuration.site.boot
    firmware = {name: _firmware(cluster) for name, cluster in chosen.items()}
    chains = {name: _chain(cluster, firmware[name]) for name, cluster in chosen.items()}
    return Wanted(
        site=configuration.site.name,
        server=_server(configuration.site.server_address),
        groups=tuple(_group(cluster, _answers(firmware[name], chains[name], boot)) for name, cluster in chosen.items()),
        tftp_loaders=_distinct(_loaders(firmware[name], chains[name]) for name in chosen),
        http_loaders=tuple(dict.fromkeys(rom for rom, _ in chains.values() if rom in _BY_HTTP)),
    )


def _chosen(configuration: Configuration, names: Iterable[str]) -> dict[str, Cluster]:
    known = configuration.clusters
    wanted = list(dict.fromkeys(names)) or list(known)
    for name in wanted:
        if name not in known:
            raise OptionError(f"There is no cluster {name}; there are {', '.join(known)}.{did_you_mean(name, known)}")
        if not re.fullmatch(r"[\w.-]{1,100}", name, re.ASCII):
            raise ConfigError(
                f"{known[name].file}: the name of a cluster becomes a word of DHCP servers: "
                "use letters, digits, dots, dashes and underscores alone."
            )
    configuration.require_sound(wanted)
    return {name: known[name] for name in wanted}


def _firmware(cluster: Cluster) -> str:
    if cluster.loader.firmware == "bios":
        return "bios"
    if cluster.loader.secure_boot:
        return "secure"
    return "arm64" if cluster.arch.lower() in ARM64 else "uefi"


def _chain(cluster: Cluster, firmware: str) -> tuple[str, str]:
    found = _CHAINS.get((firmware, cluster.loader.profiles))
    if found is None:
        raise ConfigError(
            f"{cluster.file}: loader.profiles: Debian has no {cluster.loader.profiles} for {cluster.arch}: set grub."
        )
    return found


def _loaders(firmware: str, chain: tuple[str, str]) -> tuple[str, ...]:
    """Those of our list that the nodes load, one after the other."""
    second = (_SECOND[firmware],) if chain[1] == PROFILE else ()
    return tuple(name for name in (*chain, *second) if name in loader_files.LOADERS)


def _distinct(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for each in names for name in each))


# --- who is told what -------------------------------------------------------------------------------------------


def _answers(firmware: str, chain: tuple[str, str], boot: BootFolders) -> tuple[Answer, ...]:
    rom, ipxe = chain
    by_tftp = _BY_TFTP[firmware]
    found = [Answer(architectures=by_tftp, is_ipxe=None, file=_fits(rom))]
    if rom != ipxe:
        name = _profile_url(boot) if ipxe == PROFILE else ipxe
        found = [
            Answer(architectures=by_tftp, is_ipxe=False, file=_fits(rom)),
            Answer(architectures=by_tftp, is_ipxe=True, file=_fits(name)),
        ]
    if rom in _BY_HTTP:
        url = _fits(boot.http_url + rom)
        found.append(Answer(architectures=(_BY_HTTP[rom],), is_ipxe=None, file=url, over_http=True))
    return tuple(found)


def _profile_url(boot: BootFolders) -> str:
    """By HTTP, where that serves the folder of profiles as well."""
    below = relpath(boot.tftp_root, boot.http_root)
    if below.startswith(".."):
        return PROFILE
    return boot.http_url + (PROFILE if below == "." else f"{below}/{PROFILE}")


def _fits(file: str) -> str:
    """A boot file that every server can name, in its own language.

    Raises:
        ConfigError: it has other signs than those of URLs, or is too long.
    """
    if not re.fullmatch(r"[\w.:/@%+=~${}?&-]+", file, re.ASCII):
        raise ConfigError(f"boot.http_url: {file!r} cannot stand in an answer of DHCP: use plain letters in a URL.")
    if len(file) > LONGEST:
        raise ConfigError(f"boot.http_url: {file} is too long for an answer of DHCP, which takes {LONGEST} characters.")
    return file


def _server(where: str) -> str:
    try:
        return profile.address(Node(name=where))
    except ConfigError as error:
        raise ConfigError(
            f"server_address: {where} is no IPv4 address and resolves to none, and DHCP has to tell nodes one."
        ) from error


def _group(cluster: Cluster, answers: tuple[Answer, ...]) -> Group:
    nodes = cluster.members.values()
    loader = cluster.loader
    for node in nodes:
        _require_name(cluster, node)
    return Group(
        cluster=cluster.name,
        what=f"{loader.firmware}{' with Secure Boot' if loader.secure_boot else ''}, profiles for {loader.profiles}",
        hosts=tuple(_host(cluster, node) for node in nodes if node.mac),
        without_mac=tuple(node.name for node in nodes if not node.mac),
        answers=answers,
    )


_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"


def _require_name(cluster: Cluster, node: Node) -> None:
    if not re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*", node.name) or len(node.name) > 253:
        raise ConfigError(
            f"{cluster.file}: nodes: {node.name!r} is no name that DHCP can tell: "
            "it has letters, digits and dashes, and dots between them."
        )


def _host(cluster: Cluster, node: Node) -> Host:
    where = f"{cluster.file}: {node.name}"
    try:
        mac = mac_bytes(node.mac).hex(":")
    except OptionError as error:
        raise ConfigError(f"{where}: mac: {error}") from error
    return Host(name=node.name, mac=mac, address=profile.address(node))


def left_out(wanted: Wanted) -> str:
    """Which nodes no server can recognise, as a sentence; empty when there are none."""
    names = [name for group in wanted.groups for name in group.without_mac]
    if not names:
        return ""
    verb = "has" if len(names) == 1 else "have"
    return f"{told(names)} {verb} no MAC address in the cluster file, and will be told nothing: add `mac` to the nodes."
