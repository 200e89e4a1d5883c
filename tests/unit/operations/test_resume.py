"""Workflows that go on after their controllers died: the automaton from any event on, and real processes killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kadeploy import events, files, process
from kadeploy.caller import Account
from kadeploy.config.cluster import Implementation
from kadeploy.config.folder import Configuration
from kadeploy.environments.environment import Environment
from kadeploy.errors import EnvironmentRefusedError, FileError, KadeployError, OptionError
from kadeploy.events import AttemptEnded, AttemptStarted, Began, Ended, EventFile, Finished, Note
from kadeploy.operations import background, resume, staging
from kadeploy.operations.requests import RebootRequest
from kadeploy.operations.resume import Told
from kadeploy.operations.work import run_folder
from kadeploy.runner import player
from kadeploy.runner.request import LocalImage
from kadeploy.server import keeper
from kadeploy.state import controllers, nodes, watch
from kadeploy.state.database import fetch
from kadeploy.state.tables import Claim, Log, Workflow
from kadeploy.workflow import Attempt, Final, GoesOn, Outcome, Verdict, Way, run
from tests.unit import build
from tests.unit.operations.test_background import last, wait
from tests.unit.plays import write_play
from tests.unit.test_workflow import BOOTED, BRK, GONE, KO, LATE, LOST, OK, plan

sqlite_alone = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

# --- the automaton, from any event on -------------------------------------------------------------------------------


class Ear:
    """An observer that writes the events of one automaton, as an operation does."""

    def __init__(self, file: EventFile) -> None:
        self.tell = file

    def started(self, attempt: Attempt, names: tuple[str, ...]) -> None:
        self.tell(AttemptStarted(attempt=attempt, nodes=names))

    def ended(self, attempt: Attempt, outcomes: Mapping[str, Outcome], seconds: float) -> None:
        self.tell(AttemptEnded(attempt=attempt, outcomes=outcomes, seconds=seconds))

    def finished(self, finals: Mapping[str, Final]) -> None:
        self.tell(Finished(finals=finals))


def told_of(path: Path, steps, names) -> Told:
    told = Told(dict.fromkeys(names, steps), {name: Way() for name in names})
    told.hear(events.read(path))
    return told


def go_on(path: Path, steps, answers) -> dict[str, Final]:
    """Run, from what the events in *path* tell, to the end."""
    told = told_of(path, steps, answers)
    told.interrupt()

    def perform(attempt: Attempt, names: tuple[str, ...]) -> dict[str, Outcome]:
        key = attempt.implementation, attempt.retry, attempt.goes_on is not None
        return {name: answers[name][key] for name in names}

    with closing(EventFile(path)) as file:
        file(Note(text="goes on", resumed=True))
        numbers = count(told.number + 1)
        return run(answers, steps, perform, Ear(file), threading.Event(), numbers=numbers, ways=told.ways)


def path_of(final: Final) -> tuple[object, ...]:
    tries = [(tried.attempt.implementation, tried.attempt.retry, tried.verdict) for tried in final.history]
    return final.verdict, final.message, final.aborted, tuple(tries)


@st.composite
def scenarios(draw: st.DrawFn):
    """A plan, and for each node a fixed answer to every attempt that it may meet."""
    retries = st.lists(st.integers(0, 2), min_size=1, max_size=3)
    steps = [
        (f"M{step}", [Implementation(name=f"M{step}I{way}", retries=n) for way, n in enumerate(draw(retries))])
        for step in range(draw(st.integers(1, 3)))
    ]
    tries = [(way.name, retry) for _, ways in steps for way in ways for retry in range(way.retries + 1)]
    keys = [(*attempt, goes_on) for attempt in tries for goes_on in (False, True)]
    outcome = st.sampled_from([OK, OK, KO, GONE, BRK, LATE])
    answers = st.lists(outcome, min_size=len(keys), max_size=len(keys))
    names = [f"n{number}" for number in range(draw(st.integers(1, 5)))]
    return steps, {name: dict(zip(keys, draw(answers), strict=True)) for name in names}


@settings(max_examples=150, deadline=None)
@given(scenarios(), st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_a_workflow_that_dies_at_any_byte_of_its_events_ends_as_an_undisturbed_one(
    tmp_path_factory: pytest.TempPathFactory, scenario, deaths: list[float]
) -> None:
    """However often it dies: same ends by the same tries, ends are kept, and no two attempts have a number."""
    steps, answers = scenario
    folder = tmp_path_factory.mktemp("run")
    undisturbed = folder / "undisturbed"
    undisturbed.touch()
    expected = go_on(undisturbed, steps, answers)
    path = folder / events.FILE_NAME
    path.write_bytes(undisturbed.read_bytes())
    kept: dict[str, Final] = {}
    finals = expected
    for share in deaths:
        written = path.read_bytes()
        path.write_bytes(written[: int(share * len(written))])
        kept = {name: way.final for name, way in told_of(path, steps, answers).ways.items() if way.final}
        seen = len(list(events.read(path)))
        finals = go_on(path, steps, answers)
        later = list(events.read(path))[seen:]
        begun = {name for event in later if isinstance(event, AttemptStarted) for name in event.nodes}
        assert not begun & set(kept), "nodes at their end were touched again"
        assert {name: finals[name] for name in kept} == kept
    assert {name: path_of(final) for name, final in finals.items()} == {
        name: path_of(final) for name, final in expected.items()
    }
    numbers = [event.attempt.number for event in events.read(path) if isinstance(event, AttemptStarted)]
    assert len(numbers) == len(set(numbers))


def test_time_lost_with_the_controller_counts_for_the_try_that_begins_anew() -> None:
    steps = plan("A:A1:1")
    attempt = Attempt("A", "A1", number=1)
    late = Attempt("A", "A1", number=2, goes_on=GoesOn("wait", 0.0, 7.5))
    told = Told({"n": steps}, {"n": Way()})
    told.hear(
        [
            AttemptStarted(attempt=attempt, nodes=("n",), at=100),
            AttemptEnded(attempt=attempt, outcomes={"n": LATE}, seconds=20, at=120),
            AttemptStarted(attempt=late, nodes=("n",), at=120),
            Note(text="the last word", at=125),
            Note(text="goes on", resumed=True, at=9000),
            AttemptStarted(attempt=Attempt("A", "A1", number=3), nodes=("n",), at=9001),
            AttemptEnded(attempt=Attempt("A", "A1", number=3), outcomes={"n": OK}, seconds=30, at=9031),
        ]
    )
    [tried] = told.ways["n"].history
    assert (tried.seconds, tried.attempt.retry, told.ways["n"].place) == (20 + 5 + 30, 0, None)


@pytest.mark.parametrize(("outcome", "step"), [(LOST, "B"), (BOOTED, "A")])
def test_a_node_that_was_lost_with_its_worker_is_where_its_try_begins_anew(outcome: Outcome, step: str) -> None:
    steps = plan("A:A1:0", "B:B1:1", "C:C1:0")
    told = Told({"n": steps}, {"n": Way()})
    first, second = Attempt("A", "A1", number=1), Attempt("B", "B1", number=2)
    told.hear(
        [
            AttemptStarted(attempt=first, nodes=("n",), at=100),
            AttemptEnded(attempt=first, outcomes={"n": OK}, seconds=10, at=110),
            AttemptStarted(attempt=second, nodes=("n",), at=110),
            AttemptEnded(attempt=second, outcomes={"n": outcome}, seconds=20, at=130),
        ]
    )
    place = told.ways["n"].place
    assert place is not None
    assert steps[place.step][0] == step
    assert [tried.verdict for tried in told.ways["n"].history] == [Verdict.OK]
    assert told.ways["n"].final is None
    assert not told.deaths["n"], "the controller has not died"
    told.interrupt()
    assert told.ways["n"].place == place


def test_nodes_that_may_have_been_booted_go_through_the_earlier_macro_steps_again() -> None:
    """A boot that nobody waited for took the deployment system away, and with it all that the last try needs."""
    steps = plan("A:A1:0", "B:B1:0", "C:C1:0,C2:0")
    told = Told({"n": steps}, {"n": Way()}, lambda name: name.startswith("C"))
    numbers = count(1)

    def go(macro_step: str, name: str, outcome: Outcome | None = None) -> None:
        attempt = Attempt(macro_step, name, number=next(numbers))
        told.hear([AttemptStarted(attempt=attempt, nodes=("n",))])
        if outcome:
            told.hear([AttemptEnded(attempt=attempt, outcomes={"n": outcome}, seconds=1)])

    for step, name, outcome in (("A", "A1", OK), ("B", "B1", OK), ("C", "C1", KO), ("C", "C2", None)):
        go(step, name, outcome)
    told.interrupt()
    for step, name in (("A", "A1"), ("B", "B1"), ("C", "C2")):
        place = told.ways["n"].place
        assert place is not None
        assert steps[place.step][0] == step
        go(step, name, OK)
    assert told.ways["n"].place is None
    tried = [each.attempt.implementation for each in told.ways["n"].history]
    assert tried == ["A1", "B1", "C1", "A1", "B1", "C2"]


def test_an_attempt_tells_where_a_node_is_when_what_led_there_was_not_written() -> None:
    """The disk was full meanwhile."""
    told = Told({"n": plan("A:A1:1,A2:0", "B:B1:0")}, {"n": Way()})
    told.hear([AttemptStarted(attempt=Attempt("B", "B1", number=4), nodes=("n",))])
    told.hear([AttemptEnded(attempt=Attempt("B", "B1", number=4), outcomes={"n": OK}, seconds=1)])
    assert told.ways["n"].place is None


# --- real processes -------------------------------------------------------------------------------------------------

SLEEPS = build.DUMMIES | {"BroadcastEnv": (Implementation(name="BroadcastEnvSleep"),)}
GDX = build.NAMES[:2]
"""Nodes of one cluster: each more is three more runs of ansible-playbook."""


@pytest.fixture
def gate(site_folder: Path, tmp_path: Path) -> Path:
    """A file for which `BroadcastEnvSleep` waits."""
    word = tmp_path / "go-on"
    task = f"  tasks:\n    - ansible.builtin.shell: until test -e {word}; do sleep 0.1; done\n"
    write_play(site_folder, "BroadcastEnvSleep", task)
    return word


def started(configuration: Configuration, wid: str, macro_step: str, times: int = 1) -> None:
    """Wait until *macro_step* has begun that often, and `ansible-playbook` runs."""
    folder = run_folder(configuration.site, wid)
    for _ in range(600):
        told = [event for event in events.read(folder / events.FILE_NAME) if isinstance(event, AttemptStarted)]
        here = [event for event in told if event.attempt.macro_step == macro_step]
        if len(here) >= times and process.marked(player.MARK, lambda value: value.startswith(str(folder))):
            return
        time.sleep(0.05)
    raise AssertionError(f"{macro_step} has not begun {times} times")


def kill(wid: str, *, group: bool = False) -> None:
    """Kill the controller; with *group* all that it has started as well."""
    pid = Workflow.get_by_id(wid).pid
    (os.killpg if group else os.kill)(pid, signal.SIGKILL)
    wait(pid)


@pytest.fixture
def dead(configuration: Configuration, environment: Environment, root: Account, gate: Path) -> str:
    """The id of a deployment whose controller was killed in its second macro-step."""
    wid = background.start(build.deploy_request(nodes=GDX, force_steps=SLEEPS), configuration.folder, root)
    started(configuration, wid, "BroadcastEnv")
    kill(wid)
    return wid


@sqlite_alone
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_a_killed_deployment_goes_on_to_its_end(
    configuration: Configuration, environment: Environment, root: Account, gate: Path, group: bool
) -> None:
    wid = background.start(build.deploy_request(force_steps=SLEEPS), configuration.folder, root)
    started(configuration, wid, "BroadcastEnv", 2)  # one for each cluster
    folder = run_folder(configuration.site, wid)
    assert (folder / controllers.RECORD).stat().st_mode & 0o777 == 0o600
    kill(wid, group=group)
    assert resume.resumable(configuration.site) == [wid]
    left = process.marked(player.MARK, lambda value: value.startswith(str(folder)))
    background.resume(wid, configuration.folder)
    assert not [pid for pid in left if process.find(pid)], "what the dead one has left is ended first"
    assert resume.resumable(configuration.site) == []
    gate.touch()
    assert sorted(last(configuration, wid).report.ok) == sorted(build.NAMES)
    wait(Workflow.get_by_id(wid).pid)
    told = list(events.read(folder / events.FILE_NAME))
    assert [sum(isinstance(event, kind) for event in told) for kind in (Began, Ended)] == [1, 1]
    tries = [(e.attempt.implementation, e.attempt.retry) for e in told if isinstance(e, AttemptStarted)]
    assert sorted(set(tries)) == [("BootNewEnvDummy", 0), ("BroadcastEnvSleep", 0), ("SetDeploymentEnvDummy", 0)]
    assert tries.count(("SetDeploymentEnvDummy", 0)) == 2, "one for each cluster, and none again"
    assert {row.state for row in nodes.states(configuration.site)} == {"deployed"}
    assert Claim.select().count() == 0
    rows = fetch(Log.select(Log.hostname, Log.success, Log.step2, Log.retry_step2, Log.step2_duration))
    assert sorted(name for name, *_ in rows) == sorted(build.NAMES)
    assert {row[1:4] for row in rows} == {(True, "BroadcastEnvSleep", 0)}
    assert all(row[4] > 0 for row in rows)


@sqlite_alone
def test_the_service_tries_again_what_could_not_go_on_at_first(
    configuration: Configuration,
    dead: str,
    gate: Path,
    site_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A database that is down, a configuration that is wrong for a while: no reason to give it up."""
    for pause in ("_OFTEN", "_AGAIN"):
        monkeypatch.setattr(keeper, pause, 0.1)
    gate.touch()
    file = site_folder / "site.yml"
    right = file.read_text()
    file.write_text("name: [")
    service = keeper.Keeper(lambda: configuration)
    service.start()
    try:
        while "does not go on" not in caplog.text:
            time.sleep(0.05)
        file.write_text(right)
        assert sorted(last(configuration, dead).report.ok) == sorted(GDX)
    finally:
        service.stop()
    assert len([line for line in caplog.messages if "does not go on" in line]) == 1, "and it is told once"


