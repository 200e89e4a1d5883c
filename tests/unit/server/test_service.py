"""The service over its socket: the same answers as within a process, and what strangers send to it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kadeploy import events
from kadeploy.caller import Account, account, caller
from kadeploy.client import servers
from kadeploy.client.address import Address
from kadeploy.client.console import connect
from kadeploy.client.http import Http
from kadeploy.client.remote import Remote
from kadeploy.config.site import Site
from kadeploy.environments.environment import Image
from kadeploy.environments.reference import Reference
from kadeploy.errors import KadeployError, OptionError, RightsError, ServiceError, UserInterruptError
from kadeploy.events import Ended, Event, Note
from kadeploy.files import MEGA
from kadeploy.operations.console import Size
from kadeploy.operations.local import Local
from kadeploy.operations.requests import PowerRequest
from kadeploy.operations.service import Grant, Refusal, Rows, Service
from kadeploy.runner.playbooks import MACRO_STEPS
from kadeploy.runner.request import Options
from kadeploy.server import peers
from kadeploy.server.statuses import STATUSES
from kadeploy.state import database, environments, nodes, quarantine, rights
from kadeploy.state.history import FIELDS, Selection
from kadeploy.state.tables import Claim, Log
from tests.unit import build
from tests.unit.plays import write_play

NODE = "gdx-1.site"
TINY = Reference("tiny")
QUESTIONS: dict[str, Callable[[Service], Any]] = {
    "user": lambda asked: asked.user,
    "nodes of the configuration": lambda asked: asked.configuration.cluster_of,
    "clusters": lambda asked: {name: each.disk for name, each in asked.configuration.clusters.items()},
    "settings": lambda asked: (asked.site.name, asked.site.limits, asked.site.messages, asked.site.almighty_users),
    "implementations": lambda asked: dict(asked.register),
    "states": lambda asked: sorted(asked.states(), key=lambda row: row.hostname),
    "states of some": lambda asked: list(asked.states([NODE])),
    "holders": lambda asked: {name: list(found) for name, found in asked.holders().items()},
    "holders of some": lambda asked: {name: list(found) for name, found in asked.holders([NODE]).items()},
    "workflows": lambda asked: asked.workflows(),
    "newest": lambda asked: asked.newest(),
    "rights of all": lambda asked: asked.rights(),
    "rights of one": lambda asked: asked.rights("alice"),
    "environments": lambda asked: asked.environments("*", True),
    "an environment": lambda asked: asked.versions(TINY, False),
    "versions": lambda asked: asked.versions(TINY),
    "quarantine": lambda asked: asked.quarantine(),
    "quarantine of some": lambda asked: asked.quarantine([NODE, "gdx-9.site"]),
    "strangers": lambda asked: asked.strangers([NODE, "nvm-99.site"]),
    "rows": lambda asked: [list(row) for row in asked.rows(Rows(selection=Selection(None), fields=FIELDS))],
    "latest": lambda asked: list(asked.latest()),
    "latest of some": lambda asked: list(asked.latest([NODE, "gdx-2.site"])),
    "rates": lambda asked: asked.failure_rates(Selection(None)),
    "durations": lambda asked: asked.durations(Selection(None)),
    "recordings": lambda asked: asked.recordings(),
}
REFUSED: dict[str, Callable[[Service], Any]] = {
    "unknown environment": lambda asked: asked.versions(Reference("nothing")),
    "unknown workflow": lambda asked: asked.workflows("D-nothing123"),
    "workflow that never was": lambda asked: asked.require_workflow("D-nothing123"),
    "recording of an unknown node": lambda asked: asked.recordings("nvm-99.site"),
    "console of an unknown node": lambda asked: asked.console("nvm-99.site"),
    "right on an unknown node": lambda asked: asked.grant(Grant(user="bob", nodes=("nvm-99.site",), parts=("*",))),
    "power of an unknown node": lambda asked: asked.start(PowerRequest(nodes=("nvm-99.site",), operation="on")),
    "cancel what is not there": lambda asked: asked.cancel("P-nothing123"),
}


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """What the service does with a database, tools do as well, and are tested with others."""
    return f"sqlite://{tmp_path}/site/state/kadeploy.db"


@pytest.fixture
def used(site: Site, tmp_path: Path) -> Site:
    """A site on which something has been done."""
    database.connect(site)
    rights.add(site, caller().name, ["*"], ["*"])
    rights.add(site, "alice", [NODE, "gdx-2.site"], ["/dev/sda3"], until=int(time.time()) + 1000)
    image = tmp_path / "image.tgz"
    image.write_bytes(build.packed("image"))
    for version in (1, 2):
        environments.add(
            site, build.environment(name="tiny", version=version, image=Image(file=str(image), kind="tgz")), caller()
        )
    quarantine.put(site, ["gdx-9.site"], "ada", "its disk")
    nodes.set_state([NODE], "deployed", build.environment(name="tiny", version=2), "alice")
    done = {"wid": "D-1", "operation": "deploy", "user": "alice", "hostname": NODE, "start": 1000, "success": True}
    database.insert(Log, [done])
    return site


def address(path: Path) -> Address:
    return servers.address_of(servers.Server(url=str(path)), caller())


@pytest.fixture
def remote(service: Path) -> Remote:
    return Remote(address(service), caller())


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_service_answers_what_the_process_answers(used: Site, remote: Remote, question: str) -> None:
    assert QUESTIONS[question](remote) == QUESTIONS[question](Local(caller()))


@pytest.mark.parametrize("question", REFUSED)
def test_the_service_refuses_what_the_process_refuses_with_the_same_words(
    used: Site, remote: Remote, question: str
) -> None:
    refusals = []
    for asked in (remote, Local(caller())):
        with pytest.raises(KadeployError) as refusal:
            REFUSED[question](asked)
        refusals.append((type(refusal.value), str(refusal.value)))
    assert refusals[0] == refusals[1]


def test_changes_are_made_as_the_process_makes_them(used: Site, remote: Remote) -> None:
    grant = Grant(user="bob", nodes=("gdx-2.site", "gdx-1.site"), parts=("/dev/sda3",))
    assert remote.grant(grant).skipped == ["gdx-2.site", "gdx-1.site"]
    assert len(remote.grant(msgspec.structs.replace(grant, overwrite=True)).new) == 2
    assert [right.node for right in remote.revoke(grant).removed] == ["gdx-1.site", "gdx-2.site"]
    assert len(remote.revoke(grant).unknown) == 2
    assert remote.grant(Grant(user="bob", nodes=("*",), parts=("*",))).new == rights.show(used, "bob")
    assert remote.set_visibility(TINY, "shared").visibility == "shared"
    assert remote.reset_demolishing(TINY).demolishing_env == 0
    assert [change.before.sha256 for change in remote.update_checksums(TINY, "tarball")]
    assert [each.version for each in remote.delete_environments(TINY)] == [1, 2]


# --- who calls ----------------------------------------------------------------------------------------------------


def ask(
    service: Path, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(service))
    connection.request(method, path, body or None, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    content = answer.read()
    return answer.status, json.loads(content) if content else None


def as_account(who: Account, do: Callable[[], object]) -> object:
    """What *do* returns in a process of *who*: uvicorn's inside tells who is at the other end, and must go on to."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(who.gid, who.gid, who.gid)
            os.setresuid(who.uid, who.uid, who.uid)
            os.write(writing, json.dumps(do()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        return json.loads(answer.read())


@pytest.fixture
def open_service(site_folder: Path, open_folder: Path) -> Iterator[Path]:
    """A service whose socket every account may reach."""
    from tests.unit.serving import served

    with served(site_folder, open_folder / "socket") as path:
        yield path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_kernel_says_who_calls(site: Site, open_service: Path) -> None:
    nobody = account("nobody")
    assert ask(open_service, "GET", "/v1/")[1]["user"] == "root"
    assert as_account(nobody, lambda: ask(open_service, "GET", "/v1/")[1]["user"]) == "nobody"
    acting = {"X-Kadeploy-User": "alice"}
    assert ask(open_service, "GET", "/v1/", headers=acting)[1]["user"] == "alice"
    refused = as_account(nobody, lambda: ask(open_service, "GET", "/v1/", headers={"X-Kadeploy-User": "root"}))
    assert isinstance(refused, list)
    assert (refused[0], refused[1]["error"]) == (401, "AuthenticationError")
    for header in ("X-Remote-Ident", "X-Api-User-Cn", "Authorization"):
        assert ask(open_service, "GET", "/v1/", headers={header: "Bearer x"})[0] == 401


def test_what_is_not_administrators_business_is_refused_to_others(used: Site, service: Path) -> None:
    alice = {"X-Kadeploy-User": "alice"}
    grant = msgspec.json.encode(Grant(user="alice", nodes=("*",), parts=("*",)))
    assert ask(service, "POST", "/v1/rights", grant, alice)[0] == 403
    assert ask(service, "GET", "/v1/rights?user=bob", headers=alice)[0] == 403
    assert ask(service, "GET", "/v1/rights?user=alice", headers=alice)[0] == 200
    assert ask(service, "DELETE", "/v1/environments?name=tiny&owner=root", headers=alice)[0] == 403
    told = ask(service, "GET", "/v1/holders", headers=alice)[1]
    assert {holder["user"] for found in told.values() for holder in found} == {"alice"}
    for node, user in ((NODE, "root"), ("gdx-3.site", "")):  # in another's name, and without a right to the node
        body = json.dumps({"nodes": [node], "operation": "on", "user": user}).encode()
        status, told = ask(service, "POST", "/v1/power", body, alice)
        assert (status, told["error"]) == (403, "RightsError"), told


# --- what strangers send ----------------------------------------------------------------------------------------------


def described(**changes: object) -> dict[str, object]:
    """An environment, as a request has it."""
    image = {"file": "/image.tgz", "kind": "tgz"}
    return {"name": "tiny", "image": image, "kernel": "/vmlinuz", "filesystem": "ext4"} | changes


def environment(**changes: object) -> bytes:
    """A request to record one."""
    return json.dumps({"environments": [described(**changes)]}).encode()


def deployment(environment: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """A request to deploy one on `NODE`."""
    wanted = {"type": "recorded", "name": "tiny"} | (environment or {})
    return json.dumps({"type": "deploy", "nodes": [NODE], "environment": wanted} | changes).encode()


NONSENSE: dict[str, tuple[Any, ...]] = {
    "no body": ("POST", "/v1/deployments", b""),
    "no JSON": ("POST", "/v1/deployments", b"{"),
    "a list": ("POST", "/v1/power", b"[]"),
    "unknown field": ("POST", "/v1/power", b'{"nodes": [], "operation": "on", "nose": 1}'),
    "wrong type": ("POST", "/v1/power", b'{"nodes": "gdx-1", "operation": "on"}'),
    "no nodes": ("POST", "/v1/power", b'{"nodes": [], "operation": "on"}'),
    "unknown word": ("POST", "/v1/power", b'{"nodes": ["gdx-1.site"], "operation": "explode"}'),
    "endless range": ("GET", "/v1/nodes?nodes=%5B1-999999999%5D", b""),
    "not UTF-8": ("GET", "/v1/nodes?nodes=%FF%FE", b""),
    "null character": ("GET", "/v1/environments?name=%00", b""),
    "no number": ("GET", "/v1/environments?name=tiny&version=x", b""),
    "huge number": ("GET", "/v1/environments?name=tiny&version=99999999999999999999", b""),
    "path in an id": ("GET", "/v1/workflows/..%2f..%2fetc/events", b""),
    "no SHA-256": ("PUT", "/v1/files/abc?size=1", b""),
    "negative size": ("PUT", f"/v1/files/{'0' * 64}?size=-1", b""),
    "file that was not announced": ("PATCH", f"/v1/files/{'0' * 64}?offset=0", b"x"),
    "unknown fields of the log": (
        "POST",
        "/v1/statistics/rows",
        b'{"selection": {}, "fields": ["password"]}',
    ),
    "unknown path": ("GET", "/v1/nowhere", b""),
    "unknown method": ("PUT", "/v1/nodes", b""),
    "a right until a year that no calendar has": (
        "POST",
        "/v1/rights",
        b'{"user":"a","nodes":["*"],"parts":["*"],"until":1000000000000}',
    ),
    "a time that no database takes": ("POST", "/v1/statistics/rates", b'{"since":-121351862850709186674688}'),
    "a step that there is not": (
        "POST",
        "/v1/statistics/rows",
        b'{"selection": {}, "fields": ["user"], "min_retries": 1, "steps": [9]}',
    ),
    "a version that no database takes": ("POST", "/v1/deployments", deployment(environment={"version": 10**30})),
    "half of the steps": ("POST", "/v1/deployments", deployment(force_steps={"BootNewEnv": []})),
    "a step in the place of another": (
        "POST",
        "/v1/deployments",
        deployment(force_steps={name: [{"implementation": "PowerOff"}] for name in MACRO_STEPS}),
    ),
    "tries without end": (
        "POST",
        "/v1/deployments",
        deployment(force_steps={name: [{"implementation": f"{name}Dummy", "retries": 10**30}] for name in MACRO_STEPS}),
    ),
    "an environment whose name clears the screen": ("POST", "/v1/environments", environment(name="\x1b[2J")),
    "an environment with a variable of ours": (
        "POST",
        "/v1/environments",
        environment(custom_variables={"SECRET": ""}),
    ),
    "an environment with a kernel beside its image": ("POST", "/v1/environments", environment(kernel="/../vmlinuz")),
    "a description that is none, to be deployed at once": (
        "POST",
        "/v1/deployments",
        deployment(environment={"type": "described", "environment": described(filesystem="ext4 -F")}),
    ),
    "a body that is not UTF-8": ("POST", "/v1/power", b'{"nodes": ["\xff"], "operation": "on"}'),
    "an event of 5,000 digits": ("GET", "/v1/workflows/D-nothing123/events", b"", {"Last-Event-ID": "9" * 5000}),
    "right with a strange date": ("POST", "/v1/rights", b'{"user":"a","nodes":["*"],"parts":["*"],"until":1e400}'),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_refused_in_a_sentence(used: Site, service: Path, what: str) -> None:
    status, told = ask(service, *NONSENSE[what])
    assert (400 <= status < 500, set(told)) == (True, {"error", "message"}), told
    assert told["message"].endswith((".", "?", ")")), told


def test_a_body_is_one_mebibyte_at_most(used: Site, service: Path) -> None:
    status, told = ask(service, "POST", "/v1/rights", b" " * (1 << 20) + b"{}")
    assert (status, set(told)) == (413, {"error", "message"})


def test_every_refusal_comes_back_as_what_it_was() -> None:
    for kind in STATUSES:
        with pytest.raises(KadeployError) as refusal:
            Refusal(error=kind.__name__, message="No.").raised()
        assert refusal.type is kind or issubclass(kind, refusal.type)
    with pytest.raises(KadeployError, match="No"):
        Refusal(error="os.system", message="No.").raised()


def test_where_nobody_listens_the_tool_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="Is kadeploy3d running"):
        Http(address(tmp_path / "nothing")).ask("GET", "/v1/", dict)


@pytest.mark.parametrize(
    "begun", [b"", b"GET /v1/ HTTP/1.1\r\nHost", b"POST /v1/power HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
)
def test_who_does_not_finish_a_request_is_let_go(
    site: Site, service: Path, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PATIENCE", 0.5)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(service))
        silent.sendall(begun)
        silent.settimeout(20)
        assert silent.recv(1) == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_an_account_holds_so_many_connections_and_no_more(
    site: Site, open_service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "CONNECTIONS", 20)

    def hold() -> list[int]:
        held = []
        for _ in range(30):
            each = socket.socket(socket.AF_UNIX)
            each.connect(str(open_service))
            held.append(each)
        time.sleep(1)
        for each in held:
            each.settimeout(0.01)
        return [sum(_is_closed(each) for each in held)]

    assert as_account(account("nobody"), hold) == [10]
    assert as_account(account("nobody"), lambda: ask(open_service, "GET", "/v1/")[0]) == 200
    with ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(open_service))
        assert ask(open_service, "GET", "/v1/")[0] == 200, "root always finds its way in"


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(used: Site, site_folder: Path, tmp_path: Path) -> Path:
    """A power operation that waits for a file, which is this."""
    write_play(
        site_folder,
        "PowerOn",
        f"  tasks:\n    - ansible.builtin.shell: until test -e {tmp_path}/go; do sleep 0.1; done\n",
    )
    return tmp_path / "go"


ON = PowerRequest(nodes=(NODE,), operation="on")


def test_the_events_of_a_workflow_are_told_from_any_of_them_on(used: Site, remote: Remote, service: Path) -> None:
    told: list[Event] = []
    wid = remote.start(ON)
    assert remote.attach(wid, told.append, threading.Event()) is not None
    path = used.run_folders / wid / events.FILE_NAME
    assert told == list(events.read(path))
    messages = list(Http(address(service)).events(f"/v1/workflows/{wid}/events", "0", lambda: False))
    assert len(messages) == len(told)
    for rank, message in enumerate(messages):
        rest = Http(address(service)).events(f"/v1/workflows/{wid}/events", message.number, lambda: False)
        assert [each.data for each in rest] == [each.data for each in messages[rank + 1 :]]


def test_how_a_workflow_stands_is_told_as_the_process_tells_it_and_to_others_without_reasons(
    used: Site, remote: Remote, service: Path
) -> None:
    wid = remote.start(ON)  # nobody has said how nodes are switched
    report = remote.attach(wid, lambda _: None, threading.Event())
    assert report is not None
    mine = remote.workflows(wid)
    assert mine == Local(caller()).workflows(wid)
    assert mine[wid]["counts"] == {"ok": 0, "ko": 1, "processing": 0}
    assert {"out": report.ko[NODE]} in mine[wid]["nodes"][NODE]
    told = ask(service, "GET", f"/v1/workflows/{wid}", headers={"X-Kadeploy-User": "alice"})[1]
    assert {key for each in told[wid]["nodes"][NODE] for key in each} == {"macro-step", "micro-step", "state"}
    assert set(mine[wid]) - set(told[wid]) == {"counts"}


def test_who_stops_waiting_lets_the_workflow_go_on(used: Site, remote: Remote, slow: Path) -> None:
    wid = remote.start(ON)
    stop = threading.Event()
    assert remote.attach(wid, lambda _: stop.set(), stop) is None
    slow.touch()
    report = remote.attach(wid, lambda _: None, threading.Event())
    assert report is not None
    assert report.ok == (NODE,)


def test_what_is_stopped_is_cancelled_and_told_to_its_end(used: Site, remote: Remote, slow: Path) -> None:
    stop, told = threading.Event(), []

    def hear(event: Event) -> None:
        told.append(event)
        stop.set()

    report = remote.carry_out(ON, hear, stop, lambda _: None)
    assert report.aborted == (NODE,)
    assert isinstance(told[-1], Ended)
    assert not remote.cancel(report.wid)


def test_what_is_stopped_before_it_has_begun_does_not_begin(used: Site, remote: Remote) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(UserInterruptError, match="no node was touched"):
        remote.carry_out(ON, lambda _: None, stop, lambda _: None)
    assert not remote.newest()


def test_files_on_their_way_are_told_of_and_ctrl_c_ends_that(
    used: Site, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(os.urandom(8 * MEGA))
    options = Options(pxe_profile="DEFAULT own\n")
    request = build.deploy_request(nodes=build.NAMES[:2], uploads=(str(file),), options=options)
    monkeypatch.setattr("kadeploy.client.remote.TOLD_EVERY", 0.0)
    stop, told = threading.Event(), []

    def hear(event: Event) -> None:
        told.append(event)
        stop.set()

    with pytest.raises(UserInterruptError, match="no node was touched"):
        remote.carry_out(request, hear, stop, lambda _: None)
    assert [each.text for each in told if isinstance(each, Note)] == ["sent 0 of 8 MiB of files"]
    assert not remote.newest()
    report = remote.carry_out(request, told.append, threading.Event(), lambda _: None)
    assert sorted(report.ok) == sorted(build.NAMES[:2])
    assert "sent 7 of 8 MiB of files" in [each.text for each in told if isinstance(each, Note)]


def test_workflows_of_others_are_theirs(used: Site, remote: Remote, service: Path, slow: Path) -> None:
    wid = remote.start(ON)
    alice = {"X-Kadeploy-User": "alice"}
    assert ask(service, "DELETE", f"/v1/workflows/{wid}", headers=alice)[0] == 403
    assert ask(service, "GET", f"/v1/workflows/{wid}/events", headers=alice)[0] == 403
    with pytest.raises(RightsError):
        Refusal(**ask(service, "DELETE", f"/v1/workflows/{wid}", headers=alice)[1]).raised()
    assert remote.cancel(wid)
    with pytest.raises(OptionError, match="No workflow"):
        remote.cancel("P-aaaaaaaaaa")


# --- claims -----------------------------------------------------------------------------------------------------------


def test_claims_are_seen_by_all_and_freed_by_administrators_once_their_workflow_does_not_run(
    used: Site, remote: Remote, service: Path, slow: Path
) -> None:
    alice = {"X-Kadeploy-User": "alice"}
    nodes.claim(used, ["gdx-2.site"], "D-dead", "bob")
    Claim.update(boot_id="before").execute()
    wid = remote.start(ON)
    status, told = ask(service, "GET", "/v1/claims?nodes=gdx-[1-3]", headers=alice)
    assert status == 200
    assert [(each["node"], each["wid"], each["user"], each["part"], each["is_left"]) for each in told] == [
        (NODE, wid, caller().name, "/dev/sda3", False),
    ], "what begins ends what dead controllers have left"
    nodes.claim(used, ["gdx-2.site"], "D-dead", "bob")
    Claim.update(boot_id="before").where(Claim.wid == "D-dead").execute()
    for node, headers, expected in (
        ("gdx-2", alice, (403, "RightsError")),
        (NODE, alice, (403, "RightsError")),
        (NODE, {}, (409, "NodeHeldError")),
        ("gdx-3", {}, (400, "NothingChangedError")),
    ):
        status, told = ask(service, "DELETE", f"/v1/claims/{node}", headers=headers)
        assert (status, told["error"]) == expected, told
    assert ask(service, "DELETE", "/v1/claims/gdx-2") == (200, ["gdx-2.site"])
    assert [each["node"] for each in ask(service, "GET", "/v1/claims")[1]] == [NODE]
    lines = [json.loads(line) for line in (used.state / "audit.jsonl").read_text().splitlines()]
    freed = [(line["user"], line["object"], line["status"]) for line in lines if "/v1/claims" in line["what"]]
    assert freed[0] == ("alice", "gdx-2.site", 403)
    assert freed[-1] == (caller().name, "gdx-2.site", 200)
    assert len(freed) == 5
    assert remote.cancel(wid)


# --- quarantine -------------------------------------------------------------------------------------------------------


def test_quarantine_is_seen_by_all_and_decided_by_administrators(used: Site, service: Path) -> None:
    alice = {"X-Kadeploy-User": "alice"}
    wish = json.dumps({"nodes": ["gdx-[2-3]"], "reason": "its disk", "until": 4_000_000_000}).encode()
    status, told = ask(service, "PUT", "/v1/quarantine", wish, headers=alice)
    assert (status, told["error"]) == (403, "RightsError")
    status, told = ask(service, "PUT", "/v1/quarantine", wish)
    assert (status, [each["node"] for each in told]) == (200, ["gdx-2.site", "gdx-3.site"])
    status, told = ask(service, "GET", "/v1/quarantine?nodes=gdx-2", headers=alice)
    assert status == 200
    assert [(each["node"], each["put_by"], each["reason"], each["until"]) for each in told] == [
        ("gdx-2.site", caller().name, "its disk", 4_000_000_000)
    ]
    status, told = ask(service, "DELETE", "/v1/quarantine?nodes=gdx-2", headers=alice)
    assert (status, told["error"]) == (403, "RightsError")
    assert ask(service, "DELETE", "/v1/quarantine?nodes=gdx-[1-2]") == (200, ["gdx-2.site"])
    assert [each["node"] for each in ask(service, "GET", "/v1/quarantine")[1]] == ["gdx-3.site", "gdx-9.site"]
    for names in ([], ["nobody"], ["gdx-[1-"]):
        status, told = ask(service, "PUT", "/v1/quarantine", json.dumps({"nodes": names}).encode())
        assert (status, told["error"]) == (400, "NodeListError"), told
    lines = [json.loads(line) for line in (used.state / "audit.jsonl").read_text().splitlines()]
    assert ("DELETE /v1/quarantine", "gdx-[1-2]", 200) in [
        (line["what"], line["object"], line["status"]) for line in lines
    ]


def test_a_hundred_followers_hold_up_nobody(used: Site, remote: Remote, service: Path, slow: Path) -> None:
    """Once they have begun they read nothing."""
    wid = remote.start(ON)
    sockets = []
    for _ in range(100):
        follower = socket.socket(socket.AF_UNIX)
        follower.connect(str(service))
        follower.sendall(f"GET /v1/workflows/{wid}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        sockets.append(follower)
    for follower in sockets:
        assert follower.recv(9) == b"HTTP/1.1 "  # each has begun, however busy the machine is
    begun = time.monotonic()
    assert list(remote.states([NODE]))
    assert time.monotonic() - begun < 5
    slow.touch()
    report = remote.attach(wid, lambda _: None, threading.Event())
    assert report is not None
    assert report.ok == (NODE,)
    for follower in sockets:
        follower.close()


# --- audit ------------------------------------------------------------------------------------------------------------


def test_each_change_and_each_refusal_of_a_stranger_is_a_line_and_looks_are_none(
    used: Site, remote: Remote, service: Path
) -> None:
    list(remote.states())
    remote.strangers([NODE])
    remote.grant(Grant(user="bob", nodes=(NODE,), parts=("*",)))
    ask(service, "GET", "/v1/", headers={"Authorization": "Bearer x"})
    ask(service, "POST", "/v1/rights", b"{}", {"X-Kadeploy-User": "alice"})
    lines = [json.loads(line) for line in (used.state / "audit.jsonl").read_text().splitlines()]
    told = [(line["user"], line["what"], line["status"]) for line in lines]
    assert told == [
        (caller().name, "POST /v1/rights", 201),
        ("", "GET /v1", 401),
        ("alice", "POST /v1/rights", 400),
    ]
    assert lines[0]["object"] == f"bob: * of {NODE}"


def test_consoles_that_are_opened_or_refused_are_lines(
    used: Site, site_folder: Path, remote: Remote, service: Path
) -> None:
    with (site_folder / "clusters" / "gdx.yml").open("a") as file:
        file.write(f"console_account: {caller().name if os.geteuid() else 'nobody'}\nconsole: cat\n")
    remote.console(NODE).open(Size()).end("left")
    path = f"/v1/nodes/{NODE}/console"
    for header in (("X-Kadeploy-User", "eve"), ("Authorization", "Bearer x")):
        with suppress(KadeployError):
            connect(Http(address(service)).connected(), path, [header], "localhost", Size())
    lines = [json.loads(line) for line in (used.state / "audit.jsonl").read_text().splitlines()]
    told = [(line["user"], line["what"], line["object"], line["status"]) for line in lines]
    assert told == [
        (caller().name, f"GET {path}", NODE, 101),
        ("eve", f"GET {path}", NODE, 403),
        ("", f"GET {path}", NODE, 401),
    ]
    assert "eve" in lines[1]["reason"]
