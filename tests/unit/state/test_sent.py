"""Files that users have sent: found by their owner alone, whole or to be continued, and within a quota."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy import files
from kadeploy.config.service import Quota, Service
from kadeploy.config.site import Site
from kadeploy.errors import FileBusyError, FileError
from kadeploy.files import MEGA, LocalFile
from kadeploy.state import sent
from tests.unit import build

CONTENT = random.Random(1).randbytes(3 * MEGA + 5)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_with(tmp_path, 100)


def site_with(folder: Path, files_mb: int) -> Site:
    return build.site(folder, service=Service(quota=Quota(files_mb=files_mb)))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def chunks(content: bytes, size: int = MEGA) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def cut(content: bytes, after: int) -> Iterator[bytes]:
    """What arrives of *content* before the connection breaks."""
    yield from chunks(content[:after], 1000)
    raise ConnectionResetError("cut")


def send(site: Site, content: bytes, user: str = "alice") -> Path:
    """A complete file."""
    offset = sent.begin(site, user, digest(content), len(content))
    if offset < len(content):
        assert sent.append(site, user, digest(content), offset, chunks(content[offset:])) == len(content)
    path = sent.find(site, user, digest(content))
    assert path is not None
    return path


def megabytes(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count * MEGA)


def age(path: Path, seconds: float) -> None:
    """Let the last use of *path* be so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def kept(site: Site, user: str = "alice") -> list[Path]:
    return sorted(sent._folder(site, user).glob("*"))


# --- sending and using --------------------------------------------------------------------------------------------


def test_a_file_that_was_sent_is_found_by_its_sha256_and_its_md5_is_known(site: Site) -> None:
    path = send(site, CONTENT)
    assert path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    held = sent.hold(site, "alice", digest(CONTENT))
    assert held is not None
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    assert held[1] == LocalFile(path, len(CONTENT), md5, digest(CONTENT))
    assert held[0].read() == CONTENT
    held[0].close()
    assert sent.begin(site, "alice", digest(CONTENT), len(CONTENT)) == len(CONTENT)
    assert kept(site) == [path]


def test_what_a_broadcast_needs_to_know_of_an_image_is_known_when_it_has_arrived(site: Site, tmp_path: Path) -> None:
    send(site, CONTENT)
    with (tmp_path / "empty").open("w+b") as nothing:  # only the note can tell
        found = files.beginnings(nothing, len(CONTENT), digest(CONTENT), site.state / "cache")
    assert found.fit(len(CONTENT), digest(CONTENT))


@pytest.mark.parametrize("after", [0, 1, MEGA, len(CONTENT) - 1])
def test_a_file_goes_on_where_it_was_cut(site: Site, after: int) -> None:
    assert sent.begin(site, "alice", digest(CONTENT), len(CONTENT)) == 0
    with pytest.raises(ConnectionResetError):
        sent.append(site, "alice", digest(CONTENT), 0, cut(CONTENT, after))
    assert sent.find(site, "alice", digest(CONTENT)) is None
    assert sent.hold(site, "alice", digest(CONTENT)) is None
    assert sent.begin(site, "alice", digest(CONTENT), len(CONTENT)) == after
    assert send(site, CONTENT).read_bytes() == CONTENT


def test_a_file_whose_last_byte_arrived_before_the_service_died_is_completed_when_it_is_asked_for(site: Site) -> None:
    sent.begin(site, "alice", digest(CONTENT), len(CONTENT))
    (part,) = kept(site)
    part.write_bytes(CONTENT)
    assert sent.begin(site, "alice", digest(CONTENT), len(CONTENT)) == len(CONTENT)
    assert sent.find(site, "alice", digest(CONTENT)) == kept(site)[0]


def test_an_empty_file_is_there_once_it_is_announced(site: Site) -> None:
    assert sent.begin(site, "alice", digest(b""), 0) == 0
    assert send(site, b"").read_bytes() == b""


