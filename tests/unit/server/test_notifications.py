"""Users are told of the ends of their operations: what arrives, how often, and where nothing must go."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kadeploy.client.address import of_socket
from kadeploy.config.folder import load_configuration, load_site
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, NotToldError, OptionError
from kadeploy.events import Report
from kadeploy.operations.ended import Run
from kadeploy.server.front_ends import AS_USER
from kadeploy.server.notifications import choosing, mail, sending, webhook
from kadeploy.server.notifications.notifier import Notifier
from kadeploy.state import database, journal, notifications, rights
from kadeploy.state.journal import LogRow
from kadeploy.state.notifications import Choice
from tests.unit.authority import Authority
from tests.unit.conftest import Tool
from tests.unit.server import receivers
from tests.unit.server.receivers import Hook, Post, arrived
from tests.unit.serving import DUMMY_CLUSTER

ALL = {"outcome": "always", "operations": ["deploy", "reboot", "power"]}


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of other tests are none of this one's."""
    monkeypatch.setattr(choosing, "_trials", {})


@pytest.fixture
def hook() -> Iterator[Hook]:
    with receivers.hook() as found:
        yield found


@pytest.fixture
def post() -> Iterator[Post]:
    with receivers.post() as found:
        yield found


def allow(folder: Path, **known: Any) -> Site:
    """Have the site send what *known* says."""
    text = (folder / "site.yml").read_text().partition("notifications:")[0]
    (folder / "site.yml").write_text(f"{text}notifications: {json.dumps(known)}\n")
    return load_site(folder)


def by(post: Post, **more: Any) -> dict[str, Any]:
    """Mail by that server."""
    known = {"server": "127.0.0.1", "port": post.port, "tls": "none", "sender": "kadeploy@site.example"}
    return known | {"domain": "site.example"} | more


@contextmanager
def notifying(folder: Path, waits: tuple[int, ...] = (0, 0)) -> Iterator[None]:
    """What a service does beside its answers."""
    notifier = Notifier(lambda: load_configuration(folder), waits, period=0.05)
    notifier.start()
    try:
        yield
    finally:
        notifier.stop()


def ask(service: Path, user: str, method: str, path: str = "", **body: Any) -> tuple[int, Any]:
    """An answer of ``/v1/notifications``, or of another path."""
    connection = of_socket(str(service), {}).connection()
    whole = path if path.startswith("/v1/") else f"/v1/notifications{path}"
    headers = {AS_USER: user, "Content-Type": "application/json"}
    connection.request(method, whole, json.dumps(body) if body else None, headers)
    with closing(connection):
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")


def choose(service: Path, user: str, **choice: Any) -> str:
    """Choose, by the service: the secret."""
    status, told = ask(service, user, "PUT", **choice)
    assert status == 200, told
    return str(told["secret"])


