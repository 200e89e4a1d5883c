"""Files of users for their boot profiles: whose they are, where loaders find them, and how much there may be."""

from __future__ import annotations

import io
import os
import stat
import time
from pathlib import Path

import msgspec
import pytest

from kadeploy.boot import uploads
from kadeploy.caller import Account
from kadeploy.config.site import BootFolders
from kadeploy.errors import ConfigError, FileError, OptionError
from kadeploy.files import MEGA
from tests.unit import build

ALICE = Account("alice", os.geteuid(), os.getegid(), Path("/root"))
BOB = Account("bob", os.geteuid(), os.getegid(), Path("/root"))


@pytest.fixture
def boot(tmp_path: Path) -> BootFolders:
    return msgspec.structs.replace(build.boot_folders(tmp_path), uploads_max_mb=1)


def store(boot: BootFolders, *sources: Path, caller: Account = ALICE) -> list[Path]:
    """Where the sources are under *http_root*."""
    names = uploads.store([str(source) for source in sources], boot, caller, Path(boot.http_root).parent / "fetched")
    return [Path(boot.http_root) / name for name in names]


def source(folder: Path, name: str, content: bytes | int = b"content") -> Path:
    """A user's file; a number is its size."""
    path = folder / name
    path.write_bytes(bytes(content) if isinstance(content, int) else content)
    return path