def test_a_file_is_its_owners_and_its_hash_opens_it_to_nobody_else(site: Site) -> None:
    send(site, CONTENT)
    assert sent.find(site, "bob", digest(CONTENT)) is None
    assert sent.hold(site, "bob", digest(CONTENT)) is None
    assert sent.begin(site, "bob", digest(CONTENT), len(CONTENT)) == 0
    with pytest.raises(FileError, match="0 bytes of the file are here"):
        sent.append(site, "bob", digest(CONTENT), len(CONTENT), ())
    with pytest.raises(FileError, match="is not what was announced"):
        sent.append(site, "bob", digest(CONTENT), 0, [bytes(len(CONTENT))])
    assert sent.find(site, "bob", digest(CONTENT)) is None


NAMES = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="./%=2E\0~é-_", max_size=12),
    st.sampled_from(["", ".", "..", "../bob", "/etc", "a/b", "%2E%2E", "=", "é" * 99, "a" * 4096, "\udcff", "A", "a"]),
)


@given(first=NAMES, second=NAMES)
def test_every_user_has_a_folder_whatever_the_name_and_no_two_have_the_same(first: str, second: str) -> None:
    site = build.site("/site")
    folders = [sent._folder(site, name) for name in (first, second)]
    for folder in folders:
        assert folder.parent == Path("/site/state/sent")
        assert folder.name not in ("", ".", "..")
        assert len(os.fsencode(folder.name)) <= 255
        assert "/" not in folder.name
        assert "\0" not in folder.name
    assert (folders[0] == folders[1]) == (first == second)


@pytest.mark.parametrize("user", ["..", "../../x", "/", "", ".", "a" * 300, "müller", "a\nb", "\0", "*", "[a-z]"])
def test_users_of_odd_names_keep_their_files_in_folders_of_their_own(site: Site, user: str) -> None:
    path = send(site, b"odd", user)
    assert path.parent.parent == site.state / "sent"
    send(site, b"odd", "alice")
    assert len(list((site.state / "sent").iterdir())) == 2
    assert {each.name for each in site.state.iterdir()} == {"sent", "cache"}


@pytest.mark.parametrize("sha256", ["", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 65, "*" * 64, "a" * 64 + "\n"])
def test_what_is_no_sha256_is_refused_wherever_it_is_given(site: Site, sha256: str) -> None:
    send(site, CONTENT)
    for refused in (
        lambda: sent.begin(site, "alice", sha256, 1),
        lambda: sent.append(site, "alice", sha256, 0, [b"x"]),
        lambda: sent.find(site, "alice", sha256),
        lambda: sent.hold(site, "alice", sha256),
    ):
        with pytest.raises(FileError, match="is no SHA-256"):
            refused()


# --- what is refused ----------------------------------------------------------------------------------------------


def test_something_else_than_was_announced_is_removed(site: Site) -> None:
    sent.begin(site, "alice", digest(CONTENT), len(CONTENT))
    with pytest.raises(FileError, match="What arrived is not what was announced"):
        sent.append(site, "alice", digest(CONTENT), 0, chunks(b"x" + CONTENT[1:]))
    assert kept(site) == []
    assert send(site, CONTENT).read_bytes() == CONTENT


def test_a_beginning_that_was_damaged_on_the_disk_is_found_out_when_the_rest_has_arrived(site: Site) -> None:
    sent.begin(site, "alice", digest(CONTENT), len(CONTENT))
    with pytest.raises(ConnectionResetError):
        sent.append(site, "alice", digest(CONTENT), 0, cut(CONTENT, MEGA))
    kept(site)[0].write_bytes(bytes(MEGA))
    with pytest.raises(FileError, match="is not what was announced"):
        sent.append(site, "alice", digest(CONTENT), MEGA, chunks(CONTENT[MEGA:]))
    assert kept(site) == []


