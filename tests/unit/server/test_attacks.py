"""An ordinary account tries to get at what is others': refused, written down, and nothing is changed or told.

The attempts are the data of `attempts.py`; here is the service that they are made on, and what has to hold after each.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import sqlite3
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kadeploy.caller import account
from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.server import audit, peers
from kadeploy.state import database, rights, tokens
from tests.unit import build
from tests.unit.authority import Authority
from tests.unit.conftest import SITE
from tests.unit.plays import write_play
from tests.unit.server.attempts import ATTEMPTS, CLOSED, HIDDEN, KINDS, NOTHING, Attempt
from tests.unit.server.test_auth import SLOW
from tests.unit.server.test_service import as_account, ask
from tests.unit.serving import DUMMY_CLUSTER, served_ways

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

CLUSTER = f"{DUMMY_CLUSTER}console: cat\nconsole_account: nobody\n"
SERVICE = """\
service:
  folders: [{folder}/files]
  htpasswd: {folder}/htpasswd
  https: {{certificate: {certificate}, private_key: {certificate}, address: 127.0.0.1, port: 0, client_ca: {ca}}}
"""
WAITS = "  tasks:\n    - ansible.builtin.shell: touch {word}-begun; until test -e {word}; do sleep 0.2; done\n"
CANARY = "canary-7f31"
"""In everything that is the other user's, and in no answer."""
THEIRS = f"a file of {CANARY}".encode()
MINE = b"a file of my own"
RECORDING = f'{{"version": 2, "width": 80, "height": 24}}\n[1.0, "o", "{CANARY}"]\n'


@dataclass
class Target:
    """A service with what is victor's on it; mallory attacks, who has a right on gdx-4."""

    site: Site
    folder: Path
    socket: Path
    port: int
    authority: Authority
    known: dict[str, str]
    """What the attempts call ``{NAME}``."""
    last: dict[str, Any] = field(default_factory=dict)
    """The state after the last attempt."""

    def victim(self, method: str, path: str, body: Any = None, user: str = "victor") -> Any:
        """What the service answers to a request of *user*, which is good."""
        content = b"" if body is None else json.dumps(body).encode()
        status, told = ask(self.socket, method, path, content, {"X-Kadeploy-User": user})
        assert status in (200, 201), told
        return told

    def filled(self, text: str) -> bytes:
        """*text* with what is known in place of ``{NAME}``, as bytes of their own numbers."""
        return re.sub(r"{([a-z_]+)}", lambda match: self.known[match[1]], text).encode("latin-1")

    def state(self) -> dict[str, Any]:
        """All that there is, but for what mallory has sent, and when tokens were used."""
        with sqlite3.connect(f"file:{self.folder}/state/kadeploy.db?mode=ro", uri=True) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            found = {name: _rows(connection, name) for name in tables}
        passed = ("audit.jsonl", "kadeploy.db", "sent/mallory", "cache/")
        for path in sorted((self.folder / "state").rglob("*")):
            name = str(path.relative_to(self.folder / "state"))
            if path.is_file() and not any(each in name for each in passed):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def _rows(connection: sqlite3.Connection, table: str) -> list[Any]:
    found = connection.execute(f"SELECT * FROM {table}")
    columns = [name for name, *_ in found.description]
    return [[value for name, value in zip(columns, row, strict=True) if name != "used"] for row in found]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("attacks") / "site"
    for name in ("clusters", "state", "files"):
        (folder / name).mkdir(parents=True)
    for name in ("image", "other"):
        (folder / "files" / f"{name}.tgz").write_bytes(build.packed(CANARY))
    (folder / "secret").write_text(CANARY)
    authority = Authority(folder / "authority")
    text = SITE.format(folder=folder, database=f"sqlite://{folder}/state/kadeploy.db", almighty="[root]")
    text += SERVICE.format(folder=folder, certificate=authority.issue("server"), ca=authority.file)
    (folder / "site.yml").write_text(text, encoding="utf-8")
    (folder / "clusters" / "gdx.yml").write_text(CLUSTER, encoding="utf-8")
    (folder / "htpasswd").write_text(f"victor:{SLOW.hash(CANARY)}\n", encoding="utf-8")
    write_play(folder, "PowerOn", WAITS.format(word=folder / "go"))
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="kadeploy-open-") as place,
        ExitStack() as stack,
    ):
        Path(place).chmod(0o711)  # the folders of pytest are root's alone
        patch.setenv("KADEPLOY_CONFIG_DIR", str(folder))
        site = load_site(folder)
        database.connect(site)
        ways = stack.enter_context(served_ways(folder, Path(place) / "service.sock"))
        stack.callback((folder / "go").touch)
        port = ways[1].listening.getsockname()[1]
        found = Target(site, folder, Path(place) / "service.sock", port, authority, {})
        _furnish(found)
        yield found
    database.disconnect()


