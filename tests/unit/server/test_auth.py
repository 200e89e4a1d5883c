"""Who calls: each method alone, which one decides when there are several, and everything that is refused."""

from __future__ import annotations

import base64
import os
import pwd
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import argon2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.caller import is_user_name
from kadeploy.config.service import FrontEnd, Https, Service
from kadeploy.config.site import Site
from kadeploy.errors import AuthenticationError, ConfigError, TooManyAttemptsError
from kadeploy.server import auth
from kadeploy.server.auth import Authenticator, Caller, Connection, grouped
from kadeploy.state import database, tokens
from tests.unit.server.conftest import Clock

HOME, ELSEWHERE = "10.0.0.9", "10.0.0.8"
SLOW = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
HTTPS = Https(certificate="/etc/ssl/site.pem", private_key="/etc/ssl/site.key", client_ca="/etc/ssl/users.pem")


@pytest.fixture
def htpasswd(tmp_path: Path) -> Path:
    path = tmp_path / "htpasswd"
    path.write_text(f"alice:{SLOW.hash('sécret: 1')}\nbob:{SLOW.hash('other')}\n", encoding="utf-8")
    return path


@pytest.fixture
def config(htpasswd: Path) -> Service:
    return Service(https=HTTPS, htpasswd=str(htpasswd), front_ends=(FrontEnd(sources=("10.1.0.0/24",)),))


@pytest.fixture
def found(config: Service, site: Site, clock: Clock) -> Authenticator:
    return Authenticator(config, site, clock)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def over_https(address: str = HOME, certificate: dict[str, Any] | None = None, **headers: str) -> Connection:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Connection(address=address, certificate=certificate, headers=grouped(raw))


def on_socket(uid: int, **headers: str) -> Connection:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Connection(uid=uid, pid=77, headers=grouped(raw))


def tomorrow() -> int:
    return int(time.time()) + 86_400


# --- the socket -------------------------------------------------------------------------------------------------


def test_on_the_socket_the_kernel_says_who_calls(found: Authenticator) -> None:
    nobody = pwd.getpwnam("nobody")
    assert found.authenticate(on_socket(nobody.pw_uid)) == Caller("nobody", "socket", f"uid:{nobody.pw_uid} pid:77")
    assert found.authenticate(on_socket(0)) == Caller("root", "socket", "uid:0 pid:77")


def test_root_on_the_socket_may_act_for_another_user_and_nobody_else_may(found: Authenticator) -> None:
    acting = on_socket(0, X_Kadeploy_User="alice")
    assert found.authenticate(acting) == Caller("alice", "socket", "uid:0 pid:77")
    for uid, user in ((65534, "root"), (65534, "nobody"), (1, "")):
        with pytest.raises(AuthenticationError, match=r"Root alone may act for another user: leave .* out"):
            found.authenticate(on_socket(uid, X_Kadeploy_User=user))
    with pytest.raises(AuthenticationError, match=r"x-kadeploy-user is not believed from 10\.0\.0\.9"):
        found.authenticate(over_https(X_Kadeploy_User="alice"))
    with pytest.raises(AuthenticationError, match="names no user: 'alice smith'"):
        found.authenticate(on_socket(0, X_Kadeploy_User="alice smith"))


@pytest.mark.parametrize("uid", [0, 65534])
@pytest.mark.parametrize("header", ["X-Remote-Ident", "X-Api-User-Cn", "Authorization"])
def test_nothing_that_is_sent_over_the_socket_names_another_user(found: Authenticator, uid: int, header: str) -> None:
    with pytest.raises(AuthenticationError, match=r"leave (this|the Authorization) header out"):
        found.authenticate(on_socket(uid, **{header: basic("alice", "sécret: 1")}))


def test_a_user_without_an_account_is_refused_on_the_socket(found: Authenticator) -> None:
    for uid in (4_000_000_000, 2**40):
        with pytest.raises(AuthenticationError, match=f"The user number {uid} has no account"):
            found.authenticate(on_socket(uid))


def test_callers_of_the_socket_never_wait(found: Authenticator) -> None:
    for _ in range(100):
        with pytest.raises(AuthenticationError):
            found.authenticate(on_socket(65534, X_Kadeploy_User="root"))
    assert found.authenticate(on_socket(65534)).user == "nobody"


def test_who_shows_who_they_are_may_name_themselves_as_the_originals_clients_do(found: Authenticator) -> None:
    caller = found.authenticate(over_https(Authorization=basic("alice", "sécret: 1"), X_Kadeploy_User="alice"))
    assert (caller.user, caller.how) == ("alice", "password")
    with pytest.raises(AuthenticationError, match="names another user than you are"):
        found.authenticate(over_https(Authorization=basic("alice", "sécret: 1"), X_Kadeploy_User="root"))
    with pytest.raises(AuthenticationError, match="wrong"):
        found.authenticate(over_https(Authorization=basic("alice", "no"), X_Kadeploy_User="alice"))


