"""The original's REST interface, driven by clients that are not ours, or as they drive it."""

from __future__ import annotations

import base64
import csv
import functools
import gzip
import http.server
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from grid5000 import Grid5000
from grid5000.exceptions import Grid5000CreateError
from hypothesis import given, settings
from hypothesis import strategies as st

from kadeploy import errors
from kadeploy.config.folder import load_site
from kadeploy.events import FILE_NAME, Began, EventFile
from kadeploy.runner.request import read as read_request
from kadeploy.server.original import refusals
from kadeploy.state import database, rights
from tests.unit import build
from tests.unit.serving import DUMMY_CLUSTER, served

SERVICE = """
service:
  folders: [{files}]
  front_ends: [{{sources: [127.0.0.1]}}]
"""
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq7bhOPDK1mHvvcHQ0LvgcVxuPyG2ja9pXQQ8UIwPf ada"


class Web(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; it says nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """URL of a web server with an image and a key."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "image.tgz").write_bytes(build.packed("image"))
    (folder / "key.pub").write_text(KEY)
    with serving(functools.partial(Web, directory=str(folder))) as url:
        yield url


class serving:  # noqa: N801 - reads as a function
    """A web server of *handler*'s in a thread."""

    def __init__(self, handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def address(site_folder: Path, tmp_path: Path) -> Iterator[str]:
    """URL of a service whose front end is on this machine; ada may deploy on all nodes, bob on none."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "image.tgz").write_bytes(build.packed("image"))
    with (site_folder / "site.yml").open("a") as text:
        text.write(SERVICE.format(files=files))
    (site_folder / "clusters" / "nvm.yml").unlink()
    (site_folder / "clusters" / "gdx.yml").write_text(DUMMY_CLUSTER)
    site = load_site(site_folder)
    database.connect(site)
    rights.add(site, "ada", ["*"], ["*"])
    database.disconnect()
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with served(site_folder, site_folder / "state" / "test.sock", bound):
            yield url
    database.disconnect()


def client(address: str, user: str) -> httpx.Client:
    """What a front end does for *user*."""
    return httpx.Client(base_url=address, headers={"X-Remote-Ident": user}, timeout=60)


@pytest.fixture
def ada(address: str) -> Iterator[httpx.Client]:
    with client(address, "ada") as found:
        yield found


@pytest.fixture
def bob(address: str) -> Iterator[httpx.Client]:
    with client(address, "bob") as found:
        yield found


@pytest.fixture
def root(address: str) -> Iterator[httpx.Client]:
    with client(address, "root") as found:
        yield found


def image(tmp_path: Path) -> dict[str, str]:
    return {"file": f"server://{tmp_path}/files/image.tgz", "kind": "tar", "compression": "gzip"}


def described(tmp_path: Path, name: str = "tiny", **more: object) -> dict[str, Any]:
    boot = {"kernel": "/boot/vmlinuz"}
    return {"name": name, "os": "linux", "image": image(tmp_path), "boot": boot, "filesystem": "ext4", **more}


def good(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response) -> tuple[int, int, str]:
    """Status, number, and sentence."""
    info = base64.b64decode(answer.headers[refusals.INFO]).decode()
    assert info.strip() == answer.text.strip()
    return answer.status_code, int(answer.headers[refusals.CODE]), info


def ended(who: httpx.Client, place: str) -> dict[str, Any]:
    """What is told of a workflow, once it is done."""
    limit = time.monotonic() + 120
    while not (found := good(who.get(place)))["done"]:
        assert time.monotonic() < limit, found
        time.sleep(0.2)
    return dict(found)


# --- each resource ----------------------------------------------------------------------------------------------------


def test_what_a_client_asks_first_is_told_to_everybody(address: str) -> None:
    assert good(httpx.get(f"{address}/auth_headers_prefix")) == "X-Kadeploy-"
    assert set(good(httpx.get(f"{address}/version"))) == {"version"}
    assert httpx.get(f"{address}/info").status_code == 401


def test_the_site_its_clusters_and_its_nodes(ada: httpx.Client) -> None:
    info = good(ada.get("/info"))
    assert (info["site"], "ext4" in info["supported_fs"]["gdx"]) == ("paris", True)
    cluster = good(ada.get("/clusters"))["gdx"]
    assert (cluster["block_device"], cluster["deploy_part"]) == ("/dev/sda", "/dev/sda3")
    names = [f"gdx-{number}.site" for number in range(1, 9)]
    assert good(ada.get("/nodes?list=true")) == names == cluster["nodes"]
    assert good(ada.get("/nodes", params={"nodes": "gdx-[1-2].site"})) == {"gdx-1.site": None, "gdx-2.site": None}
    assert good(ada.get("/nodes/gdx-1.site")) == {"state": None}
    assert refused(ada.get("/nodes/nobody"))[:2] == (400, 2)


def test_answers_come_as_yaml_to_who_prefers_it(ada: httpx.Client) -> None:
    answer = ada.get("/clusters", headers={"Accept": "application/x-yaml"})
    assert answer.headers["content-type"].startswith("application/x-yaml")
    assert yaml.safe_load(answer.text) == good(ada.get("/clusters"))


def test_environments_are_recorded_told_changed_and_deleted(
    ada: httpx.Client, bob: httpx.Client, tmp_path: Path
) -> None:
    added = good(ada.post("/environments", json=described(tmp_path, version=1)))
    assert (added["user"], added["version"], len(added["image"]["md5"])) == ("ada", 1, 32)
    good(ada.post("/environments", json={"environment": described(tmp_path, version=2), "client": "http://x/"}))
    assert refused(ada.post("/environments", json=described(tmp_path, version=2)))[:2] == (400, 10)
    assert refused(ada.post("/environments", json={"name": "x"}))[:2] == (400, 7)
    assert [each["version"] for each in good(ada.get("/environments"))] == [1, 2]
    assert [each["version"] for each in good(ada.get("/environments?last=true"))] == [2]
    assert [each["version"] for each in good(ada.get("/environments/ada/tiny"))] == [1, 2]
    assert [each["version"] for each in good(ada.get("/environments/ada/tiny/1"))] == [1]
    assert good(bob.get("/environments/ada")) == []
    assert refused(bob.get("/environments/ada/tiny"))[:2] == (404, 7)
    assert refused(bob.put("/environments/ada/tiny/2", json={"visibility": "shared"}))[:2] == (403, 6)
    assert good(ada.put("/environments/ada/tiny/2", json={"visibility": "shared"}))["visibility"] == "shared"
    assert [each["name"] for each in good(bob.get("/environments/ada"))] == ["tiny"]
    assert refused(ada.put("/environments/ada/tiny", json={}))[1] == 14
    assert refused(ada.put("/environments/ada/tiny", json={"visible": "no"}))[:2] == (400, 4)
    assert [each["version"] for each in good(ada.delete("/environments/ada/tiny/1"))] == [1]
    assert [each["version"] for each in good(ada.delete("/environments/ada/tiny?last"))] == [2]


def test_rights_are_given_told_and_taken_by_administrators_alone(ada: httpx.Client, root: httpx.Client) -> None:
    wanted = {"username": "bob", "nodes": ["gdx-[1-2].site"], "partitions": ["/dev/sda3"]}
    assert refused(ada.post("/rights", json=wanted))[:2] == (403, 6)
    given_ = {"bob": {"gdx-1.site": ["/dev/sda3"], "gdx-2.site": ["/dev/sda3"]}}
    assert good(root.post("/rights", json=wanted)) == given_
    assert refused(root.post("/rights", json=wanted))[1] == 14
    assert good(root.get("/rights/bob")) == given_
    assert good(root.get("/rights"))["ada"] == {"*": ["*"]}
    assert good(root.get("/rights/bob/gdx-1.site")) == {"bob": {"gdx-1.site": ["/dev/sda3"]}}
    assert good(root.delete("/rights/bob/gdx-1.site")) == {"bob": {"gdx-1.site": ["/dev/sda3"]}}
    assert good(root.delete("/rights/bob")) == {"bob": {"gdx-2.site": ["/dev/sda3"]}}
    assert refused(root.delete("/rights/bob"))[:2] == (400, 14)


def test_a_deployment_from_its_request_to_its_log(
    address: str, ada: httpx.Client, bob: httpx.Client, web: str, tmp_path: Path
) -> None:
    environment = described(tmp_path, kind="anonymous", image={**image(tmp_path), "file": f"{web}/image.tgz"})
    body = {"nodes": ["gdx-[1-2].site"], "environment": environment, "ssh_authorized_keys": f"{web}/key.pub"}
    begun = good(ada.post("/deployment", json=body))
    place = f"/deployment/{begun['wid']}"
    assert begun["resources"]["state"] == f"{address}{place}/state"
    assert set(begun["resources"]["debugs"]) == {"gdx-1.site", "gdx-2.site"}
    done = ended(ada, place)
    assert (done["wid"], done["user"], done["error"]) == (begun["wid"], "ada", False)
    assert done["nodes"] == {"ok": ["gdx-1.site", "gdx-2.site"], "ko": []}
    assert done["environment"]["name"] == "tiny"
    state = good(ada.get(f"{place}/state"))
    assert state["gdx-1.site"] == {"macro": "BootNewEnvDummy", "micro": "dummy", "state": "ok", "out": ""}
    assert good(ada.get(f"{place}/status"))["gdx"]["OK"] == ["gdx-1.site", "gdx-2.site"]
    assert good(ada.get(f"{place}/error")) is None
    log = ada.get(f"{place}/logs").text
    assert "BroadcastEnvDummy on gdx-[1-2].site" in log
    assert ada.get(f"{place}/logs").text == log == ada.get(f"{place}/logs/gdx").text
    assert refused(ada.get(f"{place}/logs/nvm"))[:2] == (400, 2)
    assert "gdx-1.site" in ada.get(f"{place}/debugs/gdx-1.site").text
    assert [each["wid"] for each in good(ada.get("/deployment"))] == [begun["wid"]]
    assert good(ada.get("/nodes/gdx-1.site"))["state"] == "deployed"
    seen = good(bob.get(place))
    assert (set(seen), seen["nodes"]) == (
        {"wid", "user", "done", "error", "start_time", "nodes"},
        ["gdx-1.site", "gdx-2.site"],
    )
    for more in ("/state", "/logs", "/debugs", "/status", "/error"):
        assert refused(bob.get(place + more))[:2] == (403, 6)
    assert refused(bob.delete(place))[:2] == (403, 6)
    assert good(ada.delete(place)) == {"wid": begun["wid"]}
    rows = ada.get("/stats/deploy", params={"fields": ["wid", "hostname", "success"], "sort": "hostname"})
    assert rows.headers["content-encoding"] == "gzip"
    assert list(csv.reader(io.StringIO(rows.text)))[:2] == [
        ["wid", "hostname", "success"],
        [begun["wid"], "gdx-1.site", "true"],
    ]
    plain = ada.get("/stats?kind=failure_rates", headers={"Accept-Encoding": "identity"})
    assert plain.text == "hostname,failure_rate\ngdx-1.site,0.0\ngdx-2.site,0.0\n"


def test_the_keys_at_a_url_and_the_options_are_those_of_the_deployment(
    ada: httpx.Client, web: str, tmp_path: Path, site_folder: Path
) -> None:
    good(ada.post("/environments", json=described(tmp_path)))
    body = {
        "nodes": "gdx-1.site",
        "environment": {"kind": "database", "name": "tiny", "user": "ada", "version": "1"},
        "ssh_authorized_keys": f"{web}/key.pub",
        "deploy_part": "2",
        "block_device": "/dev/sda",
        "reformat_tmp_partition": "ext3",
        "disable_disk_partitioning": True,
        "disable_bootloader_install": True,
        "automata": {
            "SetDeploymentEnv": [{"type": "Dummy", "retries": 2, "timeout": 100}],
            "BroadcastEnv": [{"name": "BroadcastEnvDummy"}],
            "BootNewEnv": [{"type": "Dummy"}],
        },
        "custom_operations": {
            "BroadcastEnvDummy": {"dummy": {"pre-ops": [{"action": "exec", "name": "x", "command": "true"}]}}
        },
        "force": True,
        "hook": True,
    }
    wid = good(ada.post("/deployment", json=body))["wid"]
    ended(ada, f"/deployment/{wid}")
    [first] = (load_site(site_folder).run_folders / wid).rglob("*SetDeploymentEnvDummy*/inventory.kadeploy.yml")
    request = read_request(first)
    assert (request.attempt.implementation, request.attempt.timeout) == ("SetDeploymentEnvDummy", 100)
    options = request.options
    assert options.authorized_keys.strip() == KEY
    assert (request.deploy_part, options.block_device, options.reformat_tmp) == ("/dev/sda2", "/dev/sda", "ext3")
    assert (options.disable_disk_partitioning, options.disable_bootloader_install) == (True, True)
    [second] = (load_site(site_folder).run_folders / wid).rglob("*BroadcastEnvDummy*/inventory.kadeploy.yml")
    assert [each.command for each in read_request(second).options.custom_operations] == ["true"]


@pytest.mark.parametrize(
    ("change", "number", "said"),
    [
        ({"nodes": ["gdx-99.site"]}, 2, "gdx-99"),
        ({"nodes": None}, 4, "nodes"),
        ({"environment": {"name": "none"}}, 7, "none"),
        ({"environment": {"name": "tiny", "nmae": 1}}, 4, "nmae"),
        ({"environment": None}, 12, "environment"),
        ({"reformat_tpm": "ext4"}, 4, "reformat_tpm"),
        ({"deploy_part": "three"}, 4, "deploy_part"),
        ({"vlan": "4"}, 9, "vlan"),
        ({"custom_operations": {"BroadcastEnvDummy": {"nothing": {"pre-ops": []}}}}, 8, "nothing"),
        ({"ssh_authorized_keys": "/root/.ssh/id_rsa"}, 5, "neither a key nor"),
        ({"ssh_authorized_keys": "file:///etc/passwd"}, 5, "neither a key nor"),
        ({"ssh_authorized_keys": "http://127.0.0.1:1/key"}, 5, "cannot be fetched"),
        ({"ssh_authorized_keys": "-----BEGIN OPENSSH PRIVATE KEY-----\nx y"}, 5, "private key"),
    ],
)
def test_a_wrong_request_is_refused_with_the_originals_number_and_a_sentence(
    ada: httpx.Client, tmp_path: Path, change: Mapping[str, Any], number: int, said: str
) -> None:
    good(ada.post("/environments", json=described(tmp_path)))
    body = {"nodes": ["gdx-1.site"], "environment": {"kind": "database", "name": "tiny"}} | change
    status, code, text = refused(ada.post("/deployment", json=body))
    assert (status, code, said in text) == (400, number, True), text
    assert good(ada.get("/deployment")) == []


@pytest.mark.parametrize("where", ["image", "operation", "upload"])
def test_no_file_of_the_server_is_opened_for_a_client_that_names_its_path(
    ada: httpx.Client, tmp_path: Path, where: str
) -> None:
    """This process is root's, who could read the file."""
    secret = tmp_path / "secret.tgz"
    secret.write_bytes(build.packed("image"))
    environment = described(tmp_path, kind="anonymous")
    body: dict[str, Any] = {"nodes": ["gdx-1.site"], "environment": environment}
    if where == "image":
        environment["image"] = image(tmp_path) | {"file": str(secret)}
    elif where == "operation":
        operation = {"action": "send", "name": "x", "file": str(secret), "destination": "/x"}
        body["custom_operations"] = {"BroadcastEnvDummy": {"dummy": {"pre-ops": [operation]}}}
    else:
        body["pxe"] = {"profile": "LABEL x", "files": [str(secret)]}
    status, code, _ = refused(ada.post("/deployment", json=body))
    assert (status, code) == (400, 8 if where == "operation" else 5)


def test_a_right_that_is_missing_is_a_wrong_request_and_is_audited(
    bob: httpx.Client, tmp_path: Path, site_folder: Path
) -> None:
    """Nor is a URL of such a request fetched."""
    body = {"nodes": ["gdx-1.site"], "environment": described(tmp_path, kind="anonymous")}
    body["ssh_authorized_keys"] = "http://127.0.0.1:1/key"
    assert refused(bob.post("/deployment", json=body))[:2] == (400, 6)
    assert refused(bob.put("/power", json={"nodes": ["gdx-1.site"], "status": "on"}))[:2] == (400, 6)
    lines = [json.loads(line) for line in (site_folder / "state" / "audit.jsonl").read_text().splitlines()]
    assert [(line["user"], line["what"], line["status"]) for line in lines] == [
        ("bob", "POST /deployment", 400),
        ("bob", "PUT /power", 400),
    ]
    assert lines[0]["object"] == "gdx-1.site"


def test_a_workflow_of_another_kind_or_of_no_kind_is_not_known(ada: httpx.Client) -> None:
    wid = good(ada.put("/power", json={"nodes": ["gdx-1.site"], "status": "on"}))["wid"]
    for place in (f"/deployment/{wid}", "/deployment/D-none", "/power/P-%2e%2e", "/reboot/R-0/state"):
        assert refused(ada.get(place))[:2] == (400, 1), place
    assert refused(ada.delete("/deployment/D-none"))[:2] == (400, 1)
    ended(ada, f"/power/{wid}")


def test_a_workflow_that_broke_off_is_done_with_an_error_that_says_why(ada: httpx.Client, site_folder: Path) -> None:
    folder = load_site(site_folder).run_folders / "P-dead"
    folder.mkdir(parents=True)
    file = EventFile(folder / FILE_NAME)
    file(Began(wid="P-dead", operation="power", user="ada", groups={"gdx": ("gdx-1.site",)}, plans={}))
    file.close()
    os.utime(folder / FILE_NAME, (0, 0))
    found = good(ada.get("/power/P-dead"))
    assert (found["done"], found["error"], found["nodes"]) == (True, True, {"ok": [], "ko": ["gdx-1.site"]})
    status, code, text = refused(ada.get("/power/P-dead/error"))
    assert (status, code, "was not brought to an end" in text) == (400, 15, True)


def test_a_console_is_told_where_it_is(address: str, ada: httpx.Client, bob: httpx.Client, site_folder: Path) -> None:
    assert refused(ada.post("/console", json={"node": "gdx-1.site"}))[0] == 400
    with (site_folder / "clusters" / "gdx.yml").open("a") as text:
        text.write("console: cat\nconsole_account: nobody\n")
    place = good(ada.post("/console", json={"node": "gdx-1"}))["resources"]["console"]
    assert place == f"{address}/v1/nodes/gdx-1.site/console".replace("http:", "ws:")
    assert refused(bob.post("/console", json={"node": "gdx-1"}))[:2] == (400, 6)


def test_every_refusal_has_one_of_the_originals_numbers() -> None:
    """The original's own list; who nobody knows gets a status alone."""
    known = {*range(16), 20, 21, 22, 30}
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.KadeployError)
    ]
    numbers = {kind: refusals.number(kind.__new__(kind)) for kind in kinds}
    assert set(numbers.values()) <= known
    assert (numbers[errors.RightsError], numbers[errors.VlanError], numbers[errors.OptionError]) == (6, 9, 4)
    ranks = list(refusals.NUMBERS)
    for rank, kind in enumerate(ranks):
        assert not any(issubclass(later, kind) for later in ranks[rank + 1 :]), f"{kind.__name__} hides a special kind"


