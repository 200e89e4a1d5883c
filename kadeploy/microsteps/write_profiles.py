"""Write the boot profile of every node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kadeploy.boot import profile
from kadeploy.boot.secret import make
from kadeploy.microsteps.microstep import MicroStep, on_held
from kadeploy.runner.request import profile_sources
from kadeploy.workflow import Outcome

ARGUMENTS = {
    "boot": {"type": "str", "required": True, "choices": ["deploy", "deployed", "nfsroot", "custom"]},
}
"""As an Ansible argument specification."""
_SHOW_SECRET = {"deploy", "nfsroot"}  # systems that let us in, and that we wait for


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Write them; files of the controller, no node is touched."""
    return await on_held(step, _write)


async def _write(step: MicroStep) -> Mapping[str, Outcome]:
    members, request, kind = set(step.members), step.request, step.args["boot"]
    nodes = [node for node in request.nodes if node.name in members]
    shown = kind in _SHOW_SECRET and request.cluster.loader.show_secret
    secret = make(Path(request.workflow_dir), request.attempt) if shown else None
    return profile.write(replace(profile_sources(request), secret=secret), kind, nodes)
