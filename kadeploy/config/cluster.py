"""``clusters/NAME.yml``: nodes that are alike, their disk, how they boot and how they are switched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from typing import Annotated, Literal

import msgspec

from kadeploy.config.file import Struct
from kadeploy.config.hardware import Hardware
from kadeploy.config.installs import AdminArchive, PostInstall
from kadeploy.config.inventory import Inventory
from kadeploy.config.pairing import extremes, paired
from kadeploy.config.partition import Partition, layout_wrong, partition_device, split_partition
from kadeploy.config.rules import (
    BMC,
    HOST,
    MAC,
    OUR_FILE_SYSTEMS,
    URL,
    BootFile,
    BroadcastCommand,
    Count,
    FileSystem,
    FolderOnNode,
    Line,
    Name,
    NodeCommand,
    NodePath,
    Port,
    Positive,
    Rule,
    SecretVariable,
    User,
    Wrong,
    expects,
    shown,
)
from kadeploy.config.site import Site
from kadeploy.config.timeouts import evaluate_timeout
from kadeploy.errors import NodeListError, OptionError, PairingError
from kadeploy.hints import did_you_mean

_DEVICE = re.compile(r"/dev(?:/[A-Za-z0-9][A-Za-z0-9_.:+@=-]*)+")


def _whole_disk(text: str) -> str:
    """The disk that somebody named a part of, or without its folder."""
    named = text.strip()
    named = named if named.startswith("/") else f"/dev/{named.removeprefix('dev/')}"
    disk, _ = split_partition(named)
    return f"{disk}n1" if re.fullmatch(r"/dev/nvme\d+", disk) else disk


def _is_disk(text: str) -> bool:
    return bool(_DEVICE.fullmatch(text)) and text == _whole_disk(text)


Device = Annotated[str, expects(_is_disk, "a whole disk, such as /dev/sda or /dev/disk/by-id/…", meant=_whole_disk)]


class Disk(Struct, frozen=True, kw_only=True):
    """The disk that deployments go to, and how it is cut."""

    device: Device = "/dev/sda"
    """``/dev/sda``, or a link of udev's below ``/dev/disk``, which stays where ``sda`` and ``sdb`` change places."""
    firmware_number: Count | None = None
    """The disk's rank for BIOS and boot loaders, from 0; None: as its name says, ``/dev/sdb`` is 1."""
    table: Literal["gpt", "msdos"] = "msdos"
    partitions: tuple[Partition, ...] = ()

    def contradictions(self) -> Iterable[Wrong]:
        """Of the layout."""
        for wrong in layout_wrong(self.table, self.partitions):
            line_of = ("partitions", *wrong.line_of) if wrong.line_of else ()
            yield Wrong(("partitions", *wrong.place), wrong.said, line_of)

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
    secure_boot: bool = False
    """UEFI's Secure Boot: nodes load what is signed (shim, GRUB, kernels), and all of it by TFTP."""
    kernel: BootFile = "deploy-vmlinuz"
    """Deployment kernel, a file under *http_root* (with *secure_boot* under *tftp_root*) or a URL."""
    initrd: BootFile = "deploy-initrd"
    params: Line = ""
    """Kernel parameters of the deployment system."""
    user_params: Line = ""
    """Kernel parameters added in front of the environment's own."""
    nfsroot_kernel: BootFile = ""
    nfsroot_initrd: BootFile = ""
    nfsroot_params: Line = ""
    show_secret: bool = True
    """Whether the deployment system gets, and must show, the secret of its try as a kernel parameter."""

    def contradictions(self) -> Iterable[Wrong]:
        """Of Secure Boot: what Debian has signed, and what that can fetch."""
        if not self.secure_boot:
            return
        if self.firmware != "uefi":
            said = f"{self.firmware} has no Secure Boot; expected uefi, or no secure_boot."
            yield Wrong(("firmware",), said, ("secure_boot",))
        if self.profiles != "grub":
            said = f"Debian has no {self.profiles} signed for Secure Boot; expected grub, or no secure_boot."
            yield Wrong(("profiles",), said, ("secure_boot",))
        for key in ("kernel", "initrd", "nfsroot_kernel", "nfsroot_initrd"):
            name: str = getattr(self, key)
            if "://" in name and not name.startswith("tftp://"):
                said = f"{shown(name)}: with Secure Boot GRUB speaks TFTP alone; expected a file below boot.tftp_root."
                yield Wrong((key,), said)