# --- clients ----------------------------------------------------------------------------------------------------------


class Front(http.server.BaseHTTPRequestHandler):
    """As much of a testbed's API as python-grid5000 needs: it names the user, and translates paths."""

    inner: str
    keys = {"key": "ssh_authorized_keys", "partition_number": "deploy_part"}

    def log_message(self, *_: object) -> None:
        pass

    def _user(self) -> str:
        return base64.b64decode(self.headers["Authorization"].split()[1]).decode().split(":")[0]

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return httpx.request(method, self.inner + path, headers={"X-Remote-Ident": self._user()}, timeout=60, **more)

    def _say(self, status: int, value: Any) -> None:
        said = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, _, owner = asked["environment"].partition("@")
        body = {self.keys.get(key, key): value for key, value in asked.items()}
        body["environment"] = {"kind": "database", "name": name, "user": owner}
        body["hook"] = True
        answer = self._ask("POST", "/deployment", json=body)
        if answer.status_code != 200:
            code, info = answer.headers[refusals.CODE], base64.b64decode(answer.headers[refusals.INFO]).decode()
            self._say(500, {"message": f"Kadeploy error #{code}: {info}"})
            return
        self._say(201, self._deployment(answer.json()["wid"]))

    def do_GET(self) -> None:
        *_, kind, uid = self.path.split("/")
        if uid == "environments":
            self._say(200, {"items": self._ask("GET", "/environments?last=true").json()})
        elif kind == "deployments":
            self._say(200, self._deployment(uid))
        else:
            self._say(200, {"uid": uid})

    def do_DELETE(self) -> None:
        self._say(202, self._ask("DELETE", f"/deployment/{self.path.rpartition('/')[2]}").json())

    def _deployment(self, uid: str) -> dict[str, Any]:
        item = self._ask("GET", f"/deployment/{uid}").json()
        states = self._ask("GET", f"/deployment/{uid}/state").json()
        result = {node: each | {"state": each["state"].upper()} for node, each in states.items()}
        status = "error" if item["error"] else "terminated" if item["done"] else "processing"
        return {"uid": uid, "user_uid": item["user"], "status": status, "nodes": list(states), "result": result}


