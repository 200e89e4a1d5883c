"""Where custom operations and the breakpoint are in one attempt, when their own micro-step has nothing to do."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.runner.custom import breakpoint_, moved
from kadeploy.runner.request import CustomOperation

NAME = "SetDeploymentEnvUntrusted"
STEPS = ("reboot", "format", "mount", "swap")
When = Literal["pre", "substitute", "post"]


def operation(step: str, when: When = "pre", implementation: str = NAME) -> CustomOperation:
    return CustomOperation(
        implementation=implementation, micro_step=step, action="exec", when=when, command=f"{when} {step}"
    )


def places(*operations: CustomOperation, left_out: frozenset[str]) -> list[tuple[str, str, str]]:
    found = moved(operations, NAME, STEPS, left_out)
    return [(each.command, each.when, each.micro_step) for each in found]


def test_operations_of_a_step_that_has_nothing_to_do_come_before_the_next_one_that_has() -> None:
    asked = [operation("swap"), operation("format", "post"), operation("format"), operation("format", "substitute")]
    assert places(*asked, left_out=frozenset({"format", "mount"})) == [
        ("pre format", "pre", "swap"),
        ("substitute format", "pre", "swap"),
        ("post format", "pre", "swap"),
        ("pre swap", "pre", "swap"),
    ]


def test_behind_the_last_step_they_come_after_it() -> None:
    asked = operation("swap", implementation="SetDeploymentEnv")
    assert places(asked, left_out=frozenset({"mount", "swap"})) == [("pre swap", "post", "format")]


def test_operations_of_other_implementations_are_left_out() -> None:
    others = [operation("format", implementation=name) for name in ("SetDeploymentEnvProd", "BroadcastEnv")]
    assert places(*others, left_out=frozenset()) == []


@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(["pre", "substitute", "post"])), unique=True),
    st.sets(st.sampled_from(STEPS), max_size=3),
)
def test_none_is_lost_and_their_order_stays(asked: list[tuple[str, When]], left_out: set[str]) -> None:
    found = moved([operation(*each) for each in asked], NAME, STEPS, left_out)
    order = {"pre": 0, "substitute": 1, "post": 2}
    expected = sorted(asked, key=lambda each: (STEPS.index(each[0]), order[each[1]]))
    assert [each.command for each in found] == [f"{when} {step}" for step, when in expected]
    assert not {each.micro_step for each in found} & left_out


@pytest.mark.parametrize(
    ("where", "stops"),
    [
        (f"{NAME}:format", f"{NAME}:swap"),
        ("SetDeploymentEnv:format", "SetDeploymentEnv:swap"),
        (f"{NAME}:reboot", f"{NAME}:reboot"),
        ("BroadcastEnv:format", "BroadcastEnv:format"),
        (NAME, NAME),
        ("", ""),
    ],
)
def test_a_breakpoint_at_a_step_that_has_nothing_to_do_stops_before_the_next(where: str, stops: str) -> None:
    assert breakpoint_(where, NAME, STEPS, {"format", "mount"}) == stops