@sqlite_alone
def test_an_attempt_whose_folder_is_there_before_it_was_told_gets_another_number(
    configuration: Configuration, dead: str, gate: Path
) -> None:
    gate.touch()
    (run_folder(configuration.site, dead) / "17-BroadcastEnvSleep").mkdir()
    background.resume(dead, configuration.folder)
    assert sorted(last(configuration, dead).report.ok) == sorted(GDX)
    assert (run_folder(configuration.site, dead) / "18-BroadcastEnvSleep").is_dir()


@sqlite_alone
def test_a_workflow_that_dies_three_times_in_the_same_attempt_is_given_up(
    configuration: Configuration, dead: str
) -> None:
    for times in (2, 3):
        background.resume(dead, configuration.folder)
        started(configuration, dead, "BroadcastEnv", times)
        kill(dead, group=True)
    background.resume(dead, configuration.folder)
    report = last(configuration, dead).report
    assert set(report.ko.values()) == {"aborted: its controller has died 3 times within the same attempt"}
    assert sorted(report.aborted) == sorted(GDX)
    wait(Workflow.get_by_id(dead).pid)
    assert {row.state for row in nodes.states(configuration.site)} == {"aborted"}
    assert (Claim.select().count(), Log.select().count()) == (0, len(GDX))
    assert Workflow.get_by_id(dead).state == "aborted"