def end(site: Site, wid: str, user: str = "alice", reasons: Mapping[str, str] = {}, state: str = "ended") -> None:
    """An operation that a tool of root's has carried out: of it, nothing but the database can be read."""
    names = ["gdx-1.site", "gdx-2.site"]
    kinds = {"D": "deploy", "R": "reboot", "P": "power"}
    journal.begin(site, wid, kinds[wid[0]], user, None, {"gdx": names})  # type: ignore[arg-type]
    rows = [LogRow(hostname=name, success=name not in reasons, error=reasons.get(name, "")) for name in names]
    journal.end(wid, rows, state)  # type: ignore[arg-type]


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_the_end_of_a_run_arrives_by_webhook_and_mail_once(
    site: Site, service: Path, site_folder: Path, hook: Hook, post: Post
) -> None:
    site_folder.joinpath("clusters", "nvm.yml").unlink()
    fails = DUMMY_CLUSTER.replace('soft_on: "true"', 'soft_on: "test HOSTNAME_SHORT != gdx-2"')
    site_folder.joinpath("clusters", "gdx.yml").write_text(fails)
    allow(site_folder, mail=by(post), webhooks=[hook.root], page="https://kadeploy.example/")
    rights.add(site, "alice", ["*"], ["*"])
    database.disconnect()
    secret = choose(service, "alice", mail=True, webhook=f"{hook.root}hooks/1?to=me")
    assert secret.startswith("whsec_")
    with notifying(site_folder):
        body = {"nodes": ["gdx-1.site", "gdx-2.site"], "operation": "on"}
        status, begun = ask(service, "alice", "POST", "/v1/power", **body)
        assert status == 201, begun
        wid = begun["wid"]
        arrived(lambda: bool(hook.calls and post.letters))
    with notifying(site_folder):  # another service, which finds the same in the database
        time.sleep(0.5)
    [call], [letter] = hook.calls, post.letters
    assert (call.path, call.headers["webhook-id"], call.is_signed_with(secret)) == ("/hooks/1?to=me", wid, True)
    told = call.json
    assert (told["type"], told["data"]["wid"], told["data"]["user"], told["data"]["operation"]) == (
        "run.ended",
        wid,
        "alice",
        "power",
    )
    assert (told["data"]["report"]["ok"], list(told["data"]["report"]["ko"])) == (["gdx-1.site"], ["gdx-2.site"])
    assert told["data"]["url"] == f"https://kadeploy.example/ui/runs/{wid}"
    assert (letter.sender, letter.to, letter.message["To"]) == (
        "kadeploy@site.example",
        ["alice@site.example"],
        "alice@site.example",
    )
    assert letter.message["Subject"] == f"[kadeploy] {wid}: 1 of 2 nodes switched"
    for words in ("switched: gdx-1.site", "failed: gdx-2.site: ", f"kapower3 --attach {wid}", f"/ui/runs/{wid}"):
        assert words in letter.text, letter.text
    _, told = ask(service, "alice", "GET")
    assert [(each["channel"], each["tries"], each["error"]) for each in told["deliveries"]] == [
        ("mail", 1, ""),
        ("webhook", 1, ""),
    ]


def test_runs_of_roots_tools_are_told_from_the_database(
    site: Site, service: Path, site_folder: Path, hook: Hook
) -> None:
    allow(site_folder, webhooks=[hook.root])
    secret = choose(service, "alice", webhook=hook.root)
    end(site, "D-1", reasons={"gdx-2.site": "no answer"})
    end(site, "D-2", user="bob")
    with notifying(site_folder):
        arrived(lambda: bool(hook.calls))
        time.sleep(0.3)
    [call] = hook.calls
    assert call.is_signed_with(secret)
    report = call.json["data"]["report"]
    assert (report["ok"], report["ko"]) == (["gdx-1.site"], {"gdx-2.site": "no answer"})


def test_only_what_was_chosen_is_told_and_nothing_from_before(
    site: Site, service: Path, site_folder: Path, hook: Hook
) -> None:
    allow(site_folder, webhooks=[hook.root])
    end(site, "D-before", reasons={"gdx-1.site": "no answer"})
    time.sleep(1.1)
    choose(service, "alice", webhook=hook.root, outcome="failures", operations=["deploy", "reboot"])
    end(site, "D-well")
    end(site, "P-bad", reasons={"gdx-1.site": "no answer"})
    end(site, "D-bad", reasons={"gdx-1.site": "no answer"})
    end(site, "R-stopped", state="aborted")
    with notifying(site_folder):
        arrived(lambda: len(hook.calls) == 2)
        time.sleep(0.3)
    assert {call.headers["webhook-id"] for call in hook.calls} == {"D-bad", "R-stopped"}
    assert ask(service, "alice", "DELETE") == (200, {"was_chosen": True})
    end(site, "D-after", reasons={"gdx-1.site": "no answer"})
    with notifying(site_folder):
        time.sleep(0.3)
    assert len(hook.calls) == 2


