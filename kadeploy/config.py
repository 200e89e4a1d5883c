"""The site and its clusters, read from YAML and validated.

A configuration folder (``$KADEPLOY_CONFIG_DIR``, else ``/etc/kadeploy``) holds ``site.yml``, one ``clusters/NAME.yml``
per cluster and, if the site adds macro-steps of its own, ``playbooks/`` and ``roles/``. No secret is ever a value in
these files: they name the file or environment variable that holds it.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml

from kadeploy.errors import ConfigError, NodeListError
from kadeploy.nodeset import expand

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

DEFAULT_FOLDER = Path("/etc/kadeploy")


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """What every configuration object is: read-only, and strict about unknown keys."""


# --- a site -----------------------------------------------------------------------------------------------------


class Ssh(Struct, frozen=True, kw_only=True):
    """How the controller enters the deployment system."""

    private_key: str
    """Path of the site's deployment key (mode 0600)."""
    host_key: str
    """The deployment system's known public host key, ``ssh-ed25519 AAAA…`` (pinned on every connection)."""
    port: int = 22
    connect_timeout: int = 10
    """Seconds until a connection attempt is given up."""


class Boot(Struct, frozen=True, kw_only=True):
    """Where loaders find their files."""

    tftp_root: str
    """Folder served over TFTP (loaders and profiles)."""
    http_root: str
    """Folder served over HTTP (kernels, initrds, uploaded files)."""
    http_url: str
    """URL of *http_root* as nodes reach it, ending in ``/``."""
    uploads_max_mb: int = 500
    """Size limit of all files uploaded by ``-x``; the least recently used ones go first."""


class Windows(Struct, frozen=True, kw_only=True):
    """How many nodes are handled at a time, across all workflows of this controller."""

    reboot: int = 50
    check: int = 200
    ssh: int = 100
    """Commands at a time on nodes, within one micro-step."""


class Limits(Struct, frozen=True, kw_only=True):
    """Size limits of user files, in MB."""

    preinstall: int = 20
    postinstall: int = 20


class Vlan(Struct, frozen=True, kw_only=True):
    """VLAN support: a host name suffix holding ``VLAN_ID`` and the command that moves nodes."""

    hostname_suffix: str
    set_command: str
    """Words split like a shell does; ``NODES``, ``VLAN_ID`` and ``USER`` are replaced as whole arguments."""


class Demolishing(Struct, frozen=True, kw_only=True):
    """When an environment counts as demolishing (``kareboot3 -c``)."""

    threshold: int = 0
    auto_tag: bool = False


class Hooks(Struct, frozen=True, kw_only=True):
    """Commands run when an operation has ended; the word ``WORKFLOW_ID`` is replaced."""

    end_of_deployment: str = ""
    end_of_reboot: str = ""
    end_of_power: str = ""


class Site(Struct, frozen=True, kw_only=True):
    """``site.yml``."""

    name: str
    state_dir: str
    """Folder of the database, run folders, windows and caches."""
    server_address: str
    """Address of the controller as nodes reach it."""
    ssh: Ssh
    boot: Boot
    database: str = ""
    """``sqlite:///PATH``, ``postgresql://…`` or ``mysql://…``; empty means SQLite in *state_dir*."""
    rights: Literal["db", "dummy"] = "db"
    almighty_users: tuple[str, ...] = ("root",)
    purge_deployment_timer: int = 900
    """Seconds after which a claim left by a dead controller elsewhere no longer counts."""
    marker_port: int = 25300
    network_namespace: str = ""
    """Enter this network namespace before any traffic (used by the lab)."""
    extraction_dir: str = "/mnt/dest"
    rambin_dir: str = "/rambin"
    mkfs_options: dict[str, str] = {}
    windows: Windows = Windows()
    limits: Limits = Limits()
    vlan: Vlan | None = None
    demolishing: Demolishing = Demolishing()
    hooks: Hooks = Hooks()
    end_hook_timeout: int = 20
    broadcast_arity: int = 1
    broadcast_port: int = 25310
    broadcast_patience: Annotated[float, msgspec.Meta(gt=0)] = 3.5
    """Seconds for which a node may give no sign of life during a broadcast before the others go on without it."""
    verbosity: int = 3
    use_address: bool = True
    """Reach nodes by the address in the cluster file rather than by name."""

    @property
    def state(self) -> Path:
        """*state_dir* as a path."""
        return Path(self.state_dir)