@pytest.fixture
def grid5000(address: str) -> Iterator[Grid5000]:
    with serving(type("Here", (Front,), {"inner": address})) as url:
        yield Grid5000(uri=url, username="ada", password="anything", verify_ssl=False)


def test_python_grid5000_finds_an_environment_deploys_it_and_waits(
    grid5000: Grid5000, ada: httpx.Client, tmp_path: Path
) -> None:
    good(ada.post("/environments", json=described(tmp_path, "debian12-min")))
    paris = grid5000.sites["paris"]
    assert [each.name for each in paris.environments.list()] == ["debian12-min"]
    nodes = ["gdx-1.site", "gdx-2.site"]
    deployment = paris.deployments.create(
        {"nodes": nodes, "environment": "debian12-min@ada", "key": KEY, "partition_number": 3}
    )
    limit = time.monotonic() + 120
    while deployment.status not in ("terminated", "error"):
        assert time.monotonic() < limit
        time.sleep(0.2)
        deployment.refresh()
    assert (deployment.status, deployment.user_uid) == ("terminated", "ada")
    assert {node: each["state"] for node, each in deployment.result.items()} == dict.fromkeys(nodes, "OK")


def test_python_grid5000_is_told_why_a_deployment_is_refused(grid5000: Grid5000) -> None:
    with pytest.raises(Grid5000CreateError, match=r"Kadeploy error #7: .*nothing"):
        grid5000.sites["paris"].deployments.create({"nodes": ["gdx-1.site"], "environment": "nothing@ada"})


