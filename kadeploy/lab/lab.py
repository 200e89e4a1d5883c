"""What a lab is: its size, its faults, and the names, addresses and paths that follow from them."""

from __future__ import annotations

import contextlib
import os
import re
from functools import cached_property
from pathlib import Path

import msgspec

from kadeploy.config.file import Struct
from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean, of_nodes
from kadeploy.nodeset import expand

STATE_ROOT = Path("/var/lib/kadeploy-lab")
RUN_ROOT = Path("/run/kadeploy-lab")
CACHE = Path("/var/cache/kadeploy-lab")
"""Images built for labs, kept when a lab goes down."""

CONTROLLER = "10.177.0.1"
PREFIX = 16
MARKER = "lab.json"
"""File that tells that a folder belongs to a lab; only such folders are ever removed."""

MAX_NODES = 200
MAX_SIM_NODES = 2000

FAULTS = {
    "dead": "the BMC does not answer",
    "mute": "the BMC answers, but the machine never boots",
    "small-disk": "the disk is too small for the partition layout",
    "bad-disk": "the disk cannot be written where the deployment partition begins",
    "refuse-ssh": "its deployment system refuses ssh connections",
    "wrong-key": "its deployment system shows another host key than the known one",
    "hang": "its command that cuts the disk never ends",
    "slow": "each of its commands takes a second longer",
    "die": "its power fails in the middle of the broadcast",
    "bmc-says-on": "its BMC says that it is on, whatever it is",
    "bmc-says-off": "its BMC says that it is off, whatever it is",
    "bmc-idle": "its BMC takes every order and does nothing",
    "bmc-late": "its BMC does what it was told twenty seconds later",
    "impostor": "it answers as the deployment system, but has not booted by its profile",
    "stay": "its deployment system goes on, whatever is ordered",
    "lie-bytes": "it tells of another size than the image's",
    "lie-digest": "it tells another SHA-256 than the image's",
    "spoil": "it passes on other bytes than the image's",
    "no-kexec": "a kernel that kexec starts there never comes up",
}
"""What can be wrong with a node on purpose."""

SECTOR, BIG_SECTOR = 512, 4096
"""Bytes of a sector of a node's disk."""

FIRMWARE = ("bios", "uefi", "secure-boot")
"""What machines boot by; the last is UEFI that knows Microsoft's keys and loads nothing that is not signed."""

