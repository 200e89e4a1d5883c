"""What workers ask of the service: they get what belongs to their shard, and nothing of anything else."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from kadeploy import __version__
from kadeploy.boot import secret
from kadeploy.caller import caller
from kadeploy.client import servers
from kadeploy.client.address import Address
from kadeploy.client.http import Http
from kadeploy.client.servers import Server
from kadeploy.config.folder import load_configuration
from kadeploy.errors import ConfigError, FileError, KadeployError, OptionError
from kadeploy.events import StepResult
from kadeploy.files import MEGA
from kadeploy.operations.work import run_folder
from kadeploy.remote import lending
from kadeploy.remote.window import used, window
from kadeploy.runner import request as requests
from kadeploy.server import audit, work
from kadeploy.workers import charge, connection, jobs, lease, parcel, presence
from kadeploy.workers.connection import Controller
from kadeploy.workers.jobs import Job
from kadeploy.workers.lease import Lease, Report
from kadeploy.workers.presence import Presence
from kadeploy.workflow import Attempt, Outcome, Verdict
from tests import postgresql
from tests.unit import build
from tests.unit.server.test_service import ask
from tests.unit.serving import served

NODES = ("gdx-1.site", "gdx-2.site", "gdx-3.site")
"""Of the lease; the request names these and gdx-4."""
WID, FOLDER, KEY = "D-1", "07-SetDeploymentEnvUntrusted.001", "k" * 43
JOB = Job(WID, FOLDER, KEY)
ATTEMPT = Attempt("SetDeploymentEnv", "SetDeploymentEnvUntrusted", number=7)
IMAGE = b"an image" * 300_000
SHA256 = "5" * 64
WORKER, STRANGER = "wanda", "alice"
SERVICE = """\
service: {workers: {users: [wanda]}}
windows: {reboot: 1}
"""
HOLDER = """\
import sys
from kadeploy.caller import caller
from kadeploy.client import servers
from kadeploy.client.servers import Server
from kadeploy.workers.connection import Controller
from kadeploy.workers.jobs import Job

address = servers.address_of(Server(url=sys.argv[1]), caller())
address.headers["X-Kadeploy-User"] = "wanda"
with Controller(address, Job(*sys.argv[2:])).slot("reboot") as lines:
    for line in lines:
        print(line.decode(), flush=True)
"""


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.02)


class Stage:
    """A site in service, on which a controller has given a shard to workers."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.path = path
        self.folder = folder
        self.configuration = load_configuration(folder)
        self.site = self.configuration.site
        self.workflow_dir = run_folder(self.site, WID)
        self.shard = self.workflow_dir / FOLDER
        (self.shard / requests.FILES).mkdir(parents=True)
        (self.shard / requests.FILES / "post.tgz").write_bytes(b"post")
        (self.shard / "log").write_bytes(b"what the controller has written")
        self.key, self.password = folder / "keys" / "id", folder / "passwords" / "bmc"
        for hidden in (self.key, self.password):
            hidden.parent.mkdir()
            hidden.write_text(f"content of {hidden.name}")
            hidden.chmod(0o600)
        secret.make(self.workflow_dir, ATTEMPT)
        cluster = self.configuration.clusters["gdx"]
        nodes = build.nodes(cluster)[:4]
        request = build.request(
            folder, run_dir=str(self.shard), workflow_dir=str(self.workflow_dir), attempt=ATTEMPT, wid=WID,
            site=self.site, cluster=cluster, nodes=nodes,
        )  # fmt: skip
        requests.write(request)
        self.give()

    def give(self, **changes: Any) -> None:
        """Write the lease, and touch it."""
        given = Lease(
            key=KEY, cluster="gdx", nodes=NODES, attempt=ATTEMPT,
            images={SHA256: "image"}, secrets=(str(self.key), str(self.password)),
        )  # fmt: skip
        lease.write(self.shard, msgspec.structs.replace(given, **changes))

    def abandon(self, seconds: float = lease.ABANDONED + 1) -> None:
        then = time.time() - seconds
        os.utime(self.shard / lease.FILE, (then, then))

    def address(self, user: str = WORKER) -> Address:
        found = servers.address_of(Server(url=str(self.path)), caller())
        return replace(found, headers={**found.headers, "X-Kadeploy-User": user})

    def worker(self, job: Job = JOB, user: str = WORKER) -> Controller:
        return Controller(self.address(user), job)

    def claimed(self) -> Controller:
        """A worker that has claimed the shard, which has no image."""
        self.give(images={})
        found = self.worker()
        found.claim()
        return found

    @property
    def told(self) -> list[Report]:
        return list(lease.reports(self.shard))

    @property
    def windows(self) -> Path:
        return self.site.state / "windows" / "reboot"

    def noted(self) -> list[str]:
        """What the audit log has."""
        return [entry.what for entry in audit.read(self.site)]


