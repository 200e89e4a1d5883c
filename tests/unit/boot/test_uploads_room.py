"""Uploaded boot files: which of them go when room is needed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kadeploy.boot import uploads
from kadeploy.caller import caller
from kadeploy.config.site import BootFolders
from kadeploy.files import MEGA

ME = caller()
HOURS = 3600.0


@pytest.fixture
def boot(tmp_path: Path) -> BootFolders:
    """Room for three megabytes."""
    return BootFolders(
        tftp_root=str(tmp_path / "tftp"), http_root=str(tmp_path / "http"), http_url="http://x/", uploads_max_mb=3
    )


def upload(boot: BootFolders, tmp_path: Path, name: str, *, written: float = 0, read: float = 0) -> Path:
    """A file of one megabyte, uploaded and read last that many seconds ago."""
    source = tmp_path / name
    source.write_bytes(b"x" * MEGA)
    [stored] = uploads.store([str(source)], boot, ME, tmp_path / "fetched")
    path, now = Path(boot.http_root) / stored, time.time()
    os.utime(path, (now - read, now - written))
    return path


def names(root: str) -> set[str]:
    return {path.name.rpartition("--")[2] for path in Path(root).glob(f"*/{uploads.PREFIX}*")}


def test_the_file_that_nobody_used_for_longest_goes_from_both_places_and_no_more_than_needed(
    boot: BootFolders, tmp_path: Path
) -> None:
    upload(boot, tmp_path, "older", written=30 * HOURS, read=20 * HOURS)
    upload(boot, tmp_path, "oldest", written=29 * HOURS, read=29 * HOURS)
    upload(boot, tmp_path, "old", written=10 * HOURS, read=10 * HOURS)
    upload(boot, tmp_path, "new")
    assert names(boot.http_root) == names(boot.tftp_root) == {"older", "old", "new"}


def test_a_file_that_a_node_has_just_read_stays_however_old_it_is(boot: BootFolders, tmp_path: Path) -> None:
    upload(boot, tmp_path, "in-use", written=900 * HOURS, read=0.9 * HOURS)
    upload(boot, tmp_path, "idle", written=2 * HOURS, read=2 * HOURS)
    upload(boot, tmp_path, "just-written", written=0.9 * HOURS, read=900 * HOURS)
    upload(boot, tmp_path, "new")
    assert names(boot.http_root) == {"in-use", "just-written", "new"}


def test_a_file_that_is_read_over_tftp_stays_where_tftp_has_a_copy_of_its_own(
    boot: BootFolders, tmp_path: Path
) -> None:
    """On another disk there is no hard link, and the times of the other file tell nothing."""
    path = upload(boot, tmp_path, "in-use", written=9 * HOURS, read=9 * HOURS)
    copy = Path(boot.tftp_root) / path.parent.name / path.name
    copy.unlink()
    copy.write_bytes(path.read_bytes())
    upload(boot, tmp_path, "idle", written=2 * HOURS, read=2 * HOURS)
    upload(boot, tmp_path, "new")
    upload(boot, tmp_path, "newer")
    assert names(boot.http_root) == {"in-use", "new", "newer"}