def test_the_calls_of_docker_machine_driver_g5k_switch_ask_and_reboot(ada: httpx.Client) -> None:
    """It wants 200 of each call; its structs have exactly these fields."""
    begun = good(ada.put("/power", json={"nodes": ["gdx-1.site"], "status": "on", "level": "soft"}))
    found = ended(ada, f"/power/{begun['wid']}")
    assert (found["error"], found["nodes"]) == (False, {"ok": ["gdx-1.site"], "ko": []})
    asked = good(ada.get("/power", params={"nodes": "gdx-1.site"}))
    assert ended(ada, f"/power/{asked['wid']}")["nodes"]["ok"] == ["gdx-1.site"]
    state = good(ada.get(f"/power/{asked['wid']}/state"))["gdx-1.site"]
    assert (set(state), state["state"], state["out"]) == ({"macro", "micro", "state", "out"}, "ok", "on")
    ours = good(ada.get(f"/v1/workflows/{asked['wid']}"))[asked["wid"]]
    assert (ours["user"], list(ours["nodes"]), ours["nodes"]["gdx-1.site"][2]) == (
        "ada",
        ["gdx-1.site"],
        {"state": "ok"},
    )
    assert "gdx-1.site: on" in ada.get(f"/power/{asked['wid']}/logs").text
    assert {each["wid"] for each in good(ada.get("/power"))} == {begun["wid"], asked["wid"]}
    assert good(ada.delete(f"/power/{asked['wid']}")) == {"wid": asked["wid"]}
    booted = good(ada.post("/reboot", json={"kind": "simple", "nodes": ["gdx-2.site"], "level": "hard"}))
    place = f"/reboot/{booted['wid']}"
    running = good(ada.get(place))
    assert set(running["nodes"]) >= {"ok", "ko"}
    good(ada.delete(place))
    assert ended(ada, place)["nodes"]["ko"] == ["gdx-2.site"]


