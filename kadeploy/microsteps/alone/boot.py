"""A host of somebody's play that boots: what was ordered when, and whether it is there again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kadeploy import process
from kadeploy.microsteps.alone.host import System, require_one_by_one
from kadeploy.remote import reach
from kadeploy.remote.fanout import Target
from kadeploy.workflow import Verdict

if TYPE_CHECKING:
    from ansible.plugins.action import ActionBase

_FACT = "kadeploy_rebooted"
"""Fact of a host: when it was told to go down (`time.monotonic` of the controller)."""


def going_down(action: ActionBase, begun: float) -> dict[str, Any]:
    """What the result of a task tells that has had the host reboot since *begun*; its connection is ended."""
    asyncio.run(System(action).forget(()))
    return {"ansible_facts": {_FACT: begun}}


def waited(action: ActionBase, args: Mapping[str, Any], facts: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Do the task `wait_nodes`, which *what* tells, on the host of *action*; the result as Ansible's own actions have.

    The host has booted when its first process is younger than the order to reboot, or than this run of Ansible.
    """
    require_one_by_one(action)
    if action._task.check_mode:
        return {"changed": False, "msg": f"would {what}"}
    system, marker = _Asked(action), args["marker_port"]
    target = Target(str(facts["inventory_hostname"]), args["address"], args["port"], pinned=False)
    user = args["target"] != "deploy"
    confirm = reach.booted_after(system, _ordered(facts), may_refuse=user)
    up = [target.port] if user else [marker, target.port]
    down = [marker] if args["target"] == "user" else []
    waiting = reach.wait([target], up, down, timeout=args["timeout"], window=1, confirm=confirm)
    outcome = asyncio.run(waiting)[target.name]
    if outcome.verdict is not Verdict.OK:
        return {"failed": True, "changed": False, "msg": f"{outcome.message}: see its console."}
    return {"changed": False, "elapsed": round(outcome.seconds)}


class _Asked(System):
    """A host whose kept connection may be to the system that it ran before."""

    async def run(self, target: Target, script: bytes, *, timeout: float = 0, disconnect_ok: bool = False) -> Any:
        """See `Systems.run`."""
        await self.forget([target])
        return await super().run(target, script, timeout=timeout, disconnect_ok=disconnect_ok)


def _ordered(facts: Mapping[str, Any]) -> float:
    """When the host was told to reboot, else when this run of Ansible began: facts may be those of an earlier run."""
    begun = process.began(os.getppid())
    ordered = float(facts.get("ansible_facts", {}).get(_FACT, 0))
    return ordered if begun < ordered <= time.monotonic() else begun
