"""Switch nodes by their BMCs or site commands, or ask how they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kadeploy.microsteps.microstep import MicroStep
from kadeploy.power import switch
from kadeploy.workflow import Outcome

ARGUMENTS = {
    "operation": {"type": "str", "required": True, "choices": ["reboot", "on", "off", "status"]},
    "level": {"type": "str", "default": "soft", "choices": ["soft", "hard", "very_hard"]},
}
"""As an Ansible argument specification."""


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Switch every member, as many at a time as the reboot window of this machine allows.

    The ssh connections of nodes that are switched are closed: they would only be found dead later.
    """
    request = step.request
    members = set(step.members)
    nodes = [node for node in request.nodes if node.name in members]
    operation: switch.PowerCommand = step.args["operation"]
    if operation != "status":
        await step.remote.forget(step.targets())
        await step.remote.forget(step.targets(pinned=False))
    return await switch.switch(
        request.site,
        request.cluster,
        nodes,
        operation,
        step.args["level"],
        config_dir=Path(request.config_dir),
        remote=step.remote,
        wait=request.boot.wait,
        on_outcome=step.report,
    )