def test_more_than_was_announced_is_refused_as_soon_as_it_comes(site: Site) -> None:
    sent.begin(site, "alice", digest(CONTENT), len(CONTENT))
    came = 0

    def endless() -> Iterator[bytes]:
        nonlocal came
        while True:
            came += 1
            yield bytes(MEGA)

    with pytest.raises(FileError, match=f"longer than announced, {len(CONTENT)} bytes"):
        sent.append(site, "alice", digest(CONTENT), 0, endless())
    assert came == 4
    assert kept(site) == []


def test_a_file_that_nobody_announced_is_not_taken(site: Site) -> None:
    with pytest.raises(FileError, match="was not announced"):
        sent.append(site, "alice", digest(CONTENT), 0, chunks(CONTENT))
    assert not (site.state / "sent").exists()


@pytest.mark.parametrize("offset", [0, MEGA - 1, MEGA + 1, len(CONTENT)])
def test_bytes_that_do_not_follow_what_is_here_are_refused_and_nothing_is_lost(site: Site, offset: int) -> None:
    sent.begin(site, "alice", digest(CONTENT), len(CONTENT))
    sent.append(site, "alice", digest(CONTENT), 0, [CONTENT[:MEGA]])
    with pytest.raises(FileError, match=f"{MEGA} bytes of the file are here, not {offset}"):
        sent.append(site, "alice", digest(CONTENT), offset, [CONTENT[offset:]])
    assert send(site, CONTENT).read_bytes() == CONTENT


def test_of_two_who_send_the_same_file_the_second_is_told_so_and_the_first_goes_on(site: Site) -> None:
    sent.begin(site, "alice", digest(CONTENT), len(CONTENT))

    def first() -> Iterator[bytes]:
        yield CONTENT[:MEGA]
        assert sent.begin(site, "alice", digest(CONTENT), len(CONTENT)) == MEGA
        with pytest.raises(FileBusyError, match="is being sent already"):
            sent.append(site, "alice", digest(CONTENT), MEGA, [b"x"])
        with pytest.raises(FileBusyError, match="is being sent with another size"):
            sent.begin(site, "alice", digest(CONTENT), 7)
        yield CONTENT[MEGA:]

    assert sent.append(site, "alice", digest(CONTENT), 0, first()) == len(CONTENT)
    assert send(site, CONTENT).read_bytes() == CONTENT


def test_another_size_for_the_same_sha256_takes_the_place_of_what_nobody_sends(site: Site) -> None:
    sent.begin(site, "alice", digest(CONTENT), 7)
    assert send(site, CONTENT).read_bytes() == CONTENT
    assert len(kept(site)) == 1
    with pytest.raises(FileError, match=f"has {len(CONTENT)} bytes, not 7"):
        sent.begin(site, "alice", digest(CONTENT), 7)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel lets this process write no file beyond *size* bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_arrived_before_the_disk_was_full_stays_for_later(site: Site) -> None:
    sent.begin(site, "alice", digest(CONTENT), len(CONTENT))
    with (
        largest_file(2 * MEGA + 100),
        pytest.raises(FileError, match=r"its disk is full. What has arrived stays for a day"),
    ):
        sent.append(site, "alice", digest(CONTENT), 0, chunks(CONTENT))
    assert sent.begin(site, "alice", digest(CONTENT), len(CONTENT)) == 2 * MEGA + 100
    assert send(site, CONTENT).read_bytes() == CONTENT


# --- room ---------------------------------------------------------------------------------------------------------


def test_a_file_bigger_than_the_quota_is_refused_before_a_byte_is_sent(tmp_path: Path) -> None:
    site = site_with(tmp_path, 3)
    with pytest.raises(FileError, match=r"3\.0 MB, and alice has room for 3 MB here"):
        sent.begin(site, "alice", digest(CONTENT), len(CONTENT))
    assert not (site.state / "sent").exists()