def test_a_trial_tells_at_once_what_became_of_it(
    site: Site, service: Path, site_folder: Path, hook: Hook, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(site_folder, mail=by(post), webhooks=[hook.root])
    status, refused = ask(service, "alice", "POST", "/test")
    assert (status, "choose one first" in refused["message"]) == (400, True)
    secret = choose(service, "alice", mail=True, webhook=hook.root)
    hook.answers, post.refuses = [500], True
    status, (by_mail, by_webhook) = ask(service, "alice", "POST", "/test")
    assert (status, by_mail["sent"], by_webhook["sent"]) == (200, False, False)
    assert "550 nobody is called so here" in by_mail["told"]
    assert by_webhook["told"] == "127.0.0.1 answers with status 500."
    status, refused = ask(service, "alice", "POST", "/test")
    assert (status, "a moment ago" in refused["message"]) == (400, True)
    monkeypatch.setattr(choosing, "PAUSE", 0.0)
    post.refuses = False
    status, told = ask(service, "alice", "POST", "/test")
    assert [each["sent"] for each in told] == [True, True]
    assert [call.is_signed_with(secret) for call in hook.calls] == [True, True]
    assert (hook.calls[1].json["type"], post.letters[0].message["Subject"]) == ("test", "[kadeploy] a trial")


def test_kadeploy3d_tells_while_it_serves_and_ends_when_it_is_asked_to(
    site: Site, site_folder: Path, hook: Hook, tmp_path: Path
) -> None:
    allow(site_folder, webhooks=[hook.root])
    secret = notifications.choose(site, "alice", Choice(webhook=hook.root))
    with (site_folder / "site.yml").open("a") as text:
        text.write(f"service: {{socket: {tmp_path}/socket}}\n")
    end(site, "D-1", reasons={"gdx-1.site": "no answer"})
    database.disconnect()
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "kadeploy3d"), "run"], stderr=subprocess.DEVNULL
    ) as process:
        try:
            arrived(lambda: bool(hook.calls))
        finally:
            process.terminate()
            status = process.wait(30)
    assert (status, [call.is_signed_with(secret) for call in hook.calls]) == (0, [True])


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_what_does_not_arrive_is_tried_again_as_the_same_message(
    site: Site, service: Path, site_folder: Path, hook: Hook
) -> None:
    allow(site_folder, webhooks=[hook.root])
    secret = choose(service, "alice", webhook=hook.root)
    hook.answers = [500, 503]
    end(site, "D-1")
    with notifying(site_folder):
        arrived(lambda: len(hook.calls) == 3)
    assert [(call.headers["webhook-id"], call.is_signed_with(secret)) for call in hook.calls] == [("D-1", True)] * 3
    [told] = ask(service, "alice", "GET")[1]["deliveries"]
    assert (told["tries"], told["error"], told["sent"] is not None) == (3, "", True)