def unused(path: Path, seconds: float = 2 * uploads.IN_USE) -> None:
    """Nobody has read or written it for so long."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_file_is_found_over_http_and_tftp_under_its_users_name(tmp_path: Path, boot: BootFolders) -> None:
    (path,) = store(boot, source(tmp_path, "vmlinuz", b"kernel"))
    assert path == tmp_path / "http" / "kernels" / "pxe-alice--vmlinuz"
    for each in (path, tmp_path / "tftp" / "kernels" / "pxe-alice--vmlinuz"):
        assert each.read_bytes() == b"kernel"
        assert stat.S_IMODE(each.stat().st_mode) == 0o644


def test_both_roots_may_be_one_folder(tmp_path: Path, boot: BootFolders) -> None:
    (path,) = store(msgspec.structs.replace(boot, tftp_root=boot.http_root), source(tmp_path, "vmlinuz", b"kernel"))
    assert path.read_bytes() == b"kernel"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_later_file_of_the_same_name_takes_the_place_of_the_users_own_only(tmp_path: Path, boot: BootFolders) -> None:
    (hers,) = store(boot, source(tmp_path, "vmlinuz", b"first"))
    (his,) = store(boot, source(tmp_path, "vmlinuz", b"his"), caller=BOB)
    store(boot, source(tmp_path, "vmlinuz", b"second"))
    assert (hers.read_bytes(), his.read_bytes()) == (b"second", b"his")
    assert (tmp_path / "tftp" / "kernels" / hers.name).read_bytes() == b"second"


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path, boot: BootFolders) -> None:
    victim = source(tmp_path, "victim", b"precious")
    (path,) = store(boot, source(tmp_path, "vmlinuz"))
    path.unlink()
    path.symlink_to(victim)
    store(boot, source(tmp_path, "vmlinuz", b"kernel"))
    assert victim.read_bytes() == b"precious"
    assert not path.is_symlink()


@pytest.mark.parametrize("name", ["vm linuz", "vmlinuz;reboot", "été", "v" * 151])
def test_names_that_boot_loaders_would_not_understand_are_refused(tmp_path: Path, boot: BootFolders, name: str) -> None:
    with pytest.raises(OptionError, match="plain names"):
        store(boot, source(tmp_path, name))


def test_a_user_cannot_take_the_name_of_another_ones_files(boot: BootFolders) -> None:
    with pytest.raises(OptionError, match="ends the user's name"):
        uploads.name_of("/home/x/vmlinuz", Account("alice--x", 1000, 1000, Path("/home/x")))


def test_a_url_gives_its_last_part_as_name() -> None:
    assert uploads.name_of("https://host/path/vmlinuz?version=6", ALICE) == "pxe-alice--vmlinuz"


def test_two_files_of_one_name_in_one_request_are_refused(tmp_path: Path, boot: BootFolders) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(OptionError, match="the same name: pxe-alice--vmlinuz"):
        store(boot, source(tmp_path, "vmlinuz"), source(tmp_path / "other", "vmlinuz"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root opens files as somebody else")
def test_a_file_that_its_user_may_not_read_is_refused(tmp_path: Path, boot: BootFolders) -> None:
    secret = source(tmp_path, "shadow", b"secret")
    secret.chmod(0o600)
    with pytest.raises(FileError, match="shadow"):
        store(boot, secret, caller=Account("nobody", 65534, 65534, Path("/nonexistent")))
    assert not (tmp_path / "http" / "kernels" / "pxe-nobody--shadow").exists()


def test_a_file_that_does_not_fit_is_refused_and_nothing_is_left(tmp_path: Path, boot: BootFolders) -> None:
    with pytest.raises(FileError, match=r"no room.*uploads_max_mb is 1"):
        store(boot, source(tmp_path, "vmlinuz", MEGA + 1))
    assert list((tmp_path / "http" / "kernels").iterdir()) == []


@pytest.mark.parametrize("hours", [(4, 3, 2), (2, 3, 4)])
def test_files_that_nobody_used_for_longest_make_room(
    tmp_path: Path, boot: BootFolders, hours: tuple[int, ...]
) -> None:
    stored = [store(boot, source(tmp_path, name, MEGA // 3))[0] for name in ("a", "b", "c")]
    for path, age in zip(stored, hours, strict=True):
        unused(path, age * uploads.IN_USE)
    store(boot, source(tmp_path, "new", MEGA // 2))
    assert [path.exists() for path in stored] == [age == 2 for age in hours]
    gone = stored[hours.index(4)]
    assert not (tmp_path / "tftp" / "kernels" / gone.name).exists()


@pytest.mark.parametrize("use", ["written", "read"])
def test_a_file_that_was_used_within_the_hour_stays_and_the_new_one_is_refused(
    tmp_path: Path, boot: BootFolders, use: str
) -> None:
    """Nodes may be about to boot from it."""
    (path,) = store(boot, source(tmp_path, "vmlinuz", MEGA * 2 // 3))
    long_ago, now = time.time() - 2 * uploads.IN_USE, time.time()
    os.utime(path, (now, long_ago) if use == "read" else (long_ago, now))
    with pytest.raises(FileError, match="no room"):
        store(boot, source(tmp_path, "other", MEGA * 2 // 3))
    assert path.exists()


def test_ones_own_old_file_does_not_count_when_it_is_replaced(tmp_path: Path, boot: BootFolders) -> None:
    store(boot, source(tmp_path, "vmlinuz", MEGA * 2 // 3))
    (path,) = store(boot, source(tmp_path, "vmlinuz", MEGA * 3 // 4))
    assert path.stat().st_size == MEGA * 3 // 4


def test_files_of_images_are_not_removed_for_uploads(tmp_path: Path, boot: BootFolders) -> None:
    with uploads.locked(boot) as folder:
        theirs = source(folder, "env-0-vmlinuz", MEGA)
    unused(theirs)
    store(boot, source(tmp_path, "vmlinuz", MEGA // 2))
    assert theirs.exists()


def test_a_stream_that_does_not_end_is_cut_off_and_nothing_is_left(tmp_path: Path) -> None:
    """A file may grow while it is copied."""
    with pytest.raises(FileError, match="more than 1 MB"):
        uploads.place(io.BytesIO(bytes(2 * MEGA)), tmp_path / "vmlinuz", MEGA)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named_with_the_settings(tmp_path: Path, boot: BootFolders) -> None:
    (tmp_path / "http").write_text("in the way")
    with pytest.raises(ConfigError, match=r"boot\.http_root and boot\.tftp_root"):
        store(boot, source(tmp_path, "vmlinuz"))


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
