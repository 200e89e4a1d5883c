"""Uploaded files come into place whole, within their limit, for HTTP and TFTP."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest

from kadeploy.boot import uploads
from kadeploy.errors import FileError
from kadeploy.files import MEGA


def test_a_file_comes_into_place_readable_by_all(tmp_path: Path) -> None:
    uploads.place(io.BytesIO(b"kernel"), tmp_path / "pxe-alice--vmlinuz", MEGA)
    (placed,) = tmp_path.iterdir()
    assert placed.read_bytes() == b"kernel"
    assert stat.S_IMODE(placed.stat().st_mode) == 0o644


def test_a_file_that_is_too_big_leaves_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "pxe-alice--vmlinuz"
    path.write_bytes(b"before")
    with pytest.raises(FileError, match="pxe-alice--vmlinuz: more than 1 MB"):
        uploads.place(io.BytesIO(bytes(MEGA + 1)), path, MEGA)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("linkable", [True, False])
def test_the_file_for_tftp_is_a_link_or_else_a_copy(
    linkable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "http" / "name", tmp_path / "tftp" / "name"
    for each in (path, other):
        each.parent.mkdir()
    path.write_bytes(b"kernel")
    other.write_bytes(b"before")
    if not linkable:
        monkeypatch.setattr(os, "link", _refuse)
    for _ in range(2):  # the second time both are the same file already
        uploads._link(path, other)
        assert other.read_bytes() == b"kernel"
        assert other.samefile(path) == linkable
        assert stat.S_IMODE(other.stat().st_mode) == 0o644
    assert list(other.parent.iterdir()) == [other]


def _refuse(_source: Path, _target: Path) -> None:
    raise OSError(18, "Invalid cross-device link")
