"""A controller that gives a shard to workers: what becomes of it where nobody takes it, or whoever did is gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from kadeploy import __version__
from kadeploy.config.cluster import NodeRange
from kadeploy.config.folder import collection
from kadeploy.config.site import Site
from kadeploy.events import Event, StepResult
from kadeploy.runner.player import Part
from kadeploy.state.database import url_of
from kadeploy.workers import elsewhere, jobs, lease, presence
from kadeploy.workers.elsewhere import Elsewhere
from kadeploy.workers.jobs import Job
from kadeploy.workers.lease import Report
from kadeploy.workers.presence import Presence
from kadeploy.workflow import Attempt, Outcome, Verdict
from tests.unit import build

ATTEMPT = Attempt("BootNewEnv", "BootNewEnvKexec", number=3)
NODES = ("node-1", "node-2")
OK = Outcome(Verdict.OK)
pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody in these tests is slow."""
    for name, seconds in {"UNTAKEN": 1.0, "RATHER": 1.0, "_ASK": 0.2}.items():
        monkeypatch.setattr(elsewhere, name, seconds)
    monkeypatch.setattr(lease, "LOST", 2.0)


@pytest.fixture
def part(site: Site, tmp_path: Path) -> Part:
    folder = tmp_path / "D-1" / "03-BootNewEnvKexec"
    folder.mkdir(parents=True)
    cluster = build.cluster(name="gdx", nodes=(NodeRange(name="node-[1-2]", address="127.9.0.[1-2]"),))
    made = build.request(tmp_path, site=site, cluster=cluster, attempt=ATTEMPT, workflow_dir=str(folder.parent))
    playbook = collection() / "playbooks" / "BootNewEnvKexec.yml"
    return Part(made, folder, NODES, playbook, playbook, folder / "inventory", {}, frozenset(), {})


def giving(site: Site, part: Part, workers: str) -> Elsewhere:
    cluster = msgspec.structs.replace(part.request.cluster, workers=workers)
    return Elsewhere(site, cluster, "D-1", threading.Event(), {})


def there(site: Site, name: str = "w1") -> None:
    """A worker says that it is there."""
    jobs.prepare(url_of(site))
    presence.note(site, Presence(name=name, clusters=("gdx",), shards=1, version=__version__), "worker")


@contextmanager
def serving(site: Site, part: Part, *reports: Report) -> Iterator[None]:
    """A worker that takes jobs and, where there is something to report, claims them and reports that."""

    async def take(job: Job) -> None:
        if reports:
            lease.claim(part.folder, job.key, "w1")
        for report in reports:
            lease.keep(part.folder, report)

    loop = asyncio.new_event_loop()
    task = loop.create_task(jobs.serve(url_of(site), "w1", ["gdx"], 1, take, 1.0))
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([task])))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        with suppress(asyncio.CancelledError):
            task.result()
        loop.close()


def test_where_no_worker_is_a_shard_is_done_here_or_its_nodes_are_ko_with_what_to_do(site: Site, part: Part) -> None:
    assert giving(site, part, "prefer").perform(part, print) is None
    jobs.prepare(url_of(site))
    found = giving(site, part, "only").perform(part, print)
    assert found
    assert {(each.verdict, each.again) for each in found.values()} == {(Verdict.KO, "never")}
    assert "start kadeploy-worker on a machine that reaches its nodes" in found["node-1"].message


def test_a_worker_that_has_no_time_leaves_a_shard_to_the_controller(site: Site, part: Part) -> None:
    there(site)
    giver = giving(site, part, "prefer")
    assert giver.perform(part, print) is None
    found = lease.read(part.folder)
    assert found
    assert found.is_over


def test_outcomes_are_the_workers_for_the_nodes_of_the_shard_alone(site: Site, part: Part) -> None:
    there(site)
    told: list[Event] = []
    result = StepResult(attempt=ATTEMPT, micro_step="kexec", outcomes={"node-1": OK, "node-9": OK})
    ends = Report(number=1, worker="w1", events=(result,), outcomes={"node-1": OK, "node-9": OK})
    with serving(site, part, ends):
        found = giving(site, part, "only").perform(part, told.append)
    assert found
    assert found == {"node-1": OK, "node-2": Outcome(Verdict.KO, "BootNewEnvKexec: no verdict")}
    assert [event.outcomes for event in told if isinstance(event, StepResult)] == [{"node-1": OK}]


def test_nodes_of_a_worker_that_says_nothing_any_more_are_lost_but_for_those_with_a_verdict(
    site: Site, part: Part
) -> None:
    """The third time they are KO."""
    there(site)
    broken = Outcome(Verdict.KO, "BootNewEnvKexec-kexec: no kernel", 1)
    result = StepResult(attempt=ATTEMPT, micro_step="kexec", outcomes={"node-1": broken})
    giver = giving(site, part, "only")
    with serving(site, part, Report(number=1, worker="w1", events=(result,))):
        found = [giver.perform(fresh(part, number), print) or {} for number in (1, 2, 3)]
    assert [each["node-1"] for each in found] == [broken] * 3
    assert [each["node-2"].verdict for each in found] == [Verdict.LOST, Verdict.LOST, Verdict.KO]
    assert {each["node-2"].again for each in found[:2]} == {"before"}, "it may have been booted"
    assert "3 workers were lost" in found[2]["node-2"].message


def fresh(part: Part, number: int) -> Part:
    """The same in the folder of a next attempt: what was before is moved aside."""
    part.folder.rename(part.folder.with_name(f"before-{number}"))
    part.folder.mkdir()
    return part


def test_a_worker_that_dies_before_it_has_begun_is_not_waited_for(site: Site, part: Part) -> None:
    there(site)
    with serving(site, part):
        found = giving(site, part, "only").perform(part, print)
    assert found
    assert {each.verdict for each in found.values()} == {Verdict.LOST}


def test_a_queue_that_is_gone_costs_a_try_or_is_done_without(
    site: Site, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_PATIENCE", 1.0)
    site = msgspec.structs.replace(site, database="postgresql:///kadeploy?host=/nonexistent")
    presence.note(site, Presence(name="w1", clusters=("gdx",), shards=1, version=__version__), "worker")
    assert giving(site, part, "prefer").perform(part, print) is None
    found = giving(site, part, "only").perform(part, print)
    assert found
    assert {each.verdict for each in found.values()} == {Verdict.KO}
    assert "queue of workers" in found["node-1"].message
