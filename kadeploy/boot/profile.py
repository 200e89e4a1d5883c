"""Boot profiles: what a node's network boot loader is told, one file per node and loader.

A loader finds its file by the node's IPv4 address, under ``tftp_root``:

=========  ==============================  ========================================================================
pxelinux   ``pxelinux.cfg/0A004207``       PXELINUX searches it by itself (SYSLINUX wiki, PXELINUX, "Configuration")
grub       ``grub/grub.cfg-0A004207``      GRUB searches it beside its own ``grub.cfg`` (GRUB manual, chapter "Network")
ipxe       ``ipxe/10.0.66.7.ipxe``         named as iPXE can spell it: the site's DHCP answers ``ipxe/${ip}.ipxe``
=========  ==============================  ========================================================================

iPXE boots Linux; for a disk or a hypervisor it loads PXELINUX (BIOS) or GRUB (UEFI), for which there is a file as well.
The templates are in ``templates/pxe``, a site's own ones in the same folder of its configuration. Text of users reaches
them as values only, and a value can neither end its line nor be taken for a command.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import jinja2

from kadeploy.boot import loaders, parameters, served
from kadeploy.boot.secret import Secret
from kadeploy.config.cluster import Cluster, Node
from kadeploy.config.folder import places
from kadeploy.config.partition import partition_device
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.errors import ConfigError, KadeployError, OptionError, ProfileRefusedError
from kadeploy.files import replace_file
from kadeploy.workflow import Outcome, Verdict

ProfileKind = Literal["deploy", "deployed", "nfsroot", "custom"]
Loader = Literal["pxelinux", "grub", "ipxe"]

NODE_PATTERN = "NODE_SINGULARITY"
"""In a user's profile: the node's own word (``--set-pxe-pattern``; wiki page, use case 6 of kadeploy3)."""
FILES_PATTERN = "FILES_PREFIX"
"""In a user's profile: the user's uploaded files (``-x``), as ``FILES_PREFIX--name``."""
KERNELS_PATTERN = "KERNELS_DIR"
"""In a user's profile: the folder of these files."""
FILES_FOLDER = "kernels"
"""Folder of uploaded and extracted files, under ``tftp_root`` and ``http_root``."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What the boot profiles of a request are made of, beside the node."""

    site: Site
    cluster: Cluster
    config_dir: Path
    """The configuration folder, whose templates go before ours."""
    user: str
    environment: Environment | None = None
    boot_files: Mapping[str, str] = field(default_factory=dict)
    """Files for boots over the network, below the folder that serves them, by what they are: kernel, initrd…"""
    device: str
    """The disk that is deployed to."""
    partition: int | None
    """Number of the deployment partition; None is the whole device."""
    boot_partition: int | None = None
    """Partition to boot in its place (``-c``), 0 for the disk's own boot record."""
    text: str = ""
    """The user's own profile (``-w``)."""
    singularities: Mapping[str, str] = field(default_factory=dict)
    """What `NODE_PATTERN` stands for, by node."""
    vlan_addresses: Mapping[str, str] = field(default_factory=dict)
    """IPv4 address in the VLAN that was asked for, by node."""
    secret: Secret | None = None
    """What the deployment system is to show."""


# --- writing ----------------------------------------------------------------------------------------------------


def write(sources: Sources, kind: ProfileKind, nodes: Sequence[Node]) -> dict[str, Outcome]:
    """Write the profiles of *nodes*; a node whose profile cannot be made or written is KO."""
    return {node.name: _written(sources, kind, node) for node in nodes}


def _written(sources: Sources, kind: ProfileKind, node: Node) -> Outcome:
    try:
        for name, text in profiles(sources, kind, node).items():
            path = Path(sources.site.boot.tftp_root) / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            replace_file(path, text.encode(), 0o644)
    except KadeployError as error:
        return Outcome(Verdict.KO, f"No boot profile: {error}", 1)
    except OSError as error:
        return Outcome(Verdict.KO, f"No boot profile: {error.filename}: {error.strerror}: check boot.tftp_root.", 1)
    return Outcome(Verdict.OK)


# --- which files ------------------------------------------------------------------------------------------------


def profiles(sources: Sources, kind: ProfileKind, node: Node) -> dict[str, str]:
    """Files of a node, path under ``tftp_root`` → text; in a VLAN also for the address that it has there.

    Raises:
        ProfileRefusedError: a value does not fit into a profile.
        ConfigError: the node has no IPv4 address, or the cluster's loader cannot boot this.
    """
    texts = _texts(sources, kind, node)
    addresses = [address(node), *filter(None, [sources.vlan_addresses.get(node.name)])]
    return {file_name(loader, each): text for loader, text in texts.items() for each in addresses}


def render(sources: Sources, kind: ProfileKind, node: Node) -> str:
    """Text of a node's profile, in the language of its cluster's loader; raises as `profiles` does."""
    return _texts(sources, kind, node)[sources.cluster.loader.profiles]


