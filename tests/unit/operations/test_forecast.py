"""How long an operation will still take, from rows that earlier ones have left in the log."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from kadeploy.caller import Account
from kadeploy.cli.display import Display
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.events import AttemptEnded, AttemptStarted, Began, Finished
from kadeploy.operations import admission, forecast, launch
from kadeploy.operations.forecast import Forecast
from kadeploy.operations.requests import Described, RebootRequest, Recorded
from kadeploy.operations.work import Work
from kadeploy.runner.request import Options
from kadeploy.state import database, journal
from kadeploy.state.journal import LogRow
from kadeploy.state.tables import Log
from kadeploy.workflow import Attempt, Final, GoesOn, Outcome, Verdict
from tests.unit import build

STEPS = ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv")
GDX = ("gdx-1.site", "gdx-2.site")
BOTH = {"nodes": GDX}


def row(name: str, environment: Environment, seconds: tuple[int, int, int], **more: Any) -> LogRow:
    ways = {f"step{rank}": f"{step}Dummy" for rank, step in enumerate(STEPS, start=1)}
    took = {f"step{rank}_duration": each for rank, each in enumerate(seconds, start=1)}
    values: dict[str, Any] = ways | took | {"md5": environment.image.md5, "success": True} | more
    return LogRow(hostname=name, **values)


def deployed(
    site: Site, wid: str, environment: Environment, *seconds: int, nodes: tuple[str, ...] = GDX, **more: Any
) -> None:
    """A deployment that has ended: the last node took *seconds*, the others a second less for each macro-step."""
    journal.begin(site, wid, "deploy", "bob", environment, {"gdx": nodes})
    first, second, third = seconds
    less = (first - 1, second - 1, third - 1)
    rows = [row(name, environment, less, **more) for name in nodes[:-1]]
    journal.end(wid, [*rows, row(nodes[-1], environment, (first, second, third), **more)])


@pytest.fixture
def work(configuration: Configuration, environment: Environment) -> Work:
    return admission.deploy(build.deploy_request(**BOTH), configuration)


def attempt(step: str, **more: Any) -> Attempt:
    return Attempt(step, f"{step}Dummy", **more)


def forecast_of(work: Work) -> Forecast:
    found = forecast.of(beginning(work, forecast.usual(work)))
    assert found is not None
    return found


def beginning(work: Work, usual: Mapping[str, Mapping[str, float]], at: float = 0.0) -> Began:
    plans = {"gdx": work.plans["gdx"]}
    return Began(at=at, wid="D-9", operation="deploy", user="root", groups={"gdx": GDX}, plans=plans, usual=usual)


@pytest.fixture
def known(work: Work, environment: Environment) -> Forecast:
    """Three deployments have taken 60, 120 and 30 s on average."""
    for rank, first in enumerate((50, 60, 70)):
        deployed(work.site, f"D-{rank}", environment, first, 120, 30)
    return forecast_of(work)


@pytest.mark.parametrize(
    ("step", "elapsed", "left"),
    [
        ("SetDeploymentEnv", 0.0, 210.0),
        ("SetDeploymentEnv", 40.0, 170.0),
        ("SetDeploymentEnv", 80.0, 150.0),
        ("BroadcastEnv", 100.0, 50.0),
        ("BootNewEnv", 30.0, 0.0),
        ("BootNewEnv", 45.0, 0.0),
        ("BootNewEnv", 56.0, math.inf),
    ],
)
def test_what_is_left_is_what_the_last_ones_took_less_what_is_over_and_never_below_nothing(
    known: Forecast, step: str, elapsed: float, left: float
) -> None:
    assert known.left(attempt(step), GDX, elapsed) == pytest.approx(left)


def test_it_only_goes_down_while_a_macro_step_lasts(known: Forecast) -> None:
    times = [known.left(attempt("BroadcastEnv"), GDX, float(elapsed)) for elapsed in range(180)]
    assert None not in times
    assert times == sorted(times, key=lambda seconds: -(seconds or 0.0))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_rows_that_real_deployments_have_left_are_a_basis(
    configuration: Configuration, environment: Environment, root: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the recorder: of a recorded environment and of one that is only described."""
    monkeypatch.setattr(forecast, "LEAST", 1)  # how many it takes is told by rows that nobody has to deploy for
    for described in (Recorded(name="tiny"), Described(environment=build.environment(image=environment.image))):
        asked = build.deploy_request(**BOTH, environment=described)
        assert not forecast_of(admission.deploy(asked, configuration)).usual["gdx"]
        assert launch.carry_out(asked, configuration, root, lambda _: None, threading.Event()).ok == GDX
        found = forecast_of(admission.deploy(asked, configuration))
        assert set(found.usual["gdx"]) == {f"{step}Dummy" for step in STEPS}
        assert found.left(attempt("SetDeploymentEnv"), GDX, 0.0) is not None
        Log.delete().execute()