class PowerCommands(Struct, frozen=True, kw_only=True):
    """Site commands; ``HOSTNAME_FQDN`` and ``HOSTNAME_SHORT`` are replaced, no shell is involved."""

    soft_reboot: NodeCommand = ""
    hard_reboot: NodeCommand = ""
    very_hard_reboot: NodeCommand = ""
    soft_on: NodeCommand = ""
    hard_on: NodeCommand = ""
    very_hard_on: NodeCommand = ""
    soft_off: NodeCommand = ""
    hard_off: NodeCommand = ""
    very_hard_off: NodeCommand = ""
    status: NodeCommand = ""


IPMI_PORT = 623


class Power(Struct, frozen=True, kw_only=True):
    """How the nodes are switched."""

    driver: Literal["ipmi", "redfish", "command"] = "ipmi"
    address: str = ""
    """BMC addresses: a range as long as the node range (ipmi), or base URLs (redfish)."""
    port: Port = IPMI_PORT
    user: str = ""
    password_file: str = ""
    password_env: SecretVariable = ""
    timeout: Positive = 30
    """Seconds one BMC may take for one operation."""
    off_delay: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0
    """Seconds between off and on of a very hard reboot."""
    verify_tls: bool = True
    network_boot: Literal["once", "leave"] = "once"
    """Before a reboot the BMC is told to have the node boot from the network once; or its boot order is left alone."""
    commands: PowerCommands = PowerCommands()

    def contradictions(self) -> Iterable[Wrong]:
        """Of how to log in."""
        if self.password_file and self.password_env:
            yield Wrong(("password_env",), "password_file is given too; leave out one of the two.")
        if self.driver == "command":
            if self.commands == PowerCommands():
                said = "the driver command needs at least one command; expected power.commands.status and others."
                yield Wrong(("commands",), said)
        elif self.user and not (self.password_file or self.password_env):
            yield Wrong(
                ("user",), f"{shown(self.user)} has no password; expected password_file or password_env as well."
            )


class Timeouts(Struct, frozen=True, kw_only=True):
    """Seconds, or expressions of ``n`` = number of nodes, such as ``200+150*log(n)``."""

    reboot: str = "120"
    kexec: str = "60"


class Implementation(Struct, frozen=True, kw_only=True, rename={"name": "implementation"}):
    """One way to do a macro-step: tried ``1 + retries`` times, each at most *timeout* seconds (0: no limit)."""

    name: str
    """Its playbook's; the key in the file is ``implementation``."""
    retries: Count = 0
    timeout: Count = 0


AUTO = "auto"
"""In place of an implementation: kexec where it has proved itself, else the ways behind it (`operations.choice`)."""
KEXEC = {"SetDeploymentEnv": "SetDeploymentEnvKexec", "BootNewEnv": "BootNewEnvKexec"}
"""What `AUTO` stands for, by macro-step."""

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


ARM64 = frozenset({"aarch64", "arm64"})
"""Both words for the architecture."""
Architecture = Annotated[
    str,
    expects(lambda text: re.fullmatch(r"[A-Za-z0-9_]+", text) is not None, "one word, such as x86_64 or aarch64"),
]


