"""The automaton, driven by plain functions in place of Ansible."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kadeploy.config.cluster import Implementation
from kadeploy.workflow import Attempt, Final, GoesOn, Leaving, Outcome, Verdict, run

OK, KO, BRK = Outcome(Verdict.OK), Outcome(Verdict.KO, "no"), Outcome(Verdict.BRK)
GONE = Outcome(Verdict.KO, "no current", again="before")
"""A node that has lost what the macro-step before did."""
LATE = Outcome(Verdict.LATE, seconds=7.5, micro_step="wait")
LOST = Outcome(Verdict.LOST, "the worker has said nothing for 9 s")
BOOTED = Outcome(Verdict.LOST, "the worker has said nothing for 9 s", again="before")
"""A node whose worker is lost; the second one may have been booted."""
NODES = tuple(f"node-{number}" for number in range(16))
WAIT = 20
"""Seconds after which a rendezvous counts as missed; never spent when the test passes."""


@dataclass
class Journal:
    """An observer that remembers."""

    lines: list[tuple[str, object, tuple[str, ...]]] = field(default_factory=list)

    def started(self, attempt: Attempt, nodes: tuple[str, ...]) -> None:
        self.lines.append(("started", attempt, nodes))

    def ended(self, attempt: Attempt, outcomes: Mapping[str, Outcome], seconds: float) -> None:
        self.lines.append(("ended", attempt, tuple(outcomes)))

    def finished(self, nodes: Mapping[str, Final]) -> None:
        self.lines.append(("finished", None, tuple(nodes)))

    def tries(self) -> list[tuple[str, int, tuple[str, ...]]]:
        """Implementation, retry and nodes of each attempt, in the order in which they began."""
        return [(a.implementation, a.retry, nodes) for kind, a, nodes in self.lines if kind == "started"]  # type: ignore[attr-defined]


def plan(*steps: str) -> list[tuple[str, list[Implementation]]]:
    """``plan("A:A1:1,A2:0", "B:B1:0")``: macro-steps with their implementations and retries."""
    result = []
    for step in steps:
        name, _, ways = step.partition(":")
        pairs = [way.split(":") for way in ways.split(",")]
        result.append((name, [Implementation(name=way, retries=int(retries), timeout=60) for way, retries in pairs]))
    return result


def play(steps, answer, nodes=NODES, stop=None, leaving=None, passing=None):
    journal = Journal()
    finals = run(nodes, steps, answer, journal, stop or threading.Event(), leaving=leaving, passing=passing)
    return finals, journal


def verdicts(finals) -> Counter[str]:
    return Counter(final.verdict.value for final in finals.values())


def test_all_nodes_pass_two_macro_steps_in_order() -> None:
    finals, journal = play(plan("A:A1:0", "B:B1:0"), lambda _, nodes: dict.fromkeys(nodes, OK))
    assert verdicts(finals) == {"ok": 16}
    assert journal.tries() == [("A1", 0, NODES), ("B1", 0, NODES)]
    assert [tried.attempt.macro_step for tried in finals["node-3"].history] == ["A", "B"]


def test_attempts_are_numbered_from_one_and_carry_their_limit() -> None:
    _, journal = play(plan("A:A1:1", "B:B1:0"), lambda _, nodes: dict.fromkeys(nodes, OK))
    attempts = [attempt for kind, attempt, _ in journal.lines if kind == "started"]
    assert attempts == [Attempt("A", "A1", 0, 60, 1), Attempt("B", "B1", 0, 60, 2)]


def test_nodes_that_are_all_ko_never_see_the_next_macro_step() -> None:
    finals, journal = play(plan("A:A1:0", "B:B1:0"), lambda _, nodes: dict.fromkeys(nodes, KO))
    assert verdicts(finals) == {"ko": 16}
    assert journal.tries() == [("A1", 0, NODES)]
    assert finals["node-0"].message == "no"


def test_a_node_without_verdict_is_ko_and_says_so() -> None:
    finals, _ = play(plan("A:A1:0"), lambda _, nodes: dict.fromkeys(nodes[1:], OK))
    assert finals["node-0"].verdict is Verdict.KO
    assert finals["node-0"].message == "A1: no verdict"
    assert verdicts(finals) == {"ok": 15, "ko": 1}


def test_an_answer_about_a_stranger_is_ignored() -> None:
    finals, _ = play(plan("A:A1:0"), lambda _, nodes: {**dict.fromkeys(nodes, OK), "stranger": KO})
    assert set(finals) == set(NODES)


def test_perform_that_raises_makes_its_nodes_ko_with_the_reason() -> None:
    def broken(_, nodes):
        raise RuntimeError("the disk is full")

    finals, journal = play(plan("A:A1:1"), broken)
    assert len(journal.tries()) == 2
    assert finals["node-5"].message == "A1: RuntimeError: the disk is full"


def test_only_ko_nodes_are_tried_again() -> None:
    def answer(attempt, nodes):
        return {node: KO if attempt.retry == 0 and node in NODES[8:] else OK for node in nodes}

    finals, journal = play(plan("A:A1:1"), answer)
    assert verdicts(finals) == {"ok": 16}
    assert journal.tries() == [("A1", 0, NODES), ("A1", 1, NODES[8:])]


def test_retries_are_additional_tries() -> None:
    _, journal = play(plan("A:A1:2"), lambda _, nodes: dict.fromkeys(nodes, KO))
    assert [retry for _, retry, _ in journal.tries()] == [0, 1, 2]


def test_each_fallback_has_its_own_retries_then_nodes_are_ko_for_good() -> None:
    _, journal = play(plan("A:A1:1,A2:0,A3:2", "B:B1:0"), lambda _, nodes: dict.fromkeys(nodes, KO))
    tried = [(name, retry) for name, retry, _ in journal.tries()]
    assert tried == [("A1", 0), ("A1", 1), ("A2", 0), ("A3", 0), ("A3", 1), ("A3", 2)]


def test_fallback_belongs_to_the_set_that_failed() -> None:
    """Nodes that come to a macro-step later start at its first implementation, whatever others fell back to."""

    def answer(attempt, nodes):
        if attempt.implementation == "A1" and attempt.retry == 0:
            return {node: OK if node in NODES[:8] else KO for node in nodes}
        if attempt.implementation == "B1":
            return {node: KO if node in NODES[:8] else OK for node in nodes}
        return dict.fromkeys(nodes, OK)

    finals, journal = play(plan("A:A1:1", "B:B1:0,B2:0"), answer)
    assert verdicts(finals) == {"ok": 16}
    assert Counter(journal.tries()) == Counter(
        [("A1", 0, NODES), ("A1", 1, NODES[8:]), ("B1", 0, NODES[:8]), ("B2", 0, NODES[:8]), ("B1", 0, NODES[8:])]
    )


def test_ok_nodes_go_on_while_ko_nodes_are_still_being_retried() -> None:
    """The retry answers only once the OK nodes have been through the last macro-step."""
    ahead_done = threading.Event()

    def answer(attempt, nodes):
        if attempt.implementation == "A1" and attempt.retry == 0:
            return {node: OK if node in NODES[:4] else KO for node in nodes}
        if attempt.implementation == "A1":
            assert ahead_done.wait(WAIT)
        elif nodes == NODES[:4]:
            ahead_done.set()
        return dict.fromkeys(nodes, OK)

    finals, journal = play(plan("A:A1:1", "B:B1:0"), answer)
    assert verdicts(finals) == {"ok": 16}
    assert ("B1", 0, NODES[:4]) in journal.tries()
    assert ("B1", 0, NODES[4:]) in journal.tries()


def test_sets_that_parted_never_merge_again() -> None:
    """Both sets are in the last macro-step at the same time, each in an attempt of its own."""
    both = threading.Barrier(2, timeout=WAIT)

    def answer(attempt, nodes):
        if attempt.macro_step == "A" and attempt.retry == 0:
            return {node: OK if node in NODES[:4] else KO for node in nodes}
        if attempt.macro_step == "B":
            both.wait()
        return dict.fromkeys(nodes, OK)

    finals, _ = play(plan("A:A1:1", "B:B1:0"), answer)
    assert verdicts(finals) == {"ok": 16}


def test_a_breakpoint_ends_its_nodes_and_nobody_else() -> None:
    def answer(attempt, nodes):
        return {node: BRK if attempt.macro_step == "A" and node in NODES[:2] else OK for node in nodes}

    finals, journal = play(plan("A:A1:3", "B:B1:0"), answer)
    assert verdicts(finals) == {"brk": 2, "ok": 14}
    assert journal.tries() == [("A1", 0, NODES), ("B1", 0, NODES[2:])]


def test_a_breakpoint_in_the_fallback_is_reached() -> None:
    finals, _ = play(
        plan("A:A1:0,A2:0", "B:B1:0"),
        lambda attempt, nodes: dict.fromkeys(nodes, BRK if attempt.implementation == "A2" else KO),
    )
    assert verdicts(finals) == {"brk": 16}


def test_stop_aborts_what_is_not_at_its_end_and_starts_nothing_more() -> None:
    stop = threading.Event()

    def answer(attempt, nodes):
        stop.set()
        return {node: OK if node in NODES[:4] else KO for node in nodes}

    finals, journal = play(plan("A:A1:5", "B:B1:0"), answer, stop=stop)
    assert journal.tries() == [("A1", 0, NODES)]
    assert all(final.aborted and final.verdict is Verdict.KO for final in finals.values())
    assert finals["node-0"].message == "aborted"


def test_nodes_at_their_end_keep_their_verdict_when_the_workflow_is_stopped() -> None:
    stop = threading.Event()

    def answer(attempt, nodes):
        stop.set()
        return {node: {0: OK, 1: BRK}.get(NODES.index(node), KO) for node in nodes}

    finals, _ = play(plan("A:A1:0"), answer, stop=stop)
    assert (finals["node-0"].verdict, finals["node-0"].aborted) == (Verdict.OK, False)
    assert (finals["node-1"].verdict, finals["node-1"].aborted) == (Verdict.BRK, False)
    assert finals["node-2"].aborted


def test_stop_set_before_the_start_performs_nothing() -> None:
    stop = threading.Event()
    stop.set()
    finals, journal = play(plan("A:A1:0"), lambda *_: pytest.fail("performed"), stop=stop)
    assert journal.tries() == []
    assert all(final.aborted for final in finals.values())


def test_no_nodes_is_no_work() -> None:
    finals, journal = play(plan("A:A1:0"), lambda *_: pytest.fail("performed"), nodes=())
    assert (finals, journal.lines) == ({}, [])


def test_an_observer_that_fails_leaves_no_thread_behind() -> None:
    class Broken(Journal):
        def ended(self, attempt, outcomes, seconds) -> None:
            raise OSError("database gone")

    def answer(attempt, nodes):
        return dict.fromkeys(nodes, OK)

    with pytest.raises(OSError, match="database gone"):
        run(NODES, plan("A:A1:0"), answer, Broken(), threading.Event())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("try-")]


def test_every_attempt_tells_the_observer_start_end_and_finish_in_that_order() -> None:
    _, journal = play(plan("A:A1:0"), lambda _, nodes: dict.fromkeys(nodes, OK))
    assert [kind for kind, _, _ in journal.lines] == ["started", "ended", "finished"]


def test_a_node_that_is_gone_begins_its_next_try_with_the_macro_step_before() -> None:
    """The others go on; its try counts like any other."""

    def answer(attempt, nodes):
        return {
            node: GONE if (attempt.implementation, attempt.retry) == ("B1", 0) and node in NODES[:4] else OK
            for node in nodes
        }

    finals, journal = play(plan("A:A1:0", "B:B1:1", "C:C1:0"), answer)
    assert verdicts(finals) == {"ok": 16}
    path = [(tried.attempt.implementation, tried.attempt.retry) for tried in finals["node-0"].history]
    assert path == [("A1", 0), ("B1", 0), ("A1", 0), ("B1", 1), ("C1", 0)]
    assert ("C1", 0, NODES[4:]) in journal.tries()


def test_a_node_that_is_gone_again_and_again_has_no_more_tries_than_any_other() -> None:
    finals, journal = play(
        plan("A:A1:0", "B:B1:1,B2:0"),
        lambda attempt, nodes: dict.fromkeys(nodes, GONE if attempt.macro_step == "B" else OK),
    )
    assert verdicts(finals) == {"ko": 16}
    tried = [(name, retry) for name, retry, _ in journal.tries()]
    assert tried == [("A1", 0), ("B1", 0), ("A1", 0), ("B1", 1), ("A1", 0), ("B2", 0)]


def test_a_node_that_does_not_come_back_is_ko_where_it_was_brought_back() -> None:
    calls = Counter[str]()

    def answer(attempt, nodes):
        calls[attempt.implementation] += 1
        return dict.fromkeys(nodes, GONE if calls["B1"] else OK)

    finals, journal = play(plan("A:A1:1", "B:B1:3"), answer)
    assert verdicts(finals) == {"ko": 16}
    assert [(name, retry) for name, retry, _ in journal.tries()] == [("A1", 0), ("B1", 0), ("A1", 0), ("A1", 1)]


def test_nodes_whom_no_try_can_help_are_not_tried_again() -> None:
    never = Outcome(Verdict.KO, "all levels have failed", again="never")
    finals, journal = play(plan("A:A1:2"), lambda _, nodes: {node: never if node == NODES[0] else KO for node in nodes})
    assert [len(nodes) for _, _, nodes in journal.tries()] == [16, 15, 15]
    assert finals[NODES[0]].message == "all levels have failed"


def test_late_nodes_go_on_in_the_same_try_while_the_others_enter_the_next_macro_step() -> None:
    others_are_through = threading.Event()

    def answer(attempt, nodes):
        if attempt.implementation == "B1" and "node-1" in nodes:
            others_are_through.set()
        if attempt.implementation == "A1" and attempt.goes_on is None:
            return {node: LATE if node == "node-0" else OK for node in nodes}
        if attempt.implementation == "A1":
            assert others_are_through.wait(WAIT)
        return dict.fromkeys(nodes, OK)

    finals, journal = play(plan("A:A1:1", "B:B1:0"), answer)
    assert verdicts(finals) == {"ok": 16}
    late, *_ = [attempt for _, attempt, _ in journal.lines if attempt and attempt.goes_on]
    assert (late.retry, late.timeout) == (0, 60)
    assert late.goes_on == GoesOn("wait", late.goes_on.begun, 7.5)
    assert [tried.attempt.number for tried in finals["node-0"].history][:2] == [1, late.number]
    assert [tried.attempt.implementation for tried in finals["node-0"].history] == ["A1", "A1", "B1"]


def test_a_node_is_late_once_in_a_try_then_it_is_ko_and_tried_again() -> None:
    finals, journal = play(plan("A:A1:1"), lambda _, nodes: dict.fromkeys(nodes, LATE))
    assert finals["node-0"].verdict is Verdict.KO
    assert finals["node-0"].message == "A1-wait: late again"
    assert [(retry, nodes) for _, retry, nodes in journal.tries()] == [(0, NODES), (0, NODES), (1, NODES), (1, NODES)]


def test_late_nodes_are_aborted_once_the_workflow_is_stopped() -> None:
    stop = threading.Event()

    def answer(_, nodes):
        stop.set()
        return dict.fromkeys(nodes, LATE)

    finals, _ = play(plan("A:A1:1"), answer, stop=stop)
    assert all(final.aborted and final.verdict is Verdict.KO for final in finals.values())


OUTCOMES = st.sampled_from([OK, KO, KO, BRK, LATE, None])


@st.composite
def scenarios(draw: st.DrawFn):
    """A plan, and for each node a fixed answer to every attempt that it may meet."""
    steps = [
        (
            f"M{step}",
            [
                Implementation(name=f"M{step}I{way}", retries=draw(st.integers(0, 2)))
                for way in range(draw(st.integers(1, 3)))
            ],
        )
        for step in range(draw(st.integers(1, 3)))
    ]
    tries = [(way.name, retry) for _, ways in steps for way in ways for retry in range(way.retries + 1)]
    keys = [(*attempt, goes_on) for attempt in tries for goes_on in (False, True)]
    nodes = [f"n{number}" for number in range(draw(st.integers(1, 6)))]
    answers = {
        node: dict(zip(keys, draw(st.lists(OUTCOMES, min_size=len(keys), max_size=len(keys))), strict=True))
        for node in nodes
    }
    return steps, answers


def expected(steps, answers) -> tuple[str, list[tuple[str, int]]]:
    """What one node must go through, told without sets or threads."""
    seen: list[tuple[str, int]] = []
    for _, ways in steps:
        tries = [(way.name, retry) for way in ways for retry in range(way.retries + 1)]
        for attempt in tries:
            seen.append(attempt)
            verdict = answers[*attempt, False] or KO
            if verdict is LATE:
                seen.append(attempt)
                verdict = answers[*attempt, True] or KO
            if verdict is BRK:
                return "brk", seen
            if verdict is OK:
                break
        else:
            return "ko", seen
    return "ok", seen


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_any_pattern_of_failures_takes_each_node_its_own_way_to_one_verdict(scenario) -> None:
    """One end per node; never more tries than allowed; macro-steps in order; a verdict before every step further."""
    steps, answers = scenario
    finals, journal = play(
        steps,
        lambda attempt, nodes: {
            node: outcome
            for node in nodes
            if (outcome := answers[node][attempt.implementation, attempt.retry, attempt.goes_on is not None])
        },
        nodes=tuple(answers),
    )
    for node, own in answers.items():
        verdict, path = expected(steps, own)
        assert finals[node].verdict.value == verdict
        assert [(t.attempt.implementation, t.attempt.retry) for t in finals[node].history] == path
    finished = Counter(node for kind, _, nodes in journal.lines if kind == "finished" for node in nodes)
    assert finished == Counter(list(answers))
    busy: set[str] = set()
    for kind, _, nodes in journal.lines:
        if kind == "started":
            assert not busy & set(nodes), "a node is in two attempts at once"
            busy |= set(nodes)
        elif kind == "ended":
            busy -= set(nodes)
    assert not busy


# --- nodes whose worker is lost ---------------------------------------------------------------------------------------


def lost_at_first(name: str, times: int, outcome: Outcome = LOST, nodes=NODES):
    """Answers by which some nodes are lost so often in an implementation, and OK otherwise."""
    left = dict.fromkeys(nodes, times)

    def answer(attempt, members):
        outcomes = dict.fromkeys(members, OK)
        for node in set(members) & left.keys() if attempt.implementation == name else ():
            if left[node]:
                left[node] -= 1
                outcomes[node] = outcome
        return outcomes

    return answer


@pytest.mark.parametrize("times", [1, 2, 5])
def test_lost_nodes_begin_the_same_try_anew_as_often_as_it_is_told_while_the_others_go_on(times: int) -> None:
    lost = NODES[:4]
    finals, journal = play(plan("A:A1:0", "B:B1:0", "C:C1:0"), lost_at_first("B1", times, nodes=lost))
    assert verdicts(finals) == {"ok": 16}
    tries = journal.tries()
    assert [nodes for name, _, nodes in tries if name == "B1"] == [NODES, *(lost for _ in range(times))]
    assert {retry for _, retry, _ in tries} == {0}
    assert sorted(nodes for name, _, nodes in tries if name == "C1") == sorted([NODES[4:], lost])
    numbers = [attempt.number for kind, attempt, _ in journal.lines if kind == "started"]  # type: ignore[attr-defined]
    assert len(numbers) == len(set(numbers))


def test_a_history_has_no_lost_try_and_the_time_that_went_with_it() -> None:
    finals, _ = play(plan("A:A1:1", "B:B1:0"), lost_at_first("A1", 2))
    for final in finals.values():
        assert [(each.attempt.implementation, each.attempt.retry, each.verdict) for each in final.history] == [
            ("A1", 0, Verdict.OK),
            ("B1", 0, Verdict.OK),
        ]


def test_a_try_that_was_lost_costs_none_of_the_retries() -> None:
    first = lost_at_first("A1", 1)

    def answer(attempt, nodes):
        return {
            node: outcome if outcome.verdict is Verdict.LOST else KO for node, outcome in first(attempt, nodes).items()
        }

    finals, journal = play(plan("A:A1:1,A2:0"), answer)
    assert verdicts(finals) == {"ko": 16}
    assert [(name, retry) for name, retry, _ in journal.tries()] == [("A1", 0), ("A1", 0), ("A1", 1), ("A2", 0)]


def test_lost_nodes_that_may_have_been_booted_begin_with_the_first_macro_step() -> None:
    finals, journal = play(plan("A:A1:0", "B:B1:0", "C:C1:0"), lost_at_first("C1", 1, BOOTED, nodes=NODES[:2]))
    assert verdicts(finals) == {"ok": 16}
    mine = [(name, retry) for name, retry, nodes in journal.tries() if NODES[0] in nodes]
    assert mine == [("A1", 0), ("B1", 0), ("C1", 0), ("A1", 0), ("B1", 0), ("C1", 0)]
    assert [len(nodes) for name, _, nodes in journal.tries() if name == "C1"] == [16, 2]


def test_lost_nodes_end_aborted_once_the_workflow_is_stopped() -> None:
    stop = threading.Event()

    def answer(_, nodes):
        stop.set()
        return dict.fromkeys(nodes, LOST)

    finals, journal = play(plan("A:A1:3", "B:B1:0"), answer, stop=stop)
    assert verdicts(finals) == {"ko": 16}
    assert all(final.aborted and not final.history for final in finals.values())
    assert len(journal.tries()) == 1


def test_late_nodes_that_are_lost_begin_their_try_anew() -> None:
    answers = [LATE, LOST, OK]
    finals, journal = play(plan("A:A1:0"), lambda _, nodes: dict.fromkeys(nodes, answers.pop(0)))
    assert verdicts(finals) == {"ok": 16}
    assert [(name, retry) for name, retry, _ in journal.tries()] == [("A1", 0)] * 3
    assert [each.verdict for each in finals[NODES[0]].history] == [Verdict.OK]


@settings(max_examples=60, deadline=None)
@given(scenarios(), st.data())
def test_however_often_nodes_are_lost_each_goes_the_way_that_it_would_go_otherwise(scenario, data) -> None:
    steps, answers = scenario
    losses = {node: data.draw(st.integers(0, 4), label=node) for node in answers}
    turns = {node: data.draw(st.lists(st.booleans(), min_size=8, max_size=8)) for node in answers}

    def answer(attempt, nodes):
        outcomes = {}
        for node in nodes:
            if losses[node] and turns[node] and turns[node].pop():
                losses[node] -= 1
                outcomes[node] = LOST
            elif outcome := answers[node][attempt.implementation, attempt.retry, attempt.goes_on is not None]:
                outcomes[node] = outcome
        return outcomes

    finals, _ = play(steps, answer, nodes=tuple(answers))
    for node, own in answers.items():
        verdict, path = expected(steps, own)
        history = [each for each in finals[node].history if each.verdict is not Verdict.LATE]
        assert finals[node].verdict.value == verdict
        assert [(each.attempt.implementation, each.attempt.retry) for each in history] == list(dict.fromkeys(path))
        assert Verdict.LOST not in [each.verdict for each in history]


# --- nodes that leave out an implementation ---------------------------------------------------------------------------


def test_nodes_that_leave_out_a_way_begin_with_the_next_one_as_a_set_of_their_own() -> None:
    ok = lambda _, nodes: dict.fromkeys(nodes, OK)  # noqa: E731 - one line says it
    finals, journal = play(plan("A:A1:1,A2:0", "B:B1:0"), ok, passing={"A1": NODES[4:]})
    assert verdicts(finals) == {"ok": 16}
    assert journal.tries()[:2] == [("A1", 0, NODES[:4]), ("A2", 0, NODES[4:])]


def test_no_attempt_begins_without_nodes_and_the_last_way_is_left_out_by_nobody() -> None:
    finals, journal = play(
        plan("A:A1:0,A2:0"), lambda _, nodes: dict.fromkeys(nodes, OK), passing=dict.fromkeys(("A1", "A2"), NODES)
    )
    assert verdicts(finals) == {"ok": 16}
    assert journal.tries() == [("A2", 0, NODES)]


def test_a_node_that_is_gone_leaves_out_the_same_way_when_it_comes_back() -> None:
    calls: Counter[str] = Counter()

    def answer(attempt, nodes):
        calls[attempt.implementation] += 1
        return dict.fromkeys(nodes, GONE if attempt.implementation == "B1" and calls["B1"] == 1 else OK)

    _, journal = play(plan("A:A1:0,A2:0", "B:B1:1"), answer, passing={"A1": NODES})
    assert [name for name, _, _ in journal.tries()] == ["A2", "B1", "A2", "B1"]


@settings(max_examples=100, deadline=None)
@given(scenarios(), st.data())
def test_each_node_goes_the_way_that_it_would_go_without_what_it_leaves_out(scenario, data) -> None:
    steps, answers = scenario
    names = [way.name for _, ways in steps for way in ways]
    some = st.lists(st.sampled_from(sorted(answers)), unique=True)
    passing = data.draw(st.dictionaries(st.sampled_from(names), some), label="passing")
    finals, _ = play(
        steps,
        lambda attempt, nodes: {
            node: outcome
            for node in nodes
            if (outcome := answers[node][attempt.implementation, attempt.retry, attempt.goes_on is not None])
        },
        nodes=tuple(answers),
        passing=passing,
    )
    for node, own in answers.items():
        mine = [
            (name, [way for way in ways if way is ways[-1] or node not in passing.get(way.name, ())])
            for name, ways in steps
        ]
        verdict, path = expected(mine, own)
        assert finals[node].verdict.value == verdict
        assert [(t.attempt.implementation, t.attempt.retry) for t in finals[node].history] == path


# --- nodes that are taken meanwhile ---------------------------------------------------------------------------------


def test_a_node_that_is_taken_ends_while_its_attempt_still_runs_and_the_others_go_on() -> None:
    leaving, ended = Leaving(), threading.Event()

    class Watching(Journal):
        def finished(self, nodes: Mapping[str, Final]) -> None:
            super().finished(nodes)
            ended.set()

    def answer(attempt, nodes):
        if attempt.macro_step == "A":
            leaving.take({"node-3": "aborted: no right"})
            assert ended.wait(WAIT), "it has ended before its attempt"
        return dict.fromkeys(nodes, OK)

    journal = Watching()
    finals = run(NODES, plan("A:A1:0", "B:B1:0"), answer, journal, threading.Event(), leaving=leaving)
    assert (finals["node-3"].verdict, finals["node-3"].message) == (Verdict.KO, "aborted: no right")
    assert finals["node-3"].aborted
    assert [tried.attempt.macro_step for tried in finals["node-3"].history] == ["A"]
    others = tuple(node for node in NODES if node != "node-3")
    assert journal.tries() == [("A1", 0, NODES), ("B1", 0, others)]
    assert all(finals[node].verdict is Verdict.OK for node in others)


def test_a_node_that_is_at_its_end_keeps_it_when_it_is_taken_and_strangers_are_ignored() -> None:
    leaving = Leaving()

    def answer(attempt, nodes):
        if attempt.retry:
            leaving.take({"node-0": "aborted", "stranger": "aborted"})
        return {node: KO if node == "node-15" else OK for node in nodes}

    finals, _ = play(plan("A:A1:1"), answer, leaving=leaving)
    assert (finals["node-0"].verdict, finals["node-0"].aborted) == (Verdict.OK, False)
    assert set(finals) == set(NODES)


def test_nodes_that_are_all_taken_end_the_automaton_with_their_attempt() -> None:
    leaving = Leaving()

    def answer(_, nodes):
        leaving.take(dict.fromkeys(nodes, "aborted: gone"))
        return dict.fromkeys(nodes, KO)

    finals, journal = play(plan("A:A1:3", "B:B1:0"), answer, leaving=leaving)
    assert {final.message for final in finals.values()} == {"aborted: gone"}
    assert len(journal.tries()) == 1


@settings(max_examples=150, deadline=None)
@given(scenarios(), st.data())
def test_nodes_taken_at_any_moment_end_there_and_no_other_node_goes_another_way(scenario, data) -> None:
    steps, answers = scenario
    moments = {node: data.draw(st.none() | st.integers(1, 4), label=node) for node in answers}
    leaving, attempts, lock = Leaving(), Counter[str](), threading.Lock()

    def answer(attempt, nodes):
        with lock:
            attempts.update(nodes)
            leaving.take({node: f"aborted: {node}" for node in nodes if attempts[node] == moments[node]})
        keys = attempt.implementation, attempt.retry, attempt.goes_on is not None
        return {node: answers[node][keys] for node in nodes if answers[node][keys]}

    finals, journal = play(steps, answer, nodes=tuple(answers), leaving=leaving)
    for node, own in answers.items():
        verdict, path = expected(steps, own)
        moment = moments[node]
        taken = moment is not None and moment <= len(path)
        went = [(tried.attempt.implementation, tried.attempt.retry) for tried in finals[node].history]
        assert went == (path[:moment] if taken else path)
        assert attempts[node] == len(went), "no attempt begins with a node that is not ours"
        assert (finals[node].aborted, finals[node].message == f"aborted: {node}") == (taken, taken)
        assert taken or finals[node].verdict.value == verdict
    finished = Counter(node for kind, _, nodes in journal.lines if kind == "finished" for node in nodes)
    assert finished == Counter(list(answers))
