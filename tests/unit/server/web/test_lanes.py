"""The picture of a run, by the events that the automaton and real deployments tell."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings

from kadeploy import events
from kadeploy.broadcast.progress import Transfer
from kadeploy.config.site import Site
from kadeploy.events import AttemptStarted, Event, EventFile, LeftOut, Note, Progress, StepStarted, Taken
from kadeploy.nodeset import expand
from kadeploy.operations.work import run_folder
from kadeploy.server.web.lanes import Bar, Lanes, Picture
from kadeploy.server.web.stands import STATES
from kadeploy.workflow import Attempt, Leaving, Outcome, Verdict
from tests.unit.operations.test_resume import go_on, scenarios
from tests.unit.server.web.acts import acted, ended, start
from tests.unit.server.web.runs import tell
from tests.unit.test_workflow import BRK, GONE, LATE, LOST, OK, lost_at_first, plan

__all__ = ["acted"]

NAMES = tuple(f"gdx-{number}.site" for number in range(1, 9))
MANY = tuple(f"gdx-{number}.site" for number in range(1, 2001))


def failed(reason: str, micro_step: str = "work") -> Outcome:
    return Outcome(Verdict.KO, reason, micro_step=micro_step)


def told(steps, answer, names=NAMES, **how) -> tuple[Lanes, Picture]:
    lanes = Lanes("D-1")
    tell(lanes.feed, steps, answer, names, **how)
    return lanes, lanes.picture(time.time())


def shape(picture: Picture) -> list[tuple[str, str, int, str, tuple[int, ...]]]:
    return [(bar.title, bar.folded, bar.lane, bar.look, bar.before) for bar in picture.bars]


def test_nodes_that_stay_together_stay_in_one_lane() -> None:
    _, picture = told(plan("A:A1:0", "B:B1:0"), lambda _, nodes: dict.fromkeys(nodes, OK))
    assert shape(picture) == [
        ("A1", "gdx-[1-8].site", 0, "ok", ()),
        ("B1", "gdx-[1-8].site", 0, "ok", (1,)),
    ]
    assert (picture.lanes, picture.counts) == (1, {"ok": 8})


def test_nodes_that_part_get_a_lane_of_their_own_and_are_tried_again_there() -> None:
    def answer(attempt: Attempt, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        bad = {name for name in nodes if name in NAMES[6:] and attempt.implementation == "A1"}
        return {name: failed("A1-work: no current") if name in bad else OK for name in nodes}

    _, picture = told(plan("A:A1:1,A2:0", "B:B1:0"), answer)
    ways = {(title, folded): (lane, look) for title, folded, lane, look, _ in shape(picture)}
    assert ways == {
        ("A1", "gdx-[1-8].site"): (0, "parted"),
        ("B1", "gdx-[1-6].site"): (0, "ok"),
        ("A1 (retry 1)", "gdx-[7-8].site"): (1, "ko"),
        ("A2", "gdx-[7-8].site"): (1, "ok"),
        ("B1", "gdx-[7-8].site"): (1, "ok"),
    }
    [failure] = picture.failures
    assert (failure.implementation, failure.micro_step, failure.reason) == ("A1", "work", "no current")
    assert (failure.folded, failure.now, failure.tries) == (
        "gdx-[7-8].site",
        {"ok": 2},
        (("01-A1", 2), (failure.tries[1][0], 2)),
    )
    assert failure.by_hand(Path("/runs/D-1")) == [
        f"/runs/D-1/{failure.tries[1][0]}/command --tags work --limit gdx-7.site,gdx-8.site"
    ]


def test_failures_of_one_kind_are_one_whatever_addresses_and_times_they_name() -> None:
    def answer(_: Attempt, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        reasons = {
            name: f"A1-work: {name} (10.0.0.{rank}:22): no answer in {rank} s" for rank, name in enumerate(nodes)
        }
        return {name: failed(reason) for name, reason in reasons.items()}

    _, picture = told(plan("A:A1:0"), answer)
    [failure] = picture.failures
    assert (len(failure.names), failure.now) == (8, {"ko": 8})
    assert failure.reason == "gdx-1.site (10.0.0.0:22): no answer in 0 s"


def test_late_nodes_and_those_that_come_back_are_seen_as_such() -> None:
    def answer(attempt: Attempt, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        if attempt.implementation == "B1" and not attempt.goes_on and attempt.retry == 0:
            return dict.fromkeys(nodes, OK) | {NAMES[0]: LATE, NAMES[1]: GONE, NAMES[2]: BRK}
        return dict.fromkeys(nodes, OK)

    _, picture = told(plan("A:A1:0", "B:B1:1"), answer)
    titles = Counter(bar.title for bar in picture.bars)
    assert titles == {"A1": 2, "B1": 1, "B1, late nodes": 1, "B1 (retry 1)": 1}
    assert picture.counts == {"breakpoint": 1, "ok": 7}
    assert picture.bars[1].ends == {"ok": 5, "late": 1, "ko": 1, "brk": 1}


def test_nodes_that_are_lost_with_their_worker_begin_anew_and_have_not_failed() -> None:
    lanes, picture = told(plan("A:A1:0"), lost_at_first("A1", 1, nodes=NAMES))
    assert shape(picture) == [
        ("A1", "gdx-[1-8].site", 0, "aborted", ()),
        ("A1", "gdx-[1-8].site", 0, "ok", (1,)),
    ]
    assert (picture.counts, picture.failures, lanes.stands.reasons) == ({"ok": 8}, (), {})
    some = lost_at_first("A1", 1, LOST, NAMES[:2])
    _, picture = told(plan("A:A1:0"), some)
    assert [(bar.folded, bar.look, bar.ends) for bar in picture.bars] == [
        ("gdx-[1-8].site", "ok", {"ok": 6, "lost": 2}),
        ("gdx-[1-2].site", "ok", {"ok": 2}),
    ]


def test_what_is_stopped_is_aborted_and_no_failure_of_its_nodes() -> None:
    stop = threading.Event()

    def answer(attempt: Attempt, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        if attempt.implementation == "B1":
            stop.set()
            return dict.fromkeys(nodes, failed("B1: aborted", ""))
        return dict.fromkeys(nodes, OK)

    lanes, picture = told(plan("A:A1:0", "B:B1:3", "C:C1:0"), answer, stop=stop)
    assert [(bar.title, bar.look, bar.ends) for bar in picture.bars] == [
        ("A1", "ok", {"ok": 8}),
        ("B1", "aborted", {"aborted": 8}),
    ]
    assert picture.counts == {"aborted": 8}
    assert lanes.stands.reasons["gdx-1.site"] == "aborted"


def test_nodes_that_are_taken_are_aborted_while_the_others_go_on() -> None:
    leaving, gone = Leaving(), threading.Event()
    lanes = Lanes("D-1")

    def listen(event: Event) -> None:
        lanes.feed(event)
        if isinstance(event, events.Finished) and NAMES[0] in event.finals:
            gone.set()

    def answer(attempt: Attempt, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        if attempt.implementation == "A1":
            reasons = {NAMES[0]: "taken by workflow D-2 of bob"}
            lanes.feed(Taken(reasons=reasons))
            leaving.take(reasons)
            assert gone.wait(20)
        return dict.fromkeys(nodes, OK)

    tell(listen, plan("A:A1:0", "B:B1:0"), answer, NAMES, leaving=leaving)
    picture = lanes.picture(time.time())
    assert picture.counts == {"aborted": 1, "ok": 7}
    assert [failure.reason for failure in picture.failures] == ["taken by workflow D-2 of bob"]


def test_while_it_runs_the_micro_step_and_how_long_it_takes_are_seen() -> None:
    lanes, attempt = Lanes("D-1"), Attempt("A", "A1")
    for event in (
        AttemptStarted(at=100.0, attempt=attempt, nodes=NAMES),
        StepStarted(at=101.0, attempt=attempt, micro_step="first", nodes=NAMES),
        StepStarted(at=109.0, attempt=attempt, micro_step="second", nodes=NAMES),
    ):
        lanes.feed(event)
    [bar] = lanes.picture(112.0).bars
    assert (bar.look, bar.begun, bar.until, bar.micro_step, bar.in_step) == ("busy", 100, 112, "second", 3)
    assert (bar.longest, bar.longest_seconds) == ("first", 8)


def test_a_broadcast_tells_its_rate_of_the_last_seconds_and_in_the_end_of_all() -> None:
    lanes, attempt = Lanes("D-1"), Attempt("A", "A1")
    lanes.feed(AttemptStarted(at=100.0, attempt=attempt, nodes=NAMES))
    for second in range(10):
        done = 100 if second < 5 else 100 + 50 * (second - 4)
        lanes.feed(Progress(attempt=attempt, nodes=NAMES, transfer=Transfer(1000, done, done, 8, float(second))))
    [sending] = lanes.picture(110.0).sending
    assert (sending.rate, sending.transfer.done, sending.is_over) == (50, 350, False)
    lanes.feed(events.AttemptEnded(attempt=attempt, outcomes=dict.fromkeys(NAMES, OK), seconds=10.0))
    [sending] = lanes.picture(111.0).sending
    assert (sending.rate, sending.is_over) == (350 / 9, True)


def test_what_a_dead_controller_left_is_broken_off_and_stays_as_it_was() -> None:
    lanes, attempt = Lanes("D-1"), Attempt("A", "A1")
    lanes.feed(AttemptStarted(at=100.0, attempt=attempt, nodes=NAMES))
    lanes.feed(StepStarted(at=103.0, attempt=attempt, micro_step="first", nodes=NAMES))
    for now in (200.0, 300.0):
        picture = lanes.picture(now, goes_on=False)
        assert [(bar.look, bar.until) for bar in picture.bars] == [("aborted", 103.0)]
        assert picture.ended == 103.0


def test_nodes_that_were_left_out_say_why() -> None:
    lanes = Lanes("D-1")
    lanes.feed(LeftOut(reasons={"gdx-9.site": "used by bob"}))
    tell(lanes.feed, plan("A:A1:0"), lambda _, nodes: dict.fromkeys(nodes, OK), NAMES)
    picture = lanes.picture(time.time())
    assert (picture.counts, picture.failures[0].reason) == ({"ko": 1, "ok": 8}, "used by bob")


@settings(max_examples=60, deadline=None)
@given(scenarios())
def test_every_node_is_in_one_state_and_lanes_never_overlap(scenario) -> None:
    steps, answers = scenario

    def answer(attempt: Attempt, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        key = attempt.implementation, attempt.retry, attempt.goes_on is not None
        return {name: answers[name][key] for name in nodes}

    _, picture = told(steps, answer, tuple(answers))
    assert sorted(name for group in picture.groups for name in group.names) == sorted(answers)
    assert "busy" not in picture.counts
    by_lane: dict[int, list[Bar]] = {}
    for bar in picture.bars:
        by_lane.setdefault(bar.lane, []).append(bar)
    assert sorted(by_lane) == list(range(picture.lanes))
    for bars in by_lane.values():
        assert all(before.until <= after.begun for before, after in pairwise(bars))


def test_a_run_that_another_controller_goes_on_with_is_one_picture(tmp_path: Path) -> None:
    path, steps = tmp_path / events.FILE_NAME, plan("A:A1:0", "B:B1:0")
    answers = {name: {("A1", 0, False): OK, ("B1", 0, False): OK} for name in NAMES}
    whole: list[Event] = []
    tell(whole.append, steps, lambda _, nodes: dict.fromkeys(nodes, OK), NAMES)
    with closing(EventFile(path)) as file:
        for event in whole[:3]:
            file(event)
    go_on(path, steps, answers)
    lanes = Lanes("D-1")
    for event in events.read(path):
        lanes.feed(event)
    picture = lanes.picture(time.time())
    assert [bar.look for bar in picture.bars] == ["aborted", "ok", "ok"]
    assert (picture.lanes, picture.counts, picture.notes) == (1, {"ok": 8}, ("goes on",))


def test_a_run_of_two_thousand_nodes_is_heard_and_pictured() -> None:
    """Each macro-step parts them further; what has changed since the last look is all that is folded anew."""

    def answer(attempt: Attempt, nodes: tuple[str, ...]) -> Mapping[str, Outcome]:
        odd = {name for rank, name in enumerate(nodes) if rank % 7 == attempt.retry}
        return {
            name: failed(f"{attempt.implementation}-work: reason {len(name)}") if name in odd else OK for name in nodes
        }

    heard: list[Event] = []
    tell(heard.append, plan("A:A1:2", "B:B1:2", "C:C1:2"), answer, MANY)
    lanes = Lanes("D-1")
    for event in heard:
        lanes.feed(event)
    picture = lanes.picture(time.time())
    assert picture.nodes == len(MANY)
    assert len(picture.bars) > 20
    again = lanes.picture(time.time())
    assert [bar.folded for bar in again.bars] == [bar.folded for bar in picture.bars]
    assert all(one.folded is other.folded for one, other in zip(again.bars, picture.bars, strict=True))


def test_thousands_of_sets_are_bounded_in_the_picture_those_under_way_first() -> None:
    lanes = Lanes("D-1")
    for number, name in enumerate(MANY, start=1):
        lanes.feed(AttemptStarted(attempt=Attempt("A", "A1", number=number), nodes=(name,)))
        if number > 1:
            lanes.feed(events.AttemptEnded(attempt=Attempt("A", "A1", number=number), outcomes={name: OK}, seconds=1.0))
    picture = lanes.picture(time.time())
    assert (len(picture.bars), picture.bars_left_out, picture.bars[0].number) == (200, 1800, 1)
    assert picture.lanes == 2


def test_notes_are_shown_and_the_states_are_known_words() -> None:
    lanes = Lanes("D-1")
    for number in range(50):
        lanes.feed(Note(text=f"note {number}"))
    assert lanes.picture(0.0).notes[-1] == "note 49"
    assert len(lanes.picture(0.0).notes) == 20
    assert set(STATES) == {"busy", "ko", "aborted", "breakpoint", "ok"}


@pytest.mark.parametrize("nodes", ["gdx-[1-2].site"])
def test_a_real_deployment_is_one_lane_of_three_macro_steps(acted: Site, browse, nodes: str) -> None:
    alice = browse("alice")
    wid = start(alice, "/ui/deploy", nodes=nodes, environment="debian12")
    assert set(ended(acted, wid)) == set(expand(nodes))
    lanes = Lanes(wid)
    for event in events.read(run_folder(acted, wid) / events.FILE_NAME):
        lanes.feed(event)
    picture = lanes.picture(time.time())
    assert [(bar.title, bar.lane, bar.look) for bar in picture.bars] == [
        ("SetDeploymentEnvDummy", 0, "ok"),
        ("BroadcastEnvDummy", 0, "ok"),
        ("BootNewEnvDummy", 0, "ok"),
    ]
    assert (picture.user, picture.operation, picture.counts, picture.failures) == ("alice", "deploy", {"ok": 2}, ())
    for failure_folder in ("01-SetDeploymentEnvDummy", "03-BootNewEnvDummy"):
        assert (run_folder(acted, wid) / failure_folder / "command").is_file()