# --- the other methods ------------------------------------------------------------------------------------------


def test_a_front_end_names_the_user(found: Authenticator) -> None:
    caller = found.authenticate(over_https("::ffff:10.1.0.4", X_Remote_Ident="alice"))
    assert caller == Caller("alice", "front end", "10.1.0.4")


def test_a_token_lets_its_user_in_until_it_is_revoked(found: Authenticator, site: Site) -> None:
    text = tokens.create(site, "alice", tomorrow())
    for scheme in ("Bearer", "bearer", "BEARER "):
        caller = found.authenticate(over_https(Authorization=f"{scheme} {text}"))
        assert caller == Caller("alice", "token", HOME)
    tokens.revoke(site, tokens.id_of(text))
    with pytest.raises(AuthenticationError, match="token of alice was revoked"):
        found.authenticate(over_https(Authorization=f"Bearer {text}"))
    with pytest.raises(AuthenticationError, match="no token of this site"):
        found.authenticate(over_https(Authorization="Bearer kd3_x"))


def test_a_name_and_a_password_let_the_user_in(found: Authenticator) -> None:
    caller = found.authenticate(over_https(Authorization=basic("alice", "sécret: 1")))
    assert caller == Caller("alice", "password", HOME)


@pytest.mark.parametrize("who", [("alice", "other"), ("alice", ""), ("nobody", "other"), ("root", "")])
def test_a_wrong_password_and_an_unknown_user_get_the_same_words(
    found: Authenticator, who: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AuthenticationError) as refusal:
        found.authenticate(over_https(Authorization=basic(*who)))
    assert str(refusal.value) == "The user name or the password is wrong."
    assert caplog.messages == [f"{HOME} does not come in as {who[0]}: wrong password, or no such user."]


def test_a_password_that_was_right_is_right_at_once_for_a_minute_and_no_longer_when_the_file_changes(
    found: Authenticator, htpasswd: Path
) -> None:
    def cost(password: str = "sécret: 1") -> float:
        start = time.process_time()
        found.authenticate(over_https(Authorization=basic("alice", password)))
        return time.process_time() - start

    htpasswd.write_text(f"alice:{argon2.PasswordHasher().hash('sécret: 1')}\n")
    first = cost()
    assert min(cost() for _ in range(5)) < first / 10
    htpasswd.write_text(f"alice:{SLOW.hash('new')}\n")
    with pytest.raises(AuthenticationError, match="wrong"):
        cost()
    cost("new")


MALFORMED = [
    *("", "Basic", "Bearer", "Basic ", "Bearer  a b", "alice:secret", "Basic !!!", "Basic Zm9v", "Basic Zm9"),
    *("Basic =", "Basic /w==", "Basic\tZm9vOmJhcg==", "Bearer é", "Bearer kd3_x kd3_y", "Basic,x"),
    basic("alice", "sécret: 1")[:-4] + "." + basic("alice", "sécret: 1")[-4:],
]


@pytest.mark.parametrize("value", MALFORMED)
def test_an_authorization_that_is_none_is_refused_with_what_is_expected(found: Authenticator, value: str) -> None:
    with pytest.raises(AuthenticationError, match=r"expected|base64 of name:password"):
        found.authenticate(over_https(Authorization=value))


def test_an_authorization_without_end_is_not_looked_at(found: Authenticator) -> None:
    with pytest.raises(AuthenticationError, match="Authorization is not as expected"):
        found.authenticate(over_https(Authorization=basic("alice", "x" * 5000)))


def test_an_authorization_that_comes_twice_is_refused(found: Authenticator) -> None:
    good = basic("alice", "sécret: 1").encode()
    twice = grouped([(b"Authorization", good), (b"authorization", good)])
    with pytest.raises(AuthenticationError, match="several times: send it once"):
        found.authenticate(Connection(address=HOME, headers=twice))


@given(
    value=st.binary(max_size=30) | st.text(max_size=30).map(lambda each: b"Basic " + base64.b64encode(each.encode()))
)
def test_whatever_an_authorization_holds_it_is_refused_in_one_line_or_names_a_user(value: bytes) -> None:
    [text] = grouped([(b"authorization", value)])["authorization"]
    try:
        scheme, word = auth._credentials([text])
        user, password = auth._name_and_password(word) if scheme == "basic" else ("someone", "")
    except AuthenticationError as refusal:
        assert str(refusal).isprintable()  # noqa: PT017 - both ends of the property
        return
    assert is_user_name(user)
    assert "\0" not in password


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20))
def test_every_password_arrives_as_it_was_typed(password: str) -> None:
    _, word = auth._credentials([basic("alice", password)])
    assert auth._name_and_password(word) == ("alice", password)


