"""Uploaded boot files: where they end up, and which of them go when room is needed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kadeploy.boot import uploads
from kadeploy.caller import caller
from kadeploy.config.site import BootFolders
from kadeploy.errors import FileError
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


def test_an_upload_is_where_http_and_tftp_find_it_and_bears_its_users_name(boot: BootFolders, tmp_path: Path) -> None:
    path = upload(boot, tmp_path, "vmlinuz")
    assert path.name == f"pxe-{ME.name}--vmlinuz"
    assert (Path(boot.tftp_root) / path.parent.name / path.name).read_bytes() == path.read_bytes()


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


def test_when_all_files_are_in_use_the_upload_is_refused_and_none_goes(boot: BootFolders, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        upload(boot, tmp_path, name, written=9 * HOURS, read=0.9 * HOURS)
    with pytest.raises(FileError, match=r"no room: .* makes 4\.0 MB, and boot\.uploads_max_mb is 3"):
        upload(boot, tmp_path, "new")
    assert names(boot.http_root) == names(boot.tftp_root) == {"a", "b", "c"}


def test_a_newer_file_of_the_same_name_takes_the_room_of_the_one_it_replaces(boot: BootFolders, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "a"):
        upload(boot, tmp_path, name)
    assert names(boot.http_root) == {"a", "b", "c"}


def test_files_of_the_site_itself_are_never_removed(boot: BootFolders, tmp_path: Path) -> None:
    upload(boot, tmp_path, "a", written=9 * HOURS, read=9 * HOURS)
    kernel = Path(boot.http_root) / uploads.FILES_FOLDER / "deploy-vmlinuz"
    kernel.write_bytes(b"x" * 5 * MEGA)
    os.utime(kernel, (0, 0))
    for name in ("b", "c", "d"):
        upload(boot, tmp_path, name)
    assert kernel.exists()