@sqlite_alone
def test_an_image_that_has_changed_meanwhile_is_not_sent(
    configuration: Configuration, environment: Environment, dead: str
) -> None:
    Path(environment.image.file).write_bytes(build.packed("another image"))
    background.resume(dead, configuration.folder)
    reasons = set(last(configuration, dead).report.ko.values())
    assert reasons == {f"aborted: {environment.image.file} has changed since the deployment began: deploy again."}


@sqlite_alone
def test_nodes_that_another_workflow_has_taken_meanwhile_are_left_to_it(
    configuration: Configuration, dead: str, gate: Path
) -> None:
    taken, *others = GDX
    nodes.claim(configuration.site, [taken], "D-other", "bob", force=True)
    nodes.set_state([taken], "deploying", None, "bob")
    gate.touch()
    background.resume(dead, configuration.folder)
    report = last(configuration, dead).report
    assert report.ko == {taken: "aborted: another workflow has taken it"}
    assert sorted(report.ok) == sorted(others)
    wait(Workflow.get_by_id(dead).pid)
    assert [(row.state, row.user) for row in nodes.states(configuration.site, [taken])] == [("deploying", "bob")]
    assert fetch(Claim.select(Claim.node, Claim.wid)) == [(taken, "D-other")]


@sqlite_alone
def test_two_that_go_on_with_a_workflow_at_once_are_one(configuration: Configuration, dead: str, gate: Path) -> None:
    gate.touch()

    def try_it(_rank: int) -> bool:
        try:
            background.resume(dead, configuration.folder)
        except KadeployError:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(try_it, range(3))) == 1
    assert sorted(last(configuration, dead).report.ok) == sorted(GDX)
    assert Log.select().count() == len(GDX)