def test_the_calls_of_g5k_checks_find_one_environment_and_the_state_of_a_node(
    ada: httpx.Client, tmp_path: Path
) -> None:
    """Its older versions say ``user``, its newer ones ``username``."""
    for version in (1, 2):
        good(ada.post("/environments", json=described(tmp_path, "debian12-std", version=version)))
    for word in ("user", "username"):
        [found] = good(ada.get(f"/environments?last=true&{word}=ada&name=debian12-std"))
        assert (found["version"], found["postinstalls"]) == (2, [])
    assert len(good(ada.get("/environments?username=ada&last"))) == 1
    assert "state" in good(ada.get("/nodes/gdx-1.site"))


def test_the_call_of_ruby_cute_reads_the_log_of_a_deployment_as_text(ada: httpx.Client, tmp_path: Path) -> None:
    body = {"nodes": ["gdx-1.site"], "environment": described(tmp_path, kind="anonymous"), "hook": True}
    place = f"/deployment/{good(ada.post('/deployment', json=body))['wid']}"
    ended(ada, place)
    log = ada.get(f"{place}/logs")
    assert log.headers["content-type"].startswith("text/plain")
    assert log.text.splitlines()[-1].endswith("The operation went well on gdx-1.site")


# --- whatever clients send --------------------------------------------------------------------------------------------

