"""``clusters/NAME.yml``: nodes that are alike, their disk, how they boot and how they are switched."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Literal

import msgspec

from kadeploy.config.file import Struct
from kadeploy.config.partition import Partition, partition_device
from kadeploy.config.site import Site
from kadeploy.environments.image import ArchiveKind
from kadeploy.errors import NodeListError
from kadeploy.nodeset import expand


class Disk(Struct, frozen=True, kw_only=True):
    """The disk that deployments go to, and how it is cut."""

    device: str = "/dev/sda"
    """``/dev/sda``, or a link of udev's below ``/dev/disk``, which stays where ``sda`` and ``sdb`` change places."""
    firmware_number: int | None = None
    """The disk's rank for BIOS and boot loaders, from 0; None: as its name says, ``/dev/sdb`` is 1."""
    table: Literal["gpt", "msdos"] = "msdos"
    partitions: tuple[Partition, ...] = ()

    @property
    def devices(self) -> list[str]:
        """Device files of the partitions of the layout."""
        return [partition_device(self.device, part.number) for part in self.partitions]

    def number(self, role: str) -> int | None:
        """Number of the partition that has *role*, None when the layout has none."""
        return next((part.number for part in self.partitions if part.role == role), None)


class Loader(Struct, frozen=True, kw_only=True):
    """How the nodes of a cluster boot over the network and from their disk."""

    firmware: Literal["bios", "uefi"] = "bios"
    profiles: Literal["pxelinux", "grub", "ipxe"] = "pxelinux"
    method: Literal["chainload", "pure_pxe"] = "chainload"
    header: str = ""
    """Lines put on top of every generated profile."""
    kernel: str = "deploy-vmlinuz"
    """Deployment kernel, a file under *http_root* or a URL."""
    initrd: str = "deploy-initrd"
    params: str = ""
    """Kernel parameters of the deployment system."""
    user_params: str = ""
    """Kernel parameters added in front of the environment's own."""
    nfsroot_kernel: str = ""
    nfsroot_initrd: str = ""
    nfsroot_params: str = ""
    show_secret: bool = True
    """Whether the deployment system gets, and must show, the secret of its try as a kernel parameter."""


class PowerCommands(Struct, frozen=True, kw_only=True):
    """Site commands; ``HOSTNAME_FQDN`` and ``HOSTNAME_SHORT`` are replaced, no shell is involved."""

    soft_reboot: str = ""
    hard_reboot: str = ""
    very_hard_reboot: str = ""
    soft_on: str = ""
    hard_on: str = ""
    very_hard_on: str = ""
    soft_off: str = ""
    hard_off: str = ""
    very_hard_off: str = ""
    status: str = ""


IPMI_PORT = 623


class Power(Struct, frozen=True, kw_only=True):
    """How the nodes are switched."""

    driver: Literal["ipmi", "redfish", "command"] = "ipmi"
    address: str = ""
    """BMC addresses: a range as long as the node range (ipmi), or base URLs (redfish)."""
    port: int = IPMI_PORT
    user: str = ""
    password_file: str = ""
    password_env: str = ""
    timeout: int = 30
    """Seconds one BMC may take for one operation."""
    off_delay: float = 5.0
    """Seconds between off and on of a very hard reboot."""
    verify_tls: bool = True
    commands: PowerCommands = PowerCommands()


class Timeouts(Struct, frozen=True, kw_only=True):
    """Seconds, or expressions of ``n`` = number of nodes, such as ``200+150*log(n)``."""

    reboot: str = "120"
    kexec: str = "60"


class AdminArchive(Struct, frozen=True, kw_only=True):
    """An archive of the administrator unpacked in *rambin_dir*, and the script in it that is run."""

    file: str
    kind: ArchiveKind = "tgz"
    script: str = "none"


class Implementation(Struct, frozen=True, kw_only=True, rename={"name": "implementation"}):
    """One way to do a macro-step: tried ``1 + retries`` times, each at most *timeout* seconds (0: no limit)."""

    name: str
    """Its playbook's; the key in the file is ``implementation``."""
    retries: int = 0
    timeout: int = 0


StepTable = tuple[tuple[str, tuple[Implementation, ...]], ...]
"""Macro-steps in order, each with its implementations in order of preference: a plan for `workflow.run`."""


