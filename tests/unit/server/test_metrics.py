"""`/metrics` of a real service: numbers that move with what is done, who may read them, and what they cost."""

from __future__ import annotations

import json
import os
import pwd
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kadeploy.broadcast import progress
from kadeploy.broadcast.progress import Transfer
from kadeploy.config.folder import load_configuration
from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError
from kadeploy.server import census
from kadeploy.server.census import Census
from kadeploy.state import database, journal, nodes, quarantine, rights, tally, tokens
from kadeploy.state.journal import LogRow
from kadeploy.workflow import ABORTED
from tests.unit import build
from tests.unit.plays import batch, write_play
from tests.unit.serving import DUMMY_CLUSTER, served

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Answer:
    """What a scrape has got."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status = response.status
        self.kind = response.getheader("content-type", "")
        self.text = response.read().decode()

    @property
    def numbers(self) -> Numbers:
        """By name and labels."""
        found = text_string_to_metric_families(self.text)
        return {(each.name, frozenset(each.labels.items())): each.value for one in found for each in one.samples}

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of those that have these labels."""
        wanted = labels.items()
        return sum(value for (each, had), value in self.numbers.items() if each == name and wanted <= set(had))


class Local(HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def ask(way: HTTPConnection, path: str = "/metrics", method: str = "GET", body: Any = None, **headers: str) -> Answer:
    """One request; words of headers have ``_`` for ``-``."""
    try:
        way.request(
            method,
            path,
            None if body is None else json.dumps(body),
            {name.replace("_", "-"): value for name, value in headers.items()},
        )
        return Answer(way.getresponse())
    finally:
        way.close()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted is not told again."""
    monkeypatch.setattr(census, "FRESH", 0.0)


@pytest.fixture
def dummy(site_folder: Path) -> Path:
    """The configuration of a site whose cluster has the dummy steps."""
    (site_folder / "clusters" / "gdx.yml").write_text(DUMMY_CLUSTER, encoding="utf-8")
    return site_folder


@contextmanager
def over_tcp(folder: Path, extra: str = "") -> Iterator[Callable[[], HTTPConnection]]:
    """The service of the site on an address of this machine, with *extra* lines in ``site.yml``."""
    with (folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write(extra)
    with socket.create_server(("127.0.0.1", 0)) as bound, served(folder, folder / "state" / "test.sock", bound):
        yield lambda: HTTPConnection("127.0.0.1", bound.getsockname()[1], timeout=60)


def until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.3)


# --- what moves -------------------------------------------------------------------------------------------------------

ME = pwd.getpwuid(os.geteuid()).pw_name
OURS = {"name": "ours", "image": {"file": "server://{files}/image.tgz", "kind": "tgz"}, "filesystem": "ext4"}
BROKEN = {
    "SetDeploymentEnv": [{"implementation": "SetDeploymentEnvDummy"}],
    "BroadcastEnv": [{"implementation": "BroadcastEnvBroken"}],
    "BootNewEnv": [{"implementation": "BootNewEnvDummy"}],
}
"""The broadcast fails."""


def deployment(*nodes: str, **more: Any) -> dict[str, Any]:
    return {"type": "deploy", "nodes": nodes, "environment": {"type": "recorded", "name": "ours"}, **more}


def aside() -> dict[str, float]:
    """Nodes of gdx in quarantine, by who has put them there."""
    [found] = [each for each in Census().metrics(load_configuration()) if each.name == "kadeploy_nodes_quarantined"]
    return {each.labels["put_by"]: each.value for each in found.samples if each.labels["cluster"] == "gdx"}


def test_nodes_in_quarantine_are_told_by_cluster_and_by_who_has_put_them_there(dummy: Path, site: Site) -> None:
    database.connect(site)
    assert aside() == {"rule": 0, "administrator": 0}
    quarantine.put(site, ["gdx-1.site", "gdx-2.site", "gone-1.site"], ME, "disks")
    quarantine.put_by_rule(site, {"gdx-3.site": "it fails"})
    assert aside() == {"rule": 1, "administrator": 2}
    quarantine.release(site, ["gdx-1.site", "gdx-3.site"], ME)
    assert aside() == {"rule": 0, "administrator": 1}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_damaged_row_of_the_quarantine_takes_no_other_number_away(dummy: Path, site: Site) -> None:
    database.connect(site)
    quarantine.put(site, ["gdx-1.site"], ME, "disks")
    with closing(sqlite3.connect(site.state / "kadeploy.db")) as other, other:
        other.execute("UPDATE quarantine SET since = 'yesterday'")
    assert aside() == {"rule": 0, "administrator": 0}


def test_numbers_move_with_deployments_that_are_done(dummy: Path, site: Site) -> None:
    database.connect(site)
    rights.add(site, ME, ["*"], ["*"])
    (dummy / "files").mkdir()
    (dummy / "files" / "image.tgz").write_bytes(build.packed("image"))
    broken = "the BMC at 10.0.2.4 did not do it within 60 s"
    write_play(
        dummy,
        "BroadcastEnvBroken",
        "  tasks:\n" + batch("send_environment", gdx_4__site=f'ko, msg: "{broken}"'),
    )
    described = json.loads(json.dumps(OURS).replace("{files}", str(dummy / "files"))) | {"kernel": "/vmlinuz"}
    with over_tcp(dummy, f"service: {{folders: [{dummy}/files]}}\n"):
        local = Local(dummy / "state" / "test.sock")
        before = ask(local)
        assert (before.status, before("kadeploy_nodes", cluster="gdx", state=census.NEVER)) == (200, 8)
        assert ask(local, "/v1/environments", "POST", {"environments": [described]}).status == 201
        for body in (deployment("gdx-1.site", "gdx-2.site"), deployment("gdx-4.site", force_steps=BROKEN)):
            answer = ask(local, "/v1/deployments", "POST", body)
            assert answer.status == 201, answer.text
        until(lambda: ask(local)("kadeploy_runs_ended_total") == 2)
        after = ask(local)
    assert after("kadeploy_runs_ended_total", operation="deploy", result="ok") == 1
    assert after("kadeploy_runs_ended_total", operation="deploy", result="ko") == 1
    assert after("kadeploy_nodes", cluster="gdx", state="deployed") == 2
    assert after("kadeploy_nodes", cluster="gdx", state="deploy_failed") == 1
    assert after("kadeploy_nodes", cluster="gdx", state=census.NEVER) == 5
    assert after("kadeploy_node_results_total", cluster="gdx", operation="deploy", result="ok") == 2
    place = {"macro_step": "BroadcastEnv", "implementation": "BroadcastEnvBroken"}
    assert after("kadeploy_node_failures_total", cluster="gdx", operation="deploy", **place) == 1
    assert after("kadeploy_bmc_timeouts_total", cluster="gdx") == 1
    dummies = {"macro_step": "BootNewEnv", "implementation": "BootNewEnvDummy", "cluster": "gdx"}
    assert after("kadeploy_macro_step_seconds_count", **dummies) == 2
    assert after("kadeploy_api_requests_total", method="POST", route="/v1/deployments", status="201") == 2
    assert after("kadeploy_runs", operation="deploy") == 0


def closed(site: Site, wid: str, **errors: str) -> None:
    """A deployment that has ended: an error, or none, by node."""
    names = [f"{name.replace('_', '-')}.site" for name in errors]
    journal.begin(site, wid, "deploy", "alice", None, {"gdx": names})
    rows = [
        LogRow(hostname=name, step1="SetDeploymentEnvUntrusted", step1_duration=42, success=not error, error=error)
        for name, error in zip(names, errors.values(), strict=True)
    ]
    journal.end(wid, rows, "aborted" if ABORTED in errors.values() else "ended")


def totals(answer: Answer) -> dict[str, float]:
    """Results of nodes and of runs."""
    return {
        f"{name} {result}": count
        for name in ("node_results", "runs_ended")
        for result in census.RESULTS
        if (count := answer(f"kadeploy_{name}_total", result=result))
    }


def test_who_aborts_a_run_makes_no_failure(site: Site, service: Path) -> None:
    ask(Local(service))
    closed(site, "D-1", gdx_1="", gdx_2=ABORTED, gdx_3=f"{ABORTED}: taken by workflow D-2")
    answer = ask(Local(service))
    assert totals(answer) == {"node_results ok": 1, "node_results aborted": 2, "runs_ended aborted": 1}
    assert answer("kadeploy_node_failures_total") == 0
    assert answer("kadeploy_macro_step_seconds_count") == 1


def test_what_ended_before_the_service_began_does_not_count(site: Site, site_folder: Path) -> None:
    closed(site, "D-1", gdx_1="")
    time.sleep(1.1)
    with served(site_folder, site_folder / "state" / "test.sock") as path:
        assert totals(ask(Local(path))) == {}


def test_each_run_counts_once_however_often_it_is_asked(site: Site, service: Path) -> None:
    for number in range(3):
        closed(site, f"D-{number}", gdx_1="", gdx_2="no answer")
        for _ in range(3):
            answer = ask(Local(service))
        assert answer("kadeploy_runs_ended_total", result="partly") == number + 1
    assert totals(answer) == {"node_results ok": 3, "node_results ko": 3, "runs_ended partly": 3}


def test_a_run_whose_end_comes_late_is_counted(site: Site, service: Path) -> None:
    ask(Local(service))
    time.sleep(1.1)
    ended = int(time.time())
    ask(Local(service))
    closed(site, "D-1", gdx_1="")
    database.connect(site).execute_sql(f"UPDATE workflows SET ended = {ended - 1}")
    assert ask(Local(service))("kadeploy_runs_ended_total", result="ok") == 1


def test_a_run_that_tells_nothing_is_told(site: Site, service: Path) -> None:
    journal.begin(site, "R-1", "reboot", "alice", None, {"gdx": ["gdx-1.site"]})
    folder = site.run_folders / "R-1"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").touch()
    os.utime(folder / "events.jsonl", (0, time.time() - 5000))
    answer = ask(Local(service))
    assert answer("kadeploy_runs", operation="reboot", state="running") == 1
    assert 5000 <= answer("kadeploy_run_silence_seconds", operation="reboot") < 5100


def test_broadcasts_are_told_while_they_run_and_their_bytes_stay(site: Site, service: Path) -> None:
    journal.begin(site, "D-1", "deploy", "alice", None, {"gdx": ["gdx-1.site"]})
    folder = site.run_folders / "D-1" / "2-BroadcastEnvChain"
    folder.mkdir(parents=True)
    told = []
    for sent in (100, 300, 1000):
        transfer = Transfer(total=1000, done=sent, sent=2 * sent, nodes=1, seconds=2.0)
        (folder / progress.FILE_NAME).write_text(
            json.dumps({name: getattr(transfer, name) for name in transfer.__struct_fields__})
        )
        answer = ask(Local(service))
        told.append([answer(f"kadeploy_broadcast{end}") for end in ("s", "_bytes_per_second", "_sent_bytes_total")])
    assert told == [[1, 50, 200], [1, 150, 600], [0, 0, 2000]]


# --- who may ----------------------------------------------------------------------------------------------------------


def test_others_than_this_machines_accounts_show_a_token(site: Site, site_folder: Path) -> None:
    token = tokens.create(site, "prometheus", int(time.time()) + 1000, "")
    with over_tcp(site_folder) as way:
        assert [ask(way()).status, ask(way(), Authorization="Bearer kdp_no").status] == [401, 401]
        assert ask(way(), Authorization=f"Bearer {getattr(token, 'text', token)}").status == 200


def test_from_addresses_that_the_site_names_nobody_is_asked(site_folder: Path) -> None:
    with over_tcp(site_folder, 'service: {metrics_from: ["127.0.0.0/8"]}\n') as way:
        assert ask(way()).status == 200
        assert ask(way(), "/v1/").status == 401
        assert ask(way(), Authorization="Bearer no").status == 401


def test_other_addresses_than_those_are_asked(site_folder: Path) -> None:
    with over_tcp(site_folder, 'service: {metrics_from: ["10.0.0.0/8", "::1"]}\n') as way:
        assert ask(way()).status == 401


def test_no_number_names_a_user_or_a_node(site: Site, service: Path) -> None:
    closed(site, "D-1", gdx_1="", gdx_2="no answer")
    nodes.set_state(["gdx-1.site"], "deployed", None, "alice")
    ask(Local(service), "/v1/nodes?nodes=gdx-1.site")
    text = ask(Local(service)).text
    assert not [word for word in ("alice", "gdx-1", "gdx-2", "D-1", "no answer") if word in text]


# --- what strangers send ----------------------------------------------------------------------------------------------


def test_paths_and_methods_of_strangers_make_no_series(site: Site, service: Path) -> None:
    def series() -> set[Any]:
        return {labels for name, labels in ask(Local(service)).numbers if name == "kadeploy_api_requests_total"}

    ask(Local(service), "/nothing/0")
    series()
    before = series()
    for number in range(40):
        ask(Local(service), f"/nothing/{number}")
        ask(Local(service), f"/v1/workflows/D-{number}")
        ask(Local(service), f"/v1/nodes?nodes={number}")
    after = series() - before
    assert len(after) <= 2
    assert {dict(each)["route"] for each in after} <= {"/v1/workflows/{wid}", "/v1/nodes"}


def test_open_metrics_is_answered_to_who_asks_for_it(site: Site, service: Path) -> None:
    closed(site, "D-1", gdx_1="")
    answer = ask(Local(service), Accept="application/openmetrics-text; version=1.0.0,text/plain;q=0.5")
    assert answer.kind.startswith("application/openmetrics-text")
    assert {"kadeploy_nodes", "kadeploy_runs_ended"} <= {
        each.name for each in openmetrics.text_string_to_metric_families(answer.text)
    }
    assert ask(Local(service)).kind.startswith("text/plain; version=0.0.4")


# --- what it costs, and when there is no database ---------------------------------------------------------------------


def test_all_that_ask_at_the_same_time_share_one_count(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "FRESH", 5.0)
    configuration, now, counts = load_configuration(), [100.0], 20
    shared = Census(lambda: now[0])

    def asked(_: int) -> object:
        database.connect(site)
        try:
            return shared.metrics(configuration)
        finally:
            database.disconnect()

    with ThreadPoolExecutor(counts) as pool:
        found = list(pool.map(asked, range(counts)))
    assert len({id(each) for each in found}) == 1
    now[0] += 4.9
    assert shared.metrics(configuration) is found[0]
    now[0] += 0.2
    assert shared.metrics(configuration) is not found[0]


def test_a_database_that_is_away_is_503_and_leaves_totals_and_service_as_they_are(
    site: Site, site_folder: Path
) -> None:
    settings = site_folder / "site.yml"
    with over_tcp(site_folder, 'service: {metrics_from: ["127.0.0.1"]}\n') as way:
        closed(site, "D-1", gdx_1="")
        assert ask(way())("kadeploy_runs_ended_total") == 1
        text = settings.read_text(encoding="utf-8")
        settings.write_text(text.replace(site.database, "postgresql://127.0.0.1:1/nowhere"), encoding="utf-8")
        away = ask(way())
        assert (away.status, "kadeploy_nodes" in away.text, "127.0.0.1:1" in away.text) == (503, False, True)
        assert ask(way(), "/v1/").status == 401
        settings.write_text(text, encoding="utf-8")
        again = ask(way())
        assert (again("kadeploy_runs_ended_total"), again("kadeploy_api_unavailable_total")) == (1, 1)


def test_who_waits_behind_a_database_that_hangs_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration, hangs, freed = load_configuration(), threading.Event(), threading.Event()
    monkeypatch.setattr(census, "PATIENCE", 0.1)

    def clock() -> float:
        hangs.set()
        freed.wait(30)
        return 0.0

    shared = Census(clock)

    def first() -> None:
        shared.metrics(configuration)
        database.disconnect()

    thread = threading.Thread(target=first)
    thread.start()
    assert hangs.wait(30)
    with pytest.raises(DatabaseError, match="has not answered for a while"):
        shared.metrics(configuration)
    freed.set()
    thread.join(60)
    assert shared.metrics(configuration)


def test_the_log_is_never_read_as_a_whole(site: Site, database_url: str) -> None:
    if not database_url.startswith("sqlite"):
        pytest.skip("each database has its own words for how it finds rows")
    statements: list[str] = []
    closed(site, "D-1", gdx_1="", gdx_2="no answer")
    known = database.connect(site)
    known.connection().set_trace_callback(statements.append)
    tally.ends(site, ["D-1"], ["x"])
    tally.durations(site, ["D-1"])
    tally.closed(site, 1)
    known.connection().set_trace_callback(None)
    asked = [each for each in statements if (each.startswith("SELECT") and '"log"' in each) or '"ended" >=' in each]
    plans = [row[3] for each in asked for row in known.execute_sql(f"EXPLAIN QUERY PLAN {each}").fetchall()]
    assert len(asked) == 5
    assert [each for each in plans if each.startswith("SCAN")] == []
