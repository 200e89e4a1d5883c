"""What stays open is closed once whoever has opened it is let in no more: over HTTPS, by a real service."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest

from kadeploy.caller import caller
from kadeploy.cli import kaconsole3
from kadeploy.client import address
from kadeploy.client.console import RemoteConsole, connect
from kadeploy.client.http import Http
from kadeploy.client.remote import Remote
from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.errors import AuthenticationError
from kadeploy.operations import console
from kadeploy.operations.console import End, Opened, Size
from kadeploy.operations.requests import PowerRequest
from kadeploy.server import htpasswd, standing
from kadeploy.state import database, rights, tokens
from tests.unit.authority import Authority
from tests.unit.plays import write_play
from tests.unit.serving import DUMMY_CLUSTER, served_ways

SITE = """\
service:
  consoles_as_service: true
  https: {{certificate: {certificate}, private_key: {certificate}, address: 127.0.0.1, port: 0}}
  htpasswd: {folder}/htpasswd
"""
CONSOLE = "console_account: nobody\nconsole: cat\n"
PATH = "/v1/nodes/gdx-1.site/console"
pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.skipif(os.geteuid() != 0, reason="root alone has consoles run as somebody else"),
]
Headers = list[tuple[str, str]]


@dataclass
class Service:
    """The service, at which alice has a password and bob a token."""

    site: Site
    folder: Path
    port: int
    context: ssl.SSLContext
    token: str

    @property
    def origin(self) -> str:
        return f"https://localhost:{self.port}"

    def console(self, headers: Headers, path: str = PATH) -> RemoteConsole:
        plain = socket.create_connection(("127.0.0.1", self.port), 20)
        wrapped = self.context.wrap_socket(plain, server_hostname="localhost")
        return connect(wrapped, path, headers, f"localhost:{self.port}", Size(30, 90))

    def post(self, path: str, cookie: str = "", **fields: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPSConnection("localhost", self.port, context=self.context, timeout=60)
        headers = {"Origin": self.origin, "Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", path, urlencode(fields), headers)
        return connection.getresponse()

    def sign_in(self, **shown: str) -> str:
        """The cookie of a new session."""
        answer = self.post("/ui/sign-in", **shown)
        assert answer.status == 303
        return str(answer.getheader("Set-Cookie")).partition(";")[0]

    def sign_out(self, cookie: str) -> None:
        connection = http.client.HTTPSConnection("localhost", self.port, context=self.context, timeout=60)
        connection.request("GET", "/ui/deploy", headers={"Cookie": cookie})
        page = connection.getresponse().read().decode()
        csrf = page.partition('name="csrf" value="')[2].partition('"')[0]
        assert self.post("/ui/sign-out", cookie, csrf=csrf).status == 303

    def revoke(self) -> None:
        assert tokens.revoke(self.site, tokens.id_of(self.token))

    def change_password(self) -> None:
        htpasswd.set_password(self.folder / "htpasswd", "alice", "another horse", self.folder)


@pytest.fixture
def at(site_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(console, "CHECK", 0.3)
    monkeypatch.setattr(standing, "PERIOD", 0.3)
    authority = Authority(tmp_path / "authority")
    (site_folder / "clusters" / "nvm.yml").unlink()
    (site_folder / "clusters" / "gdx.yml").write_text(DUMMY_CLUSTER + CONSOLE)
    with (site_folder / "site.yml").open("a") as file:
        file.write(SITE.format(certificate=authority.issue("server"), folder=site_folder))
    site = load_site(site_folder)
    database.connect(site)
    for user in ("alice", "bob"):
        rights.add(site, user, ["*"], ["*"])
    token = tokens.create(site, "bob", int(time.time()) + 3600)
    htpasswd.set_password(site_folder / "htpasswd", "alice", "correct horse", site_folder)
    context = ssl.create_default_context(cafile=authority.file)
    with served_ways(site_folder, site_folder / "state" / "test.sock") as ways:
        yield Service(site, site_folder, ways[1].listening.getsockname()[1], context, token)


def end_of(stream: RemoteConsole, seconds: float = 15.0) -> End:
    """Why the service has closed a console that nobody leaves."""
    limit = time.monotonic() + seconds
    stream.read()
    while not stream.over:
        assert select.select([stream], [], [], max(0.0, limit - time.monotonic()))[0], "it stays open"
        stream.read()
    return stream.end("ended")


def is_open(stream: RemoteConsole) -> bool:
    """Whether it is, when it has been looked twice who has it open."""
    time.sleep(3 * console.CHECK)
    stream.read()
    return not stream.over


# --- consoles of the page ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "how", "said"),
    [
        ("bob", "sign out", "You have signed out, or your session is over: sign in again."),
        ("bob", "revoke", "The token that you signed in with does not count any more: sign in again."),
        ("alice", "password", "The password that you signed in with does not count any more: sign in again."),
    ],
)
def test_a_console_of_the_page_is_closed_with_the_end_of_its_session_and_says_why(
    at: Service, who: str, how: str, said: str
) -> None:
    cookie = at.sign_in(token=at.token) if who == "bob" else at.sign_in(user="alice", password="correct horse")
    stream = at.console([("Cookie", cookie), ("Origin", at.origin)], "/ui/nodes/gdx-1.site/socket")
    assert is_open(stream)
    ends: dict[str, Callable[[], None]] = {
        "sign out": lambda: at.sign_out(cookie),
        "revoke": at.revoke,
        "password": at.change_password,
    }
    ends[how]()
    assert end_of(stream) == End("revoked", message=said)


def test_the_console_of_another_session_of_the_same_user_stays_open(at: Service) -> None:
    left, kept = at.sign_in(token=at.token), at.sign_in(token=at.token)
    stream = at.console([("Cookie", kept), ("Origin", at.origin)], "/ui/nodes/gdx-1.site/socket")
    at.sign_out(left)
    assert is_open(stream)
    stream.end("left")


# --- consoles of programs ---------------------------------------------------------------------------------------------


def test_a_console_by_a_token_is_closed_when_that_is_revoked_and_the_tool_says_why(at: Service) -> None:
    stream = at.console([("Authorization", f"Bearer {at.token}")])
    assert is_open(stream)
    at.revoke()
    end = end_of(stream)
    assert end == End("revoked", message="This token of bob was revoked: ask an administrator for a new one.")
    with pytest.raises(AuthenticationError, match=r"^Console closed\. This token of bob was revoked"):
        kaconsole3.tell(end, "bob", Opened("gdx-1.site", "/dev/sda3", "cat"))


def test_a_console_by_a_password_is_closed_when_that_is_changed(at: Service) -> None:
    stream = at.console([("Authorization", "Basic YWxpY2U6Y29ycmVjdCBob3JzZQ==")])
    assert is_open(stream)
    at.change_password()
    assert end_of(stream) == End("revoked", message="The password of alice has changed or gone: show the one of now.")


# --- streams of events ------------------------------------------------------------------------------------------------


@pytest.fixture
def running(at: Service, tmp_path: Path) -> Iterator[str]:
    """A workflow of bob's that waits."""
    wait = f"  tasks:\n    - ansible.builtin.shell: until test -e {tmp_path}/go; do sleep 0.1; done\n"
    write_play(at.folder, "PowerOn", wait)
    root = address.of_socket(str(at.folder / "state" / "test.sock"), {"X-Kadeploy-User": "bob"})
    yield Remote(root, caller()).start(PowerRequest(nodes=("gdx-1.site",), operation="on"))
    (tmp_path / "go").touch()


