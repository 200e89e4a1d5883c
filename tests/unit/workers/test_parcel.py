"""Run folders as archives: what goes and comes is what was there, and no archive writes where it must not."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kadeploy.errors import FileError
from kadeploy.files import MEGA
from kadeploy.runner import request
from kadeploy.workers import parcel

NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=30).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


def archive(pieces: Iterable[bytes]) -> io.BytesIO:
    return io.BytesIO(b"".join(pieces))


def there(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    """Those that there is room for beside the others."""
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:  # a file is where its folder would be, or the other way round
            continue
    return there(folder)


@given(st.dictionaries(PATHS, st.binary(max_size=2000), max_size=8))
@example({"a" * 150 + "/" + "b" * 150: b"long", "ü\n\x1b": b"odd", "empty": b"", "block": bytes(512)})
def test_whatever_a_run_has_left_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder, into = tmp_path_factory.mktemp("from"), tmp_path_factory.mktemp("into")
    left = put(folder, files)
    parcel.unpack(archive(parcel.results(folder)), into, parcel.MOST)
    sent = {name: content for name, content in left.items() if name.split("/")[0] not in ("files", request.FILE_NAME)}
    assert there(into) == sent
    assert all(path.stat().st_mode & 0o077 == 0 for path in into.rglob("*"))


def test_a_file_of_many_pieces_is_never_whole_in_memory(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(3 * MEGA + 17))
    pieces = list(parcel.results(tmp_path))
    assert max(map(len, pieces)) <= MEGA
    into = tmp_path / "into"
    into.mkdir()
    parcel.unpack(archive(pieces), into)
    assert (into / "large").read_bytes() == (tmp_path / "large").read_bytes()


def test_a_worker_gets_the_request_its_files_and_the_secret_and_nothing_else(tmp_path: Path) -> None:
    run, secret = tmp_path / "run", tmp_path / "secret-A-0"
    put(run, {request.FILE_NAME: b"plugin: x", "files/0/post.tgz": b"post", "lease.json": b"key", "log": b"log"})
    secret.write_bytes(b"s" * 32)
    into = tmp_path / "into"
    into.mkdir()
    parcel.unpack(archive(parcel.packed(run, secret)), into)
    assert there(into) == {request.FILE_NAME: b"plugin: x", "files/0/post.tgz": b"post", parcel.KEY: b"s" * 32}
    alone = tmp_path / "alone"
    alone.mkdir()
    parcel.unpack(archive(parcel.packed(run, None)), alone)
    assert sorted(there(alone)) == ["files/0/post.tgz", request.FILE_NAME]


def test_links_sockets_and_pipes_of_a_run_folder_are_left_where_they_are(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    put(run, {"log": b"log"})
    (run / "file").symlink_to(outside / "secret")
    (run / "folder").symlink_to(outside)
    (run / "nowhere").symlink_to("nothing")
    os.mkfifo(run / "pipe")
    into = tmp_path / "into"
    into.mkdir()
    parcel.unpack(archive(parcel.results(run)), into)
    assert there(into) == {"log": b"log"}


def test_a_file_that_is_cut_short_while_it_is_sent_spoils_the_archive(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(3 * MEGA))
    pieces = parcel.results(tmp_path)
    next(pieces)
    os.truncate(tmp_path / "log", 10)
    with pytest.raises(FileError, match="cut short"):
        list(pieces)


# --- hostile archives -------------------------------------------------------------------------------------------------


def made(*members: tarfile.TarInfo, how: int = tarfile.PAX_FORMAT) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=how) as file:
        for member in members:
            file.addfile(member, io.BytesIO(bytes(max(0, member.size))))
    buffer.seek(0)
    return buffer


def member(name: str, size: int = 3, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def headed(**pax: str) -> tarfile.TarInfo:
    info = member("x")
    info.pax_headers = {name.replace("_", "."): value for name, value in pax.items()}
    return info


HOSTILE: dict[str, Callable[[], io.BytesIO]] = {
    "absolute": lambda: made(member("/tmp/evil")),
    "two slashes": lambda: made(member("//tmp/evil")),
    "absolute by a header": lambda: made(headed(path="/tmp/evil")),
    "above": lambda: made(member("../evil")),
    "above within": lambda: made(member("a/../../evil")),
    "the folder itself": lambda: made(member(".")),
    "no name": lambda: made(member("")),
    "a name with a null": lambda: made(headed(path="a\0b")),
    "a link": lambda: made(member("link", 0, tarfile.SYMTYPE, "/etc")),
    "a hard link": lambda: made(member("first"), member("link", 0, tarfile.LNKTYPE, "first")),
    "a device": lambda: made(member("sda", 0, tarfile.BLKTYPE)),
    "a terminal": lambda: made(member("tty", 0, tarfile.CHRTYPE)),
    "a pipe": lambda: made(member("pipe", 0, tarfile.FIFOTYPE)),
    "a folder": lambda: made(member("folder", 0, tarfile.DIRTYPE)),
    "through a link that is there": lambda: made(member("outward/evil")),
    "in place of a link that is there": lambda: made(member("outward")),
    "in place of a link to a file": lambda: made(member("canary")),
    "a file that is there": lambda: made(member("there")),
    "below a file that is there": lambda: made(member("there/evil")),
    "twice": lambda: made(member("new"), member("new")),
    "too large": lambda: made(member("large", 2 * MEGA)),
    "too large together": lambda: made(*(member(f"n{number}", MEGA // 3) for number in range(4))),
    "larger than it is": lambda: io.BytesIO(member("large", 500 * MEGA).tobuf() + bytes(1024)),
    "as large as nothing": lambda: io.BytesIO(member("large", 8**12).tobuf(tarfile.GNU_FORMAT) + bytes(1024)),
    "smaller than nothing": lambda: io.BytesIO(member("small", -512).tobuf(tarfile.GNU_FORMAT) + bytes(1024)),
    "sizes by a header": lambda: made(headed(size="-99999999999999")),
    "holes": lambda: made(headed(GNU_sparse_size=str(10**15), GNU_sparse_map=f"0,{10**15}")),
    "odd holes": lambda: made(headed(GNU_sparse_size="many", GNU_sparse_map="a,b")),
    "too deep": lambda: made(member("a/" * 500 + "x")),
    "too long a name": lambda: made(member("a" * 300)),
    "too many": lambda: made(*(member(f"{number}", 0) for number in range(parcel._MOST_FILES + 1))),
    "cut off in a file": lambda: io.BytesIO(made(member("x", 5000)).getvalue()[:3000]),
    "cut off in a header": lambda: io.BytesIO(made(member("x")).getvalue()[:100]),
    "nothing": io.BytesIO,
    "no archive": lambda: io.BytesIO(b"no archive" * 1000),
    "packed": lambda: io.BytesIO(b"\x1f\x8b\x08" + bytes(2000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_writes_nowhere_else(name: str, tmp_path: Path) -> None:
    into, outside = tmp_path / "into", tmp_path / "outside"
    into.mkdir()
    outside.mkdir()
    (outside / "canary").write_bytes(b"canary")
    (into / "there").write_bytes(b"there")
    (into / "outward").symlink_to(outside)
    (into / "canary").symlink_to(outside / "canary")
    with pytest.raises(FileError):
        parcel.unpack(HOSTILE[name](), into, MEGA)
    assert there(outside) == {"canary": b"canary"}
    assert (into / "there").read_bytes() == b"there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["into", "outside"]
    assert sum(path.lstat().st_size for path in into.rglob("*")) < 2 * MEGA


GOOD = made(member("a/b", 700), member("c", 3), member("ü" * 120, 5)).getvalue()


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=12), st.integers(0, len(GOOD)))
def test_a_damaged_archive_is_unpacked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, damages: list[tuple[int, int]], length: int
) -> None:
    content = bytearray(GOOD[: length or None])
    for place, value in damages:
        if place < len(content):
            content[place] = value
    into = tmp_path_factory.mktemp("into")
    with suppress(FileError):
        parcel.unpack(io.BytesIO(content), into, MEGA)
    assert not [path for path in into.rglob("*") if path.is_symlink()]