def test_nodes_that_are_late_take_longer_than_usual(known: Forecast) -> None:
    late = attempt("SetDeploymentEnv", goes_on=GoesOn("wait_reboot", 0.0, 20.0))
    assert known.left(late, GDX, 1.0) == math.inf


def test_two_deployments_are_no_basis(work: Work, environment: Environment) -> None:
    for rank in range(2):
        deployed(work.site, f"D-{rank}", environment, 60, 120, 30)
    assert forecast_of(work).left(attempt("BootNewEnv"), GDX, 0.0) is None


UNLIKE: dict[str, dict[str, Any]] = {
    "another image": {"md5": "0" * 32},
    "failed": {"success": False, "error": "mkfs: no space"},
    "with a retry": {"retry_step2": 1},
    "many more nodes": {"nodes": (*GDX, *(f"gdx-{number}.site" for number in range(3, 10)))},
    "other nodes": {"nodes": ("gdx-7.site", "gdx-8.site")},
    "by another way": {"step2": "BroadcastEnvOther"},
}


@pytest.mark.parametrize("unlike", UNLIKE)
def test_what_was_otherwise_is_no_basis(work: Work, environment: Environment, unlike: str) -> None:
    for rank in range(3):
        deployed(work.site, f"D-{rank}", environment, 60, 120, 30, **UNLIKE[unlike])
    assert forecast_of(work).left(attempt("SetDeploymentEnv"), GDX, 0.0) is None


def test_the_last_ones_count(work: Work, environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, seconds in enumerate([600] * 5 + [60] * 10):
        monkeypatch.setattr(time, "time", lambda rank=rank: 1_800_000_000.0 + rank)
        deployed(work.site, f"D-{rank}", environment, seconds, seconds, seconds)
    assert forecast_of(work).left(attempt("SetDeploymentEnv"), GDX, 0.0) == pytest.approx(180.0)


def test_a_breakpoint_ends_sooner_and_a_reboot_has_its_own_history(
    configuration: Configuration, environment: Environment, known: Forecast
) -> None:
    stops = Options(breakpoint="BroadcastEnv:dummy")
    assert not forecast.usual(admission.deploy(build.deploy_request(**BOTH, options=stops), configuration))
    request = RebootRequest(user="root", nodes=GDX, kind="simple_reboot")
    assert forecast_of(admission.reboot(request, configuration)).usual == {"gdx": {}}


def test_damage_in_the_log_stops_nobody(work: Work, environment: Environment) -> None:
    database.DB.execute_sql("ALTER TABLE log RENAME COLUMN md5 TO something_else")
    assert not forecast.usual(work)


def begun(work: Work, display: Display, ago: float, usual: Mapping[str, Mapping[str, float]] | None = None) -> None:
    start = time.time() - ago
    display(beginning(work, usual or {}, start))
    display(AttemptStarted(at=start, attempt=attempt("SetDeploymentEnv"), nodes=GDX))


@pytest.mark.parametrize(
    ("ago", "said"),
    [(5.0, "about 3 min left"), (50.0, "about 3 min left"), (120.0, "longer than usual")],
)
def test_the_view_and_enter_tell_it_with_the_time_and_the_counts(
    work: Work, known: Forecast, ago: float, said: str
) -> None:
    display = Display(0, stream=io.StringIO())
    begun(work, display, ago, known.usual)
    assert display.status_lines()[0].endswith(f": 2 on their way, {said}")
    assert (display._rows()[-1].what, display._rows()[-1].names) == (f"in all, {said}", "2 on their way")


def test_without_a_basis_or_nodes_on_their_way_nothing_is_said(work: Work, known: Forecast) -> None:
    display = Display(0, stream=io.StringIO())
    begun(work, display, 5.0)
    assert "left" not in display.status_lines()[0]
    begun(work, display, 5.0, known.usual)
    ended = dict.fromkeys(GDX, Outcome(Verdict.OK))
    display(AttemptEnded(attempt=attempt("SetDeploymentEnv"), outcomes=ended, seconds=5.0))
    display(Finished(finals={name: Final(Verdict.OK) for name in GDX}))
    assert display.status_lines()[0].endswith(": 2 OK")
