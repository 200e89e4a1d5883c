"""Operations at several servers as one: how they end, and what that means for all."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from kadeploy.client.joint import Joint, JointReport, Part, Share
from kadeploy.errors import BrokenOffError, KadeployError, RightsError, UserInterruptError
from kadeploy.events import Ended, Event, Heard, Listener, Note, Report

SHARES = {"paris": Share(3, {"paris/gdx": ("a-1", "a-2")}), "lyon": Share(0, {"lyon/sag": ("b-1",)})}


def ends(**report: object) -> Part:
    """A part that comes to its end so."""

    def part(listener: Listener, _: threading.Event, admitted: Callable[[str], None]) -> Report:
        wid = str(report["wid"])
        admitted(wid)
        found = Report(**report)  # type: ignore[arg-type]
        names = (*found.ok, *found.ko)
        listener(Ended(operation="deploy", groups={"gdx": names}, report=found))
        return found

    return part


def refuses(error: Exception) -> Part:
    def part(*_: object) -> Report:
        raise error

    return part


def until_stopped(listener: Listener, stop: threading.Event, admitted: Callable[[str], None]) -> Report | None:
    assert stop.wait(60)
    return ends(wid="D-2", ko={"b-1": "aborted"}, aborted=("b-1",))(listener, stop, admitted)


def run(
    paris: Part, lyon: Part, *, all_or_nothing: bool = False, stopped: bool = False
) -> tuple[JointReport | None, list[Event]]:
    told: list[Event] = []
    stop = threading.Event()
    if stopped:
        stop.set()
    joint = Joint({"paris": paris, "lyon": lyon}, SHARES, all_or_nothing=all_or_nothing)
    return joint.run(told.append, stop, lambda server, wid: told.append(Note(text=f"{server} {wid}"))), told


GOOD = ends(wid="D-1", ok=("a-1", "a-2"))
PARTLY = ends(wid="D-1", ok=("a-1",), ko={"a-2": "dead"})
WELL, BADLY = ends(wid="D-2", ok=("b-1",)), ends(wid="D-2", ko={"b-1": "dead"})
REFUSED = refuses(RightsError("no right"))


@pytest.mark.parametrize(
    ("paris", "lyon", "status"),
    [
        (GOOD, WELL, 0),
        (PARTLY, WELL, 3),
        (GOOD, BADLY, 0),
        (PARTLY, BADLY, 3),
        (GOOD, REFUSED, 0),
        (REFUSED, WELL, 3),
        (GOOD, refuses(BrokenOffError("disk full")), 4),
        (GOOD, refuses(UserInterruptError("no")), 130),
    ],
)
def test_the_status_is_the_worst_each_by_the_rule_of_its_site(paris: Part, lyon: Part, status: int) -> None:
    report, _ = run(paris, lyon)
    assert report is not None
    assert report.exit_status == status


def test_reports_and_events_come_together_and_each_tells_whose_it_is() -> None:
    report, told = run(PARTLY, WELL)
    assert report == JointReport(
        wid="D-1,D-2",
        ok=("a-1", "b-1"),
        ko={"a-2": "dead"},
        wids={"paris": "D-1", "lyon": "D-2"},
        exit_status=3,
    )
    assert {each.text for each in told if isinstance(each, Note)} == {"paris D-1", "lyon D-2"}
    assert {each.server for each in told if isinstance(each, Heard)} == {"paris", "lyon"}
    last = told[-1]
    assert isinstance(last, Ended)
    assert last.report == report
    assert last.groups == {"paris/gdx": ("a-1", "a-2"), "lyon/gdx": ("b-1",)}


def test_nodes_of_a_part_that_is_refused_are_ko_with_the_reason() -> None:
    report, told = run(GOOD, REFUSED)
    assert report is not None
    assert report.ko == {"b-1": "no right"}
    assert "no right" in [each.told.text for each in told if isinstance(each, Heard) and isinstance(each.told, Note)]
    assert isinstance(told[-1], Ended)
    assert told[-1].groups["lyon/sag"] == ("b-1",)


def test_a_refusal_ends_what_has_begun_elsewhere_where_it_is_all_or_nothing() -> None:
    report, told = run(REFUSED, until_stopped, all_or_nothing=True)
    assert report is not None
    assert (report.exit_status, report.ko) == (4, {"a-1": "no right", "a-2": "no right", "b-1": "aborted"})
    assert "--all-or-nothing: what has begun elsewhere is cancelled" in [
        each.text for each in told if isinstance(each, Note)
    ]


def test_who_stops_it_stops_all_parts_of_it() -> None:
    report, _ = run(GOOD, until_stopped, stopped=True)
    assert report is not None
    assert (report.exit_status, report.aborted) == (130, ("b-1",))


def test_what_is_refused_by_all_is_refused_with_all_reasons_and_the_status_of_the_worst() -> None:
    with pytest.raises(KadeployError, match=r"paris: no right lyon: gone\.") as refused:
        run(REFUSED, refuses(BrokenOffError("gone.")))
    assert refused.value.exit_code == 4


def test_a_fault_of_ours_is_no_refusal() -> None:
    with pytest.raises(ZeroDivisionError):
        run(refuses(ZeroDivisionError()), until_stopped)