class Cluster(Struct, frozen=True, kw_only=True):
    """``clusters/NAME.yml``: nodes that are alike."""

    name: Name = ""
    """Empty in the file: the file's own name."""
    nodes: tuple[NodeRange, ...] = ()
    inventory: Inventory | None = None
    """In place of *nodes*: where an Ansible inventory has them."""
    arch: Architecture = ""
    """Architecture of the nodes, such as x86_64, in the words of the environments; empty: any environment will do."""
    disk: Disk
    loader: Loader = Loader()
    power: Power = Power()
    console: NodeCommand = ""
    """Command that opens a node's console (placeholders as in *PowerCommands*)."""
    console_account: User = ""
    """Account of this machine as which it runs; empty means the caller's. Never root for another user."""
    console_log: NodePath = ""
    """File that a node's console is written to (placeholders likewise); read when a node does not come back."""
    timeouts: Timeouts = Timeouts()
    macro_steps: dict[str, tuple[Implementation, ...]] = msgspec.field(
        default_factory=lambda: dict(DEFAULT_MACRO_STEPS)
    )
    micro_timeouts: dict[str, Count] = {}
    """Seconds per micro-step (by role name) in place of what the role says itself, 0 for no limit."""
    micro_retries: dict[str, Count] = {}
    pre_installs: tuple[AdminArchive, ...] = ()
    post_installs: tuple[PostInstall, ...] = ()
    supported_filesystems: tuple[FileSystem, ...] = OUR_FILE_SYSTEMS
    kexec_dir: FolderOnNode = "/dev/shm/kexec"  # noqa: S108 - a folder on the nodes
    workers: Literal["never", "prefer", "only"] = "never"
    """Whether other machines carry out what is done to its nodes (``service.workers`` of the site): where one is there,
    or always, because this machine does not reach the nodes."""
    broadcast_command: BroadcastCommand = ""
    """Site command of BroadcastEnvCustom (``ENVFILE``, ``NODEFILE`` are replaced)."""
    hardware: tuple[Hardware, ...] = ()
    """What the nodes are, as ``kadeploy-site inspect`` has found them; no deployment depends on it."""

    def contradictions(self) -> Iterable[Wrong]:
        """Of nodes and macro-steps; addresses are looked at when the ranges of nodes are known to be right."""
        yield from _macro_steps_wrong(self)
        if self.loader.secure_boot and self.arch in ARM64:
            said = f"it is true, and arch is {self.arch}: Secure Boot is done for x86-64 alone; expected false."
            yield Wrong(("loader", "secure_boot"), said)
        if self.inventory is not None:
            yield from _ranges_besides(self)
            return
        try:
            members = self.members
        except NodeListError as error:
            yield from _ranges_wrong(self, error)
            return
        if not members:
            yield Wrong(("nodes",), "no node is given; expected a list of at least one, or the key inventory.")
        yield from _addresses_wrong(self, self._of_ranges)
        have_bmcs = any(node.bmc for node in members.values())
        yield from _bmcs_wrong(self.power, have_bmcs, "the nodes have BMCs" if have_bmcs else "")
        yield from _timeouts_wrong(self.timeouts, len(members))

    @property
    def implementations(self) -> list[str]:
        """All that its deployments may go through, in order; kexec where they choose."""
        ways = ((step, way.name) for step, each in self.macro_steps.items() for way in each)
        return [KEXEC.get(step, name) if name == AUTO else name for step, name in ways]

    def take(self, nodes: Iterable[Node], stranger: str) -> Iterator[Wrong]:
        """Have *nodes*, which its inventory tells; what is wrong with the cluster now.

        *stranger* is one whose BMC has no user and no password of its own, where there is one.
        """
        members = self.__dict__["members"] = {node.name: node for node in nodes}  # where `members` keeps what it tells
        yield from _timeouts_wrong(self.timeouts, len(members))
        strangers = f"{stranger} has a BMC without a user and a password of its own," if stranger else ""
        yield from _bmcs_wrong(self.power, any(node.bmc for node in members.values()), strangers)

    @cached_property
    def file(self) -> str:
        """Its file below the configuration folder, as messages name it; `load_configuration` tells one of another name.

        What is known of a cluster elsewhere, in a request for instance, goes by its name.
        """
        return f"clusters/{self.name}.yml"

    def place_of(self, node: str) -> tuple[str | int, ...]:
        """Where the range of *node* is in the file."""
        if self.inventory is not None:
            return ("inventory",)
        named = (rank for rank, part in enumerate(self._of_ranges) if any(each.name == node for each in part))
        return ("nodes", next(named, 0))

    @cached_property
    def _of_ranges(self) -> list[list[Node]]:
        return [_members(part, self.power) for part in self.nodes]

    @cached_property
    def members(self) -> dict[str, Node]:
        """Nodes by name; a name that is listed twice is a NodeListError, and so is an inventory that is not read.

        Those of an inventory are read with the whole configuration (`load_configuration`).
        """
        if self.inventory is not None:
            raise NodeListError(f"{self.file}: its inventory has not been read.")
        found = [node for members in self._of_ranges for node in members]
        members = {node.name: node for node in found}
        if len(members) < len(found):
            twice = next(name for name, count in Counter(node.name for node in found).items() if count > 1)
            raise NodeListError(f"{twice} is listed twice.")
        return members


