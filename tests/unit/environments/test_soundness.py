"""Images and archives that are not what their kind says, or not whole: found before a node loses its disk to them."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from kadeploy import files
from kadeploy.caller import caller
from kadeploy.environments import soundness
from kadeploy.environments.image import ARCHIVE_KINDS, COMPRESSIONS, KINDS
from kadeploy.errors import FileError
from tests.unit import build

WHO = caller()
PACKED = [name for name, kind in KINDS.items() if kind.form != "fsa"]
CONTENT = random.Random(0).randbytes(300_000)


def tar(content: bytes = CONTENT) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        member = tarfile.TarInfo("etc/file")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return plain.getvalue()


def packed(kind: str, plain: bytes | None = None) -> bytes:
    """A file of *kind*: of an archive, or of what a disk may hold, unless *plain* says what is in it."""
    content = (tar() if KINDS[kind].form == "tar" else CONTENT) if plain is None else plain
    command = KINDS[kind].compression.pack.split()
    return subprocess.run(command, input=content, capture_output=True, check=True).stdout


def check(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    stream, found = files.hold(str(path), tmp_path, WHO)
    with stream:
        soundness.require_whole(found, stream, kind, "image", tmp_path / "cache")


def refusal(tmp_path: Path, content: bytes, kind: str) -> str:
    with pytest.raises(FileError) as refused:
        check(tmp_path, content, kind)
    text = str(refused.value)
    assert text.startswith("image: ")
    assert text.isprintable()
    return text


@pytest.mark.parametrize("kind", PACKED)
def test_a_whole_file_of_its_kind_is_taken(tmp_path: Path, kind: str) -> None:
    check(tmp_path, packed(kind), kind)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("cut", [1, 30, 100_000])
def test_a_truncated_file_is_refused_in_the_words_of_its_program(tmp_path: Path, kind: str, cut: int) -> None:
    program = KINDS[kind].compression.unpack[0]
    said = refusal(tmp_path, packed(kind)[:-cut], kind)
    assert f"image: is not a sound file of kind {kind}: {program} says: " in said
    assert said.endswith("Make or copy it anew.")


@pytest.mark.parametrize("kind", PACKED)
def test_a_file_with_a_hole_in_it_is_refused(tmp_path: Path, kind: str) -> None:
    content = bytearray(packed(kind))
    content[100_000:110_000] = bytes(10_000)
    assert "says: " in refusal(tmp_path, bytes(content), kind)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("other", COMPRESSIONS, ids=lambda each: each.name)
def test_a_file_of_another_compression_is_refused_with_the_kind_it_is(tmp_path: Path, kind: str, other: object) -> None:
    name = other.tar if KINDS[kind].form == "tar" else other.dd  # type: ignore[attr-defined]
    if name == kind:
        check(tmp_path, packed(name), kind)
        return
    said = refusal(tmp_path, packed(name), kind)
    assert said == f"image: is not of kind {kind}: it is compressed by {other.name}: say {name}."  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"", "tgz", "it is empty: make or copy it anew"),
        (b"\n<!DOCTYPE html><title>404</title>", "tar.zst", "it is a web page"),
        (tar(), "tgz", "an archive that nothing has compressed: compress it by gzip"),
        (b"PK\x03\x04" + bytes(600), "tgz", "does not begin as files of gzip do"),
        (b"\x1b]0;owned\x07" + bytes(600), "txz", "does not begin as files of xz do"),
        (packed("tgz", CONTENT), "tgz", "what it holds is no tar archive; if it is a disk, say ddgz"),
        (packed("ddgz", tar()), "ddgz", "it holds a tar archive: say tgz"),
        (packed("tgz", tar()[:-700]), "tgz", "the tar archive in it is cut off after"),
        (packed("tgz", b""), "tgz", "there is nothing in it"),
        (packed("ddgz", b""), "ddgz", "there is nothing in it"),
        (b"hello" + bytes(600), "fsa3", "it does not begin as files of fsarchiver do"),
        (packed("tgz"), "fsa3", "it is compressed by gzip, which fsarchiver does not read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_what_is_wrong_is_told_with_what_to_do(tmp_path: Path, content: bytes, kind: str, said: str) -> None:
    assert said in refusal(tmp_path, content, kind)


@pytest.mark.parametrize("kind", ARCHIVE_KINDS)
def test_an_empty_archive_is_one(tmp_path: Path, kind: str) -> None:
    check(tmp_path, packed(kind, bytes(10240)), kind)


def test_a_disk_that_begins_with_zeros_is_one(tmp_path: Path) -> None:
    check(tmp_path, packed("ddgz", bytes(1 << 20)), "ddgz")


def test_two_files_behind_each_other_are_whole_as_their_programs_say(tmp_path: Path) -> None:
    plain = tar()
    for kind in PACKED:
        if KINDS[kind].form == "tar":
            check(tmp_path, packed(kind, plain[:1000]) + packed(kind, plain[1000:]), kind)


def test_a_good_file_is_looked_through_once(tmp_path: Path) -> None:
    check(tmp_path, packed("tgz"), "tgz")
    closed, found = files.hold(str(tmp_path / "image"), tmp_path, WHO)
    closed.close()
    soundness.require_whole(found, closed, "tgz", "image", tmp_path / "cache")
    with pytest.raises(ValueError, match="closed file"):
        soundness.require_whole(found, closed, "txz", "image", tmp_path / "cache")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as somebody else")
def test_the_program_runs_with_nobodys_rights(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = open_folder / "bin" / "gzip"
    spy.parent.mkdir()
    spy.write_text("#!/bin/sh\nid -u >&2\nid -G >&2\nexit 1\n", encoding="utf-8")
    for path in (spy.parent, spy):
        path.chmod(0o755)
    monkeypatch.setattr(os, "defpath", f"{spy.parent}:{os.defpath}")
    with pytest.raises(FileError, match="gzip says: 65534"):
        check(open_folder, build.packed(), "tgz")


def test_what_unpacks_to_gigabytes_costs_no_memory_and_is_given_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = subprocess.run("head -c 2G /dev/zero | gzip -1", shell=True, capture_output=True, check=True).stdout
    monkeypatch.setattr(soundness, "TIME_LIMIT", 0.2)
    begun = time.monotonic()
    check(tmp_path, bomb, "ddgz")
    assert time.monotonic() - begun < 5