@pytest.mark.parametrize("path", ["/v1/workflows/{wid}/events", "/v1/events"])
def test_events_are_told_no_more_to_whose_token_was_revoked_and_the_last_one_says_why(
    at: Service, running: str, path: str
) -> None:
    connection = http.client.HTTPSConnection("localhost", at.port, context=at.context, timeout=20)
    connection.request("GET", path.format(wid=running), headers={"Authorization": f"Bearer {at.token}"})
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.readline()
    at.revoke()
    told = answer.read().decode()
    last = told.strip().rpartition("\n\n")[2].splitlines()
    assert last[0] == "event: gone", told
    assert json.loads(last[1].removeprefix("data: ")) == {
        "error": "AuthenticationError",
        "message": "This token of bob was revoked: ask an administrator for a new one.",
    }


def test_who_is_no_administrator_any_more_is_told_nothing_more_of_others(at: Service, running: str) -> None:
    socket_path = str(at.folder / "state" / "test.sock")
    text = at.folder / "site.yml"
    before = text.read_text()
    text.write_text(re.sub(r"(?m)^almighty_users: \[", "almighty_users: [alice, ", before))
    followed = Http(address.of_socket(socket_path, {"X-Kadeploy-User": "alice"}))
    stream = followed.events(f"/v1/workflows/{running}/events", "0", bool)
    assert next(stream).event != "gone"
    text.write_text(before)
    assert [bytes(message.data).decode() for message in stream if message.event == "gone"] == [
        f'{{"error":"RightsError","message":"{running} is the workflow of bob, and you are alice."}}'
    ]
