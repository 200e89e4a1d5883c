"""Files on their way to the service: opened as their user, sent once, continued after a cut, and as they were."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kadeploy.caller import Account
from kadeploy.checksums import Fingerprint
from kadeploy.client import sending
from kadeploy.client.sending import Way
from kadeploy.config.site import Site
from kadeploy.errors import FileBusyError, FileError
from kadeploy.files import MEGA
from kadeploy.state import sent
from tests.unit import build

CONTENT = random.Random(2).randbytes(3 * MEGA + 5)
NOW = (0.0, 0.0, 0.0)
"""Three more tries, without a pause."""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return build.site(tmp_path / "site")


@pytest.fixture
def alice(tmp_path: Path) -> Account:
    (tmp_path / "home").mkdir()
    return Account("alice", os.geteuid(), os.getegid(), tmp_path / "home")


@pytest.fixture
def stranger(open_folder: Path) -> Account:
    """Without root's rights."""
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    return Account("nobody", 65534, 65534, home)


@dataclass
class Service:
    """The store of a site behind a line that is cut at each of these bytes, counted anew each time."""

    site: Site
    cuts: list[int] = field(default_factory=list)
    received: int = 0
    asked: int = 0
    before_send: Callable[[], object] = lambda: None

    @property
    def way(self) -> Way:
        return Way(self._ask, self._send)

    def _ask(self, sha256: str, size: int) -> int:
        self.asked += 1
        return sent.begin(self.site, "alice", sha256, size)

    def _send(self, sha256: str, offset: int, chunks: Iterator[bytes]) -> None:
        self.before_send()
        sent.append(self.site, "alice", sha256, offset, self._line(chunks))

    def _line(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        left = self.cuts.pop(0) if self.cuts else None
        for chunk in chunks:
            through = chunk if left is None else chunk[:left]
            self.received += len(through)
            yield through
            if left is not None:
                left -= len(through)
                if not left:
                    raise ConnectionResetError("cut")

    def content(self, sha256: str) -> bytes:
        path = sent.find(self.site, "alice", sha256)
        assert path is not None
        return path.read_bytes()


def file(folder: Path, name: str, content: bytes = CONTENT) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_files_are_sent_once_and_known_by_their_sha256(site: Site, alice: Account, tmp_path: Path) -> None:
    service = Service(site)
    names = [
        file(tmp_path, "image"),
        file(tmp_path, "other", b"other"),
        file(tmp_path, "same"),
        file(tmp_path, "0", b""),
    ]
    wanted = dict(zip(names, map(digest, (CONTENT, b"other", CONTENT, b"")), strict=True))
    assert sending.send(names, alice, service.way) == wanted
    assert service.received == len(CONTENT) + len(b"other")
    assert service.content(digest(CONTENT)) == CONTENT
    assert service.content(digest(b"other")) == b"other"
    assert sending.send(names, alice, service.way) == wanted
    assert service.received == len(CONTENT) + len(b"other")


def test_the_rest_is_sent_after_each_cut(site: Site, alice: Account, tmp_path: Path) -> None:
    service, shown = Service(site, [1, MEGA, 5]), list[tuple[int, int]]()
    name, other = file(tmp_path, "image"), file(tmp_path, "other", b"other")
    sending.send([name, other], alice, service.way, lambda *bytes_: shown.append(bytes_), NOW)
    assert service.content(digest(CONTENT)) == CONTENT
    assert service.received == len(CONTENT) + 5
    total = len(CONTENT) + 5
    assert {all_ for _, all_ in shown} == {total}
    assert shown[-1] == (total, total)
    assert max(there for there, _ in shown) == total


def test_a_line_that_is_cut_again_and_again_is_given_up_and_what_arrived_stays(
    site: Site, alice: Account, tmp_path: Path
) -> None:
    service, name = Service(site, [10] * 9), file(tmp_path, "image")
    with pytest.raises(FileError, match=rf"{name}: cannot be sent: cut\. Run the same command again: what has arrived"):
        sending.send([name], alice, service.way, pauses=NOW)
    assert service.received == 40
    service.cuts.clear()
    sending.send([name], alice, service.way)
    assert service.received == len(CONTENT)


def test_tries_are_counted_anew_as_long_as_the_file_goes_on(site: Site, alice: Account, tmp_path: Path) -> None:
    service = Service(site, [MEGA, MEGA, MEGA - 1, 1, 1])
    sending.send([file(tmp_path, "image")], alice, service.way, pauses=NOW[:2])
    assert service.content(digest(CONTENT)) == CONTENT


def test_a_service_that_says_it_took_the_file_and_did_not_is_not_asked_for_ever(alice: Account, tmp_path: Path) -> None:
    calls: list[int] = []
    way = Way(lambda *_: 0, lambda _sha256, offset, chunks: calls.append(offset + len(list(chunks))))
    with pytest.raises(FileError, match="nothing of it has arrived"):
        sending.send([file(tmp_path, "image")], alice, way, pauses=NOW)
    assert len(calls) == 4


def test_what_the_service_refuses_is_not_tried_again(site: Site, alice: Account, tmp_path: Path) -> None:
    def refuse(_sha256: str, _size: int) -> int:
        service.asked += 1
        raise FileError("too big")

    service = Service(site)
    with pytest.raises(FileError, match="too big"):
        sending.send([file(tmp_path, "image")], alice, Way(refuse, service.way.send), pauses=NOW)
    assert service.asked == 1


def test_a_file_that_is_still_being_sent_over_the_line_that_was_cut_is_tried_again(
    site: Site, alice: Account, tmp_path: Path
) -> None:
    """The service notices a cut later than the client: until then the file is busy."""
    busy = [True, True]

    def still_busy() -> None:
        if busy:
            busy.pop()
            raise FileBusyError("is being sent already")

    service = Service(site, before_send=still_busy)
    sending.send([file(tmp_path, "image")], alice, service.way, pauses=NOW)
    assert service.content(digest(CONTENT)) == CONTENT


@pytest.mark.parametrize("change", ["written to", "cut off", "appended to", "replaced"])
def test_a_file_that_is_changed_while_it_is_sent_is_refused(
    site: Site, alice: Account, tmp_path: Path, change: str
) -> None:
    name = file(tmp_path, "image")

    def act() -> None:
        if change == "replaced":
            Path(file(tmp_path, "new", b"new")).replace(name)
            return
        with Path(name).open("r+b") as stream:
            if change == "cut off":
                stream.truncate(MEGA)
            else:
                stream.seek(0 if change == "written to" else len(CONTENT))
                stream.write(b"x")

    service = Service(site, before_send=act)
    with pytest.raises(FileError, match=rf"{name}: changed while it was sent"):
        sending.send([name], alice, service.way, pauses=NOW)
    assert sent.find(site, "alice", digest(CONTENT)) is None


# --- as the user --------------------------------------------------------------------------------------------------


def test_files_are_opened_with_the_rights_of_their_user(site: Site, stranger: Account, open_folder: Path) -> None:
    secret = file(open_folder, "secret", b"root's")
    Path(secret).chmod(0o600)
    for way in (
        lambda: sending.send([secret], stranger, Service(site).way),
        lambda: sending.measure([secret], stranger),
    ):
        with pytest.raises(FileError, match=r"secret: Permission denied\. Give a file that nobody can read"):
            way()
    assert not (site.state / "sent").exists()


def test_home_is_the_users(site: Site, alice: Account) -> None:
    file(alice.home, "image", b"at home")
    assert sending.send(["~/image"], alice, Service(site).way) == {"~/image": digest(b"at home")}


@pytest.mark.parametrize("name", ["/dev/zero", "/etc", "nonesuch", "ftp://host/x"])
def test_what_is_no_file_is_refused_before_anything_is_sent(
    site: Site, alice: Account, tmp_path: Path, name: str
) -> None:
    service = Service(site)
    with pytest.raises(FileError, match=name):
        sending.send([file(tmp_path, "image"), name], alice, service.way)
    assert service.asked == 0


def test_checksums_are_remembered_in_the_users_own_cache_for_as_long_as_the_file_is_the_same(
    stranger: Account, open_folder: Path
) -> None:
    name = file(open_folder, "image", b"content")
    Path(name).chmod(0o644)
    os.utime(name, (1, 1))
    md5 = hashlib.md5(b"content", usedforsecurity=False).hexdigest()
    assert sending.measure([name], stranger) == {name: Fingerprint(7, md5, digest(b"content"))}
    notes = [path for path in (stranger.home / sending.CACHE).rglob("*") if path.is_file()]
    assert notes
    for path in notes:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == stranger.uid
    Path(name).write_bytes(b"CONTENT")
    os.utime(name, (1, 1))
    assert sending.measure([name], stranger)[name].sha256 == digest(b"CONTENT")


def test_a_home_that_cannot_be_written_costs_the_cache_alone(alice: Account, tmp_path: Path) -> None:
    name = file(tmp_path, "image", b"content")
    homeless = alice._replace(home=Path("/proc/nonexistent"))
    assert sending.measure([name], homeless)[name].sha256 == digest(b"content")