_WORDS = [
    "nodes",
    "environment",
    "kind",
    "name",
    "image",
    "automata",
    "custom_operations",
    "pxe",
    "deploy_part",
    "vlan",
    "ssh_authorized_keys",
    "force",
    "database",
    "anonymous",
    "gdx-1.site",
    "tiny",
    "",
    "3",
    "os",
    "linux",
    "file",
]
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS) | st.text(), inner, max_size=5),
    max_leaves=12,
)
_LIKELY = st.fixed_dictionaries(
    {"nodes": st.just(["gdx-1.site"]) | _JSON, "environment": st.fixed_dictionaries({"name": _JSON}) | _JSON},
    optional=dict.fromkeys(_WORDS[2:], _JSON),
)


def test_no_body_makes_the_service_fail(ada: httpx.Client) -> None:
    @settings(max_examples=300)
    @given(
        _JSON | _LIKELY,
        st.sampled_from(
            [
                ("POST", "/deployment"),
                ("POST", "/reboot"),
                ("PUT", "/power"),
                ("POST", "/environments"),
                ("POST", "/console"),
            ]
        ),
    )
    def check(body: Any, call: tuple[str, str]) -> None:
        answer = ada.request(*call, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, (body, answer.text)
        assert refusals.CODE in answer.headers or answer.status_code in (401, 429)

    check()


@pytest.mark.parametrize("place", ["/deployment", "/v1/deployments"])
def test_a_body_that_is_no_json_or_nested_without_end_is_refused(ada: httpx.Client, place: str) -> None:
    for body in (b"", b"{", b"\xff", gzip.compress(b"{}"), b"[" * 100_000, b'{"nodes":' * 50_000):
        answer = ada.post(place, content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, "not understood" in answer.text) == (400, True)
