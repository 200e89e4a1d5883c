"""One request as data: what ``inventory.kadeploy.yml`` holds and the inventory plugin reads back.

The file is written once per attempt (nodes, macro-step, implementation, retry). It holds everything the user asked
for and what the site says about the nodes, and no secret: keys and passwords are named by path. Its first key tells
Ansible by which plugin the file is read, whatever plugins are enabled; files of earlier versions do without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec
import yaml
from msgspec.structs import replace

from kadeploy.boot import profile
from kadeploy.config import secret_files
from kadeploy.config.cluster import Cluster, Node
from kadeploy.config.file import Struct, as_yaml, text_of
from kadeploy.config.partition import partition_device
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.errors import ConfigError
from kadeploy.workflow import Attempt, Operation

try:
    from yaml import CSafeDumper as SafeDumper
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeDumper  # type: ignore[assignment]

FILE_NAME = "inventory.kadeploy.yml"
FILES = "files"
"""Folder in the run folder of what nodes get."""
PLUGIN = "kadeploy.core.kadeploy"


class CustomOperation(Struct, frozen=True, kw_only=True):
    """One operation of ``--set-custom-operations``, run in *micro_step* of *implementation*."""

    implementation: str
    """Implementation or generic macro-step name."""
    micro_step: str
    action: Literal["exec", "send", "run"]
    when: Literal["pre", "post", "substitute"] = "pre"
    name: str = ""
    command: str = ""
    """``exec``: shell text run on the node."""
    file: str = ""
    """``send`` and ``run``: absolute path or ``server:///PATH``; a copy in the run folder, once nodes are claimed."""
    destination: str = ""
    """``send``: folder or file on the node."""
    params: str = ""
    """``run``: arguments of the script."""
    timeout: int = 0
    retries: int = 0


class LocalImage(Struct, frozen=True, kw_only=True):
    """The image as the controller serves it."""

    path: str
    """Or ``server:///PATH``."""
    size: int
    sha256: str
    lent: bool = False
    """It is a user's or the administrator's file: the workflow's process lends it, nobody opens it by its path."""


class LocalArchive(Struct, frozen=True, kw_only=True):
    """A pre- or post-install archive on the controller."""

    path: str
    kind: str
    script: str


class Options(Struct, frozen=True, kw_only=True):
    """What the user asked beside nodes and environment; defaults mean "not asked"."""

    authorized_keys: str = ""
    """Text of the public keys (``-k``)."""
    reformat_tmp: str = ""
    block_device: str = ""
    partition: int | None = None
    whole_device: bool = False
    boot_partition: int | None = None
    vlan: str = ""
    pxe_profile: str = ""
    """Text of the user's own boot profile (``-w``)."""
    singularities: dict[str, str] = {}
    disable_bootloader_install: bool = False
    disable_disk_partitioning: bool = False
    breakpoint: str = ""
    """``Macro:micro`` or ``Macro``, already checked against the plan."""
    custom_operations: tuple[CustomOperation, ...] = ()
    reboot_timeout: str = ""
    """Overrides the cluster's, seconds or expression of n."""
    kexec_timeout: str = ""
    no_kexec: bool = False
    debug: bool = False


class NextBoot(Struct, frozen=True, kw_only=True):
    """What the nodes boot next, for reboot operations (deployments derive it from the environment)."""

    kind: Literal["none", "deploy", "deployed", "custom"] = "none"
    level: Literal["soft", "hard", "very_hard"] = "soft"
    """How hard nodes are rebooted at first; each further try is harder."""
    target: Literal["deploy", "user", "any"] = "user"
    """The system that must come up: the deployment system, a user's, or whichever the node boots."""
    wait: bool = True


class RequestNode(Node, frozen=True, kw_only=True):
    """A node of the request: the configured node plus what only this request knows."""

    vlan_address: str = ""


class Assignment(Struct, frozen=True, kw_only=True):
    """What is to be done on the nodes of one cluster: what all attempts have in common."""

    format: Literal[1] = 1
    wid: str
    operation: Operation
    user: str
    config_dir: str
    workflow_dir: str
    """Folder of the whole workflow: broker socket, images extracted for pure PXE boots."""
    site: Site
    """Without its database URL, which may hold a password."""
    cluster: Cluster
    environment: Environment | None = None
    image: LocalImage | None = None
    partition_images: tuple[LocalImage, ...] = ()
    """Those of `Environment.images` that follow it, in their order."""
    preinstall: LocalArchive | None = None
    admin_preinstalls: tuple[LocalArchive, ...] = ()
    postinstalls: tuple[LocalArchive, ...] = ()
    admin_postinstalls: tuple[LocalArchive, ...] = ()
    boot: NextBoot = NextBoot()
    boot_files: dict[str, str] = {}
    """Files for pure PXE boots, URL path under http_root by what they are: kernel, initrd, hypervisor."""
    power: str = ""
    """Power operations: on, off, status."""
    options: Options = Options()
    nodes: tuple[RequestNode, ...]

    @property
    def device(self) -> str:
        """The disk that is deployed to."""
        return self.options.block_device or self.cluster.disk.device

    @property
    def partition(self) -> int | None:
        """Number of the deployment partition; None is the whole device."""
        if self.options.whole_device:
            return None
        return self.options.partition or self.cluster.disk.number("deploy")

    @property
    def deploy_part(self) -> str:
        """The device file that is deployed to; of several, the one that is booted."""
        return partition_device(self.device, self.partition)

    @property
    def deploy_parts(self) -> tuple[str, ...]:
        """All device files that are deployed to."""
        return (self.environment.devices if self.environment else ()) or (self.deploy_part,)


