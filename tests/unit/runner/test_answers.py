"""The answer of a task for all nodes: what is written is read back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kadeploy.runner import answers
from kadeploy.workflow import Outcome, Verdict

pytestmark = pytest.mark.versions

OUTCOMES = {
    "n-1": Outcome(Verdict.OK, stdout="fine\n", stderr="a warning\n", seconds=1.5),
    "n-2": Outcome(Verdict.KO, "no space", 3, "half\n", "mkfs: no space\n"),
    "n-3": Outcome(Verdict.BRK, "Stopped."),
    "n-4": Outcome(Verdict.LATE, "", seconds=60.0),
}


def through(answer: dict[str, Any]) -> tuple[str, dict[str, Outcome]]:
    """As ansible-runner hands it on."""
    return answers.read(json.loads(json.dumps(answer)))


def test_every_outcome_comes_back_as_it_was_in_debug_mode() -> None:
    assert through(answers.write("format", OUTCOMES, debug=True)) == ("format", OUTCOMES)


def test_otherwise_only_the_end_of_what_failed_nodes_said_is_told() -> None:
    said = "x" * answers.STDERR_LIMIT + "y"
    _, found = through(answers.write("format", OUTCOMES | {"n-2": Outcome(Verdict.KO, "no space", 3, "half", said)}))
    assert found["n-1"] == Outcome(Verdict.OK, seconds=1.5)
    assert found["n-2"] == Outcome(Verdict.KO, "no space", 3, "", said[1:])


def test_a_verdict_alone_is_an_answer() -> None:
    assert answers.read({"nodes": {"n-1": {"verdict": "ok", "msg": None}}}) == ("", {"n-1": Outcome(Verdict.OK)})


@pytest.mark.parametrize("result", [{}, {"nodes": ["n-1"]}, {"nodes": {"n-1": "up"}}, {"nodes": {"n-1": {"rc": 0}}}])
def test_what_another_task_answers_is_none(result: dict[str, Any]) -> None:
    assert answers.read(result)[1] == {}


@pytest.mark.parametrize("row", [{"verdict": "fine"}, {"verdict": "ok", "rc": "many"}])
def test_a_node_with_a_malformed_answer_is_ko_and_the_others_are_not(row: dict[str, Any]) -> None:
    _, found = answers.read({"nodes": {"n-1": row, "n-2": {"verdict": "ok"}}})
    assert found["n-1"].verdict is Verdict.KO
    assert "malformed" in found["n-1"].message
    assert found["n-2"] == Outcome(Verdict.OK)