class NodeRange(Struct, frozen=True, kw_only=True):
    """Names and addresses of nodes: two ranges of the same length (address empty: resolved by name)."""

    name: str
    address: str = ""
    bmc: str = ""
    """BMC addresses, a range of the same length; empty means *power.address*."""
    mac: str = ""


class Node(Struct, frozen=True, kw_only=True):
    """One machine."""

    name: str
    address: str = ""
    bmc: str = ""
    mac: str = ""


DEFAULT_MACRO_STEPS: dict[str, tuple[Implementation, ...]] = {
    "SetDeploymentEnv": (Implementation(name="SetDeploymentEnvUntrusted", retries=1, timeout=600),),
    "BroadcastEnv": (Implementation(name="BroadcastEnvChain", retries=1, timeout=900),),
    "BootNewEnv": (
        Implementation(name="BootNewEnvClassical", retries=0, timeout=600),
        Implementation(name="BootNewEnvHardReboot", retries=1, timeout=600),
    ),
}


class Cluster(Struct, frozen=True, kw_only=True):
    """``clusters/NAME.yml``: nodes that are alike."""

    name: str = ""
    """Empty in the file: the file's own name."""
    nodes: tuple[NodeRange, ...]
    arch: str = ""
    """Architecture of the nodes, such as x86_64, in the words of the environments; empty: any environment will do."""
    disk: Disk
    loader: Loader = Loader()
    power: Power = Power()
    console: str = ""
    """Command that opens a node's console (placeholders as in *PowerCommands*)."""
    console_account: str = ""
    """Account of this machine as which it runs; empty means the caller's. Never root for another user."""
    console_log: str = ""
    """File that a node's console is written to (placeholders likewise); read when a node does not come back."""
    timeouts: Timeouts = Timeouts()
    macro_steps: dict[str, tuple[Implementation, ...]] = msgspec.field(
        default_factory=lambda: dict(DEFAULT_MACRO_STEPS)
    )
    micro_timeouts: dict[str, int] = {}
    """Seconds per micro-step (by role name) in place of what the role says itself, 0 for no limit."""
    micro_retries: dict[str, int] = {}
    pre_installs: tuple[AdminArchive, ...] = ()
    post_installs: tuple[AdminArchive, ...] = ()
    supported_filesystems: tuple[str, ...] = ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat")
    kexec_dir: str = "/dev/shm/kexec"  # noqa: S108 - a folder on the nodes
    broadcast_command: str = ""
    """Site command of BroadcastEnvCustom (``ENVFILE``, ``NODEFILE`` are replaced)."""

    @cached_property
    def members(self) -> dict[str, Node]:
        """Nodes by name; a name that is listed twice is a NodeListError."""
        found = [node for part in self.nodes for node in _members(part, self.power)]
        members = {node.name: node for node in found}
        if len(members) < len(found):
            twice = next(name for name, count in Counter(node.name for node in found).items() if count > 1)
            raise NodeListError(f"{twice} is listed twice.")
        return members


def address(site: Site, node: Node) -> str:
    """Where *node* answers: its address, or its name when the site resolves names."""
    return node.address if site.use_address and node.address else node.name


def _members(part: NodeRange, power: Power) -> list[Node]:
    names = expand(part.name)
    columns = {"address": part.address, "bmc": part.bmc or power.address, "mac": part.mac}
    values: dict[str, list[str]] = {}
    for key, pattern in columns.items():
        expanded = _column(pattern, len(names))
        if len(expanded) != len(names):
            raise NodeListError(
                f"{key}: {pattern!r} has {len(expanded)} values for {len(names)} nodes in {part.name!r}."
            )
        values[key] = expanded
    return [Node(name=name, **{key: column[rank] for key, column in values.items()}) for rank, name in enumerate(names)]


def _column(pattern: str, count: int) -> list[str]:
    if not pattern:
        return [""] * count
    prefix, separator, rest = pattern.partition("://")
    if separator:  # a base URL per node
        return [f"{prefix}://{value}" for value in _slashed(rest)]
    return [pattern] if ":" in pattern else expand(pattern)


def _slashed(rest: str) -> list[str]:
    """Expand a URL's host part, keep its port and path."""
    host = rest.split("/", 1)[0].rsplit(":", 1)[0]
    return [rest.replace(host, value, 1) for value in expand(host)]
