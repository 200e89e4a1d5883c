"""``site.yml``: what holds for all clusters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from kadeploy.config.file import Struct
from kadeploy.config.notifications import Notifications
from kadeploy.config.rules import (
    Count,
    DatabaseUrl,
    File,
    FileSystem,
    Folder,
    FolderOnNode,
    FolderUrl,
    HookCommand,
    Host,
    Line,
    Name,
    Port,
    Positive,
    PrivateKeyFile,
    PublicKey,
    User,
    VariableName,
    VlanCommand,
    VlanSuffix,
    Wrong,
)
from kadeploy.config.service import Service
from kadeploy.nodeset import MOST


class Ssh(Struct, frozen=True, kw_only=True):
    """How the controller enters the deployment system."""

    private_key: PrivateKeyFile
    """Path of the site's deployment key (mode 0600)."""
    host_key: PublicKey
    """The deployment system's known public host key, ``ssh-ed25519 AAAA…`` (pinned on every connection)."""
    port: Port = 22
    connect_timeout: Positive = 10
    """Seconds until a connection attempt is given up."""


class BootFolders(Struct, frozen=True, kw_only=True):
    """Where loaders find their files."""

    tftp_root: Folder
    """Folder served over TFTP (loaders and profiles)."""
    http_root: Folder
    """Folder served over HTTP (kernels, initrds, uploaded files)."""
    http_url: FolderUrl
    """URL of *http_root* as nodes reach it, ending in ``/``."""
    log: File = ""
    """Log of the boot server, whose lines name the address of who asks; read when a node does not come back."""
    uploads_max_mb: Count = 500
    """Size limit of all files uploaded by ``-x``; the least recently used ones go first."""


class Windows(Struct, frozen=True, kw_only=True):
    """How many nodes are handled at a time, across all workflows of this controller."""

    reboot: Positive = 50
    check: Positive = 200
    ssh: Positive = 100
    """Commands at a time on nodes, within one micro-step."""


Messages = Literal["3.1", "3.2"]


class Limits(Struct, frozen=True, kw_only=True):
    """What users may ask for at most."""

    preinstall: Count = 20
    """Size of a pre-install, in MB."""
    postinstall: Count = 20
    """Size of a post-install, in MB."""
    custom_operation: Count = 1024
    """Size of a file that a custom operation sends or runs, in MB."""
    nodes: Positive = MOST
    """Nodes of one request."""


class Runs(Struct, frozen=True, kw_only=True):
    """How long what is known of an operation stays on disk (``state_dir/runs``)."""

    days: Positive = 30
    max_mb: Positive = 10_000
    """Room for all of them; the oldest go first, those of running operations never."""
    events_days: Count = 90
    """How long its events can be told again (``kadeploy3 --attach``), also when the rest is gone; 0: no longer."""
    events_max_mb: Positive = 1000
    """Room for the events of operations of which the rest is gone (``state_dir/events``); the oldest go first."""


class Vlan(Struct, frozen=True, kw_only=True):
    """VLAN support: a host name suffix holding ``VLAN_ID`` and the command that moves nodes."""

    hostname_suffix: VlanSuffix
    set_command: VlanCommand
    """Words split like a shell does; ``NODES``, ``VLAN_ID`` and ``USER`` are replaced as whole arguments."""


class Demolishing(Struct, frozen=True, kw_only=True):
    """When an environment counts as demolishing (``kareboot3 -c``)."""

    threshold: Count = 0
    auto_tag: bool = False


class Quarantine(Struct, frozen=True, kw_only=True):
    """When nodes that keep failing belong into quarantine, by the log of deployments."""

    rule: Literal["propose", "leave_out"] = "propose"
    """What becomes of a node that fails too often: it is proposed to administrators, or left out of operations."""
    failures: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    """Share of a node's last deployments from which on it fails too often."""
    operations: Annotated[int, msgspec.Meta(gt=0, le=1000)] = 10
    """How many deployments of a node are looked at, the last ones; of a node with fewer, nothing is said."""
    days: Annotated[int, msgspec.Meta(gt=0, le=3660)] = 7
    """Days within which they began."""