def test_what_never_arrives_is_given_up_and_told(
    site: Site, service: Path, site_folder: Path, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    allow(site_folder, webhooks=[hook.root])
    secret = choose(service, "alice", webhook=f"{hook.root}its-own-secret")
    hook.answers = [500] * 10
    end(site, "D-1")
    with notifying(site_folder):
        arrived(lambda: "it is given up" in caplog.text)
        time.sleep(0.3)
    assert len(hook.calls) == 3
    assert "D-1 of alice is not told by webhook: 127.0.0.1 answers with status 500. it is given up" in caplog.text
    [told] = ask(service, "alice", "GET")[1]["deliveries"]
    assert (told["tries"], told["due"], told["error"]) == (3, None, "127.0.0.1 answers with status 500.")
    assert not any(each in caplog.text for each in (secret, "its-own-secret"))


def test_one_that_is_dead_holds_up_nobody(site: Site, service: Path, site_folder: Path, hook: Hook) -> None:
    with receivers.hook() as dead:
        dead.open.clear()
        allow(site_folder, webhooks=[hook.root, dead.root])
        choose(service, "alice", webhook=dead.root)
        choose(service, "bob", webhook=hook.root)
        for rank in range(20):
            end(site, f"D-{rank}")
        end(site, "D-bob", user="bob")
        with notifying(site_folder):
            arrived(lambda: bool(hook.calls and dead.calls))
            assert len(dead.calls) == 1  # one at a time
            dead.open.set()
            arrived(lambda: len(dead.calls) == 20)


def test_one_that_speaks_a_byte_at_a_time_is_left(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "DEADLINE", 0.5)
    hook.dripping = True
    with pytest.raises(NotToldError, match="does not answer in time"):
        webhook.call(hook.root, "whsec_", "D-1", b"{}", [hook.root])


def test_a_row_that_cannot_be_read_is_told_and_others_are_served(
    site: Site, service: Path, site_folder: Path, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    allow(site_folder, webhooks=[hook.root])
    choose(service, "alice", webhook=hook.root)
    choose(service, "bob", webhook=hook.root)
    database.connect(site)
    database.DB.execute_sql("UPDATE notifications SET since = 'yesterday' WHERE \"user\" = 'bob'")
    end(site, "D-bob", user="bob")
    end(site, "D-1")
    with notifying(site_folder):
        arrived(lambda: bool(hook.calls))
    assert [call.headers["webhook-id"] for call in hook.calls] == ["D-1"]
    assert caplog.text.count("of the table notifications") == 1
    assert ask(service, "bob", "GET")[0] == 503


# --- where nothing goes -----------------------------------------------------------------------------------------------

LISTED = ["https://hooks.example.org/kadeploy/", "http://10.0.0.5:8080/"]


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org/kadeploy/1?a=b%20c",
        "https://HOOKS.example.org:443/kadeploy/",
        "http://10.0.0.5:8080/x",
        "http://10.0.0.5:8080",
    ],
)
def test_what_begins_as_the_administrator_says_may_be_called(url: str) -> None:
    webhook.require_allowed(url, LISTED)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/kadeploy/1",
        "https://hooks.example.org/other",
        "https://hooks.example.org/kadeploy",
        "https://hooks.example.org/kadeploy/../admin",
        "https://hooks.example.org/kadeploy/%2e%2E/admin",
        "https://hooks.example.org/kadeploy/..%2fadmin",
        "https://hooks.example.org/kadeploy/..\\admin",
        "https://hooks.example.org:8443/kadeploy/",
        "https://hooks.example.org.evil.example/kadeploy/",
        "https://hooks.example.org@evil.example/kadeploy/",
        "https://evil.example/https://hooks.example.org/kadeploy/",
        "https://evil.example#https://hooks.example.org/kadeploy/",
        "https://hooks.example.org/kadeploy/#x",
        "https://user:word@hooks.example.org/kadeploy/",
        "http://10.0.0.5:8080@127.0.0.1/",
        "http://10.0.0.50:8080/",
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://0x0a000005:8080/",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "gopher://10.0.0.5:8080/",
        "//10.0.0.5:8080/",
        "http://10.0.0.5:8080/a b",
        "http://10.0.0.5:8080/\r\nX: y",
        "http://10.0.0.5:8080/\u00e4",
        f"http://10.0.0.5:8080/{'a' * 2000}",
        " http://10.0.0.5:8080/",
        "",
    ],
)
def test_nothing_else_may_be_called(site: Site, service: Path, site_folder: Path, url: str) -> None:
    with pytest.raises(OptionError):
        webhook.require_allowed(url, LISTED)
    allow(site_folder, webhooks=LISTED)
    if url:
        status, refused = ask(service, "alice", "PUT", webhook=url)
        assert (status, refused["error"]) == (400, "OptionError")
        assert ask(service, "alice", "GET")[1]["choice"] is None


def test_by_default_nothing_may_be_called_and_no_mail_sent(site: Site, service: Path) -> None:
    status, refused = ask(service, "alice", "PUT", webhook="https://hooks.example.org/")
    assert (status, "lets nothing be called" in refused["message"]) == (400, True)
    status, refused = ask(service, "alice", "PUT", mail=True)
    assert (status, "sends no mail" in refused["message"]) == (400, True)
    assert ask(service, "alice", "GET")[1]["offer"] == {"mail": "", "own_addresses": False, "webhooks": []}


def test_a_redirect_is_not_followed(hook: Hook) -> None:
    with receivers.hook() as elsewhere:
        for status in (301, 302, 307, 308):
            hook.answers, hook.headers = [status], {"Location": elsewhere.root}
            with pytest.raises(NotToldError, match=rf"a redirect \({status}\), and none is followed"):
                webhook.call(hook.root, "whsec_", "D-1", b"{}", [hook.root, elsewhere.root])
        assert elsewhere.calls == []


def test_a_name_that_leads_to_this_machine_is_not_called(hook: Hook) -> None:
    url = f"http://localhost:{hook.port}/"
    with pytest.raises(NotToldError, match="leads to an address of this machine"):
        webhook.call(url, "whsec_", "D-1", b"{}", [url])
    assert hook.calls == []


@pytest.mark.parametrize("address", ["127.8.8.8", "::1", "169.254.1.1", "fe80::1", "::ffff:127.0.0.1", "0.0.0.0", "::"])
def test_names_of_whatever_inner_address_are_not_called(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 443)) for each in ("192.0.2.1", address)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(NotToldError, match="leads to an address of this machine"):
        webhook.call("https://hooks.example.org/", "whsec_", "D-1", b"{}", ["https://hooks.example.org/"])