@pytest.fixture
def stage(site_folder: Path) -> Iterator[Stage]:
    with (site_folder / "site.yml").open("a") as file:
        file.write(SERVICE)
    with (site_folder / "clusters" / "gdx.yml").open("a") as file:
        file.write("workers: prefer\n")
    path = site_folder / "state" / "test.sock"
    with served(site_folder, path):
        yield Stage(site_folder, path)


@contextmanager
def lent(stage: Stage, content: bytes = IMAGE) -> Iterator[None]:
    """The controller lends the image, and a file that the lease does not name."""
    ready, over = threading.Event(), threading.Event()

    async def main() -> None:
        with ExitStack() as stack:
            names = {"image": content, "private": b"private"}
            for name, each in names.items():
                (stage.folder / name).write_bytes(each)
            files = {name: stack.enter_context((stage.folder / name).open("rb")).fileno() for name in names}
            for name in names:
                (stage.folder / name).unlink()
            with lending.lend(stage.workflow_dir, files):
                ready.set()
                await asyncio.to_thread(over.wait, 60)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        over.set()
        thread.join()


# --- who may ask ------------------------------------------------------------------------------------------------------

ABOVE = f"/v1/shards/{WID}/{FOLDER}"
ROUTES: dict[str, Any] = {
    f"POST {ABOVE}/claim": None,
    f"GET {ABOVE}/files": None,
    f"GET {ABOVE}/images/{SHA256}": None,
    f"POST {ABOVE}/report": {"number": 1, "worker": "w"},
    f"POST {ABOVE}/profiles": {"boot": "deploy", "nodes": list(NODES)},
    f"GET {ABOVE}/slots/reboot": None,
    f"PUT {ABOVE}/results": "",
}
PRESENT = {"name": "w", "clusters": ["gdx"], "shards": 1, "version": __version__}


def asked(stage: Stage, route: str, body: Any, key: str = KEY, user: str = WORKER) -> tuple[int, str]:
    method, path = route.split(" ", 1)
    content = b"" if body is None else json.dumps(body).encode()
    status, answer = ask(stage.path, method, path, content, {charge.KEY: key, "X-Kadeploy-User": user})
    return status, str(answer)


@pytest.mark.parametrize("user", [STRANGER, "root"])
def test_who_is_no_worker_is_refused_everywhere(stage: Stage, user: str) -> None:
    for route, body in {**ROUTES, "POST /v1/workers": PRESENT}.items():
        status, said = asked(stage, route, body, user=user)
        assert (status, "service.workers.users" in said) == (403, True), route
    assert stage.told == []
    assert presence.seen(stage.site) == []


def test_without_workers_in_the_configuration_nobody_is_one(stage: Stage) -> None:
    text = (stage.folder / "site.yml").read_text()
    (stage.folder / "site.yml").write_text(text.replace("service: {workers: {users: [wanda]}}\n", ""))
    status, said = asked(stage, f"POST {ABOVE}/claim", None)
    assert (status, "service.workers.users" in said) == (403, True)


def test_only_administrators_see_which_workers_there_are(stage: Stage) -> None:
    presence.note(stage.site, msgspec.convert(PRESENT, Presence), WORKER)
    for user in (WORKER, STRANGER):
        status, _ = ask(stage.path, "GET", "/v1/workers", headers={"X-Kadeploy-User": user})
        assert status == 403
    status, [seen] = ask(stage.path, "GET", "/v1/workers")
    assert (status, seen["presence"]["name"], seen["user"]) == (200, "w", WORKER)