@sqlite_alone
def test_without_the_daemon_the_next_operation_ends_what_is_left(
    configuration: Configuration, environment: Environment, dead: str, root: Account, gate: Path
) -> None:
    gate.touch()
    background.start(build.deploy_request(nodes=GDX), configuration.folder, root)
    assert Workflow.get_by_id(dead).state == "aborted"
    with pytest.raises(OptionError, match=f"Workflow {dead} cannot go on: it runs, has ended"):
        resume.go_on(dead, configuration, lambda _event: None, threading.Event())


@sqlite_alone
def test_a_record_that_cannot_be_read_is_put_aside_and_its_nodes_are_freed(
    configuration: Configuration, dead: str
) -> None:
    file = run_folder(configuration.site, dead) / controllers.RECORD
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with watch.watching(configuration.site):
        assert nodes.reap(configuration.site) == {}
        with pytest.raises(KadeployError, match="its record cannot be read"):
            background.resume(dead, configuration.folder)
        assert list(nodes.reap(configuration.site)) == [dead]


@sqlite_alone
@pytest.mark.parametrize(("silent_for", "goes_on"), [(0, True), (1000, False)])
def test_a_reboot_goes_on_at_once_or_not_at_all(
    configuration: Configuration, root: Account, site_folder: Path, tmp_path: Path, silent_for: int, goes_on: bool
) -> None:
    """A node that was rebooted long ago belongs to somebody who works on it."""
    word = tmp_path / "go-on"
    task = f"  tasks:\n    - ansible.builtin.shell: until test -e {word}; do sleep 0.1; done\n"
    write_play(site_folder, "RebootSimple", task)
    request = RebootRequest(user="root", nodes=GDX, kind="simple_reboot")
    wid = background.start(request, configuration.folder, root)
    started(configuration, wid, "Reboot")
    kill(wid, group=True)
    file = run_folder(configuration.site, wid) / events.FILE_NAME
    with closing(EventFile(file.with_name("new"))) as new:
        for event in events.read(file):
            new(msgspec.structs.replace(event, at=event.at - silent_for))
    file.with_name("new").replace(file)
    word.touch()
    background.resume(wid, configuration.folder)
    report = last(configuration, wid).report
    assert bool(report.ok) == goes_on
    assert all("was gone for 100" in reason for reason in report.ko.values())