# --- a cluster --------------------------------------------------------------------------------------------------


class Partition(Struct, frozen=True, kw_only=True):
    """One line of the partition layout."""

    number: int
    size: str = ""
    """``512MiB``, ``4GiB``…; empty means the rest of the disk (last partition only)."""
    role: Literal["swap", "prod", "deploy", "tmp", "efi", "other"] = "other"


class Disk(Struct, frozen=True, kw_only=True):
    """The disk that deployments go to, and how it is cut."""

    device: str = "/dev/sda"
    table: Literal["gpt", "msdos"] = "msdos"
    partitions: tuple[Partition, ...] = ()

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


class Power(Struct, frozen=True, kw_only=True):
    """How the nodes are switched."""

    driver: Literal["ipmi", "redfish", "command"] = "ipmi"
    address: str = ""
    """BMC addresses: a range as long as the node range (ipmi), or base URLs (redfish)."""
    port: int = 623
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
    kind: Literal["tgz", "tbz2", "txz"] = "tgz"
    script: str = "none"


class Implementation(Struct, frozen=True, kw_only=True):
    """One way to do a macro-step: tried ``1 + retries`` times, each at most *timeout* seconds (0: no limit)."""

    implementation: str
    retries: int = 0
    timeout: int = 0


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
    "SetDeploymentEnv": (Implementation(implementation="SetDeploymentEnvUntrusted", retries=1, timeout=600),),
    "BroadcastEnv": (Implementation(implementation="BroadcastEnvChain", retries=1, timeout=900),),
    "BootNewEnv": (
        Implementation(implementation="BootNewEnvClassical", retries=0, timeout=600),
        Implementation(implementation="BootNewEnvHardReboot", retries=1, timeout=600),
    ),
}


MICRO_TIMEOUTS = {
    "send_key_in_deploy_env": 60,
    "create_partition_table": 120,
    "format_deploy_part": 300,
    "format_tmp_part": 300,
    "format_swap_part": 120,
    "mount_deploy_part": 120,
    "mount_tmp_part": 120,
    "check_kernel_files": 60,
    "send_key": 60,
    "install_bootloader": 180,
    "umount_deploy_part": 120,
}
"""Seconds within which micro-steps end on every sound node: one that hangs shall not take the others with it."""


class Cluster(Struct, frozen=True, kw_only=True):
    """``clusters/NAME.yml``: nodes that are alike."""

    name: str = ""
    """Empty in the file: the file's own name."""
    nodes: tuple[NodeRange, ...]
    disk: Disk
    loader: Loader = Loader()
    power: Power = Power()
    console: str = ""
    """Command that opens a node's console (placeholders as in *PowerCommands*)."""
    timeouts: Timeouts = Timeouts()
    macro_steps: dict[str, tuple[Implementation, ...]] = msgspec.field(
        default_factory=lambda: dict(DEFAULT_MACRO_STEPS)
    )
    micro_timeouts: dict[str, int] = {}
    """Seconds per micro-step (by role name) in place of *MICRO_TIMEOUTS*, 0 for no limit; see `micro_timeout`."""
    micro_retries: dict[str, int] = {}
    pre_installs: tuple[AdminArchive, ...] = ()
    post_installs: tuple[AdminArchive, ...] = ()
    supported_filesystems: tuple[str, ...] = ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat")
    kexec_dir: str = "/dev/shm/kexec"  # noqa: S108 - a folder on the nodes
    broadcast_command: str = ""
    """Site command of BroadcastEnvCustom (``ENVFILE``, ``NODEFILE`` are replaced)."""

    def micro_timeout(self, micro_step: str) -> int | None:
        """Seconds after which the nodes that are still busy with *micro_step* are KO; None for no limit."""
        return self.micro_timeouts.get(micro_step, MICRO_TIMEOUTS.get(micro_step)) or None

    @cached_property
    def members(self) -> dict[str, Node]:
        """Nodes by name."""
        return {node.name: node for part in self.nodes for node in _members(part, self.power)}


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