def test_the_files_used_least_recently_make_room(tmp_path: Path) -> None:
    site = site_with(tmp_path, 5)
    first, second, third = (send(site, megabytes(1, seed)) for seed in (1, 2, 3))
    for path, seconds in ((first, 300), (second, 200), (third, 100)):
        age(path, seconds)
    assert sent.find(site, "alice", digest(megabytes(1, 1))) == first  # used now
    fourth = send(site, megabytes(3, 4))
    assert kept(site) == sorted([first, third, fourth])


def test_a_file_in_use_makes_no_room_until_nobody_has_it_open(tmp_path: Path) -> None:
    site = site_with(tmp_path, 2)
    old, new = send(site, megabytes(1, 1)), send(site, megabytes(1, 2))
    age(old, 1000)
    held = sent.hold(site, "alice", digest(megabytes(1, 1)))
    assert held is not None
    age(old, 1000)
    lent = os.dup(held[0].fileno())
    held[0].close()
    third = send(site, megabytes(1, 3))
    assert kept(site) == sorted([old, third])
    assert not new.exists()
    with pytest.raises(FileError, match=r"No room: with the files that are in use or on their way it makes 3 MB"):
        sent.begin(site, "alice", digest(megabytes(2, 4)), 2 * MEGA)
    os.close(lent)
    send(site, megabytes(2, 4))


def test_what_is_still_to_come_has_its_room_as_long_as_it_comes(tmp_path: Path) -> None:
    site = site_with(tmp_path, 4)
    sent.begin(site, "alice", digest(CONTENT), len(CONTENT))
    with pytest.raises(FileError, match=r"No room.*it makes 5 MB"):
        sent.begin(site, "alice", digest(b"x"), 1)
    (part,) = kept(site)
    age(part, sent.IDLE_SECONDS + 1)
    send(site, b"x")
    with pytest.raises(FileError, match="was not announced, or has been removed"):
        sent.append(site, "alice", digest(CONTENT), 0, chunks(CONTENT))


def test_a_file_on_its_way_makes_no_room_however_slow_it_is(tmp_path: Path) -> None:
    site = site_with(tmp_path, 4)
    sent.begin(site, "alice", digest(CONTENT), len(CONTENT))

    def slow() -> Iterator[bytes]:
        yield CONTENT[:1]
        age(kept(site)[0], sent.PARTIAL_SECONDS + 1)
        with pytest.raises(FileError, match="No room"):
            sent.begin(site, "alice", digest(b"x"), 1)
        sent.purge(site)
        yield CONTENT[1:]

    assert sent.append(site, "alice", digest(CONTENT), 0, slow()) == len(CONTENT)


def test_the_files_of_others_take_no_room(tmp_path: Path) -> None:
    site = site_with(tmp_path, 2)
    send(site, megabytes(2, 1), "bob")
    send(site, megabytes(2, 1), "alice")
    assert len(kept(site, "bob")) == 1


def test_small_files_count_as_a_megabyte_so_that_nobody_fills_the_disk_with_names(tmp_path: Path) -> None:
    site = site_with(tmp_path, 3)
    for number in range(5):
        send(site, b"%d" % number)
    assert len(kept(site)) == 3


@pytest.mark.parametrize("way", ["begin", "purge"])
def test_what_was_never_completed_goes_after_a_day(site: Site, way: str) -> None:
    whole = send(site, b"whole")
    for content, seconds in ((b"old", sent.PARTIAL_SECONDS + 1), (b"new", sent.PARTIAL_SECONDS - 100)):
        sent.begin(site, "alice", digest(content), 3)
        age(sent._part(whole.parent, digest(content), 3), seconds)
    age(whole, 100 * sent.PARTIAL_SECONDS)
    if way == "purge":
        sent.purge(site)
    else:
        sent.begin(site, "alice", digest(b"whole"), 5)
    assert kept(site) == sorted([whole, sent._part(whole.parent, digest(b"new"), 3)])
