"""Deployments whose shards are carried out by workers, which die, freeze and come again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kadeploy import events
from kadeploy.config.folder import load_configuration
from kadeploy.events import AttemptEnded, Event
from kadeploy.lab import network
from kadeploy.lab.lab import Lab, saved
from kadeploy.operations.work import run_folder
from kadeploy.state import rights
from kadeploy.state.database import disconnect
from kadeploy.workers import presence
from kadeploy.workflow import Verdict
from tests.light.conftest import TOOLS, lab_command
from tests.light.test_resume import Stage, come_to_rest, deployed, require_one_at_a_time, start, until
from tests.postgresql import running

NAME = "kadeploy-workers"
NODES = 6
SHARD = 3


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
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KADEPLOY")}
        with (self.folder / "log").open("ab") as log:
            words = [str(TOOLS / "kadeploy-worker"), "run", "--settings", str(self._settings)]
            self._process = subprocess.Popen(network.inside(NAME, words), env=kept, stderr=log, start_new_session=True)

    def stop(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            assert self._process.wait(60) == 0, (self.folder / "log").read_text()
            self._process = None

    @property
    def left(self) -> list[Path]:
        """What is on its disk of what it did."""
        return [path for part in ("work", "secrets") for path in (self.folder / part).rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab_command("down", "--name", NAME)
    lab_command("up", "--kind", "sim", "--nodes", str(NODES), "--name", NAME, "--boot-delay", "1")
    try:
        made = saved(NAME)
        assert made is not None
        yield made
    finally:
        disconnect()
        lab_command("down", "--name", NAME)


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


def test_workers_deploy_and_keep_nothing(stage: Stage, lab: Lab, tmp_path: Path) -> None:
    [cluster] = stage.configuration.clusters
    worker = Worker(stage, tmp_path / "w1", "w1", cluster)
    worker.start()
    wid = start(stage, lab)
    come_to_rest(stage, wid)
    print((worker.folder / "log").read_text())
    print((run_folder(stage.configuration.site, wid) / events.FILE_NAME).read_text())
    assert deployed(stage, wid, set(lab.members)) == set(lab.members)
    assert not worker.left
    worker.stop()