# --- both, as the tools use them --------------------------------------------------------------------------------


class Configuration(Struct, frozen=True, kw_only=True):
    """Everything read from one configuration folder."""

    folder: Path
    site: Site
    clusters: dict[str, Cluster]

    @cached_property
    def cluster_of(self) -> dict[str, str]:
        """Name of each node's cluster."""
        return {node: cluster.name for cluster in self.clusters.values() for node in cluster.members}

    def cluster_nodes(self, names: list[str]) -> dict[str, list[str]]:
        """*names* grouped by cluster; raises NodeListError naming the nodes that no cluster has."""
        unknown = [name for name in names if name not in self.cluster_of]
        if unknown:
            where = self.folder / "clusters"
            raise NodeListError(f"Unknown node: {', '.join(unknown)}. The nodes of this site are those in {where}.")
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(self.cluster_of[name], []).append(name)
        return groups


def folder() -> Path:
    """The configuration folder of this process."""
    return Path(os.environ.get("KADEPLOY_CONFIG_DIR", DEFAULT_FOLDER))


def read_yaml(path: Path) -> Any:
    """Parse one YAML file safely; raises ConfigError that names the file and the line."""
    try:
        with path.open(encoding="utf-8") as stream:
            return yaml.load(stream, Loader=SafeLoader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Set KADEPLOY_CONFIG_DIR to the configuration folder.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}.") from error


StructT = TypeVar("StructT", bound=Struct)


def _convert(path: Path, kind: type[StructT]) -> StructT:
    try:
        return msgspec.convert(read_yaml(path), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}.") from error


def load_site(where: Path | None = None) -> Site:
    """Read ``site.yml`` alone: what tools that need no node list want.

    Raises:
        ConfigError: names the file, the key and what was expected.
    """
    return _convert((where or folder()) / "site.yml", Site)


def load(where: Path | None = None) -> Configuration:
    """Read and validate the whole configuration folder.

    Raises:
        ConfigError: names the file, the key and what was expected.
    """
    root = where or folder()
    site = load_site(root)
    clusters: dict[str, Cluster] = {}
    owner: dict[str, str] = {}
    for path in sorted((root / "clusters").glob("*.yml")):
        cluster = _load_cluster(path)
        for node in cluster.members:
            if node in owner:
                raise ConfigError(f"{path}: nodes: {node} belongs to cluster {owner[node]} already.")
            owner[node] = cluster.name
        clusters[cluster.name] = cluster
    if not clusters:
        raise ConfigError(f"{root}/clusters: no cluster file (NAME.yml) found.")
    return Configuration(folder=root, site=site, clusters=clusters)


def _load_cluster(path: Path) -> Cluster:
    cluster = _convert(path, Cluster)
    if not cluster.name:
        cluster = msgspec.structs.replace(cluster, name=path.stem)
    try:
        members = cluster.members
    except NodeListError as error:
        raise ConfigError(f"{path}: nodes: {error}") from error
    if not members:
        raise ConfigError(f"{path}: nodes: expected at least one node.")
    if cluster.disk.number("deploy") is None:
        raise ConfigError(f"{path}: disk.partitions: expected one partition with role 'deploy'.")
    missing = [step for step in DEFAULT_MACRO_STEPS if not cluster.macro_steps.get(step)]
    if missing:
        raise ConfigError(f"{path}: macro_steps: expected at least one implementation of {', '.join(missing)}.")
    return cluster


def partition_device(device: str, number: int | None) -> str:
    """Join disk and partition number the way Linux does; None is the whole device.

    >>> partition_device("/dev/sda", 3), partition_device("/dev/nvme0n1", 3)
    ('/dev/sda3', '/dev/nvme0n1p3')
    """
    if number is None:
        return device
    return f"{device}p{number}" if device[-1].isdigit() else f"{device}{number}"
