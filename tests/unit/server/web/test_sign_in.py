"""Signing in over HTTPS: what is shown once, the session that follows, its end, and what pages elsewhere get."""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from kadeploy.config.folder import load_site
from kadeploy.server import htpasswd
from kadeploy.state import tokens
from kadeploy.state.database import connect
from tests.unit.authority import Authority
from tests.unit.server.web.conftest import Answer, Browser
from tests.unit.serving import served_ways

HTTPS = """\
service:
  https: {{certificate: {certificate}, private_key: {certificate}, address: 127.0.0.1, port: 0}}
  htpasswd: {folder}/htpasswd
"""
ELSEWHERE = "https://elsewhere.site"


@dataclass
class Window:
    """A browser's, with the cookies that it keeps."""

    port: int
    authority: Path
    cookie: str = ""
    set_cookie: str = field(default="", init=False)

    @property
    def origin(self) -> str:
        return f"https://localhost:{self.port}"

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        context = ssl.create_default_context(cafile=self.authority)
        connection = http.client.HTTPSConnection("localhost", self.port, context=context, timeout=60)
        given = {"Cookie": self.cookie} if self.cookie else {}
        connection.request(method, path, body, given | {name.replace("_", "-"): text for name, text in headers.items()})
        response = connection.getresponse()
        if cookie := response.getheader("Set-Cookie"):
            self.set_cookie, self.cookie = cookie, cookie.partition(";")[0]
        headers_ = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, headers_, response.read().decode())
        connection.close()
        return answer

    def post(self, path: str, *, origin: str = "", **fields: str) -> Answer:
        kind = "application/x-www-form-urlencoded"
        return self.ask("POST", path, urlencode(fields), Origin=origin or self.origin, Content_Type=kind)

    def sign_in(self, token: str) -> None:
        assert self.post("/ui/sign-in", token=token).status == 303

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', self.ask("GET", "/ui/deploy").text)
        assert found
        return found[1]


@dataclass
class Service:
    folder: Path
    port: int
    authority: Path
    token: str

    def window(self) -> Window:
        return Window(self.port, self.authority)


@pytest.fixture
def at(site_folder: Path, tmp_path: Path) -> Iterator[Service]:
    authority = Authority(tmp_path / "authority")
    with (site_folder / "site.yml").open("a") as file:
        file.write(HTTPS.format(certificate=authority.issue("server"), folder=site_folder))
    site = load_site(site_folder)
    connect(site)
    token = tokens.create(site, "bob", int(time.time()) + 3600)
    htpasswd.set_password(site_folder / "htpasswd", "alice", "correct horse", site_folder)
    with served_ways(site_folder, site_folder / "state" / "test.sock") as ways:
        yield Service(site_folder, ways[1].listening.getsockname()[1], authority.file, token)


def test_whoever_is_not_known_is_asked_and_led_back_to_the_page(at: Service) -> None:
    window = at.window()
    led = window.ask("GET", "/ui/nodes?state=broken")
    assert (led.status, led.where) == (303, "/ui/sign-in?then=" + quote("/ui/nodes?state=broken", safe=""))
    page = window.ask("GET", led.where)
    assert 'name="then" value="/ui/nodes?state=broken"' in page.text
    done = window.post("/ui/sign-in", token=at.token, then="/ui/nodes?state=broken")
    assert (done.status, done.where) == (303, "/ui/nodes?state=broken")
    assert "bob" in window.ask("GET", "/ui/deploy").words
    assert window.ask("GET", "/ui/sign-in").where == "/ui/runs"


def test_a_name_and_a_password_do_as_well(at: Service) -> None:
    window = at.window()
    assert window.post("/ui/sign-in", user="alice", password="correct horse").status == 303
    assert "alice" in window.ask("GET", "/ui/deploy").words


def test_the_cookie_is_for_https_and_our_pages_and_out_of_the_reach_of_scripts(at: Service) -> None:
    window = at.window()
    window.sign_in(at.token)
    for word in ("HttpOnly", "Secure", "SameSite=lax", "Path=/ui"):
        assert word in window.set_cookie
    assert window.set_cookie.startswith("__Secure-kadeploy=")
    assert window.ask("GET", "/v1/").status in {401, 404}
    assert window.ask("GET", "/v1/nodes").status == 401