STRANGE = ("", "another", KEY[:-1], f"{KEY}k", "%00")


@pytest.mark.parametrize("key", STRANGE)
def test_another_key_opens_nothing_and_is_told_nothing(stage: Stage, key: str) -> None:
    for route, body in ROUTES.items():
        status, said = asked(stage, route, body, key=key)
        assert 400 <= status < 500, route
        assert not [word for word in ("gdx", str(stage.folder), "content of") if word in said], route
    assert stage.told == []
    assert {path.name for path in stage.shard.iterdir()} == {"files", "log", requests.FILE_NAME, lease.FILE}


def test_a_lease_that_is_over_is_worth_nothing(stage: Stage) -> None:
    stage.claimed()
    stage.give(is_over=True)
    stage.abandon(lease.FENCED + 1)
    for route, body in ROUTES.items():
        status, said = asked(stage, route, body)
        assert (status, "not yours" in said) == (400, True), route
    assert len(stage.told) == 1


ODD = (
    *("..", ".", "%2e%2e", "..%2f..%2fetc", "07-A%00", "07-A%0a", "07-../..", "7", "-A", "07-%c3%84", "07-A;id"),
    *("%252e%252e", "%d9%a7-A", "07-" + "A" * 5000),
)


def test_odd_names_of_folders_and_workflows_are_nobodys_work(stage: Stage) -> None:
    for folder in (stage.site.run_folders, stage.workflow_dir):
        (folder / lease.FILE).write_bytes((stage.shard / lease.FILE).read_bytes())
    for word in ODD:
        for path in (f"/v1/shards/{WID}/{word}/claim", f"/v1/shards/{word}/{FOLDER}/claim"):
            status, said = asked(stage, f"POST {path}", None)
            assert 400 <= status < 500, (word, said)
            assert str(stage.folder) not in said
    assert stage.told == []


# --- the claim --------------------------------------------------------------------------------------------------------


def test_a_claim_gives_the_secrets_of_the_lease_and_what_else_the_shard_needs(stage: Stage) -> None:
    with lent(stage):
        found = stage.worker().claim()
    assert found.secrets == {"id": b"content of id", "bmc": b"content of bmc"}
    assert found.nodes == NODES
    assert found.images == {SHA256: len(IMAGE)}
    assert found.run_dir == str(stage.shard / work.RESULTS)
    assert [report.number for report in stage.told] == [0]


def test_a_shard_is_claimed_once(stage: Stage) -> None:
    stage.give(images={})
    stage.worker().claim()
    with pytest.raises(OptionError, match="not yours"):
        stage.worker().claim()


def test_a_shard_whose_controller_is_gone_is_claimed_by_nobody(stage: Stage) -> None:
    stage.abandon()
    with pytest.raises(OptionError, match="not yours"):
        stage.worker().claim()
    assert stage.told == []


@pytest.mark.parametrize("what", ["missing", "folder", "one name"])
def test_a_secret_that_cannot_be_given_is_told_to_the_controller_too(stage: Stage, what: str) -> None:
    named = {"missing": stage.folder / "gone", "folder": stage.folder, "one name": stage.folder / "other" / "id"}[what]
    stage.give(images={}, secrets=(str(stage.key), str(named)))
    with pytest.raises(KadeployError) as refusal:
        stage.worker().claim()
    [_, told] = stage.told
    assert told.fault == str(refusal.value)
    assert "content of" not in told.fault


