"""Deployments whose shards are carried out by workers, which die, freeze and come again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kadeploy import events, process
from kadeploy.config.folder import load_configuration
from kadeploy.events import AttemptEnded, Ended, Event, LetGo, StepStarted
from kadeploy.lab import network
from kadeploy.lab.lab import Lab
from kadeploy.operations.work import run_folder
from kadeploy.runner import player
from kadeploy.state import controllers, nodes, rights
from kadeploy.state.database import disconnect
from kadeploy.workers import presence
from kadeploy.workflow import Verdict
from tests.light.conftest import TOOLS
from tests.light.test_resume import NAME, Stage, come_to_rest, deployed, lab, require_one_at_a_time, start, until
from tests.postgresql import running

__all__ = ["lab"]
SHARD = 2
"""Of four nodes."""
MARK = "KADEPLOY_TEST_WORKER"
"""Environment variable by which the processes of a worker are known."""


class Worker:
    """A worker of the lab's cluster, on this machine; it sees nothing of the site but its service and the queue."""

    def __init__(self, stage: Stage, folder: Path, name: str, cluster: str) -> None:
        assert stage.server
        folder.mkdir()
        self.folder = folder
        self.name = name
        (folder / "database").write_text(f"{stage.server.url}\n")
        (folder / "database").chmod(0o600)
        self._settings = folder / "worker.yml"
        self._settings.write_text(
            f"url: unix:{stage.path}\ndatabase_file: {folder}/database\nclusters: [{cluster}]\nname: {name}\n"
            f"folder: {folder}/work\nsecrets: {folder}/secrets\n"
        )
        self._started = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Have it serve."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KADEPLOY")}
        words = network.inside(NAME, [str(TOOLS / "kadeploy-worker"), "run", "--settings", str(self._settings)])
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, env=kept | {MARK: str(self.folder)}, stderr=log)
        self._started += 1
        until(f"{self.name} serves", lambda: self.log.count(f"{self.name} serves") == self._started)

    def stop(self) -> None:
        """Have it end in good order; one that was killed begins once more for that, and forgets what it has left."""
        if self._process is None:
            self.start()
        assert self._process
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 0, self.log
        self._process = None

    def kill(self) -> None:
        """SIGKILL to the worker itself: what it has begun has to see that."""
        assert self._process
        self._process.kill()
        self._process.wait()
        self._process = None
        until(f"nothing of {self.name} runs", lambda: not self.processes)

    def freeze(self) -> None:
        """Stop all that it is, as a machine that hangs."""
        for pid in self.processes:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        for pid in self.processes:
            os.kill(pid, signal.SIGCONT)

    @property
    def processes(self) -> list[int]:
        """All that it is and has started."""
        return process.marked(MARK, lambda value: value == str(self.folder))

    @property
    def playbooks(self) -> list[int]:
        """Processes of the attempts that it carries out."""
        return process.marked(player.MARK, lambda value: value.startswith(f"{self.folder}/"))

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.folder / "log").read_text()

    def carries(self, wid: str, number: int) -> bool:
        """Whether it carries out (a shard of) this attempt."""
        return any((self.folder / "work" / "shards").glob(f"*/{wid}/{number:02d}-*"))

    @property
    def left(self) -> list[Path]:
        """What is on its disk of what it did."""
        return [path for part in ("work", "secrets") for path in (self.folder / part).rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The lab's site in service, whose nodes workers alone may touch."""
    folder = tmp_path_factory.mktemp("site") / "site"
    shutil.copytree(lab.config, folder)
    [cluster] = (folder / "clusters").glob("*.yml")
    with cluster.open("a") as text:
        text.write("workers: only\n")
    with ExitStack() as stack:
        server = stack.enter_context(running())
        site = (folder / "site.yml").read_text()
        assert "\nservice:\n" in site, site
        site = site.replace("\nservice:\n", "\nservice:\n  workers: {users: [root]}\n")
        (folder / "site.yml").write_text(f"{site}database: {server.url}\nshard: {SHARD}\n")
        found = Stage(load_configuration(folder), server)
        rights.add(found.configuration.site, "root", ["*"], ["*"])
        found.listen()
        found.start()
        stack.callback(disconnect)
        stack.callback(found.stop, signal.SIGTERM)
        yield found


@pytest.fixture
def workers(stage: Stage, tmp_path: Path) -> Iterator[list[Worker]]:
    """Two workers that serve; what they have left on their disks is nothing, once they have ended."""
    [cluster] = stage.configuration.clusters
    made = [Worker(stage, tmp_path / name, name, cluster) for name in ("w1", "w2")]
    for worker in made:
        worker.start()
    until("both workers serve", lambda: len(alive(stage)) == len(made))
    try:
        yield made
    finally:
        for worker in made:
            worker.stop()
    until("no worker is left", lambda: not alive(stage))
    assert not [path for worker in made for path in worker.left]


def alive(stage: Stage) -> list[str]:
    seen = presence.seen(stage.configuration.site)
    return [each.presence.name for each in seen if each.is_alive and not each.presence.leaves]


def told(stage: Stage, wid: str) -> list[Event]:
    path = run_folder(stage.configuration.site, wid) / events.FILE_NAME
    return list(events.read(path)) if path.exists() else []


def begun(stage: Stage, wid: str, micro_step: str) -> bool:
    return any(isinstance(event, StepStarted) and event.micro_step == micro_step for event in told(stage, wid))


def test_two_workers_deploy_and_nothing_stays_on_them(stage: Stage, lab: Lab, workers: list[Worker]) -> None:
    wid = start(stage, lab)
    come_to_rest(stage, wid)
    assert deployed(stage, wid, set(lab.members)) == set(lab.members)
    require_one_at_a_time(told(stage, wid), set(lab.members))
    folders = run_folder(stage.configuration.site, wid).glob("*.00*/worker/artifacts/ansible/stdout")
    assert len(list(folders)) == 6, "each of three macro-steps is two shards, done elsewhere"


def test_nodes_of_a_worker_that_is_lost_go_on_elsewhere_within_the_same_try(
    stage: Stage, lab: Lab, workers: list[Worker]
) -> None:
    """First it is killed, then the service is out of reach, then it freezes, each in another macro-step with one try.

    The nodes are one shard. Whoever comes to itself ends what it has begun: others have the nodes by now.
    """
    names = set(list(lab.members)[:SHARD])
    wid = start(stage, lab, names)

    def harmed(step: str, harm: Callable[[Worker], None], heal: Callable[[Worker], None]) -> None:
        until(f"a worker does {step}", lambda: doing(stage, wid, step, workers))
        before, [busy] = losses(stage, wid), doing(stage, wid, step, workers)
        harm(busy)
        until(f"{busy.name} is lost in {step}", lambda: losses(stage, wid) > before)
        heal(busy)

    harmed("wait_reboot", Worker.kill, Worker.start)
    harmed("send_environment", lambda _: stage.signal(signal.SIGSTOP), lambda _: stage.signal(signal.SIGCONT))
    harmed("reboot_from_deploy_env", Worker.freeze, Worker.thaw)
    come_to_rest(stage, wid)
    assert deployed(stage, wid, names) == names, reasons(stage, wid)
    require_one_at_a_time(told(stage, wid), names)


def doing(stage: Stage, wid: str, step: str, workers: list[Worker]) -> list[Worker]:
    """The worker that has the attempt which has begun *step* last."""
    begun = [event for event in told(stage, wid) if isinstance(event, StepStarted) and event.micro_step == step]
    return [worker for worker in workers if begun and worker.carries(wid, begun[-1].attempt.number)]


def reasons(stage: Stage, wid: str) -> dict[str, str]:
    """Why nodes are KO."""
    return {
        node: why for event in told(stage, wid) if isinstance(event, Ended) for node, why in event.report.ko.items()
    }


def losses(stage: Stage, wid: str) -> int:
    """In how many attempts nodes were lost."""
    ends = (event for event in told(stage, wid) if isinstance(event, AttemptEnded))
    return sum(any(outcome.verdict is Verdict.LOST for outcome in end.outcomes.values()) for end in ends)


def let_go(stage: Stage, wid: str) -> set[str]:
    return {node for event in told(stage, wid) if isinstance(event, LetGo) for node in event.nodes}


def test_a_stopped_operation_leaves_the_workers_at_once_and_a_taken_node_is_let_go(
    stage: Stage, lab: Lab, workers: list[Worker]
) -> None:
    wid = start(stage, lab)
    until("a worker is at work", lambda: begun(stage, wid, "wait_reboot"))
    [taken, *others] = lab.members
    site = stage.configuration.site
    nodes.claim(site, [taken], "D-thief", "root", force=True)
    until(
        f"{taken} is let go",
        lambda: any(isinstance(event, LetGo) and taken in event.nodes for event in told(stage, wid)),
    )
    nodes.release("D-thief")
    stage.remote.cancel(wid)
    until(f"{wid} has ended", lambda: controllers.of(site, wid) and controllers.of(site, wid)[1])
    [end] = [event for event in told(stage, wid) if isinstance(event, Ended)]
    assert end.report.taken == (taken,)
    assert set(end.report.aborted) == set(others)
    assert not any(worker.playbooks for worker in workers), "an operation has ended once nothing of it runs"
