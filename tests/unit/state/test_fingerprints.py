"""Environments of users whose files are elsewhere: their word is taken, and no path that they name is opened here."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kadeploy.checksums import Fingerprint
from kadeploy.config.service import Service
from kadeploy.config.site import Site
from kadeploy.environments.environment import Archive, Environment, Image
from kadeploy.environments.reference import Reference
from kadeploy.errors import FileError, RightsError
from kadeploy.files import MEGA
from kadeploy.state import environments, sent
from kadeploy.state.fingerprints import RemoteUser
from tests.unit import build


def fingerprint(content: bytes) -> Fingerprint:
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return Fingerprint(len(content), md5, hashlib.sha256(content).hexdigest())


IMAGE = fingerprint(build.packed("image"))
POST = fingerprint(build.packed("post"))
FAR = {"/far/image.tgz": IMAGE, "/far/post.tgz": POST}
ALICE = RemoteUser("alice", FAR)


def environment(image: str = "/far/image.tgz", **changes: object) -> Environment:
    posts = (Archive(file="/far/post.tgz", kind="tgz"),)
    return build.environment(image=Image(file=image, kind="tgz"), postinstalls=posts, **changes)


def sums(file: Image | Archive) -> tuple[str, str]:
    return file.md5, file.sha256


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Where a web server shows the files of *tmp_path*."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_a_remote_user_says_of_their_files_is_recorded(site: Site) -> None:
    added = environments.add(site, environment(user="bob"), ALICE)
    assert added.user == "alice"
    assert [sums(file) for file in added.files] == [sums_of(IMAGE), sums_of(POST)]
    assert environments.find(site, "alice", Reference("tiny")) == added


def sums_of(found: Fingerprint) -> tuple[str, str]:
    return found.md5, found.sha256


def test_a_file_of_which_nothing_was_said_is_refused_though_there_is_one_of_that_name_here(
    site: Site, tmp_path: Path
) -> None:
    path = tmp_path / "image.tgz"
    path.write_bytes(build.packed("of this machine"))
    for name in (str(path), f"file://{path}", "/etc/shadow"):
        with pytest.raises(FileError, match=f"{name}: the client did not say what is in this file"):
            environments.add(site, environment(name), ALICE)


def test_limits_of_size_hold_for_what_is_elsewhere(site: Site) -> None:
    big = msgspec.structs.replace(POST, size=site.limits.postinstall * MEGA + 1)
    with pytest.raises(FileError, match=r"/far/post\.tgz: 20\.0 MB, too big"):
        environments.add(site, environment(), RemoteUser("alice", FAR | {"/far/post.tgz": big}))


@pytest.mark.parametrize(
    "wrong", [{"md5": "x"}, {"sha256": "A" * 64}, {"sha256": "../" * 20}, {"size": "1"}, {"path": "/"}, {"md5": None}]
)
def test_a_fingerprint_that_is_none_is_not_read(wrong: dict[str, object]) -> None:
    text = msgspec.json.encode(msgspec.structs.asdict(IMAGE) | wrong)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Fingerprint)


def test_what_is_on_the_web_or_the_administrators_is_read_here_whatever_is_said_of_it(
    site: Site, tmp_path: Path, url: str
) -> None:
    (tmp_path / "srv").mkdir()
    for path in (tmp_path / "web.tgz", tmp_path / "srv" / "server.tgz"):
        path.write_bytes(build.packed(path.name))
    offering = msgspec.structs.replace(site, service=Service(folders=(str(tmp_path / "srv"),)))
    for version, name in enumerate((f"{url}/web.tgz", f"server://{tmp_path}/srv/server.tgz")):
        liar = RemoteUser("alice", FAR | {name: IMAGE})
        added = environments.add(offering, environment(name, version=version), liar)
        expected = fingerprint(build.packed(name.rpartition("/")[2]))
        assert sums(added.image) == sums_of(expected)
    assert not list(site.state.glob("kaenv3-*"))


def test_a_file_that_was_sent_already_is_looked_through(site: Site) -> None:
    broken = build.packed("image" * 1000)[:-20]
    sent.begin(site, "alice", fingerprint(broken).sha256, len(broken))
    sent.append(site, "alice", fingerprint(broken).sha256, 0, [broken])
    lying = msgspec.structs.replace(fingerprint(broken), md5="0" * 32)
    who = RemoteUser("alice", FAR | {"/far/image.tgz": lying})
    with pytest.raises(FileError, match=r"/far/image\.tgz: is not a sound file of kind tgz"):
        environments.add(site, environment(), who)
    assert environments.add(site, environment(), who._replace(name="bob")).image.md5 == "0" * 32


def test_checksums_are_updated_to_what_the_user_says_now(site: Site) -> None:
    environments.add(site, environment(), ALICE)
    now = RemoteUser("alice", {"/far/image.tgz": POST})
    [change] = environments.update_checksums(site, now, Reference("tiny"), "tarball")
    assert (sums(change.before), sums(change.after)) == (sums_of(IMAGE), sums_of(POST))
    with pytest.raises(FileError, match=r"/far/post\.tgz: the client did not say"):
        environments.update_checksums(site, now, Reference("tiny"), "postinstalls")


def test_an_administrator_elsewhere_moves_files_and_knows_before_which_are_to_be_measured(site: Site) -> None:
    environments.add(site, environment(), ALICE)
    moves = [("/far/post.tgz", "server:///srv/post.tgz"), ("/far", "/new")]
    admin = site.almighty_users[0]
    assert environments.files_to_measure(site, admin, moves) == ["/new/image.tgz", "server:///srv/post.tgz"]
    moves[0] = ("/far/post.tgz", "/new/p.tgz")
    told = {"/new/image.tgz": IMAGE, "/new/p.tgz": POST}
    changes = environments.move_files(site, RemoteUser(admin, told), moves)
    assert [sums(each.after) for each in changes] == [sums_of(each) for each in told.values()]
    with pytest.raises(RightsError, match="Only administrators move"):
        environments.files_to_measure(site, "alice", moves)
    with pytest.raises(RightsError, match="Only administrators move"):
        environments.move_files(site, ALICE, moves)