def address(site: Site, node: Node) -> str:
    """Where *node* answers: its address, or its name when the site resolves names."""
    return node.address if site.use_address and node.address else node.name


def _members(part: NodeRange, power: Power) -> list[Node]:
    columns = {"address": part.address, "bmc": part.bmc or power.address, "mac": part.mac}
    rows = zip(*paired(part.name, columns).values(), strict=True)
    return [Node(name=name, address=address, bmc=bmc, mac=mac) for name, address, bmc, mac in rows]


# --- what is wrong ----------------------------------------------------------------------------------------------


def _ranges_wrong(cluster: Cluster, error: NodeListError) -> Iterator[Wrong]:
    """Ranges of nodes that cannot be paired, or a node that is in two."""
    found = False
    for rank, part in enumerate(cluster.nodes):
        try:
            _members(part, cluster.power)
        except PairingError as wrong:
            found = True
            place = ("power", "address") if wrong.key == "bmc" and not part.bmc else ("nodes", rank, wrong.key)
            yield Wrong(place, wrong.said)
    if not found:
        twice = str(error).partition(" ")[0]
        ranks = [
            rank
            for rank, part in enumerate(cluster.nodes)
            for each in _members(part, cluster.power)
            if each.name == twice
        ]
        yield Wrong(("nodes", ranks[-1], "name"), str(error))


def _addresses_wrong(cluster: Cluster, of_ranges: list[list[Node]]) -> Iterator[Wrong]:
    """Of each range what its values are like."""
    rules = rules_of(cluster.power.driver)
    for rank, (part, nodes) in enumerate(zip(cluster.nodes, of_ranges, strict=True)):
        for key, rule in rules.items():
            own: str = getattr(part, key)
            pattern = own or (cluster.power.address if key == "bmc" else "")
            ends = extremes(pattern, nodes) if pattern else ()
            said = next(filter(None, (rule.broken(getattr(node, key)) for node in ends)), "")
            if said:
                yield Wrong(("nodes", rank, key) if own else ("power", "address"), said)


def rules_of(driver: str) -> dict[str, Rule]:
    """What name, addresses and MAC address of a node are like, by `Node`'s attributes; *driver* switches it."""
    of_bmc: Rule | None = {"ipmi": BMC, "redfish": URL}.get(driver)
    return {"name": HOST, "address": HOST, "mac": MAC} | ({"bmc": of_bmc} if of_bmc else {})


def _ranges_besides(cluster: Cluster) -> Iterator[Wrong]:
    """Nodes and addresses beside the inventory that tells them."""
    if cluster.nodes:
        yield Wrong(("nodes",), "the key inventory is given too; leave out one of the two.")
    if cluster.power.address:
        said = "the inventory tells the BMCs of the nodes; leave it out, or write inventory.variables.bmc."
        yield Wrong(("power", "address"), said)


