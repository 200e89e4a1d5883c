"""Custom operations and the breakpoint of one attempt: also those of micro-steps that have nothing to do in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from kadeploy.runner.playbooks import generic
from kadeploy.runner.request import CustomOperation


def moved(
    operations: Sequence[CustomOperation], implementation: str, micro_steps: Sequence[str], left_out: Collection[str]
) -> tuple[CustomOperation, ...]:
    """*operations* of *implementation*, each at one of its *micro_steps* that is not *left_out*.

    What belongs to a micro-step that is left out happens where it would have been: before the next one that runs, or
    after the last. Operations of other implementations are not in it.
    """
    rank = {step: number for number, step in enumerate(micro_steps)}
    mine = [each for each in operations if each.implementation in (implementation, generic(implementation))]
    runs = [step for step in micro_steps if step not in left_out]
    in_order = sorted(
        (each for each in mine if each.micro_step in rank), key=lambda each: (rank[each.micro_step], _WHEN[each.when])
    )
    return tuple(each if each.micro_step in runs else _at(each, rank, runs) for each in in_order)


def breakpoint_(where: str, implementation: str, micro_steps: Sequence[str], left_out: Collection[str]) -> str:
    """The breakpoint *where*; before the next micro-step that runs, where its own is *left_out* of this attempt."""
    macro, _, micro = where.partition(":")
    if macro not in (implementation, generic(implementation)) or micro not in left_out or micro not in micro_steps:
        return where
    later = [step for step in micro_steps[micro_steps.index(micro) :] if step not in left_out]
    return f"{macro}:{later[0]}" if later else where


_WHEN = {"pre": 0, "substitute": 1, "post": 2}


def _at(operation: CustomOperation, rank: dict[str, int], runs: Sequence[str]) -> CustomOperation:
    later = [step for step in runs if rank[step] > rank[operation.micro_step]]
    if later:
        return msgspec.structs.replace(operation, micro_step=later[0], when="pre")
    return msgspec.structs.replace(operation, micro_step=runs[-1], when="post") if runs else operation