# --- certificates -----------------------------------------------------------------------------------------------

Issue = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def issue(tmp_path_factory: pytest.TempPathFactory) -> Issue:
    """What TLS tells the server of a client whose certificate has a given subject, after a real handshake."""
    folder = tmp_path_factory.mktemp("ca")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(*new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")

    def told(subject: str) -> dict[str, Any]:
        openssl(*new, "-utf8", "-keyout", "user.key", "-out", "user.csr", "-subj", subject)
        openssl(
            "x509", "-req", "-in", "user.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "1", "-out", "user.pem"
        )
        return handshake(folder)

    return told


def handshake(folder: Path) -> dict[str, Any]:
    """What the server knows of the client once they have shaken hands, both in this process."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "ca.pem", folder / "ca.key")
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(folder / "ca.pem")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(folder / "ca.pem")
    client.load_cert_chain(folder / "user.pem", folder / "user.key")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    for end in [*ends, *ends]:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return ends[1].getpeercert() or {}


def test_a_verified_client_certificate_names_its_user_as_common_name(found: Authenticator, issue: Issue) -> None:
    certificate = issue("/O=Paris/CN=alice")
    assert found.authenticate(over_https(certificate=certificate)) == Caller("alice", "certificate", HOME)


@pytest.mark.parametrize("subject", ["/O=Paris", "/CN=alice/CN=root", "/CN=Alice Smith", "/CN=..", "/O=Paris/CN=a:b"])
def test_a_certificate_that_does_not_name_one_user_is_refused(found: Authenticator, issue: Issue, subject: str) -> None:
    with pytest.raises(AuthenticationError, match="does not name one user as common name"):
        found.authenticate(over_https(certificate=issue(subject)))


def test_a_certificate_that_expires_while_the_connection_lasts_is_refused(found: Authenticator, issue: Issue) -> None:
    old = issue("/CN=alice") | {"notAfter": "Jan  5 09:34:43 2018 GMT"}
    with pytest.raises(AuthenticationError, match="has expired"):
        found.authenticate(over_https(certificate=old))


@pytest.mark.parametrize("certificate", [None, {}])
def test_without_a_certificate_that_tls_has_verified_nobody_is_let_in(
    found: Authenticator, certificate: dict[str, Any] | None
) -> None:
    with pytest.raises(AuthenticationError, match="Say who you are"):
        found.authenticate(over_https(certificate=certificate))


def test_a_site_without_an_authority_believes_no_certificate(config: Service, site: Site, issue: Issue) -> None:
    without = msgspec.structs.replace(config, https=msgspec.structs.replace(HTTPS, client_ca=""))
    with pytest.raises(AuthenticationError, match="Say who you are"):
        Authenticator(without, site).authenticate(over_https(certificate=issue("/CN=alice")))


# --- which of them ----------------------------------------------------------------------------------------------


def test_the_first_method_that_is_there_decides(found: Authenticator, site: Site, issue: Issue) -> None:
    certificate, token = issue("/CN=carol"), f"Bearer {tokens.create(site, 'bob', tomorrow())}"
    everything = over_https("10.1.0.4", certificate, Authorization=token, X_Remote_Ident="alice")
    assert found.authenticate(everything).how == "front end"
    assert found.authenticate(over_https("10.1.0.4", certificate, Authorization=token)).user == "bob"
    assert found.authenticate(over_https("10.1.0.4", certificate)).user == "carol"


def test_what_does_not_hold_is_not_passed_over_for_what_would(found: Authenticator, site: Site, issue: Issue) -> None:
    certificate, token = issue("/CN=alice"), f"Bearer {tokens.create(site, 'alice', tomorrow())}"
    with pytest.raises(AuthenticationError, match="not believed"):
        found.authenticate(over_https(certificate=certificate, Authorization=token, X_Remote_Ident="alice"))
    for value in ("Bearer kd3_x", basic("alice", "wrong"), "Negotiate YII="):
        with pytest.raises(AuthenticationError, match=r"no token|is wrong|does not take Authorization: negotiate\."):
            found.authenticate(over_https(certificate=certificate, Authorization=value))


def test_the_refusal_names_the_methods_that_the_site_has(found: Authenticator, site: Site) -> None:
    with pytest.raises(AuthenticationError) as all_of_them:
        found.authenticate(over_https())
    assert str(all_of_them.value) == (
        "Say who you are. Over HTTPS this site takes a token (Authorization: Bearer), a name and a password "
        "(Authorization: Basic), a client certificate or the site's front end."
    )
    plain = Authenticator(Service(), site)
    with pytest.raises(AuthenticationError) as tokens_alone:
        plain.authenticate(over_https(Authorization=basic("alice", "sécret: 1")))
    assert str(tokens_alone.value) == (
        "This site does not take Authorization: basic. Over HTTPS this site takes a token (Authorization: Bearer)."
    )
    assert found.challenge.startswith("Bearer, Basic ")
    assert plain.challenge == "Bearer"


def test_a_wrong_source_is_refused_at_the_start_and_this_machine_as_source_is_warned_of(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"front_ends\[0\]"):
        Authenticator(Service(front_ends=(FrontEnd(sources=("gateway",)),)), site)
    Authenticator(Service(front_ends=(FrontEnd(sources=("127.0.0.1",)),)), site)
    assert "every account of the machine can be any user" in caplog.text


# --- back-off ---------------------------------------------------------------------------------------------------


def fail(found: Authenticator, times: int, user: str = "alice", address: str = HOME) -> None:
    for _ in range(times):
        with pytest.raises(AuthenticationError, match="wrong"):
            found.authenticate(over_https(address, Authorization=basic(user, "wrong")))


def test_who_fails_has_to_wait_with_the_right_password_too_and_only_there(found: Authenticator, clock: Clock) -> None:
    right = basic("alice", "sécret: 1")
    fail(found, 6)
    clock.now += 1
    fail(found, 1)
    with pytest.raises(TooManyAttemptsError, match=r"10\.0\.0\.9: wait 2 s") as refusal:
        found.authenticate(over_https(Authorization=right))
    assert refusal.value.seconds == 2
    assert found.authenticate(over_https(ELSEWHERE, Authorization=right)).user == "alice"
    clock.now += 2
    assert found.authenticate(over_https(Authorization=right)).user == "alice"
    fail(found, 5)


def test_a_password_that_is_remembered_is_no_way_round_the_wait(found: Authenticator) -> None:
    """Else whoever guesses would get an answer at once, and as often as they like."""
    found.authenticate(over_https(ELSEWHERE, Authorization=basic("alice", "sécret: 1")))
    fail(found, 6)
    with pytest.raises(TooManyAttemptsError):
        found.authenticate(over_https(Authorization=basic("alice", "sécret: 1")))


def test_users_that_are_not_there_make_wait_like_others(found: Authenticator) -> None:
    fail(found, 6, "nobody")
    with pytest.raises(TooManyAttemptsError):
        found.authenticate(over_https(Authorization=basic("nobody", "wrong")))


def test_a_good_token_is_let_in_whatever_was_tried_and_bad_ones_are_slowed_down(
    found: Authenticator, site: Site
) -> None:
    for _ in range(6):
        with pytest.raises(AuthenticationError, match="no token"):
            found.authenticate(over_https(Authorization="Bearer kd3_x"))
    with pytest.raises(TooManyAttemptsError):
        found.authenticate(over_https(Authorization="Bearer kd3_y"))
    good = f"Bearer {tokens.create(site, 'alice', tomorrow())}"
    assert found.authenticate(over_https(Authorization=good)).user == "alice"


def test_a_token_that_has_ended_is_no_guess(found: Authenticator, site: Site) -> None:
    over = f"Bearer {tokens.create(site, 'alice', 1)}"
    for _ in range(30):
        with pytest.raises(AuthenticationError, match="ended on 1970-01-01"):
            found.authenticate(over_https(Authorization=over))


def test_many_at_once_do_not_get_more_guesses(found: Authenticator) -> None:
    def guess(rank: int) -> str:
        try:
            found.authenticate(over_https(Authorization=basic("alice", f"guess {rank}")))
        except (AuthenticationError, TooManyAttemptsError) as refusal:
            return type(refusal).__name__
        finally:
            database.disconnect()
        return ""

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(guess, range(200)))
    assert answers.count("AuthenticationError") <= 6 + (os.cpu_count() or 1)
    assert answers.count("TooManyAttemptsError") + answers.count("AuthenticationError") == 200


def test_few_passwords_are_hashed_at_a_time_and_few_wait(
    found: Authenticator, htpasswd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that strangers hold neither all memory nor all threads."""
    slow = argon2.PasswordHasher(time_cost=20, memory_cost=65536, parallelism=1)
    htpasswd.write_text(f"alice:{slow.hash('x')}\n")
    busy: list[int] = []
    start = threading.Barrier(40)

    def guess(rank: int) -> None:
        start.wait()
        try:
            found.authenticate(over_https(f"10.9.0.{rank}", Authorization=basic("alice", "wrong")))
        except TooManyAttemptsError as refusal:
            busy.append(refusal.seconds)
        except AuthenticationError:
            pass

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(guess, range(40)))
    assert 40 - len(busy) <= (os.cpu_count() or 1) + auth._WAITING
    assert set(busy) == {auth._PAUSE}
