"""Files on their way to a service: many that come slowly, and an image that the tools send."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kadeploy.caller import caller
from kadeploy.config.site import Site
from kadeploy.files import MEGA
from kadeploy.server import bodies
from kadeploy.state import database, rights, sent
from tests.unit.conftest import Tool

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

SIZE = int(os.environ.get("KADEPLOY_TEST_IMAGE_MB", "256")) * MEGA
"""Bytes of the image."""
STEPS = "SetDeploymentEnv|SetDeploymentEnvDummy:0:0&BroadcastEnv|BroadcastEnvDummy:0:0&BootNewEnv|BootNewEnvDummy:0:0"
ENVIRONMENT = """\
name: large
image: {{file: {image}, kind: dd, compression: gzip}}
boot: {{kernel: /vmlinuz}}
filesystem: ext4
os: linux
"""


@pytest.fixture
def quota(site_folder: Path, request: pytest.FixtureRequest) -> None:
    """What the site says of ``service.quota``."""
    with (site_folder / "site.yml").open("a", encoding="utf-8") as file:
        file.write(f"service: {{quota: {{{getattr(request, 'param', '')}}}}}\n")


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.05)


# --- senders that are slow, or many -----------------------------------------------------------------------------------


@dataclass
class Sender:
    """Somebody who announces a file and sends it in parts, as root lets them be *user*."""

    service: Path
    content: bytes
    user: str = "alice"

    def __post_init__(self) -> None:
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.connection = http.client.HTTPConnection("localhost", timeout=60)
        self.connection.sock = socket.socket(socket.AF_UNIX)
        self.connection.sock.settimeout(60)
        self.connection.sock.connect(str(self.service))
        assert self.answer("PUT", f"size={len(self.content)}") == (200, {"here": 0})

    def answer(self, method: str, query: str, body: bytes = b"") -> tuple[int, dict[str, object]]:
        self.connection.request(method, f"/v1/files/{self.sha256}?{query}", body, {"X-Kadeploy-User": self.user})
        return self.answered()

    def answered(self) -> tuple[int, dict[str, object]]:
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())

    def begin(self, count: int = 1) -> None:
        """Send the first *count* bytes, and then nothing."""
        self.connection.putrequest("PATCH", f"/v1/files/{self.sha256}?offset=0")
        self.connection.putheader("Content-Length", str(len(self.content)))
        self.connection.putheader("X-Kadeploy-User", self.user)
        self.connection.endheaders(self.content[:count])

    def is_taken(self, site: Site) -> bool:
        """Whether the service holds the file open for this sender."""
        (part,) = sent._folder(site, self.user).glob(f"{self.sha256}-*")
        return f":{part.stat().st_ino} " in Path("/proc/locks").read_text(encoding="ascii")

    def close(self) -> None:
        self.connection.close()


@pytest.mark.parametrize("quota", ["uploads: 100"], indirect=True)
def test_senders_who_say_nothing_hold_up_nobody(quota: None, site: Site, service: Path) -> None:
    with ExitStack() as stack:
        slow = [Sender(service, b"%d of them" % number) for number in range(80)]
        for each in slow:
            stack.callback(each.close)
            each.begin()
        until(lambda: all(each.is_taken(site) for each in slow))
        other = Sender(service, os.urandom(3 * MEGA))
        stack.callback(other.close)
        assert other.answer("PATCH", "offset=0", other.content) == (200, {"here": 3 * MEGA})
        assert len([each for each in threading.enumerate() if each.name.startswith("bodies")]) <= 8
        for each in slow:
            each.connection.send(each.content[1:])
            assert each.answered() == (200, {"here": len(each.content)})


@pytest.mark.parametrize("quota", ["uploads: 2"], indirect=True)
def test_a_user_sends_as_many_files_at_a_time_as_the_site_allows(quota: None, site: Site, service: Path) -> None:
    with ExitStack() as stack:
        first, second, third = (Sender(service, b"file %d" % number) for number in range(3))
        bob = Sender(service, b"file of bob", "bob")
        for each in (first, second, third, bob):
            stack.callback(each.close)
        for each in (first, second):
            each.begin()
            until(lambda each=each: each.is_taken(site))
        status, told = third.answer("PATCH", "offset=0", third.content)
        assert (status, told["error"]) == (409, "FileBusyError")
        assert "alice is sending 2 files" in str(told["message"])
        assert "service.quota.uploads" in str(told["message"])
        assert bob.answer("PATCH", "offset=0", bob.content)[0] == 200
        first.close()
        until(lambda: not first.is_taken(site))
        again = Sender(service, b"file 3")
        stack.callback(again.close)
        assert again.answer("PATCH", "offset=0", again.content)[0] == 200


def test_what_came_before_a_cut_stays(site: Site, service: Path) -> None:
    sender = Sender(service, os.urandom(3 * MEGA))
    sender.begin(MEGA + 1000)
    until(lambda: sender.is_taken(site))
    sender.close()
    until(lambda: not sender.is_taken(site))
    assert sent.begin(site, "alice", sender.sha256, 3 * MEGA) == MEGA + 1000


def test_a_sender_who_is_too_slow_is_let_go_and_what_has_come_stays(
    site: Site, service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "_PATIENCE", 0.5)
    sender = Sender(service, os.urandom(1000))
    sender.begin(10)
    status, told = sender.answered()
    assert (status, "Nothing has come" in str(told["message"])) == (400, True)
    assert sent.begin(site, "alice", sender.sha256, 1000) == 10
    sender.close()


# --- an image ---------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """What is between the tools and the service: it counts, and can be cut."""

    path: Path
    service: Path
    passed: int = 0
    """Bytes on their way to the service."""
    cut_at: int | None = None
    """Of them: then all connections are, once."""
    _open: list[socket.socket] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                tool, _ = listener.accept()
                service = socket.socket(socket.AF_UNIX)
                service.connect(str(self.service))
                self._open += [tool, service]
                for pair in ((tool, service, True), (service, tool, False)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(MEGA):
                sink.sendall(piece)
                self.passed += len(piece) if counts else 0
                if self.cut_at is not None and self.passed >= self.cut_at:
                    self.cut_at = None
                    self.cut()
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(service: Path, tmp_path: Path) -> Iterator[Line]:
    found = Line(tmp_path / "line.sock", service)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(found.path))
        listener.listen()
        threading.Thread(target=found.serve, args=[listener], daemon=True).start()
        yield found
        found.cut()
        listener.shutdown(socket.SHUT_RDWR)
        for each in found._open:
            each.close()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """An image of `SIZE` bytes, no two blocks of which are equal, and its description."""
    path, block = tmp_path / "image.gz", os.urandom(MEGA)
    with gzip.open(path, "wb", compresslevel=0) as file:
        for number in range(SIZE // MEGA):
            file.write(number.to_bytes(8, "big") + block[8:])
    (tmp_path / "large.yml").write_text(ENVIRONMENT.format(image=path))
    yield tmp_path / "large.yml"
    path.unlink()


def deploy(tool: Tool, line: Line, description: Path) -> tuple[int, str, int, float]:
    """Exit status, what was said, the bytes that went over the line, and the seconds."""
    before, begun = line.passed, time.monotonic()
    words = ["-m", "gdx-1.site", "-a", str(description), "--force-steps", STEPS, "-V", "1"]
    done = tool("kadeploy3", *words, KADEPLOY_SERVER=str(line.path))
    return done.returncode, done.stdout + done.stderr, line.passed - before, time.monotonic() - begun


@pytest.mark.parametrize("quota", [f"files_mb: {2 * SIZE // MEGA}"], indirect=True)
def test_an_image_is_sent_once_and_the_rest_of_it_after_a_cut(
    quota: None, site: Site, line: Line, image: Path, tool: Tool
) -> None:
    database.connect(site)
    rights.add(site, caller().name, ["*"], ["*"])
    line.cut_at = SIZE // 2
    status, said, passed, seconds = deploy(tool, line, image)
    assert (status, line.cut_at) == (0, None), said
    assert SIZE < passed < SIZE + SIZE // 4
    status, said, again, seconds_again = deploy(tool, line, image)
    assert (status, again < MEGA) == (0, True), said
    print(f"{SIZE // MEGA} MiB: {seconds:.1f} s, {passed - SIZE:,} bytes twice; again: {seconds_again:.1f} s")


@pytest.mark.parametrize("quota", [f"files_mb: {SIZE // MEGA // 2}"], indirect=True)
def test_an_image_beyond_the_quota_is_refused_before_a_byte_of_it_is_sent(
    quota: None, site: Site, line: Line, image: Path, tool: Tool
) -> None:
    database.connect(site)
    rights.add(site, caller().name, ["*"], ["*"])
    status, said, passed, _ = deploy(tool, line, image)
    assert (status, "service.quota.files_mb" in said) == (1, True), said
    assert passed < MEGA
    assert not list((site.state / sent.FOLDER).rglob("*.*"))