def _furnish(target: Target) -> None:
    """What is victor's, and the little that is mallory's."""
    site, folder = target.site, target.folder
    rights.add(site, "victor", ["gdx-1.site", "gdx-2.site", "gdx-3.site"], ["*"])
    rights.add(site, "mallory", ["gdx-4.site", "gdx-5.site"], ["/dev/sda3"])
    image = {"file": f"server://{folder}/files/image.tgz", "kind": "tgz"}
    environment = {"image": image, "kernel": "/vmlinuz", "filesystem": "ext4", "description": CANARY}
    for name, visibility in (("private", "private"), ("shared", "shared")):
        described = environment | {"name": name, "visibility": visibility}
        described |= {"description": "for all"} if visibility == "shared" else {}
        target.victim("POST", "/v1/environments", {"environments": [described]})
    target.victim("POST", "/v1/environments", {"environments": [environment | {"name": "mine"}]}, user="mallory")
    theirs, mine = (hashlib.sha256(content).hexdigest() for content in (THEIRS, MINE))
    target.victim("PUT", f"/v1/files/{theirs}?size={len(THEIRS)}")
    assert ask(target.socket, "PATCH", f"/v1/files/{theirs}?offset=0", THEIRS, {"X-Kadeploy-User": "victor"})[0] == 200
    target.victim("PUT", f"/v1/files/{mine}?size={len(MINE)}", user="mallory")
    deploy = {"type": "deploy", "nodes": ["gdx-2"], "environment": {"type": "recorded", "name": "private"}}
    ended = target.victim("POST", "/v1/deployments", deploy)["wid"]
    running = target.victim("POST", "/v1/power", {"type": "power", "nodes": ["gdx-1"], "operation": "on"})["wid"]
    recording = folder / "state" / "consoles" / "gdx-1.site" / "20260101T000000Z-victor-00000000.cast"
    recording.parent.mkdir(parents=True)
    recording.write_text(RECORDING)
    _wait_until_nothing_moves(target, ended)
    tomorrow, yesterday = int(time.time()) + 86_400, int(time.time()) - 86_400
    revoked = tokens.create(site, "victor", tomorrow, CANARY)
    tokens.revoke(site, tokens.id_of(revoked))
    certificates = {
        "strangers": Authority(folder / "strangers").issue("root"),
        "expired": target.authority.issue("victor", days=-1),
        "two_names": target.authority.issue("mallory+CN=root"),
    }
    known = {
        "folder": str(folder),
        "running": running,
        "ended": ended,
        "theirs": theirs,
        "mine": mine,
        "recording": recording.name,
        "token": tokens.create(site, "mallory", tomorrow),
        "victors": tokens.create(site, "victor", tomorrow, CANARY),
        "expired": tokens.create(site, "victor", yesterday),
        "revoked": revoked,
        **{f"certificate_{name}": str(path) for name, path in certificates.items()},
    }
    target.known |= known | _twisted(known)


def _twisted(known: dict[str, str]) -> dict[str, str]:
    """Tokens and passwords of victor's that are not quite right, and the one that is."""
    kind, name, secret = known["victors"].split("_")
    pairs = {
        "token": f"victor:{known['victors']}",
        "wrong": "victor:wrong",
        "none": "victor:",
        "hash": f"victor:{SLOW.hash(CANARY)}",
        "null": f"victor:{CANARY}\0",
        "case": f"VICTOR:{CANARY}",
        "path": f"../victor:{CANARY}",
        "lines": f"victor\nroot:{CANARY}",
        "right": f"victor:{CANARY}",
    }
    return {
        "victors_short": known["victors"][:-1],
        "victors_swapped": f"{kind}_{known['token'].split('_')[1]}_{secret}",
        "victors_id": f"{kind}_{name}",
        "victors_upper": known["victors"].upper(),
        "hidden_length": str(len(HIDDEN.format(running=known["running"], token=known["token"]))),
        **{f"basic_{what}": base64.b64encode(pair.encode()).decode() for what, pair in pairs.items()},
    }


