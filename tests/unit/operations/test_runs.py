"""Run folders: what stays of an operation, how long, and what never goes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kadeploy.boot.server import HttpServer
from kadeploy.caller import Account
from kadeploy.config.folder import Configuration
from kadeploy.config.site import Runs, Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.operations import admission, launch, runs, sources
from kadeploy.operations.work import Work, run_folder
from kadeploy.state import environments, journal
from kadeploy.state.database import connect
from kadeploy.state.tables import Workflow
from tests.unit import build

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

DAY = 86400

IMAGE = build.packed("an image")


def run(site: Site, wid: str, days: float, megabytes: float = 0, has_ended: bool | None = True) -> Path:
    """The folder of a workflow that was last written so many days ago; None: one the journal does not know."""
    if has_ended is not None:
        journal.begin(site, wid, "deploy", "alice", None, {})
        if has_ended:
            journal.end(wid, [])
    folder = run_folder(site, wid)
    (folder / "01-SetDeploymentEnv").mkdir(parents=True)
    (folder / "01-SetDeploymentEnv" / "output").write_bytes(bytes(int(megabytes * 1_000_000)))
    os.utime(folder, (time.time() - days * DAY,) * 2)
    return folder


def left(site: Site) -> set[str]:
    return {path.name for path in (site.state / "runs").iterdir()}


def with_runs(site: Site, **keys: int) -> Site:
    return msgspec.structs.replace(site, runs=Runs(**keys))


def test_old_folders_go_and_those_of_running_workflows_stay(site: Site) -> None:
    run(site, "D-old", 31)
    run(site, "D-lost", 31, has_ended=None)
    run(site, "D-young", 29)
    run(site, "D-running", 31, has_ended=False)
    run(site, "D-now", 0)
    runs.purge(with_runs(site, days=30), "D-now")
    assert left(site) == {"D-young", "D-running", "D-now"}


def test_when_there_is_no_room_the_oldest_go_first(site: Site) -> None:
    for days in (4, 1, 3, 2):
        run(site, f"D-{days}", days, megabytes=1)
    run(site, "D-now", 0, megabytes=1.5)
    runs.purge(with_runs(site, max_mb=4), "D-now")
    assert left(site) == {"D-1", "D-2", "D-now"}


def test_a_workflow_that_is_just_being_prepared_stays_however_little_room_there_is(site: Site) -> None:
    connect(site)
    run(site, "D-fetches", 0, megabytes=3, has_ended=None)
    run(site, "D-now", 0, megabytes=3)
    runs.purge(with_runs(site, max_mb=1), "D-now")
    assert left(site) == {"D-fetches", "D-now"}


def test_a_size_that_was_noted_is_believed_and_one_that_was_not_is_counted(site: Site) -> None:
    noted, counted = run(site, "D-2", 2, megabytes=1), run(site, "D-1", 1, megabytes=1)
    (noted / "size").write_text("0\n", encoding="ascii")
    os.utime(noted, (time.time() - 2 * DAY,) * 2)
    run(site, "D-now", 0)
    runs.purge(with_runs(site, max_mb=2), "D-now")
    assert noted.exists()
    assert counted.exists()
    assert (run_folder(site, "D-now") / "size").read_text(encoding="ascii") == "0\n"


# --- what an operation leaves ---------------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A web server of the folder ``web``."""
    (tmp_path / "web").mkdir()
    server = HttpServer(tmp_path / "web", "127.0.0.1", 0, [].append)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def work(site: Site, configuration: Configuration, url: str, tmp_path: Path, root: Account) -> Work:
    """A deployment of an image that comes over HTTP."""
    (tmp_path / "web" / "image.tgz").write_bytes(IMAGE)
    described: Environment = build.environment(image=Image(file=f"{url}/image.tgz", kind="tgz"))
    environments.add(site, described, root)
    return admission.deploy(build.deploy_request(nodes=build.NAMES[:2]), configuration)  # of one cluster


def test_an_image_that_came_over_http_is_there_while_the_operation_runs_and_gone_afterwards(
    work: Work, root: Account
) -> None:
    def images() -> int:
        files = [path for path in (work.folder / "files").rglob("*") if path.is_file()]
        return sum(path.read_bytes() == IMAGE for path in files)

    seen: list[int] = []
    report = launch.launch(work, sources.of(work, root), lambda _: seen.append(images()), threading.Event())
    assert not report.ko
    assert set(seen) == {1}
    assert images() == 0


def test_the_end_of_an_operation_removes_what_is_too_old(work: Work, root: Account) -> None:
    old = run(work.site, "D-old", 40)
    launch.launch(work, sources.of(work, root), lambda _: None, threading.Event())
    assert not old.exists()
    assert (work.folder / "events.jsonl").exists()
    assert Workflow.get_by_id("D-old").ended
