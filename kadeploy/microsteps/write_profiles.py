"""Write the boot profile of every node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kadeploy.boot import profile
from kadeploy.boot.profile import ProfileKind
from kadeploy.boot.secret import make
from kadeploy.errors import KadeployError
from kadeploy.microsteps.microstep import MicroStep, on_held
from kadeploy.remote import errands
from kadeploy.runner.request import Request, RequestNode, profile_sources
from kadeploy.workflow import Outcome

ARGUMENTS = {
    "boot": {"type": "str", "required": True, "choices": ["deploy", "deployed", "nfsroot", "custom"]},
    "address": {"type": "str", "default": ""},
    "folder": {"type": "str", "default": "/srv/tftp"},
    "loader": {"type": "str", "default": "pxelinux", "choices": ["pxelinux", "grub", "ipxe"]},
    "kernel": {"type": "str", "default": ""},
    "initrd": {"type": "str", "default": ""},
    "params": {"type": "str", "default": ""},
    "device": {"type": "str", "default": "/dev/sda"},
    "profile": {"type": "str", "default": ""},
}
"""As an Ansible argument specification; from `address` on, what only a host without a request needs."""
_SHOW_SECRET = {"deploy", "nfsroot"}  # systems that let us in, and that we wait for


def what(args: Mapping[str, Any], _request: Request) -> str:
    """``write the boot profile "deploy"``."""
    return f'write the boot profile "{args["boot"]}"'


def differences(args: Mapping[str, Any], request: Request, members: Iterable[str]) -> list[dict[str, str]]:
    """The profiles before and after, for ``--diff``; a node whose profile cannot be made has none."""
    wanted, sources = set(members), profile_sources(request)
    found = []
    for node in (node for node in request.nodes if node.name in wanted):
        with contextlib.suppress(KadeployError):
            for name, text in profile.profiles(sources, args["boot"], node).items():
                found.append(_difference(Path(request.site.boot.tftp_root) / name, text))
    return found


def _difference(path: Path, text: str) -> dict[str, str]:
    try:
        before = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        before = ""
    return {"before": before, "after": text, "before_header": str(path), "after_header": str(path)}


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Write them; files of the controller, no node is touched."""
    return await on_held(step, _write)


async def _write(step: MicroStep) -> Mapping[str, Outcome]:
    members, request, kind = set(step.members), step.request, step.args["boot"]
    if worker := errands.place():
        return await errands.profiles(worker, kind, step.members)
    return write(request, kind, [node for node in request.nodes if node.name in members])


def write(request: Request, kind: ProfileKind, nodes: Sequence[RequestNode]) -> dict[str, Outcome]:
    """Write the profiles of that *kind* on this machine, the controller: what became of each node."""
    shown = kind in _SHOW_SECRET and request.cluster.loader.show_secret
    secret = make(Path(request.workflow_dir), request.attempt) if shown else None
    return profile.write(replace(profile_sources(request), secret=secret), kind, nodes)