_SIM_ROW = 250
"""Addresses of sim nodes in one row: 127.1.0.1 to 127.1.0.250, 127.1.1.1 and so on."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")


class LabNode(Struct, frozen=True, kw_only=True):
    """One machine of a lab."""

    rank: int
    """From 1."""
    name: str
    address: str
    bmc: str
    mac: str
    fault: str = ""
    """A key of `FAULTS`, or empty."""
    nvme: bool = False
    """Whether its disk is ``/dev/nvme0n1``; else it is ``/dev/sda``."""
    sector: int = 512
    """Bytes of a sector of its disk."""


class Lab(Struct, frozen=True, kw_only=True):
    """One virtual cluster: what ``up`` was asked, kept in ``lab.json``."""

    name: str = "kadeploy-lab"
    """Also the name of its network namespace."""
    kind: str = "vm"
    nodes: int = 2
    memory: int = 768
    """MiB per node."""
    disk: int = 8
    """GiB per node, allocated as it is written."""
    firmware: str = "bios"
    """One of `FIRMWARE`."""
    kvm: bool = False
    faults: dict[str, str] = {}
    """Node name → key of `FAULTS`."""
    nvme: tuple[str, ...] = ()
    """Nodes with an NVMe disk."""
    big_sectors: tuple[str, ...] = ()
    """Nodes with a disk of 4096-byte sectors."""
    backend: str = "openssh"
    """What answers ssh on sim nodes: ``openssh`` or ``light``."""
    boot_delay: float = 0.0
    """Seconds that sim nodes take to boot."""
    environments: tuple[str, ...] = ("tiny", "debian12-min")
    """Environments to build, so that they can be deployed."""
    folder: str = ""
    """Empty: a folder named after the lab under `STATE_ROOT`."""
    service: bool = True
    """Whether `kadeploy3d` serves it."""
    bare: bool = False
    """Machines and BMCs alone, without anything of a site: that is still to be set up."""

    @property
    def uefi(self) -> bool:
        """Whether its machines boot by UEFI."""
        return self.firmware != "bios"

    @property
    def secure_boot(self) -> bool:
        """Whether their firmware checks signatures."""
        return self.firmware == "secure-boot"

    @property
    def root(self) -> Path:
        """Folder of everything that outlives a restart of the machine."""
        return Path(self.folder) if self.folder else STATE_ROOT / self.name

    @property
    def run(self) -> Path:
        """Folder of sockets and process files (short, since a socket's path has at most 107 bytes)."""
        return RUN_ROOT / self.name

    @property
    def config(self) -> Path:
        """The generated configuration folder: ``KADEPLOY_CONFIG_DIR``."""
        return self.root / "config"

    @property
    def keys(self) -> Path:
        """The deployment key and the BMC password."""
        return self.root / "keys"

    @property
    def private_key(self) -> Path:
        """Key that enters the deployment system."""
        return self.keys / "deployment"

    @property
    def public_key(self) -> Path:
        """Its public half: what ``kadeploy3 -k`` takes."""
        return self.keys / "deployment.pub"

    @property
    def bmc_password(self) -> Path:
        """File that holds the BMCs' password."""
        return self.keys / "bmc-password"

    @property
    def tftp(self) -> Path:
        """Loaders and profiles."""
        return self.root / "tftp"

    @property
    def http(self) -> Path:
        """Kernels and initrds."""
        return self.root / "http"

    @property
    def environments_folder(self) -> Path:
        """Descriptions of the built environments."""
        return self.root / "environments"

    @property
    def disks(self) -> Path:
        """Disks of the nodes."""
        return self.root / "disks"

    @property
    def tree(self) -> Path:
        """Link to the deployment system's tree, in which light nodes live."""
        return self.root / "tree"

    @property
    def logs(self) -> Path:
        """One log per daemon, one serial log per node."""
        return self.root / "logs"

    @property
    def state(self) -> Path:
        """``state_dir`` of the site."""
        return self.root / "state"

    @property
    def control(self) -> Path:
        """Socket of the supervisor."""
        return self.run / "control.sock"

    @property
    def socket(self) -> Path:
        """Socket of the service, in a folder of its own."""
        return self.run / "service" / "kadeploy3d.sock"

    def lend(self, path: Path) -> None:
        """Let the service use *path*, a socket that was made for root."""
        with contextlib.suppress(FileNotFoundError):  # what made it has ended at once
            owner = self.state.stat()
            os.chown(path, owner.st_uid, owner.st_gid)

    @property
    def pid_file(self) -> Path:
        """Process file of the supervisor."""
        return self.run / "supervisor.pid"

    def serial(self, node: str) -> Path:
        """Socket of a node's serial line."""
        return self.run / f"{node}.serial"

    def serial_lock(self, node: str) -> Path:
        """File that whoever is on a node's serial line has locked."""
        return self.run / f"{node}.console"

    def serial_log(self, node: str) -> Path:
        """Everything a node wrote to its serial line, all boots one after the other."""
        return self.logs / f"{node}.serial.log"

    def log(self, service: str) -> Path:
        """Log of the supervisor or of one of its services."""
        return self.logs / f"{service.replace(' ', '-')}.log"

    @cached_property
    def members(self) -> dict[str, LabNode]:
        """Nodes by name."""
        return {f"node-{rank}": self._member(rank) for rank in range(1, self.nodes + 1)}

    def _member(self, rank: int) -> LabNode:
        return LabNode(
            rank=rank,
            name=f"node-{rank}",
            address=self._address(1, rank),
            bmc=self._address(2, rank),
            mac=f"52:54:00:b1:{1 + rank // 256:02x}:{rank % 256:02x}",
            fault=self.faults.get(f"node-{rank}", ""),
            nvme=f"node-{rank}" in self.nvme,
            sector=BIG_SECTOR if f"node-{rank}" in self.big_sectors else SECTOR,
        )

    def _address(self, network: int, rank: int) -> str:
        """In network 1 the node's, in network 2 its BMC's."""
        if self.kind == "sim":
            row, place = divmod(rank - 1, _SIM_ROW)
            return f"127.{network}.{row}.{place + 1}"
        return f"10.177.{network}.{rank}"

    @property
    def controller(self) -> str:
        """Address of this machine as the nodes see it."""
        return "127.0.0.1" if self.kind == "sim" else CONTROLLER

    def member(self, name: str) -> LabNode:
        """The node called *name*; raises OptionError with the names that exist."""
        if name not in self.members:
            hint = of_nodes([name], self.members) or f" Its nodes are {self.column('node-')}."
            raise OptionError(f"The lab {self.name} has no {name!r}.{hint}")
        return self.members[name]

    def column(self, prefix: str) -> str:
        """Names or addresses of all nodes as a range: ``node-[1-4]``, ``10.177.2.[1-4]``."""
        return f"{prefix}1" if self.nodes == 1 else f"{prefix}[1-{self.nodes}]"

    def save(self) -> None:
        """Write the lab's description to both its folders, before anything else is made for it."""
        for folder in (self.run, self.root):
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            (folder / MARKER).write_bytes(msgspec.json.format(msgspec.json.encode(self)))


def checked(lab: Lab) -> Lab:
    """*lab*, when it makes sense; raises OptionError naming the option that does not."""
    if not _NAME.match(lab.name):
        raise OptionError(f"--name {lab.name!r}: lower-case letters, digits and '-' only, at most 31 of them.")
    most = MAX_SIM_NODES if lab.kind == "sim" else MAX_NODES
    if not 1 <= lab.nodes <= most:
        raise OptionError(f"--nodes {lab.nodes}: expected a number from 1 to {most}.")
    if lab.boot_delay < 0:
        raise OptionError(f"--boot-delay {lab.boot_delay:g}: expected seconds.")
    if lab.firmware not in FIRMWARE:
        raise OptionError(
            f"--firmware {lab.firmware}: expected {', '.join(FIRMWARE)}.{did_you_mean(lab.firmware, FIRMWARE)}"
        )
    if lab.secure_boot and lab.kind != "vm":
        raise OptionError(f"--firmware {lab.firmware}: nodes of kind {lab.kind} have none: take --kind vm.")
    if lab.bare and lab.kind != "vm":
        raise OptionError(f"--bare: nodes of kind {lab.kind} are part of a site: take --kind vm.")
    if lab.folder and not Path(lab.folder).is_absolute():
        raise OptionError(f"--folder {lab.folder}: expected an absolute path.")
    for name in (*lab.faults, *lab.nvme, *lab.big_sectors):
        lab.member(name)
    if lab.kind != "vm" and (lab.nvme or lab.big_sectors):
        raise OptionError(f"--nvme, --big-sectors: nodes of kind {lab.kind} have no such disks: take --kind vm.")
    return lab


def faults(ranges: dict[str, str]) -> dict[str, str]:
    """Node → fault from fault → node range; raises OptionError for a node with two faults.

    >>> faults({"dead": "node-[2-3]", "mute": ""})
    {'node-2': 'dead', 'node-3': 'dead'}
    """
    found: dict[str, str] = {}
    for fault, pattern in ranges.items():
        for name in expand(pattern) if pattern else ():
            if name in found:
                raise OptionError(f"{name} cannot be both {found[name]} and {fault}: give it one fault.")
            found[name] = fault
    return found


def existing() -> list[str]:
    """Names of the labs of this machine, save those in folders of their own that are down."""
    return sorted({path.parent.name for root in (RUN_ROOT, STATE_ROOT) for path in root.glob(f"*/{MARKER}")})


def saved(name: str, folder: str = "") -> Lab | None:
    """The lab called *name* as its last ``up`` described it, None when there is none."""
    for place in (RUN_ROOT / name, Path(folder) if folder else STATE_ROOT / name):
        try:
            return msgspec.json.decode((place / MARKER).read_bytes(), type=Lab)
        except (OSError, msgspec.DecodeError):
            continue
    return None
