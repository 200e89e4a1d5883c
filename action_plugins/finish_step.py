"""End a macro-step: operations asked for after its last micro-step, and the fact `kadeploy_failed`."""

from __future__ import annotations

from typing import Any

from kadeploy.microsteps import finish_step
from kadeploy.microsteps.action import BatchAction
from kadeploy.microsteps.memory import Memory
from kadeploy.workflow import Verdict


class ActionModule(BatchAction):
    """The task `finish_step`."""

    engine = staticmethod(finish_step.run)

    def facts(self, memory: Memory) -> dict[str, Any]:
        """Where and why each node is KO or left behind, by name."""
        failed = {node: out for node, out in memory.out().items() if out.verdict is not Verdict.BRK}
        return {"kadeploy_failed": {n: f"{o.implementation}-{o.step}: {o.message}" for n, o in failed.items()}}
