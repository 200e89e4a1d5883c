"""Sites, clusters, environments and requests for tests: complete, plain, and changed by what a test is about.

build.request(tmp_path, options=Options(debug=True), cluster=build.cluster(kexec_dir="/x"))
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from kadeploy.config.cluster import Cluster, Disk, Implementation, NodeRange
from kadeploy.config.partition import Partition
from kadeploy.config.site import BootFolders, Site, Ssh
from kadeploy.environments.environment import Environment, Image
from kadeploy.operations.requests import DeployRequest, Recorded
from kadeploy.runner.request import Assignment, Request, RequestNode
from kadeploy.workflow import Attempt

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq7bhOPDK1mHvvcHQ0LvgcVxuPyG2ja9pXQQ8UIwPf"
"""A host key that no server has."""
NAMES = ("gdx-1.site", "gdx-2.site", "nvm-1.site")
"""Nodes of both clusters of conftest's site."""
DUMMIES = {step: (Implementation(name=f"{step}Dummy"),) for step in ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv")}
"""Steps that act nothing."""
_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tgz": lambda content: gzip.compress(content, mtime=0),
    "ddgz": lambda content: gzip.compress(content, mtime=0),
    "tbz2": bz2.compress,
    "txz": lzma.compress,
}
DEPLOY = (Partition(number=3, role="deploy"),)
"""The smallest layout."""


def site(folder: Path | str, **changes: Any) -> Site:
    """A site that keeps everything under *folder*; there is no deployment key."""
    folder = Path(folder)
    values: dict[str, Any] = {
        "name": "paris",
        "state_dir": str(folder / "state"),
        "server_address": "127.0.0.1",
        "ssh": Ssh(private_key=str(folder / "key"), host_key=HOST_KEY),
        "boot": boot_folders(folder),
    }
    return Site(**values | changes)


def boot_folders(folder: Path | str) -> BootFolders:
    """``tftp`` and ``http`` under *folder*."""
    return BootFolders(tftp_root=f"{folder}/tftp", http_root=f"{folder}/http", http_url="http://127.0.0.1/")


def cluster(**changes: Any) -> Cluster:
    """Cluster gdx, of node-1, node-2 and node-3; partition 3 is deployed to."""
    values: dict[str, Any] = {
        "name": "gdx",
        "nodes": (NodeRange(name="node-[1-3]", address="127.9.0.[1-3]"),),
        "disk": Disk(partitions=DEPLOY),
    }
    return Cluster(**values | changes)


def nodes(of: Cluster) -> tuple[RequestNode, ...]:
    """All nodes of a cluster, as a request has them."""
    return tuple(RequestNode(**msgspec.structs.asdict(node)) for node in of.members.values())


def environment(**changes: Any) -> Environment:
    """A Linux archive."""
    values: dict[str, Any] = {
        "name": "tiny",
        "image": Image(file="/tiny.tgz", kind="tgz"),
        "kernel": "/vmlinuz",
        "filesystem": "ext4",
    }
    return Environment(**values | changes)


def packed(text: str | bytes = "", kind: str = "tgz") -> bytes:
    """An image or archive of *kind*, whole: of one file that holds *text*, or just of it (dd)."""
    content, plain = text.encode() if isinstance(text, str) else text, io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        member = tarfile.TarInfo("file")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return _PACKERS[kind](content if kind.startswith("dd") else plain.getvalue())


def assignment(folder: Path | str, **changes: Any) -> Assignment:
    """A deployment by alice on all nodes of a cluster, without an environment."""
    return Assignment(**_assignment(folder, changes))


def request(folder: Path | str, **changes: Any) -> Request:
    """An attempt of `assignment`, whose own folder is *folder* too."""
    values: dict[str, Any] = {"run_dir": str(folder), "attempt": Attempt("SetDeploymentEnv", "SetDeploymentEnvTest")}
    return Request(**values | _assignment(folder, changes))


def deploy_request(**changes: Any) -> DeployRequest:
    """Root wants the recorded environment tiny on nodes of conftest's site, by steps that act nothing."""
    values: dict[str, Any] = {
        "user": "root",
        "nodes": NAMES,
        "environment": Recorded(name="tiny"),
        "force_steps": DUMMIES,
    }
    return DeployRequest(**values | changes)


def _assignment(folder: Path | str, changes: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "wid": "D-1",
        "operation": "deploy",
        "user": "alice",
        "config_dir": str(folder),
        "workflow_dir": str(folder),
        "site": site(folder),
        "cluster": cluster(),
    } | changes
    return {"nodes": nodes(values["cluster"])} | values
