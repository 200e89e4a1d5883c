"""The tools and a service on another machine, by HTTPS: each way to show who calls, and each thing that goes wrong."""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest
import yaml

from kadeploy.caller import caller
from kadeploy.client import sending, servers
from kadeploy.client.address import Address
from kadeploy.client.http import Http
from kadeploy.client.remote import Remote
from kadeploy.client.servers import Server
from kadeploy.config.folder import load_site
from kadeploy.errors import KadeployError, ServiceError
from kadeploy.files import MEGA
from kadeploy.state import rights, tokens
from kadeploy.state.database import connect
from tests.unit.authority import Authority
from tests.unit.conftest import Tool
from tests.unit.serving import served_ways

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

HTTPS = """\
service:
  https: {{certificate: {certificate}, private_key: {certificate}, address: 127.0.0.1, port: 0, client_ca: {ca}}}
  htpasswd: {folder}/htpasswd
"""
CONSOLE = """\
console: >-
    sh -c 'echo "console of $0"; head -c 300000 /dev/zero | tr "\\0" x; echo; while read -r word; do echo "got $word";
    done' HOSTNAME_FQDN
console_account: nobody
"""


@dataclass
class Machine:
    """Another machine with a service, as a client sees it."""

    authority: Authority
    port: int
    folder: Path
    tool: Tool
    token: str
    """Of bob."""

    def secret(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(f"{text}\n")
        path.chmod(0o600)
        return str(path)

    def shown(self, **words: str) -> dict[str, str]:
        """What is written of it in client.yml; bob's token unless something else is."""
        words = words or {"token_file": self.secret("token", self.token)}
        return {"url": f"https://localhost:{self.port}", "ca": str(self.authority.file)} | words

    def variables(self, **words: str) -> dict[str, str]:
        """Of a machine without a site, and with a client.yml of *words*."""
        client = self.folder / "client.yml"
        client.write_text(yaml.safe_dump({"default": "far", "servers": {"far": self.shown(**words)}}))
        return {servers.VARIABLE: str(client), "KADEPLOY_CONFIG_DIR": "/nowhere", "KADEPLOY_SERVER": ""}

    def address(self, **words: str) -> Address:
        return servers.address_of(Server(**self.shown(**words)), caller(), "far")

    def run(self, *words: str, **shown: str) -> subprocess.CompletedProcess[str]:
        return self.tool(*words, **self.variables(**shown))


@pytest.fixture
def machine(site_folder: Path, tmp_path: Path, tool: Tool) -> Iterator[Machine]:
    authority = Authority(tmp_path / "authority")
    with (site_folder / "site.yml").open("a") as file:
        file.write(HTTPS.format(certificate=authority.issue("server"), ca=authority.file, folder=site_folder))
    with (site_folder / "clusters/gdx.yml").open("a") as file:
        file.write(CONSOLE)
    site = load_site(site_folder)
    connect(site)
    rights.add(site, "bob", ["gdx-1.site"], ["*"])
    token = tokens.create(site, "bob", int(time.time()) + 3600)
    assert tool("kadeploy3d", "password", "alice", stdin="correct horse\n").returncode == 0
    with served_ways(site_folder, site_folder / "state" / "test.sock") as ways:
        port = ways[1].listening.getsockname()[1]
        (tmp_path / "client").mkdir()
        yield Machine(authority, port, tmp_path / "client", tool, token)


# --- who calls --------------------------------------------------------------------------------------------------


def test_a_token_a_password_and_a_certificate_each_let_their_user_in(machine: Machine) -> None:
    password = machine.secret("password", "correct horse")
    ways = {
        "bob": {"token_file": machine.secret("token", machine.token)},
        "alice": {"user": "alice", "password_file": password},
        "carol": {"certificate": str(machine.authority.issue("carol"))},
    }
    for user, shown in ways.items():
        assert Remote(machine.address(**shown), caller()).user == user
        done = machine.run("kanodes3", "-l", **shown)
        assert (done.returncode, "gdx-1.site" in done.stdout) == (0, True), done.stderr


def test_a_key_in_a_file_of_its_own_goes_with_its_certificate(machine: Machine) -> None:
    machine.authority.issue("carol")
    folder = machine.authority.folder
    (folder / "carol.key").chmod(0o600)
    words = {"certificate": str(folder / "carol.pem"), "private_key": str(folder / "carol.key")}
    assert Remote(machine.address(**words), caller()).user == "carol"
    (folder / "server.key").chmod(0o600)
    with pytest.raises(KadeployError, match=r"cannot be used .* the key of the certificate"):
        Remote(machine.address(**words | {"private_key": str(folder / "server.key")}), caller()).user  # noqa: B018


def test_whoever_shows_nothing_or_what_is_wrong_is_told_what_to_name(machine: Machine) -> None:
    for shown in ({"token_file": machine.secret("token", "kd3_a_b")}, {"token_file": ""}):
        done = machine.run("kanodes3", "-l", **shown)
        assert done.returncode == 1
        assert "Name what shows who you are in client.yml" in done.stderr
        assert done.stderr.count("\n") == 1


def test_whoever_fails_too_often_is_told_to_wait(machine: Machine) -> None:
    http = Http(machine.address(user="alice", password_file=machine.secret("password", "wrong horse")))
    said = ""
    for _ in range(8):
        with pytest.raises(KadeployError) as refused:
            http.ask("GET", "/v1/", dict)
        said = str(refused.value)
    assert said == "Too many failed attempts from 127.0.0.1: wait 1 s and try again."


# --- who answers ------------------------------------------------------------------------------------------------


def refused(machine: Machine, **shown: str) -> str:
    """What a tool says that cannot come through: one line, without a traceback."""
    token = {"token_file": machine.secret("token", machine.token)}
    done = machine.run("kanodes3", "-l", **token | shown)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    return done.stderr


def test_an_authority_that_is_not_named_is_not_believed(machine: Machine, tmp_path: Path) -> None:
    said = "Name the authority that signed it as ca"
    assert said in refused(machine, ca="")
    assert said in refused(machine, ca=str(Authority(tmp_path / "other").file))
    assert "No such file" in refused(machine, ca="/nowhere/ca.pem")
    assert "expected PEM" in refused(machine, ca=machine.secret("ca", "no certificate"))


def test_a_named_authority_is_believed_that_was_made_by_hand_without_key_usage(
    machine: Machine, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "by-hand", by_hand=True)
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"
    with listening(secured(authority.issue("server"), answer)) as port:
        far = {"url": f"https://localhost:{port}"}
        assert "the status 404" in refused(machine, ca=str(authority.file), **far)
        assert "not to be trusted" in refused(machine, **far)


def test_a_certificate_for_another_name_is_not_believed(machine: Machine) -> None:
    other = machine.authority.issue("other", names="DNS:other.example")
    with listening(secured(other, b"")) as port:
        for host in ("localhost", "127.0.0.1"):
            assert "certificate is for another name" in refused(machine, url=f"https://{host}:{port}")


@contextmanager
def listening(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """The port of a server that does *serve* with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                serve(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def secured(certificate: Path, answer: bytes) -> Callable[[socket.socket], None]:
    """Gives *answer* to a request, by TLS, and ends."""

    def serve(connection: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        with context.wrap_socket(connection, server_side=True) as stream:
            stream.recv(1 << 16)
            stream.sendall(answer)
            stream.shutdown(socket.SHUT_WR)
            while stream.recv(1 << 16):
                pass  # to close it with something unread would reset it

    return serve


def test_an_expired_certificate_and_one_that_is_none_of_tls_are_told_apart(machine: Machine) -> None:
    expired = machine.authority.issue("old", days=-1)
    with listening(secured(expired, b"")) as port:
        assert "its certificate has expired" in refused(machine, url=f"https://localhost:{port}")
    with listening(lambda stream: stream.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert "does not speak TLS" in refused(machine, url=f"https://localhost:{port}")


def test_who_cannot_be_reached_is_named_with_what_to_look_at(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "nobody listens there" in refused(machine, url=f"https://localhost:{port}")
    assert "this host is not known" in refused(machine, url="https://nowhere.invalid")


def test_a_redirect_is_not_followed_and_a_web_server_is_not_the_service(machine: Machine) -> None:
    certificate = machine.authority.issue("web")
    asked: list[bytes] = []
    with listening(lambda stream: asked.append(stream.recv(1))) as elsewhere:
        answer = f"HTTP/1.1 302 Found\r\nLocation: https://localhost:{elsewhere}/\r\nContent-Length: 0\r\n\r\n"
        with listening(secured(certificate, answer.encode())) as port:
            assert "is not followed" in refused(machine, url=f"https://localhost:{port}")
    assert asked == []
    with listening(secured(certificate, b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")) as port:
        assert "the status 404 and no reason. Is kadeploy3d there?" in refused(machine, url=f"https://localhost:{port}")
    with listening(secured(certificate, b"SSH-2.0-OpenSSH\r\n")) as port:
        assert "does not answer as it should" in refused(machine, url=f"https://localhost:{port}")


def test_proxies_of_the_environment_are_not_used(machine: Machine) -> None:
    proxies = dict.fromkeys(("https_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:1")
    assert machine.tool("kanodes3", "-l", **machine.variables(), **proxies).returncode == 0


def test_a_client_certificate_of_a_stranger_is_refused_in_a_sentence(machine: Machine, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other").issue("carol")
    said = refused(machine, token_file="", certificate=str(stranger))
    assert "does not accept the client certificate" in said or "does not answer as it should" in said


# --- streams, files and consoles --------------------------------------------------------------------------------


class Wire:
    """A line to a service, which is cut once so many bytes have gone to it, each time anew."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self.port, self.cuts = port, cuts

    def serve(self, near: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as far:
            back = threading.Thread(target=self._back, args=(far, near), daemon=True)
            back.start()
            sent = 0
            while data := near.recv(1 << 14):
                far.sendall(data)
                sent += len(data)
                if self.cuts and sent >= self.cuts[0]:
                    self.cuts.pop(0)
                    far.shutdown(socket.SHUT_RDWR)
                    near.shutdown(socket.SHUT_RDWR)
                    return
            far.shutdown(socket.SHUT_WR)
            back.join()

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(1 << 14):
                near.sendall(data)


def test_a_file_goes_on_where_it_was_when_the_line_is_cut(
    machine: Machine, site_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PAUSES", (0.1,) * 5)
    content = random.Random(3).randbytes(4 * MEGA + 7)
    image = machine.folder / "image.tgz"
    image.write_bytes(content)
    wire = Wire(machine.port, [MEGA + 99_000, 2 * MEGA])
    with listening(wire.serve) as port:
        remote = Remote(machine.address(**machine.shown() | {"url": f"https://localhost:{port}"}), caller())
        way = sending.Way(remote._announce, remote._send)
        sent = sending.send([str(image)], caller(), way, pauses=sending.PAUSES)
    assert wire.cuts == []
    found = [path for path in (site_folder / "state/sent/bob").iterdir() if path.name.startswith(sent[str(image)])]
    assert [path.read_bytes() for path in found] == [content]


def test_events_go_on_behind_the_last_one_when_the_line_is_cut(machine: Machine) -> None:
    heard: list[bytes] = []
    certificate = machine.authority.folder / "server.pem"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    def serve(connection: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        with context.wrap_socket(connection, server_side=True) as stream:
            heard.append(
                next(line for line in stream.recv(1 << 16).split(b"\r\n") if line.startswith(b"Last-Event-ID"))
            )
            event = b"id: %d\nevent: e\ndata: {}\n\n" % len(heard)
            stream.sendall(head + b"%x\r\n%s\r\n" % (len(event), event))
            if len(heard) == 3:
                stream.sendall(b"0\r\n\r\n")

    with listening(serve) as port:
        http = Http(machine.address(**machine.shown() | {"url": f"https://localhost:{port}"}))
        found = [message.number for message in http.events("/v1/workflows/D-x/events", "0", lambda: False)]
    assert found == ["1", "2", "3"]
    assert heard == [b"Last-Event-ID: 0", b"Last-Event-ID: 1", b"Last-Event-ID: 2"]


def test_a_list_that_is_cut_is_not_taken_for_a_whole_one(machine: Machine) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with listening(secured(machine.authority.folder / "server.pem", head + b"4\r\n[1]\n\r\n")) as port:
        http = Http(machine.address(**machine.shown() | {"url": f"https://localhost:{port}"}))
        lines = http.lines("/v1/statistics/rows", {})
        assert next(lines) == b"[1]"
        with pytest.raises(ServiceError, match="does not answer as it should"):
            next(lines)


def test_what_changes_something_is_not_sent_again_when_its_answer_is_lost(machine: Machine) -> None:
    asked: list[bytes] = []

    def hang_up(connection: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(machine.authority.folder / "server.pem")
        with context.wrap_socket(connection, server_side=True) as stream:
            asked.append(stream.recv(1 << 16).partition(b" ")[0])

    with listening(hang_up) as port:
        http = Http(machine.address(**machine.shown() | {"url": f"https://localhost:{port}"}))
        with pytest.raises(ServiceError, match="does not answer as it should"):
            http.ask("POST", "/v1/deployments", dict, body={})
    assert asked == [b"POST"]


def test_a_console_by_https_shows_all_and_takes_what_is_typed(machine: Machine) -> None:
    program = str(Path(sys.executable).parent / "kaconsole3")
    variables = os.environ | machine.variables() | {"NO_COLOR": "1"}
    child = pexpect.spawn(program, ["-m", "gdx-1.site"], timeout=20, encoding="utf-8", env=variables)
    child.expect_exact("console of gdx-1.site")
    child.expect("x{300000}\r\n")
    child.send("word\r")
    child.expect_exact("got word")
    child.send("\x1b\x1b\x1b\x1b")
    child.expect_exact("Console closed.")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