class Request(Assignment, frozen=True, kw_only=True, tag_field="plugin", tag=PLUGIN):
    """Everything the playbook of one attempt needs to know; made by the player, once."""

    attempt: Attempt
    run_dir: str
    """Folder of this attempt, or of a shard of it: inventory, command line, artifacts, verdicts, progress."""
    of: int = 0
    """Nodes of the attempt, of which these are a shard; 0: these are all."""


def profile_sources(request: Assignment) -> profile.Sources:
    """What the boot profiles of *request* are made of."""
    return profile.Sources(
        site=request.site,
        cluster=request.cluster,
        config_dir=Path(request.config_dir),
        user=request.user,
        environment=request.environment,
        boot_files=request.boot_files,
        device=request.device,
        partition=request.partition,
        boot_partition=request.options.boot_partition,
        text=request.options.pxe_profile,
        singularities=request.options.singularities,
        vlan_addresses={node.name: node.vlan_address for node in request.nodes if node.vlan_address},
    )


def write(request: Request) -> Path:
    """Write *request* as its run folder's inventory (mode 0600); returns the file.

    What lies in the folder is named from there, so that it can be read wherever the folder is.
    """
    path = Path(request.run_dir) / FILE_NAME
    text = yaml.dump(msgspec.to_builtins(_packed(request)), Dumper=SafeDumper, sort_keys=False, allow_unicode=True)
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path) -> Request:
    """Read an inventory file back, with the paths that things have on this machine.

    What a process has understood before is not parsed again, nor by the processes that it forks: the inventory plugin
    does it once for all tasks of a playbook.

    Raises:
        ConfigError: not YAML, or not a request (the message names the key).
    """
    try:
        return _unpacked(_understood(path, text_of(path)), path.absolute().parent)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}.") from error


@lru_cache(maxsize=1)
def _understood(path: Path, text: str) -> Request:
    """The whole text is the key: people edit these files, and what counts is what they say now."""
    return msgspec.convert(as_yaml(path, text), Request)


# --- in a run folder, wherever it is ------------------------------------------------------------------------------

_HERE, _ABOVE = ".", ".."


def with_files(request: Request, place: Callable[[str], str]) -> Request:
    """*request* with the files for nodes where *place* says, but for images."""

    def placed(archives: Iterable[LocalArchive]) -> tuple[LocalArchive, ...]:
        return tuple(replace(archive, path=place(archive.path)) for archive in archives)

    operations = (replace(each, file=each.file and place(each.file)) for each in request.options.custom_operations)
    return replace(
        request,
        preinstall=next(iter(placed(filter(None, [request.preinstall]))), None),
        admin_preinstalls=placed(request.admin_preinstalls),
        postinstalls=placed(request.postinstalls),
        admin_postinstalls=placed(request.admin_postinstalls),
        options=replace(request.options, custom_operations=tuple(operations)),
    )


def _packed(request: Request) -> Request:
    folder = Path(request.run_dir)

    def relative(name: str) -> str:
        return f"{_HERE}/{Path(name).relative_to(folder)}" if Path(name).is_relative_to(folder) else name

    known = {folder: _HERE, folder.parent: _ABOVE}
    workflow_dir = known.get(Path(request.workflow_dir), request.workflow_dir)
    return replace(with_files(request, relative), run_dir=_HERE, workflow_dir=workflow_dir)


def _unpacked(request: Request, folder: Path) -> Request:
    """*request* as it was found in *folder*. What came without its workflow's folder is a workflow of its own."""

    def absolute(name: str) -> str:
        return str(folder / name) if name.startswith(f"{_HERE}/") else name

    above = folder.parent if folder.parent.name == request.wid else folder
    known = {_HERE: folder, _ABOVE: above}
    key = secret_files.place(Path(request.site.ssh.private_key))
    return replace(
        with_files(request, absolute),
        run_dir=str(known.get(request.run_dir, request.run_dir)),
        workflow_dir=str(known.get(request.workflow_dir, request.workflow_dir)),
        site=replace(request.site, ssh=replace(request.site.ssh, private_key=str(key))),
        image=request.image and _image(request.image, folder),
        partition_images=tuple(_image(image, folder) for image in request.partition_images),
    )


def _image(image: LocalImage, folder: Path) -> LocalImage:
    """An image that somebody has put into the run folder, by its SHA-256, is there."""
    here = folder / FILES / image.sha256
    return replace(image, path=str(here), lent=False) if here.is_file() else image
