"""Nothing on the nodes: custom operations of the last micro-step have run before this one begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kadeploy.microsteps.memory import Memory
from kadeploy.microsteps.microstep import MicroStep
from kadeploy.runner.request import Request
from kadeploy.workflow import Outcome, Verdict


def what(_args: Mapping[str, Any], _request: Request) -> str:
    """Nothing by itself."""
    return ""


def ko(memory: Memory) -> dict[str, str]:
    """Where and why each node is KO."""
    out = {node: end for node, end in memory.out().items() if end.verdict is not Verdict.BRK}
    return {node: f"{end.implementation}-{end.step}: {' '.join(end.message.split())}" for node, end in out.items()}


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Every member is OK."""
    return dict.fromkeys(step.members, Outcome(Verdict.OK))
