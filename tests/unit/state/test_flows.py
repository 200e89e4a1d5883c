"""Workflows as a list: which are there, in which order, and how their nodes came out."""

from __future__ import annotations

import pytest

from kadeploy.config.site import Site
from kadeploy.state import flows, journal
from kadeploy.state.flows import Counts, Wanted
from kadeploy.state.journal import LogRow
from kadeploy.state.tables import Workflow

NODES = {"gdx": ["gdx-1.site", "gdx-2.site"], "nvm": ["nvm-1.site"]}


@pytest.fixture
def some(site: Site) -> Site:
    """Three that have ended one after the other, one of them aborted, one that runs, and one without a controller."""
    for second, (wid, operation, user) in enumerate(
        (("D-1", "deploy", "a"), ("R-2", "reboot", "b"), ("P-3", "power", "a"))
    ):
        journal.begin(site, wid, operation, user, None, NODES if wid == "D-1" else {"gdx": ["gdx-2.site"]})  # type: ignore[arg-type]
        journal.end(wid, [LogRow(hostname="gdx-2.site", success=wid != "P-3")], "aborted" if wid == "P-3" else "ended")
        Workflow.update(started=1000 + second, ended=2_000_000_000 + second).where(Workflow.wid == wid).execute()
    journal.begin(site, "D-4", "deploy", "b", None, NODES)
    journal.begin(site, "D-5", "deploy", "a", None, {"nvm": ["nvm-1.site"]})
    Workflow.update(pid=1, process_start="never", started=500).where(Workflow.wid == "D-5").execute()
    return site


def ids(found: list[journal.Flow]) -> list[str]:
    return [flow.wid for flow in found]


def test_what_has_not_ended_comes_newest_first_and_one_without_a_controller_is_aborted(some: Site) -> None:
    found = flows.running(some, Wanted(), 10)
    assert [(flow.wid, flow.state) for flow in found] == [("D-4", "running"), ("D-5", "aborted")]
    assert ids(flows.running(some, Wanted(), 1)) == ["D-4"]


def test_what_has_ended_comes_by_its_end_in_pages(some: Site) -> None:
    assert ids(flows.ended(some, Wanted(), 10)) == ["P-3", "R-2", "D-1"]
    assert ids(flows.ended(some, Wanted(), 1, offset=1)) == ["R-2"]


@pytest.mark.parametrize(
    ("wanted", "running", "ended"),
    [
        (Wanted(user="a"), ["D-5"], ["P-3", "D-1"]),
        (Wanted(operation="reboot"), [], ["R-2"]),
        (Wanted(state="running"), ["D-4"], []),
        (Wanted(state="aborted"), ["D-5"], ["P-3"]),
        (Wanted(state="ended"), [], ["R-2", "D-1"]),
        (Wanted(nodes=("nvm-1.site", "gdx-9.site")), ["D-4", "D-5"], ["D-1"]),
        (Wanted(user="b", nodes=("gdx-1.site",)), ["D-4"], []),
    ],
)
def test_what_is_wanted_is_all_that_comes(some: Site, wanted: Wanted, running: list[str], ended: list[str]) -> None:
    assert (ids(flows.running(some, wanted, 10)), ids(flows.ended(some, wanted, 10))) == (running, ended)


def test_one_is_found_by_its_name_and_nodes_are_counted(some: Site) -> None:
    found = flows.find(some, "P-3")
    assert found is not None
    assert (found.user, found.state) == ("a", "aborted")
    assert flows.find(some, "D-9") is None
    assert flows.sizes(some, ["D-1", "R-2", "D-9"]) == {"D-1": 3, "R-2": 1}
    assert flows.results(some, ["D-1", "P-3", "D-4"]) == {"D-1": Counts(1, 0), "P-3": Counts(0, 1)}
