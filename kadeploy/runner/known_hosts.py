"""The known-hosts file of a run folder: which host key ordinary Ansible tasks may meet on each node.

The deployment system's key is known and pinned. A user's system, once a node has been seen to boot it, has a key that
nobody knows beforehand: the first one that it shows is accepted, and is the node's from then on.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from pathlib import Path

from kadeploy.config.cluster import Node, address
from kadeploy.runner.request import Request

FILE_NAME = "known_hosts"
_ALGORITHMS = {"ssh-rsa": "rsa-sha2-512,rsa-sha2-256"}
"""Names of the signatures by the type of a key; of other types both have one name."""


def write(request: Request) -> None:
    """Pin the deployment system's key on every node."""
    _path(request).write_text("".join(_line(request, node) for node in request.nodes), encoding="utf-8")


def booted(request: Request, names: Collection[str], in_deployment_system: bool) -> None:
    """Note which system these nodes have booted."""
    nodes = [node for node in request.nodes if node.name in names]
    forgotten = {_host(request, node) for node in nodes}
    path = _path(request)
    kept = [line for line in _lines(path) if line.split(" ", 1)[0] not in forgotten]
    pinned = [_line(request, node) for node in nodes] if in_deployment_system else []
    part = path.with_suffix(".part")
    part.write_text("".join(kept + pinned), encoding="utf-8")
    part.replace(path)


def ssh_options(request: Request) -> str:
    """Options of ssh(1) that make it use the file.

    Only a key of the pinned type will do: ``accept-new`` would take one of another type for new, whatever is pinned.
    The connection to a system that is rebooted away ends by itself.
    """
    kind = request.site.ssh.host_key.split()[0]
    options = {
        "StrictHostKeyChecking": "accept-new",
        "HostKeyAlgorithms": _ALGORITHMS.get(kind, kind),
        "UserKnownHostsFile": f'"{_path(request)}"',
        "GlobalKnownHostsFile": os.devnull,
        "HashKnownHosts": "no",
        "ServerAliveInterval": "5",
    }
    return " ".join(f"-o {shlex.quote(f'{name}={value}')}" for name, value in options.items())


def _path(request: Request) -> Path:
    return Path(request.run_dir) / FILE_NAME


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _line(request: Request, node: Node) -> str:
    return f"{_host(request, node)} {request.site.ssh.host_key}\n"


def _host(request: Request, node: Node) -> str:
    """How the node is named in the file (sshd(8))."""
    name, port = address(request.site, node), request.site.ssh.port
    return name if port == 22 else f"[{name}]:{port}"