def test_files_are_those_of_the_request_and_the_secret_of_its_try(stage: Stage, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    stage.worker().fetch(into)
    found = {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}
    assert set(found) == {requests.FILE_NAME, "files/post.tgz", parcel.KEY}
    kept = secret.find(stage.workflow_dir, ATTEMPT)
    assert kept is not None
    assert found[parcel.KEY] == kept.key
    assert KEY.encode() not in b"".join(found.values())


# --- images -----------------------------------------------------------------------------------------------------------


def test_an_image_is_what_the_workflow_lends_wherever_its_file_is_by_now(stage: Stage, tmp_path: Path) -> None:
    with lent(stage):
        content = Http(replace(stage.address(), headers={**stage.address().headers, charge.KEY: KEY}))
        found = content.content(f"{ABOVE}/images/{SHA256}", {})
        assert found == IMAGE
        with pytest.raises(FileError, match="not the one"):
            stage.worker().image(SHA256, len(IMAGE), tmp_path / "image")  # its sum is another one


def test_no_other_file_is_an_image(stage: Stage) -> None:
    with lent(stage):
        for sha256 in ("6" * 64, "private", "image", "..", "%2fetc%2fpasswd"):
            status, said = asked(stage, f"GET {ABOVE}/images/{sha256}", None)
            assert 400 <= status < 500
            assert "private" not in said


def test_an_image_that_nobody_lends_any_more_is_told(stage: Stage) -> None:
    status, said = asked(stage, f"GET {ABOVE}/images/{SHA256}", None)
    assert (status, "has ended" in said) == (400, True)


# --- boot profiles ----------------------------------------------------------------------------------------------------


def profiles(stage: Stage) -> set[str]:
    """Nodes that have one, by the last number of their address."""
    found = [path for path in Path(stage.site.boot.tftp_root).rglob("*") if path.is_file()]
    return {str(int(path.name[-2:], 16)) for path in found}


def test_profiles_are_written_for_nodes_of_the_lease_that_are_not_taken(stage: Stage) -> None:
    stage.give(taken={"gdx-2.site": "in quarantine"})
    stage.abandon(0)
    written = stage.worker().profiles("deploy", (*NODES, "gdx-4.site", "gdx-9.site", "../../evil"))
    assert set(written) == {"gdx-1.site", "gdx-3.site"}
    assert {outcome.verdict for outcome in written.values()} == {Verdict.OK}
    assert profiles(stage) == {"1", "3"}


def test_there_are_no_profiles_but_ours(stage: Stage) -> None:
    for boot in ("", "evil", "../deploy"):
        with pytest.raises(OptionError, match="no boot profile"):
            stage.worker().profiles(boot, NODES)
    assert profiles(stage) == set()


def test_profiles_come_of_the_request_of_the_controller(stage: Stage) -> None:
    """What a worker sends beside the names of nodes is refused."""
    body = {"boot": "deploy", "nodes": list(NODES), "options": {"pxe_profile": "evil"}}
    status, _ = asked(stage, f"POST {ABOVE}/profiles", body)
    assert status == 400
    assert profiles(stage) == set()


def test_no_profile_is_written_once_the_controller_is_gone(stage: Stage) -> None:
    stage.abandon()
    with pytest.raises(OptionError, match="not yours"):
        stage.worker().profiles("deploy", NODES)
    assert profiles(stage) == set()


# --- reports ----------------------------------------------------------------------------------------------------------


def long_report(nodes: int, length: int, number: int = 1) -> Report:
    outcome = Outcome(Verdict.KO, "broken", micro_step="mount", answer="ä" * (length // 2))
    outcomes = {f"gdx-{each}.site": outcome for each in range(nodes)}
    told = StepResult(attempt=ATTEMPT, micro_step="mount", outcomes=outcomes)
    return Report(number=number, worker="w1", events=(told,))


def test_a_report_of_five_hundred_nodes_with_long_output_arrives(stage: Stage) -> None:
    worker = stage.claimed()
    sent = long_report(500, 60_000)
    answer = worker.report(sent)
    assert (answer.stop, answer.taken) == (False, {})
    assert stage.told[1:] == [sent]


def test_a_report_beyond_the_limit_is_refused_and_the_next_one_arrives(stage: Stage) -> None:
    worker = stage.claimed()
    with pytest.raises(KadeployError):
        worker.report(long_report(700, 100_000))
    worker.close()
    worker.report(Report(number=1, worker="w1"))
    assert [report.number for report in stage.told] == [0, 1]


def test_a_report_that_comes_twice_counts_once(stage: Stage) -> None:
    worker = stage.claimed()
    sent = [long_report(3, 10, number) for number in (1, 2)]
    for report in (sent[0], sent[0], sent[1], sent[0], sent[1]):
        worker.report(report)
    assert stage.told[1:] == sent


def test_a_report_without_a_claim_is_refused(stage: Stage) -> None:
    with pytest.raises(OptionError, match="not yours"):
        stage.worker().report(Report(number=1, worker="w1"))
    assert stage.told == []


def test_the_answer_tells_which_nodes_are_taken_and_whether_to_go_on(stage: Stage) -> None:
    worker = stage.claimed()
    stage.give(taken={"gdx-2.site": "in quarantine"})
    answer = worker.report(Report(number=1, worker="w1"))
    assert (answer.taken, answer.stop) == ({"gdx-2.site": "in quarantine"}, False)
    stage.abandon()
    assert worker.report(Report(number=2, worker="w1")).stop
    stage.give(is_over=True)
    assert worker.report(Report(number=3, worker="w1")).stop
    stage.abandon(lease.FENCED + 1)
    with pytest.raises(OptionError, match="not yours"):
        worker.report(Report(number=4, worker="w1"))


def test_the_audit_log_has_claims_and_refusals_and_no_signs_of_life(stage: Stage) -> None:
    worker = stage.claimed()
    for number in range(1, 4):
        worker.report(Report(number=number, worker="w1"))
    worker.profiles("deploy", NODES)
    asked(stage, f"POST {ABOVE}/report", {"number": 9, "worker": "w"}, user=STRANGER)
    assert stage.noted() == [f"POST {ABOVE}/claim", f"POST {ABOVE}/report"]


# --- slots ------------------------------------------------------------------------------------------------------------


@contextmanager
def slot(stage: Stage) -> Iterator[socket.socket]:
    """A connection by which a slot is asked for."""
    asking = http.client.HTTPConnection("localhost", timeout=60)
    asking.sock = socket.socket(socket.AF_UNIX)
    asking.sock.settimeout(60)
    asking.sock.connect(str(stage.path))
    with asking.sock as sock:
        asking.request("GET", f"{ABOVE}/slots/reboot", headers={charge.KEY: KEY, "X-Kadeploy-User": WORKER})
        yield sock


def heard(sock: socket.socket, word: bytes) -> bool:
    """Whether *word* comes before the end."""
    content = b""
    while piece := sock.recv(4096):
        content += piece
        if word in content:
            return True
    return False


def close(sock: socket.socket) -> None:
    sock.close()


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("go", [close, half_close])
def test_a_slot_is_given_back_when_its_reader_goes(stage: Stage, go: Callable[[socket.socket], None]) -> None:
    with slot(stage) as sock:
        assert heard(sock, b"held\n")
        assert used(stage.windows) == 1
        go(sock)
        until(lambda: used(stage.windows) == 0, 20)


def test_a_slot_is_given_back_when_its_reader_is_killed(stage: Stage) -> None:
    command = [sys.executable, "-c", HOLDER, str(stage.path), WID, FOLDER, KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"held\n" in iter(process.stdout.readline, b"")
        assert used(stage.windows) == 1
        process.send_signal(signal.SIGKILL)
    until(lambda: used(stage.windows) == 0, 20)


def withdrawn(stage: Stage) -> None:
    stage.give(is_over=True)


def abandoned(stage: Stage) -> None:
    stage.abandon()


@pytest.mark.parametrize("end", [withdrawn, abandoned])
def test_a_slot_is_taken_back_when_the_lease_ends(stage: Stage, end: Callable[[Stage], None]) -> None:
    with slot(stage) as sock:
        assert heard(sock, b"held\n")
        end(stage)
        assert not heard(sock, b"held\n")
    until(lambda: used(stage.windows) == 0, 20)


def test_workers_and_processes_of_this_machine_wait_for_one_another(stage: Stage) -> None:
    async def main() -> None:
        async with window(stage.windows, 1):
            with slot(stage) as waiting:
                assert await asyncio.to_thread(heard, waiting, b"\r\n\n\r\n")  # it waits
                assert used(stage.windows) == 1
        async with asyncio.timeout(60):
            with slot(stage) as sock:
                assert await asyncio.to_thread(heard, sock, b"held\n")
                entering = asyncio.ensure_future(entered())
                await asyncio.sleep(0.2)
                assert not entering.done()
            await entering

    async def entered() -> None:
        async with window(stage.windows, 1):
            pass

    asyncio.run(main())


def test_who_waits_in_vain_leaves_no_slot_behind(stage: Stage) -> None:
    async def main() -> None:
        async with window(stage.windows, 1):
            with slot(stage) as sock:
                assert await asyncio.to_thread(heard, sock, b"\r\n\n\r\n")
            await asyncio.sleep(2.5)
        await asyncio.sleep(0.2)
        assert used(stage.windows) == 0

    asyncio.run(main())


def test_there_are_no_windows_but_those_of_the_site(stage: Stage) -> None:
    for name in ("nothing", "..", "%2e%2e", "contradictions"):
        status, _ = asked(stage, f"GET {ABOVE}/slots/{name}", None)
        assert 400 <= status < 500, name
    assert not (stage.site.state / "windows").exists()


# --- results ----------------------------------------------------------------------------------------------------------


def poured(stage: Stage, content: bytes) -> tuple[int, str]:
    headers = {charge.KEY: KEY, "X-Kadeploy-User": WORKER}
    status, answer = ask(stage.path, "PUT", f"{ABOVE}/results", content, headers)
    return status, str(answer)


def test_results_land_below_the_shard_and_once(stage: Stage, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "artifacts").mkdir(parents=True)
    (run / "artifacts" / "stdout").write_bytes(b"what ansible said")
    (run / requests.FILE_NAME).write_bytes(b"another request")
    before = (stage.shard / requests.FILE_NAME).read_bytes()
    stage.worker().results(run)
    there = stage.shard / work.RESULTS
    assert {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()} == {"artifacts/stdout"}
    with pytest.raises(OptionError, match="already"):
        stage.worker().results(run)
    assert (stage.shard / requests.FILE_NAME).read_bytes() == before


@pytest.mark.parametrize("name", [f"../{requests.FILE_NAME}", "/tmp/evil", "../../../../evil"])
def test_results_that_would_land_elsewhere_are_refused(stage: Stage, name: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    before = (stage.shard / requests.FILE_NAME).read_bytes()
    status, said = poured(stage, buffer.getvalue())
    assert (status, "elsewhere" in said) == (400, True)
    assert (stage.shard / requests.FILE_NAME).read_bytes() == before
    assert not list((stage.shard / work.RESULTS).iterdir())


def test_results_that_are_too_large_are_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "MOST", 2 * MEGA)
    status, said = poured(stage, bytes(3 * MEGA))
    assert (status, "2 MB at most" in said) == (400, True)
    assert not list((stage.shard / work.RESULTS).iterdir())


# --- presence ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def queue() -> Iterator[str]:
    with postgresql.running() as running:
        yield running.url


def test_a_worker_that_says_it_is_there_finds_the_queue_and_hears_what_it_serves_in_vain(
    stage: Stage, queue: str
) -> None:
    text = (stage.folder / "site.yml").read_text()
    (stage.folder / "site.yml").write_text(text.replace(stage.site.database, queue))
    said = msgspec.convert({**PRESENT, "clusters": ["gdx", "nvm", "nowhere"]}, Presence)
    for _ in range(2):
        welcome = connection.present(Http(stage.address()), said)
        assert (welcome.version, welcome.unknown) == (__version__, ("nvm", "nowhere"))
    assert jobs.is_waiting(queue, jobs.defer(queue, "gdx", JOB))
    assert presence.serves(stage.site, "gdx")
    with psycopg.connect(queue, autocommit=True) as database:
        database.execute(f"DROP SCHEMA {jobs.SCHEMA} CASCADE")


def test_words_that_are_too_many_or_unknown_are_refused(stage: Stage) -> None:
    for wrong in ({"name": "x" * 256}, {"shards": 0}, {"clusters": ["x"] * 1001}, {"more": 1}, {"busy": "x"}):
        status, _ = asked(stage, "POST /v1/workers", PRESENT | wrong)
        assert status == 400, wrong
    assert presence.seen(stage.site) == []


def test_a_site_whose_database_is_no_postgresql_tells_its_workers(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="PostgreSQL"):
        connection.present(Http(stage.address()), msgspec.convert(PRESENT, Presence))