@pytest.mark.parametrize("fields", [{"token": "kd3_a_b"}, {"user": "alice", "password": "wrong"}, {}, {"user": "a b"}])
def test_what_does_not_hold_is_told_on_the_page_and_begins_no_session(at: Service, fields: dict[str, str]) -> None:
    window = at.window()
    refused = window.post("/ui/sign-in", **fields)
    assert refused.status == 401
    assert 'role="alert"' in refused.text
    assert "www-authenticate" not in refused.headers
    assert not window.cookie
    assert "wrong" not in refused.text.replace("is wrong", "")


def test_who_fails_too_often_has_to_wait(at: Service) -> None:
    window = at.window()
    answers = [window.post("/ui/sign-in", user="alice", password=f"wrong {each}").status for each in range(8)]
    assert answers[0] == 401
    assert answers[-1] == 429


def test_signing_out_ends_the_session_and_not_only_its_cookie(at: Service) -> None:
    window = at.window()
    window.sign_in(at.token)
    kept = window.cookie
    assert window.post("/ui/sign-out", csrf=window.csrf()).where == "/ui/sign-in"
    window.cookie = kept
    assert window.ask("GET", "/ui/deploy").status == 303


def test_a_token_that_is_revoked_ends_the_session(at: Service) -> None:
    window = at.window()
    window.sign_in(at.token)
    tokens.revoke(load_site(at.folder), tokens.id_of(at.token))
    assert window.ask("GET", "/ui/deploy").status == 303


def test_a_password_that_is_changed_ends_the_session(at: Service) -> None:
    window = at.window()
    window.post("/ui/sign-in", user="alice", password="correct horse")
    htpasswd.set_password(at.folder / "htpasswd", "bob", "another horse", at.folder)
    assert window.ask("GET", "/ui/deploy").status == 200
    htpasswd.set_password(at.folder / "htpasswd", "alice", "battery staple", at.folder)
    assert window.ask("GET", "/ui/deploy").status == 303


def test_pages_of_other_servers_can_neither_sign_anybody_in_nor_send_a_form(at: Service) -> None:
    window = at.window()
    assert window.post("/ui/sign-in", origin=ELSEWHERE, token=at.token).status == 403
    assert not window.cookie
    window.sign_in(at.token)
    csrf = window.csrf()
    assert window.post("/ui/sign-out", origin=ELSEWHERE, csrf=csrf).status == 403
    for wrong in ("", "x", csrf[:-1]):
        assert window.post("/ui/sign-out", csrf=wrong).status == 403
    assert window.ask("GET", "/ui/deploy").status == 200


@pytest.mark.parametrize(
    "then", ["https://elsewhere.site/", "//elsewhere.site", "/\\elsewhere.site", "/v1/nodes", "/ui\n/"]
)
def test_nobody_is_led_to_another_server(at: Service, then: str) -> None:
    assert at.window().post("/ui/sign-in", token=at.token, then=then).where == "/ui/runs"


def test_a_script_that_wants_a_part_of_a_page_has_the_browser_sign_in(at: Service) -> None:
    answer = at.window().ask("GET", "/ui/deploy", HX_Request="true")
    assert (answer.status, answer.headers["hx-redirect"]) == (401, "/ui/sign-in")


def test_a_refusal_leaves_the_way_to_the_other_pages(at: Service) -> None:
    window = at.window()
    window.sign_in(at.token)
    refused = window.ask("GET", "/ui/audit")
    assert refused.status == 403
    assert 'href="/ui/nodes"' in refused.text
    assert "bob" in refused.words


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_page_and_every_refusal_forbids_what_is_not_ours(browse: Callable[[str], Browser]) -> None:
    for path, status in (("/ui/deploy", 200), ("/ui/sign-in", 303), ("/ui/nowhere", 404), ("/ui/audit", 403)):
        answer = browse("bob").get(path)
        assert answer.status == status, path
        if status == 303:
            continue
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_scripts_and_styles_are_for_everybody_and_nothing_beside_them_is(at: Service) -> None:
    window = at.window()
    for name, kind in (("style.css", "text/css"), ("vendor/htmx/htmx.min.js", "javascript"), ("icon.svg", "image/svg")):
        answer = window.ask("GET", f"/ui/static/{name}")
        assert answer.status == 200
        assert kind in answer.headers["content-type"]
    for name in ("../visit.py", "..%2fvisit.py", "%2e%2e/visit.py", "/etc/passwd", "vendor", ""):
        assert window.ask("GET", f"/ui/static/{name}").status in {400, 404}, name