def test_what_the_administrator_takes_back_is_not_called_any_more(
    site: Site, service: Path, site_folder: Path, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    allow(site_folder, webhooks=[hook.root])
    choose(service, "alice", webhook=hook.root)
    allow(site_folder, webhooks=["https://hooks.example.org/"])
    end(site, "D-1")
    with notifying(site_folder):
        arrived(lambda: "given up" in caplog.text)
    assert hook.calls == []
    assert "not allowed here" in ask(service, "alice", "GET")[1]["deliveries"][0]["error"]


def test_no_proxy_of_the_environment_is_asked(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    with receivers.hook() as proxy:
        monkeypatch.setenv("http_proxy", proxy.root)
        webhook.call(hook.root, "whsec_", "D-1", b"{}", [hook.root])
        assert (len(hook.calls), proxy.calls) == (1, [])


def test_https_has_to_be_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path / "authority")
    with receivers.hook(authority.issue("hook")) as known, ExitStack() as stack:
        with pytest.raises(NotToldError, match="by TLS"):
            webhook.call(known.root, "whsec_", "D-1", b"{}", [known.root])
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        webhook.call(known.root, "whsec_", "D-1", b"{}", [known.root])
        other = stack.enter_context(receivers.hook(authority.issue("other", names="DNS:other.example")))
        with pytest.raises(NotToldError, match="by TLS"):
            webhook.call(other.root, "whsec_", "D-1", b"{}", [other.root])
        assert (len(known.calls), other.calls) == (1, [])


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_a_secret_is_shown_once_and_stands_nowhere_else(
    site: Site,
    service: Path,
    site_folder: Path,
    hook: Hook,
    tool: Tool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    allow(site_folder, webhooks=[hook.root])
    secret = choose(service, "alice", webhook=f"{hook.root}its-own-secret")
    said = [json.dumps(ask(service, user, "GET")) for user in ("alice", "bob", "root")]
    assert choose(service, "alice", webhook=f"{hook.root}its-own-secret", outcome="failures") == ""
    said += [json.dumps(ask(service, "alice", "POST", "/test"))]
    end(site, "D-1", reasons={"gdx-1.site": "no answer"})
    with notifying(site_folder):
        arrived(lambda: len(hook.calls) == 2)
    said += [json.dumps(ask(service, "alice", "GET", "/v1/site")), json.dumps(ask(service, "bob", "GET"))]
    audit = (site.state / "audit.jsonl").read_text()
    assert "PUT /v1/notifications" in audit
    for name in ("deployment_key", "deployment_key.pub"):
        (site_folder / name).touch(0o600)
    backup = tool("kadeploy-site", "backup", str(tmp_path), "--format", "json")
    for text in (*said, audit, backup.stdout + backup.stderr, caplog.text):
        assert secret not in text
    for text in (audit, backup.stdout + backup.stderr, caplog.text, said[-1]):
        assert "its-own-secret" not in text


# --- mail -------------------------------------------------------------------------------------------------------------


def run(**changes: Any) -> Run:
    known = {"wid": "D-1", "user": "alice", "operation": "deploy", "state": "ended", "environment": "debian12:1"}
    report = Report("D-1", ("gdx-1.site", "gdx-2.site"), {"gdx-4.site": "no answer"}, at_breakpoint=("gdx-2.site",))
    return Run(**({**known, "began": 1000, "ended": 1070, "report": report} | changes))


def sent(post: Post, folder: Path, run: Run, to: str = "alice@site.example", **more: Any) -> receivers.Letter:
    found = allow(folder, mail=by(post, **more)).notifications.mail
    assert found
    message = sending.of_run(run)
    mail.send(found, folder, to, message.id, message.subject, message.lines)
    return post.letters[-1]


def test_a_mail_says_the_whole_of_it(site: Site, site_folder: Path, post: Post) -> None:
    letter = sent(post, site_folder, run())
    assert letter.message["Subject"] == "[kadeploy] D-1: 2 of 3 nodes deployed"
    assert letter.message["Auto-Submitted"] == "auto-generated"
    assert letter.text.splitlines() == [
        "D-1: 2 of 3 nodes deployed with debian12:1, in 1 min 10 s.",
        "",
        "deployed: gdx-1.site",
        "at the breakpoint: gdx-2.site",
        "failed: gdx-4.site: no answer",
        "",
        "To see it again: kadeploy3 --attach D-1",
    ]


def test_what_nodes_and_environments_are_called_makes_no_header_and_no_end_of_mail(
    site: Site, site_folder: Path, post: Post
) -> None:
    evil = "x\r\nBcc: eve@evil.example\r\n\r\n.\r\nMAIL FROM:<eve@evil.example>\x1b[31m \u00e4"
    report = Report(evil, ("gdx-1.site",), {"gdx-4.site": evil})
    letter = sent(post, site_folder, run(wid=evil, environment=evil, report=report))
    assert len(post.letters) == 1
    mime = ["MIME-Version", "Content-Type", "Content-Transfer-Encoding"]
    known = {"From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", *mime}
    assert (len(letter.message.keys()), set(letter.message.keys())) == (len(known), known)
    assert letter.to == ["alice@site.example"]
    assert b"\x1b" not in letter.raw
    assert "\u00e4" in letter.text


@pytest.mark.parametrize(
    ("user", "own"),
    [
        ("a\r\nb", ""),
        ("a b", ""),
        ("ada@elsewhere.example", ""),
        ("<ada", ""),
        ("a,b", ""),
        ("ada", "ada@home.example, bob@home.example"),
        ("ada", "ada@home.example\r\nBcc: x@y"),
        ("ada", "ada"),
        ("ada", "-f@home.example"),
        ("ada", f"ada@{'a' * 250}.example"),
    ],
)
def test_no_address_is_another_than_it_seems(site: Site, site_folder: Path, post: Post, user: str, own: str) -> None:
    found = allow(site_folder, mail=by(post, own_addresses=True)).notifications.mail
    with pytest.raises(OptionError):
        mail.address_of(found, user, own)


def test_another_address_is_for_sites_that_let_users_have_one(
    site: Site, service: Path, site_folder: Path, post: Post
) -> None:
    allow(site_folder, mail=by(post))
    status, refused = ask(service, "alice", "PUT", mail=True, address="alice@home.example")
    assert (status, "leave the address out" in refused["message"]) == (400, True)
    allow(site_folder, mail=by(post, own_addresses=True))
    choose(service, "alice", mail=True, address="alice@home.example")
    assert ask(service, "alice", "POST", "/test")[1][0]["sent"] is True
    assert post.letters[0].to == ["alice@home.example"]


def test_the_service_logs_in_by_tls_alone_as_the_site_says(
    site: Site, site_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "authority")
    with receivers.post(authority.issue("post")) as post:
        post.passwords["service"] = "word"
        login = {"tls": "starttls", "user": "service", "password_file": "mail-password"}
        (site_folder / "mail-password").write_text("word\n")
        (site_folder / "mail-password").chmod(0o600)
        with pytest.raises(NotToldError, match="CERTIFICATE_VERIFY_FAILED"):
            sent(post, site_folder, run(), **login)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        letter = sent(post, site_folder, run(), **login)
        assert (letter.was_encrypted, letter.user) == (True, "service")
        (site_folder / "mail-password").write_text("wrong\n")
        with pytest.raises(NotToldError, match="535 no"):
            sent(post, site_folder, run(), **login)
        (site_folder / "mail-password").chmod(0o644)
        with pytest.raises(ConfigError, match="others may read"):
            sent(post, site_folder, run(), **login)


def test_a_server_without_tls_gets_nothing_where_tls_is_asked_for(site: Site, site_folder: Path, post: Post) -> None:
    with pytest.raises(NotToldError, match="STARTTLS"):
        sent(post, site_folder, run(), tls="starttls")
    assert post.letters == []


def test_half_of_a_login_is_refused_when_the_file_is_read(site: Site, site_folder: Path, post: Post) -> None:
    with pytest.raises(ConfigError, match=r"notifications.mail.user: it needs a password_file beside it"):
        allow(site_folder, mail=by(post, user="service"))
    with pytest.raises(ConfigError, match=r"notifications.webhooks\[0\]: wrong value"):
        allow(site_folder, webhooks=["hooks.example.org"])
