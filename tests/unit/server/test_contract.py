"""The service keeps what its OpenAPI schema says: what it answers, to whatever is sent, is what the schema has."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from litestar.serialization import encode_json
from schemathesis import Case, Config, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from kadeploy.config.folder import load_site
from kadeploy.server import openapi
from kadeploy.state import database, rights
from tests.unit import build
from tests.unit.conftest import SITE
from tests.unit.serving import DUMMY_CLUSTER, served

CLUSTER = f"{DUMMY_CLUSTER}console: cat\nconsole_account: nobody\n"
SERVICE = """
service:
  folders: [{folder}/files]
  front_ends: [{{sources: [127.0.0.1]}}]
  quota: {{workflows: 12}}
notifications:
  mail: {{server: 127.0.0.1, port: 1, tls: none, sender: kadeploy@site.example, domain: site.example}}
  webhooks: [http://127.0.0.1:1/]
"""
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
Send = Callable[[Case, str], Response]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a site that all tests here use."""
    found = tmp_path_factory.mktemp("contract") / "site"
    for name in ("clusters", "state", "files"):
        (found / name).mkdir(parents=True)
    for name in ("image", "moved"):
        (found / "files" / f"{name}.tgz").write_bytes(build.packed("image"))
    text = SITE.format(folder=found, database=f"sqlite://{found}/state/kadeploy.db", almighty="[root]")
    (found / "site.yml").write_text(text + SERVICE.format(folder=found), encoding="utf-8")
    (found / "clusters" / "gdx.yml").write_text(CLUSTER, encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def send(folder: Path) -> Iterator[Send]:
    """Sends a request in a user's name: of ada, who has rights on all nodes, or of root, who is an administrator."""
    site = load_site(folder)
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as bound:
        patch.setenv("KADEPLOY_CONFIG_DIR", str(folder))
        database.connect(site)
        rights.add(site, "ada", ["*"], ["*"])
        database.disconnect()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with served(folder, folder / "state" / "test.sock", bound), requests.Session() as session:
            yield lambda case, user: case.call(url, session, {"X-Remote-Ident": user}, timeout=60)
    database.disconnect()


# --- whatever is sent -------------------------------------------------------------------------------------------------

LIKELY: Mapping[str, Mapping[str, Sequence[str]]] = {
    "PowerRequest": {"nodes": ["gdx-[1-2].site", "gdx-3", "nowhere"]},
    "RebootRequest": {"nodes": ["gdx-3", "nowhere"]},
    "DeployRequest": {"nodes": ["gdx-3", "nowhere"]},
    "Grant": {"nodes": ["*", "gdx-3.site"]},
    "Rows": {"fields": ["user", "start", "success", "nothing"], "order": ["-start", "user"]},
    "Selection": {"nodes": ["gdx-3.site", "nowhere"]},
}
"""What is good in requests, without which hardly any gets beyond its first check."""


def _written() -> dict[str, Any]:
    """The schema, as the service sends it."""
    found: dict[str, Any] = json.loads(encode_json(openapi.schema()))
    return found


def _likely() -> dict[str, Any]:
    found = _written()
    for kind, fields in LIKELY.items():
        for name, words in fields.items():
            field = found["components"]["schemas"][kind]["properties"][name]
            arrays = [each for each in (field, *field.get("oneOf", ())) if each.get("type") == "array"]
            for each in arrays:
                each["items"] = {"type": "string", "enum": list(words)}
    return found


REPEATABLE = {
    "generation": {"deterministic": True, "max-examples": 10, "database": "none"},
    "phases": {"coverage": {"unexpected-methods": []}},
    "operations": [
        {
            "include-method": "POST",
            "include-path-regex": "^/v1/(deployments|reboots|files/needed|environments)$|^/(deployment|reboot)$",
            "phases": {"coverage": {"enabled": False}},  # thousands: their bodies have a hundred fields
            "generation": {"max-examples": 15},
        }
    ],
}
FEW = REPEATABLE | {"phases": {"coverage": {"enabled": False}}}
ENDLESS = "/v1/events"
"""Its answer has no end."""
ANYTHING = schemathesis.openapi.from_dict(_likely(), config=Config.from_dict(REPEATABLE)).exclude(path=ENDLESS)
SOMETHING = schemathesis.openapi.from_dict(_likely(), config=Config.from_dict(FEW)).exclude(path=ENDLESS)


@ANYTHING.parametrize()
def test_whatever_a_user_sends_is_answered_as_the_schema_says(case: Case, send: Send) -> None:
    case.validate_response(send(case, "ada"), checks=CHECKS)


@SOMETHING.parametrize()
def test_whatever_an_administrator_sends_is_answered_as_the_schema_says(case: Case, send: Send) -> None:
    case.validate_response(send(case, "root"), checks=CHECKS)


# --- what is sent rightly ---------------------------------------------------------------------------------------------

WRITTEN = schemathesis.openapi.from_dict(_written(), config=Config.from_dict(REPEATABLE))
IMAGE, MOVED = "server://{files}/image.tgz", "server://{files}/moved.tgz"
SENT = b"a file"
SHA256 = hashlib.sha256(SENT).hexdigest()
OURS = {"name": "ours", "image": {"file": IMAGE, "kind": "tgz"}, "kernel": "/vmlinuz", "filesystem": "ext4"}
THEIRS = {
    "name": "theirs",
    "os": "linux",
    "image": {"file": IMAGE, "kind": "tar", "compression": "gzip"},
    "boot": {"kernel": "/vmlinuz"},
    "filesystem": "ext4",
}
ENVIRONMENT = {"user": "ada", "name": "theirs", "version": 1}
KINDS = (("deployment", "{D}", "gdx-4.site"), ("reboot", "{R}", "gdx-5.site"), ("power", "{P}", "gdx-6.site"))
"""The original's resource, a workflow of it, and its node."""
GRANT = {"user": "bob", "nodes": ["gdx-8.site"], "parts": ["/dev/sda3"]}
DEPLOY = {"type": "deploy", "environment": {"type": "recorded", "name": "ours"}}
REBOOT = {"type": "reboot", "kind": "simple_reboot", "wait": False}
POWER = {"type": "power", "operation": "on"}
USED: Sequence[tuple[str, str, dict[str, Any]]] = (
    ("ada", "GET /v1", {}),
    ("ada", "GET /v1/site", {}),
    ("ada", "GET /v1/configuration", {}),
    ("ada", "GET /v1/implementations", {}),
    ("root", "POST /v1/rights", {"body": GRANT}),
    ("root", "GET /v1/rights", {}),
    ("ada", "GET /v1/holders", {"query": {"nodes": ["gdx-1"]}}),
    ("root", "DELETE /v1/rights", {"query": GRANT}),
    ("ada", "POST /v1/environments", {"body": {"environments": [OURS]}}),
    ("ada", "GET /v1/environments", {"query": {"name": "ours"}}),
    ("ada", "PATCH /v1/environments", {"query": {"name": "ours"}, "body": {"visibility": "shared"}}),
    ("ada", "PATCH /v1/environments", {"query": {"name": "ours"}, "body": {"checksums": "tarball"}}),
    ("root", "POST /v1/environments/moved", {"body": {"moves": [[IMAGE, MOVED]]}}),
    ("root", "POST /v1/environments/moves", {"body": {"moves": [[IMAGE, MOVED]]}}),
    ("ada", "PUT /v1/files/{sha256}", {"path_parameters": {"sha256": SHA256}, "query": {"size": len(SENT)}}),
    ("ada", "PATCH /v1/files/{sha256}", {"path_parameters": {"sha256": SHA256}, "query": {"offset": 0}, "body": SENT}),
    ("ada", "POST /v1/files/needed", {"body": {**DEPLOY, "nodes": ["gdx-1"]}}),
    ("ada", "POST /v1/deployments", {"query": {"dry_run": True}, "body": {**DEPLOY, "nodes": ["gdx-1"]}}),
    ("ada", "POST /v1/deployments", {"body": {**DEPLOY, "nodes": ["gdx-1"]}}),
    ("ada", "POST /v1/reboots", {"query": {"dry_run": True}, "body": {**REBOOT, "nodes": ["gdx-2"]}}),
    ("ada", "POST /v1/reboots", {"body": {**REBOOT, "nodes": ["gdx-2"]}}),
    ("ada", "POST /v1/power", {"query": {"dry_run": True}, "body": {**POWER, "nodes": ["gdx-3"]}}),
    ("ada", "POST /v1/power", {"body": {**POWER, "nodes": ["gdx-3"]}}),
    ("ada", "GET /v1/claims", {}),
    ("root", "PUT /v1/quarantine", {"body": {"nodes": ["gdx-8"], "reason": "its disk", "until": 4_000_000_000}}),
    ("ada", "GET /v1/quarantine", {"query": {"nodes": ["gdx-8"]}}),
    ("root", "DELETE /v1/quarantine", {"query": {"nodes": ["gdx-8"]}}),
    ("ada", "PUT /v1/notifications", {"body": {"mail": True, "webhook": "http://127.0.0.1:1/", "outcome": "failures"}}),
    ("ada", "GET /v1/notifications", {}),
    ("ada", "POST /v1/notifications/test", {}),
    ("ada", "DELETE /v1/notifications", {}),
    ("ada", "GET /v1/workflows", {}),
    *(("ada", "GET /v1/workflows/{wid}/events", {"path_parameters": {"wid": wid}}) for wid in ("{D}", "{R}", "{P}")),
    ("ada", "GET /v1/workflows/{wid}", {"path_parameters": {"wid": "{D}"}}),
    ("ada", "DELETE /v1/workflows/{wid}", {"path_parameters": {"wid": "{D}"}}),
    ("ada", "GET /v1/nodes", {}),
    ("ada", "GET /v1/statistics/newest", {}),
    ("ada", "GET /v1/statistics/workflows/{wid}", {"path_parameters": {"wid": "{D}"}}),
    ("ada", "GET /v1/statistics/latest", {"query": {"nodes": "gdx-1"}}),
    ("ada", "POST /v1/statistics/strangers", {"body": ["gdx-1.site", "nobody.site"]}),
    ("ada", "POST /v1/statistics/rows", {"body": {"selection": {}, "fields": ["user", "start"]}}),
    ("ada", "POST /v1/statistics/rates", {"body": {}}),
    ("ada", "POST /v1/statistics/durations", {"body": {}}),
    ("ada", "POST /v1/statistics/load", {"body": {}}),
    ("ada", "GET /v1/consoles", {"query": {"node": "gdx-1"}}),
    ("ada", "GET /v1/recordings", {}),
    ("ada", "GET /v1/recording", {"query": {"name": "session.cast"}}),
    ("ada", "DELETE /v1/environments", {"query": {"name": "ours"}}),
    ("ada", "GET /version", {}),
    ("ada", "GET /auth_headers_prefix", {}),
    ("ada", "GET /info", {}),
    ("ada", "GET /clusters", {}),
    ("ada", "GET /nodes", {}),
    ("ada", "GET /nodes/{node}", {"path_parameters": {"node": "gdx-1"}}),
    ("ada", "POST /environments", {"body": THEIRS}),
    ("ada", "GET /environments", {}),
    ("ada", "GET /environments/{user}", {"path_parameters": {"user": "ada"}}),
    *(
        (user, f"{method} /environments/{{user}}/{{name}}{more}", {"path_parameters": ENVIRONMENT, **body})
        for user, method, more, body in (
            ("ada", "GET", "", {}),
            ("ada", "GET", "/{version}", {}),
            ("ada", "PUT", "", {"body": {"visibility": "shared"}}),
            ("ada", "PUT", "/{version}", {"body": {"update_image_checksum": True}}),
        )
    ),
    ("root", "PUT /environments", {"body": {"update_files": {IMAGE: MOVED}}}),
    ("ada", "POST /deployment", {"body": {"nodes": ["gdx-4"], "environment": {"name": "theirs"}}}),
    ("ada", "POST /reboot", {"body": {"nodes": ["gdx-5"], "kind": "simple"}}),
    ("ada", "PUT /power", {"body": {"nodes": "gdx-6", "status": "on"}}),
    *(
        ("ada", f"GET /{kind}/{{wid}}{more}", {"path_parameters": {"wid": wid, "cluster": "gdx", "node": node}})
        for kind, wid, node in KINDS
        for more in ("", "/state", "/status", "/error", "/logs", "/logs/{cluster}", "/debugs", "/debugs/{node}")
    ),
    *(("ada", f"DELETE /{kind}/{{wid}}", {"path_parameters": {"wid": wid}}) for kind, wid, _ in KINDS),
    *(("ada", f"GET /{kind}", {}) for kind, _, _ in KINDS),
    ("ada", "GET /power", {"query": {"nodes": ["gdx-7"]}}),
    ("ada", "GET /stats", {}),
    ("ada", "GET /stats/{operation}", {"path_parameters": {"operation": "deploy"}}),
    ("ada", "POST /console", {"body": {"node": "gdx-1"}}),
    ("ada", "DELETE /environments/{user}/{name}/{version}", {"path_parameters": ENVIRONMENT}),
    ("ada", "POST /environments", {"body": THEIRS}),
    ("ada", "DELETE /environments/{user}/{name}", {"path_parameters": ENVIRONMENT}),
    ("root", "POST /rights", {"body": {"username": "bob", "nodes": "gdx-8", "partitions": "/dev/sda3"}}),
    ("root", "GET /rights", {}),
    ("root", "GET /rights/{user}", {"path_parameters": {"user": "bob"}}),
    ("root", "GET /rights/{user}/{node}", {"path_parameters": {"user": "bob", "node": "gdx-8"}}),
    ("root", "DELETE /rights/{user}/{node}", {"path_parameters": {"user": "bob", "node": "gdx-8"}}),
    ("root", "POST /rights", {"body": {"username": "bob", "nodes": "gdx-8", "partitions": "/dev/sda3"}}),
    ("root", "DELETE /rights/{user}", {"path_parameters": {"user": "bob"}}),
)
"""Requests that are good, one after the other: who sends it, to which resource, and what. ``{D}`` is an id."""
LEFT_OUT = {f"GET {ENDLESS}", "DELETE /v1/claims/{node}"}
"""The latter frees what a controller that died has left."""


def test_each_resource_that_is_used_rightly_answers_as_the_schema_says(folder: Path, send: Send) -> None:
    known = {"files": str(folder / "files")}
    for user, label, parts in USED:
        method, _, path = label.partition(" ")
        case = WRITTEN[path][method].Case(**_filled(parts, known))
        answer = send(case, user)
        assert answer.status_code in (200, 201), (label, answer.text)
        case.validate_response(answer, checks=CHECKS)
        if begun := re.match(r'{"wid":"((.)-\w+)"', answer.text):
            known[begun[2]] = begun[1]
    assert {each.ok().label for each in WRITTEN.get_all_operations()} - {label for _, label, _ in USED} <= LEFT_OUT


def _filled(parts: Any, known: Mapping[str, str]) -> Any:
    """*parts* with what is *known* in place of ``{NAME}``."""
    if isinstance(parts, str):
        return re.sub(r"{(\w+)}", lambda match: known[match[1]], parts)
    if isinstance(parts, dict):
        return {_filled(key, known): _filled(value, known) for key, value in parts.items()}
    return [_filled(each, known) for each in parts] if isinstance(parts, list) else parts
