"""The answer of a task for all nodes: our actions write it, whoever reads the events of a run reads it back.

    {"step": "sync", "nodes": {"n-1": {"verdict": "ok", "rc": 0, "stdout": "", "stderr": "", "msg": "", "seconds": 1}}}

A row is the node's `Outcome`. A site's own action may answer like this too: ``verdict`` alone will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from kadeploy.workflow import Outcome, Verdict

_SELDOM = frozenset({"answer", "micro_step", "again"})
"""Left out where they are empty."""
STDERR_LIMIT = 4096
"""Characters of a failed node's standard error in an answer, but in debug mode."""


def write(step: str, outcomes: Mapping[str, Outcome], debug: bool = False) -> dict[str, Any]:
    """The answer; what nodes said is in it in debug mode, and the end of what failed ones said always."""
    told = outcomes if debug else {node: _terse(outcome) for node, outcome in outcomes.items()}
    return {"step": step, "nodes": {node: _row(outcome) for node, outcome in told.items()}}


def read(result: Mapping[str, Any]) -> tuple[str, dict[str, Outcome]]:
    """Micro-step (empty: not told) and outcome per node of a task's result; a task of another kind has none."""
    nodes = result.get("nodes")
    rows = nodes.items() if isinstance(nodes, Mapping) else ()
    outcomes = {str(node): _outcome(row) for node, row in rows if isinstance(row, Mapping) and "verdict" in row}
    return str(result.get("step") or ""), outcomes


def _terse(outcome: Outcome) -> Outcome:
    failed = outcome.verdict is Verdict.KO
    return replace(outcome, stdout="", stderr=outcome.stderr[-STDERR_LIMIT:] if failed else "")


def _row(outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(outcome)
    row["msg"] = row.pop("message")
    return {name: value for name, value in row.items() if value != "" or name not in _SELDOM}


def _outcome(row: Mapping[str, Any]) -> Outcome:
    known = {str(key): value for key, value in row.items() if value is not None}
    known["message"] = known.pop("msg", "")
    try:
        return msgspec.convert(known, Outcome, strict=False)
    except msgspec.ValidationError as error:
        return Outcome(Verdict.KO, f"the task's answer for it is malformed: {error}")