class Hooks(Struct, frozen=True, kw_only=True):
    """Commands run when an operation has ended; the word ``WORKFLOW_ID`` is replaced."""

    end_of_deployment: HookCommand = ""
    end_of_reboot: HookCommand = ""
    end_of_power: HookCommand = ""


class Site(Struct, frozen=True, kw_only=True):
    """``site.yml``."""

    name: Name
    state_dir: Folder
    """Folder of the database, run folders, windows and caches."""
    server_address: Host
    """Address of the controller as nodes reach it."""
    ssh: Ssh
    boot: BootFolders
    database: DatabaseUrl = ""
    """``sqlite:///PATH``, ``postgresql://…`` or ``mysql://…``; empty means SQLite in *state_dir*."""
    rights: Literal["db", "dummy"] = "db"
    almighty_users: tuple[User, ...] = ("root",)
    purge_deployment_timer: Positive = 900
    """Seconds after which a claim left by a dead controller elsewhere no longer counts."""
    marker_port: Port = 25300
    first_reboot: Literal["soft", "hard", "very_hard"] = "soft"
    """Level of a deployment's first reboot: soft asks the system on the node, hard does without its goodwill."""
    network_namespace: Name = ""
    """Enter this network namespace before any traffic (used by the lab)."""
    extraction_dir: FolderOnNode = "/mnt/dest"
    rambin_dir: FolderOnNode = "/rambin"
    mkfs_options: dict[FileSystem, Line] = {}
    windows: Windows = Windows()
    limits: Limits = Limits()
    shard: Positive = 500
    """Nodes of one run of ansible-playbook; more are done by several at the same time."""
    runs: Runs = Runs()
    service: Service = Service()
    notifications: Notifications = Notifications()
    """By what ways users may be told that their operations have ended; unless set, nothing is sent."""
    vlan: Vlan | None = None
    demolishing: Demolishing = Demolishing()
    quarantine: Quarantine | None = None
    """Which nodes fail too often; None: only administrators put nodes in quarantine."""
    hooks: Hooks = Hooks()
    end_hook_timeout: Positive = 20
    broadcast_arity: Positive = 1
    broadcast_port: Port = 25310
    broadcast_patience: Annotated[float, msgspec.Meta(gt=0)] = 3.5
    """Seconds for which a node may give no sign of life during a broadcast before the others go on without it."""
    verbosity: Annotated[int, msgspec.Meta(ge=0, le=4)] | None = None
    """``-V`` where it is not given; None: 1 on a terminal, where a live view shows what else goes on, else 3."""
    messages: Messages = "3.1"
    """Whose words the last lines of an operation have where they go to a program: Kadeploy 3.1's or 3.2's."""
    environment_form: Literal["wiki", "yaml"] = "wiki"
    """What ``kaenv3 -p`` prints: ``key : value`` lines as Kadeploy 3.1, or YAML as 3.3."""
    partial_failure_status: Annotated[int, msgspec.Meta(ge=0, le=99)] = 3
    """Exit status of an operation that ended with some nodes KO; 0 for scripts that look at the lists alone."""
    kept_variables: tuple[VariableName, ...] = ()
    """Environment variables of those who call with sudo that count, besides the few that tools need: ``http_proxy``."""
    use_address: bool = True
    """Reach nodes by the address in the cluster file rather than by name."""

    def contradictions(self) -> Iterable[Wrong]:
        """Ports of the deployment system that are one, and folders in it that are one."""
        taken = {self.marker_port: "marker_port", self.ssh.port: "ssh.port"}
        if self.broadcast_port in taken:
            said = f"{self.broadcast_port} is {taken[self.broadcast_port]} too; expected a port of its own."
            yield Wrong(("broadcast_port",), said)
        if Path(self.rambin_dir) == Path(self.extraction_dir):
            yield Wrong(("rambin_dir",), f"{self.rambin_dir} is extraction_dir too; expected a folder of its own.")

    @property
    def state(self) -> Path:
        """*state_dir* as a path."""
        return Path(self.state_dir)

    @property
    def run_folders(self) -> Path:
        """Where each workflow has a folder, named by its id."""
        return self.state / "runs"

    @property
    def kept_events(self) -> Path:
        """Where the events of workflows are whose folders are gone."""
        return self.state / "events"
