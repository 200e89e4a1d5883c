"""Run one of the site's own commands on the controller: the commands that the configuration names, and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kadeploy import commands
from kadeploy.errors import ConfigError
from kadeploy.microsteps.microstep import MicroStep, on_held
from kadeploy.runner.request import Request
from kadeploy.workflow import Outcome, Verdict

ARGUMENTS = {
    "command": {"type": "str", "required": True, "choices": ["set_vlan"]},
    "vlan": {"type": "str", "default": ""},
}
"""As an Ansible argument specification."""


def what(args: Mapping[str, Any], request: Request) -> str:
    """``put into VLAN 5``."""
    return f"put into VLAN {args['vlan'] or request.options.vlan}"


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Move all members into a VLAN, the request's unless ``vlan`` names another; a command that fails fails for all.

    Raises:
        ConfigError: the site has no such command.
    """
    return await on_held(step, _set_vlan)


async def _set_vlan(step: MicroStep) -> Mapping[str, Outcome]:
    vlan = step.request.site.vlan
    if vlan is None or not vlan.set_command:
        raise ConfigError("There is no command to move nodes into a VLAN: set vlan.set_command in site.yml.")
    values = {  # lists: see `commands`
        "NODES": [word for name in step.members for word in ("-m", name)],
        "VLAN_ID": [str(step.args["vlan"] or step.request.options.vlan)],
        "USER": [step.request.user],
    }
    arguments = commands.argv(vlan.set_command, values, "vlan.set_command in site.yml")
    return dict.fromkeys(step.members, await execute(arguments))


async def execute(arguments: Sequence[str]) -> Outcome:
    """Run a program of the controller to its end; it is ended with its children when cancelled."""
    try:
        ended = await commands.run(arguments)
    except OSError as error:
        return Outcome(Verdict.KO, f"{arguments[0]}: {error.strerror}", 127)
    if ended.rc == 0:
        return Outcome(Verdict.OK, stdout=ended.stdout, stderr=ended.stderr)
    return Outcome(Verdict.KO, f"{arguments[0]}: {ended.reason}", ended.rc or 0, ended.stdout, ended.stderr)