def _bmcs_wrong(power: Power, have_bmcs: bool, strangers: str) -> Iterator[Wrong]:
    """No BMC, or nobody to log in as; *strangers*: nodes whose BMCs have no login of their own, where there are any."""
    if power.driver == "ipmi" and strangers and not (power.user or power.password_file or power.password_env):
        said = f"{strangers} and there is nobody to log in as; expected user, and password_file or password_env."
        yield Wrong(("power",), said)
    if power.driver == "redfish" and not have_bmcs:
        said = "no node has a BMC, which the driver redfish needs; expected nodes[].bmc or power.address."
        yield Wrong(("power", "driver"), said)


def _timeouts_wrong(timeouts: Timeouts, count: int) -> Iterator[Wrong]:
    """Expressions that give no time for one node, or for all."""
    for key in ("reboot", "kexec"):
        if said := _timeout_wrong(getattr(timeouts, key), count):
            yield Wrong(("timeouts", key), said)


@lru_cache(maxsize=256)
def _timeout_wrong(expression: str, count: int) -> str:
    """What is wrong with a time-out of up to *count* nodes; clusters have the same ones."""
    try:
        for nodes in (1, count):
            evaluate_timeout(expression, nodes)
    except OptionError as error:
        number = re.fullmatch(r"\s*(\d+)\s*(?:s|sec|seconds?)\s*", expression)
        return f"{error} Did you mean {number[1]}?" if number else str(error)
    return ""


_NEEDED: dict[str, tuple[tuple[str, ...], str]] = {
    "BroadcastEnvCustom": (("broadcast_command",), "the command that sends the image"),
    "SetDeploymentEnvNfsroot": (("loader", "nfsroot_kernel"), "the kernel of its system, below boot.http_root"),
}
"""What implementations need: a key and its meaning."""


def _macro_steps_wrong(cluster: Cluster) -> Iterator[Wrong]:
    known = list(DEFAULT_MACRO_STEPS)
    for step, ways in cluster.macro_steps.items():
        if step not in DEFAULT_MACRO_STEPS:
            said = f"unknown macro-step {shown(step)}; expected {', '.join(known)}.{did_you_mean(step, known)}"
            yield Wrong(("macro_steps", step), said)
            continue
        for rank, way in enumerate(ways):
            place = ("macro_steps", step, rank, "implementation")
            if way.name == AUTO:
                said = _auto_wrong(step, rank, ways)
                yield from [Wrong(place, said)] if said else []
                continue
            if not way.name.startswith(step):
                yield Wrong(
                    place, f"{shown(way.name)} is no implementation of {step}; expected a name such as {step}Mine."
                )
            key, meaning = _NEEDED.get(way.name, ((), ""))
            if key and not _value(cluster, key):
                yield Wrong(place, f"{way.name} needs {'.'.join(key)}, {meaning}.")
    missing = [step for step in known if not cluster.macro_steps.get(step)]
    if missing and set(cluster.macro_steps) <= set(known):  # else one of them has a wrong name
        yield Wrong(("macro_steps",), f"expected at least one implementation of {', '.join(missing)}.")


def _auto_wrong(step: str, rank: int, ways: tuple[Implementation, ...]) -> str:
    """What is wrong with the word `AUTO` at that place; empty when nothing is."""
    if step not in KEXEC:
        return f"{AUTO} chooses how nodes boot, and {step} boots none; expected an implementation, as {step}Chain."
    if rank:
        return f"{AUTO} is only known in the first place; expected an implementation."
    others = [way.name for way in ways[1:] if way.name not in (AUTO, KEXEC[step])]
    if not others:
        usual = DEFAULT_MACRO_STEPS[step][0].name
        return f"behind {AUTO} nothing boots through the firmware; expected another way behind it, as {usual}."
    if any(way.name == KEXEC[step] for way in ways):
        return f"{AUTO} stands for {KEXEC[step]}, which is given too; leave out one of the two."
    return ""


def _value(held: object, key: tuple[str, ...]) -> object:
    for name in key:
        held = getattr(held, name)
    return held
