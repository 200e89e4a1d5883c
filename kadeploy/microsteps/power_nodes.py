"""Switch nodes by their BMCs or site commands, or ask how they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kadeploy.boot.traces import Log
from kadeploy.microsteps.memory import Rebooted, memory_of_reboots
from kadeploy.microsteps.microstep import MicroStep
from kadeploy.power import switch
from kadeploy.runner.request import Request
from kadeploy.workflow import Outcome

ARGUMENTS = {
    "operation": {"type": "str", "required": True, "choices": ["reboot", "on", "off", "status"]},
    "level": {"type": "str", "default": "soft", "choices": ["soft", "hard", "very_hard"]},
    "bmc": {"type": "str", "default": ""},
    "driver": {"type": "str", "default": "ipmi", "choices": ["ipmi", "redfish"]},
    "user": {"type": "str", "default": ""},
    "password": {"type": "str", "default": "", "no_log": True},
    "firmware": {"type": "str", "default": "bios", "choices": ["bios", "uefi"]},
    "verify_tls": {"type": "bool", "default": True},
    "timeout": {"type": "int", "default": 30},
}
"""As an Ansible argument specification; from `bmc` on, what only a host without a request needs."""


_WORDS = {"reboot": "reboot", "on": "switch on", "off": "switch off", "status": "ask the BMC"}


def what(args: Mapping[str, Any], _request: Request | None = None) -> str:
    """``reboot (soft at first)``."""
    asks = args["operation"] == "status"
    return _WORDS[args["operation"]] + ("" if asks else f" ({args['level']} at first)")


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Switch every member, as many at a time as the reboot window of this machine allows.

    The ssh connections of nodes that are switched are closed: they would only be found dead later. A node that an
    earlier attempt of the same macro-step has rebooted is rebooted harder.
    """
    request = step.request
    members = set(step.members)
    nodes = [node for node in request.nodes if node.name in members]
    operation: switch.PowerCommand = step.args["operation"]
    if operation != "status":
        await step.remote.forget(step.targets())
        await step.remote.forget(step.targets(pinned=False))
    boot_log = Log.now(request.site.boot.log)
    outcomes = await switch.switch(
        request.site,
        request.cluster,
        nodes,
        operation,
        _levels(step),
        config_dir=Path(request.config_dir),
        remote=step.remote,
        wait=request.boot.wait,
        on_outcome=step.report,
    )
    if operation == "reboot":
        _remember(step, outcomes, boot_log)
    return outcomes


def _levels(step: MicroStep) -> dict[str, switch.Level]:
    """How hard each member is switched first."""
    asked: switch.Level = step.args["level"]
    if step.args["operation"] != "reboot":
        return dict.fromkeys(step.members, asked)
    attempt = step.request.attempt
    before = memory_of_reboots(Path(step.request.workflow_dir)).levels(attempt.macro_step, attempt.number)
    return {
        node: max(asked, switch.harder(before[node]), key=switch.LEVELS.index) if node in before else asked
        for node in step.members
    }


def _remember(step: MicroStep, outcomes: Mapping[str, Outcome], boot_log: Log) -> None:
    attempt = step.request.attempt
    memory_of_reboots(Path(step.request.workflow_dir)).rebooted(
        [
            Rebooted(node, attempt.macro_step, attempt.number, switch.level_of(outcome), boot_log.length)
            for node, outcome in outcomes.items()
        ]
    )