# --- stopping -------------------------------------------------------------------------------------------------------


@sqlite_alone
def test_cancel_ends_a_workflow_that_runs(
    configuration: Configuration, environment: Environment, root: Account, gate: Path
) -> None:
    wid = background.start(build.deploy_request(nodes=GDX, force_steps=SLEEPS), configuration.folder, root)
    started(configuration, wid, "BroadcastEnv")
    assert background.cancel(configuration.site, wid) == "stopping"
    assert sorted(last(configuration, wid).report.aborted) == sorted(GDX)
    wait(Workflow.get_by_id(wid).pid)
    assert background.cancel(configuration.site, wid) == "ended"


@sqlite_alone
def test_a_dead_workflow_that_was_stopped_does_not_go_on(configuration: Configuration, dead: str) -> None:
    assert background.cancel(configuration.site, dead) == "dead"
    background.resume(dead, configuration.folder)
    assert set(last(configuration, dead).report.ko.values()) == {"aborted: stopped by its user"}


@sqlite_alone
def test_cancel_never_ends_a_later_process_of_the_same_number(configuration: Configuration, dead: str) -> None:
    Workflow.update(pid=os.getpid()).execute()
    assert background.cancel(configuration.site, dead) == "dead"


@sqlite_alone
def test_cancel_refuses_what_runs_on_another_machine_or_nowhere(configuration: Configuration, dead: str) -> None:
    Workflow.update(host="frontend-2").execute()
    with pytest.raises(OptionError, match=f"Workflow {dead} runs on frontend-2: stop it there"):
        background.cancel(configuration.site, dead)
    with pytest.raises(OptionError, match="No workflow is called 'D-nobody'"):
        background.cancel(configuration.site, "D-nobody")


# --- images ---------------------------------------------------------------------------------------------------------


@sqlite_alone
def test_an_image_is_opened_again_with_the_rights_of_its_user(site_folder: Path, open_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may be somebody else")
    nobody = Account("nobody", 65534, 65534, Path("/"))
    path = open_folder / "image.tgz"
    path.write_bytes(build.packed("an image"))
    found = LocalImage(
        path=str(path), size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), lent=True
    )
    assignments = {"gdx": build.assignment(site_folder, image=found)}
    with closing(staging.reopen(assignments, open_folder, nobody)) as staged:
        assert files.from_start(staged.images[str(path)].fileno()).read() == path.read_bytes()
    with pytest.raises(OptionError, match="is not the one any more"):
        staging.reopen(assignments, open_folder, nobody._replace(uid=4711))
    path.chmod(0o600)
    with pytest.raises(FileError, match="nobody can read"):
        staging.reopen(assignments, open_folder, nobody)
    path.chmod(0o644)
    path.write_bytes(build.packed("another"))
    with pytest.raises(EnvironmentRefusedError, match="has changed since the deployment began"):
        staging.reopen(assignments, open_folder, nobody)