def alike(sources: Sources, kind: ProfileKind, nodes: Sequence[Node]) -> dict[str, list[str]]:
    """Names of the nodes by the text of their profile (see `render`)."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        found.setdefault(render(sources, kind, node), []).append(node.name)
    return found


def file_name(loader: Loader, ipv4: str) -> str:
    """Where *loader* looks for the profile of the node with this address.

    >>> file_name("pxelinux", "10.0.66.7")
    'pxelinux.cfg/0A004207'
    """
    return _FILES[loader](ipv4)


def left_behind(site: Site, nodes: Iterable[Node]) -> list[Path]:
    """Profiles of ours for addresses that none of *nodes* has, which are all of *site*.

    Where nodes can be put into VLANs they have addresses that nobody knows beforehand: then none is told.

    Raises:
        ConfigError: a node has no address.
    """
    if site.vlan:
        return []
    root, mine = Path(site.boot.tftp_root), {address(node) for node in nodes}
    kept = {root / file_name(loader, each) for loader in _FILES for each in mine}
    return [path for pattern in _OURS for path in root.glob(pattern) if path not in kept and _is_ours(path)]


def _is_ours(path: Path) -> bool:
    """Whether one of our templates made it: others may serve machines of theirs from the same folder."""
    kind = path.parent.name
    return path.is_file() and not path.is_symlink() and _MARKS[kind].search(path.read_bytes()) is not None


_DIGITS = "[0-9A-F]" * 8
_OURS = (f"pxelinux.cfg/{_DIGITS}", f"grub/grub.cfg-{_DIGITS}", "ipxe/*.*.*.*.ipxe")
_MARKS = {
    "pxelinux.cfg": re.compile(rb"^LABEL kadeploy$", re.MULTILINE),
    "grub": re.compile(rb"^menuentry 'kadeploy' ", re.MULTILINE),
    "ipxe": re.compile(
        rb"\A#!ipxe$(?s:.*?)^(?:kernel --name kernel |set 210:string tftp://|chain tftp://)", re.MULTILINE
    ),
}


def _hex(ipv4: str) -> str:
    return ipaddress.IPv4Address(ipv4).packed.hex().upper()


_FILES: dict[Loader, Callable[[str], str]] = {
    "pxelinux": lambda ipv4: f"pxelinux.cfg/{_hex(ipv4)}",
    "grub": lambda ipv4: f"grub/grub.cfg-{_hex(ipv4)}",
    "ipxe": lambda ipv4: f"ipxe/{ipaddress.IPv4Address(ipv4)}.ipxe",
}


def address(node: Node) -> str:
    """The node's IPv4 address, as configured or as its name resolves.

    Raises:
        ConfigError: it has none.
    """
    try:
        return str(ipaddress.IPv4Address(node.address or socket.gethostbyname(node.name)))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{node.name} has no IPv4 address: give the cluster file one, or make the name resolve."
        ) from error


def _texts(sources: Sources, kind: ProfileKind, node: Node) -> dict[Loader, str]:
    """Texts by loader; the second loader of iPXE is a loader too."""
    loader = sources.cluster.loader
    if kind == "custom" or (kind == "deployed" and sources.text):
        return {loader.profiles: custom(sources, node)}
    values = _boots(sources, kind, node)
    second = _SECOND[loader.firmware]
    if loader.profiles == "ipxe" and values["boots"] != "linux":
        return {"ipxe": _filled(sources, "ipxe", values), second: _filled(sources, second, values)}
    if values["boots"] not in loaders.way(loader).boots:
        raise ConfigError(loaders.unable(loader))
    return {loader.profiles: _filled(sources, loader.profiles, values)}


_SECOND: dict[str, Loader] = {"bios": "pxelinux", "uefi": "grub"}


# --- what is booted ---------------------------------------------------------------------------------------------


def custom(sources: Sources, node: Node) -> str:
    """The user's own profile for one node.

    Raises:
        OptionError: there is no profile, or no word for this node.
        ProfileRefusedError: the node's word would add a line.
    """
    text = sources.text
    if not text.strip():
        raise OptionError("the boot profile is empty: give one with -w.")
    if NODE_PATTERN in text:
        if node.name not in sources.singularities:
            raise OptionError(f"{NODE_PATTERN} is unknown for {node.name}: give it a line with --set-pxe-pattern.")
        text = text.replace(NODE_PATTERN, parameters.printable(sources.singularities[node.name]))
    text = text.replace(f"{KERNELS_PATTERN}/{FILES_PATTERN}", FILES_PATTERN).replace(KERNELS_PATTERN, FILES_FOLDER)
    text = text.replace(FILES_PATTERN, f"{FILES_FOLDER}/pxe-{sources.user}")
    return text if text.endswith("\n") else f"{text}\n"


def _boots(sources: Sources, kind: ProfileKind, node: Node) -> dict[str, Any]:
    """Values for the templates; ``boots`` is linux, xen or disk."""
    loader = sources.cluster.loader
    if kind == "deploy":
        params = _with_secret(sources, loader.params, node)
        return _linux(sources, loader.kernel, loader.initrd, params, tell_interface=True)
    if kind == "nfsroot":
        if not loader.nfsroot_kernel:
            raise ConfigError(f"Cluster {sources.cluster.name} has no loader.nfsroot_kernel in its file.")
        params = _with_secret(sources, loader.nfsroot_params, node)
        return _linux(sources, loader.nfsroot_kernel, loader.nfsroot_initrd, params, tell_interface=True)
    environment = sources.environment
    boots = loaders.boots(loader, environment)
    if environment is None or boots == "disk":
        return _disk(sources)
    files = sources.boot_files
    values = _linux(sources, files.get("kernel", ""), files.get("initrd", ""), _root(sources, environment))
    if boots == "xen":
        hypervisor = url(sources, files.get("hypervisor", ""))
        if not hypervisor:
            raise ConfigError(f"environment {environment.name} has no hypervisor file: add `hypervisor` to it.")
        values |= {"boots": "xen", "hypervisor": hypervisor, "hypervisor_params": environment.hypervisor_params}
    return values


def _with_secret(sources: Sources, params: str, node: Node) -> str:
    return f"{params} {sources.secret.parameter(node.name)}" if sources.secret else params


def _linux(sources: Sources, kernel: str, initrd: str, params: str, *, tell_interface: bool = False) -> dict[str, Any]:
    if not kernel:
        raise ConfigError("there is no kernel file to boot: add `kernel` to the environment.")
    return {
        "boots": "linux",
        "kernel": url(sources, kernel),
        "initrd": url(sources, initrd),
        "params": params.strip(),
        "tell_interface": tell_interface,
    }


def _root(sources: Sources, environment: Environment) -> str:
    """Kernel parameters of a deployed system that is booted over the network."""
    params = f"{sources.cluster.loader.user_params} {environment.kernel_params}".strip()
    return parameters.with_root(params, f"root={partition_device(sources.device, sources.partition)}")


def _disk(sources: Sources) -> dict[str, Any]:
    chosen = sources.boot_partition
    known = sources.cluster.disk
    named = known.firmware_number if sources.device == known.device else None
    return {
        "boots": "disk",
        "disk": disk_index(sources.device) if named is None else named,
        "partition": sources.partition if chosen is None else chosen,
        "efi_partition": sources.cluster.disk.number("efi"),
    }


def disk_index(device: str) -> int:
    """The firmware's number of a disk, guessed from its name as everybody does.

    >>> disk_index("/dev/sda"), disk_index("/dev/vdb"), disk_index("/dev/nvme1n1"), disk_index("/dev/mmcblk0")
    (0, 1, 1, 0)

    Raises:
        ConfigError: a name that tells nothing.
    """
    if found := re.fullmatch(r"/dev/(?:nvme(\d+)n\d+|mmcblk(\d+)|(?:s|v|h|xv)d([a-z]))", device):
        controller, card, letter = found.groups()
        return ord(letter) - ord("a") if letter else int(controller or card)
    raise ConfigError(
        f"the name of disk {device} does not tell its number to boot loaders, as sda, vda or nvme0n1 do: "
        "set disk.firmware_number in the cluster file (0: the disk that BIOS boots first)."
    )


def url(sources: Sources, name: str) -> str:
    """Where a loader fetches *name*, a file below the folder that is served or a URL; empty stays empty."""
    return served.url(sources.site, sources.cluster.loader, name)


# --- templates --------------------------------------------------------------------------------------------------


def _filled(sources: Sources, loader: Loader, values: dict[str, Any]) -> str:
    cluster: Cluster = sources.cluster
    header = cluster.loader.header.splitlines() if loader == cluster.loader.profiles else []
    template = _templates(sources.config_dir).get_template(f"{loader}.j2")
    return template.render(values, header=header, firmware=cluster.loader.firmware, server=sources.site.server_address)


@cache
def _templates(config_dir: Path) -> jinja2.Environment:
    made = jinja2.Environment(  # noqa: S701 - no HTML
        loader=jinja2.FileSystemLoader(places(config_dir, "templates/pxe")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=parameters.printable,
    )
    made.globals.update(word=_word, device=_grub_device, quoted=parameters.grub, plain=parameters.ipxe)
    made.globals.update(appended=parameters.pxelinux, module=parameters.mboot)
    return made


def _word(text: str) -> str:
    """A value that is one word of its line."""
    if not re.fullmatch(r"[\w.:/@%+,=~\[\]-]+", text):
        raise ProfileRefusedError(f"{text!r} cannot be the name of a boot file: no blanks, quotes or other signs.")
    return text


def _grub_device(text: str) -> str:
    """A URL as GRUB writes it, ``(http,server)/path``; a path stays."""
    parts = urlsplit(_word(text))
    return f"({parts.scheme},{parts.netloc}){parts.path}" if parts.scheme else f"/{text.lstrip('/')}"