def _wait_until_nothing_moves(target: Target, ended: str) -> None:
    """Until the workflow *ended* has, and the one that runs is where it waits."""
    limit = time.monotonic() + 120
    while not ((target.folder / "go-begun").exists() and target.victim("GET", f"/deployment/{ended}")["done"]):
        assert time.monotonic() < limit
        time.sleep(0.1)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_it_is_refused_and_written_down_and_changes_and_tells_nothing(
    name: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = ATTEMPTS[name]
    monkeypatch.setattr(peers, "PATIENCE", attempt.patience)
    before, lines = target.last or target.state(), len(list(audit.read(target.site)))
    answer = as_account(account("nobody"), partial(told, target, attempt)) if attempt.socket else told(target, attempt)
    assert isinstance(answer, str)
    statuses = [int(status) for status in re.findall(r"^HTTP/1\.[01] (\d{3}) ", answer, re.MULTILINE)]
    assert set(statuses) == ({attempt.status} - {CLOSED}) or is_unheard(attempt, answer), answer[:2000]
    assert 101 not in statuses or REFUSED in answer
    assert NOTHING not in statuses or answer.endswith(EMPTY)
    for secret in (CANARY, target.known["victors"], str(target.folder / "state")):
        assert secret not in answer
    target.last = target.state()
    assert {key: value for key, value in target.last.items() if before.get(key) != value} == {}
    assert set(before) <= set(target.last)
    noted = list(audit.read(target.site))[lines:]
    assert [line.status for line in noted if line.status >= 400] or not attempt.has_to_be_noted, noted


REFUSED = '"type":"refused"'
"""In the message of a console that is none."""
EMPTY = "\r\n\r\n0\r\n\r\n"
"""How an answer ends that is sent in pieces, of which there are none."""


def is_unheard(attempt: Attempt, answer: str) -> bool:
    """Whether whoever still sends may have lost the answer to what is too long."""
    return answer == "" and len(attempt.raw + attempt.body) > peers.HEAD


def told(target: Target, attempt: Attempt) -> str:
    """What the service answers until it closes the connection."""
    with _connected(target, attempt) as connection:
        connection.settimeout(20)
        said = b""
        try:
            connection.sendall(_written(target, attempt))
            while REFUSED.encode() not in said and (part := connection.recv(1 << 16)):
                said += part
        except (ConnectionError, ssl.SSLError):
            pass  # closed while something was on its way
        return said.decode("latin-1")


def _connected(target: Target, attempt: Attempt) -> socket.socket:
    """A connection to the service; those that fail to show who they are come from an address of their own each."""
    if attempt.socket:
        local = socket.socket(socket.AF_UNIX)
        local.connect(str(target.socket))
        return local
    context = ssl.create_default_context(cafile=str(target.authority.file))
    if attempt.certificate:
        context.load_cert_chain(target.known[f"certificate_{attempt.certificate}"])
    place = list(ATTEMPTS.values()).index(attempt)
    plain = socket.create_connection(("127.0.0.1", target.port), 60, (f"127.1.{place // 250}.{1 + place % 250}", 0))
    return context.wrap_socket(plain, server_hostname="localhost")


def _written(target: Target, attempt: Attempt) -> bytes:
    """The request as bytes, just as the attempt has it: no library makes it better."""
    if attempt.raw or not attempt.method:
        return target.filled(attempt.raw)
    body = target.filled(attempt.body)
    headers = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(body))}
    headers |= {"Content-Type": "application/json"} if body else {}
    headers = {name: value for name, value in headers.items() if name not in dict(attempt.headers)}
    lines = [*headers.items(), *attempt.headers]
    if attempt.shown is not None and not attempt.socket:
        lines.insert(0, ("Authorization", attempt.shown))
    head = [f"{attempt.method} {attempt.path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines)]
    return target.filled("\r\n".join(head) + "\r\n\r\n") + body


def test_no_two_attempts_are_the_same() -> None:
    requests = [
        (each.method, each.path, each.headers, each.body, each.raw, each.shown, each.socket, each.certificate)
        for each in ATTEMPTS.values()
    ]
    assert len(set(map(repr, requests))) == len(requests) == sum(map(len, KINDS.values()))
