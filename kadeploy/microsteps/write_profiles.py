"""Write the boot profile of every node."""

from __future__ import annotations

from collections.abc import Mapping

from kadeploy.boot import profile
from kadeploy.microsteps.microstep import MicroStep
from kadeploy.runner.request import profile_sources
from kadeploy.workflow import Outcome

ARGUMENTS = {
    "boot": {"type": "str", "required": True, "choices": ["deploy", "deployed", "nfsroot", "custom"]},
}
"""As an Ansible argument specification."""


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Write them; files of the controller, no node is touched."""
    members = set(step.members)
    nodes = [node for node in step.request.nodes if node.name in members]
    return profile.write(profile_sources(step.request), step.args["boot"], nodes)
