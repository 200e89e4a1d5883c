"""Files of users for their boot profiles: whose they are, where loaders find them, and how much there may be."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from functools import partial
from pathlib import Path

import msgspec
import pytest

from kadeploy.boot import uploads
from kadeploy.caller import Account
from kadeploy.cli import operation
from kadeploy.config.site import BootFolders
from kadeploy.errors import ConfigError, FileError, OptionError
from kadeploy.files import MEGA
from kadeploy.operations.sources import OfAccount
from tests.unit import build

ALICE = Account("alice", os.geteuid(), os.getegid(), Path("/root"))
BOB = Account("bob", os.geteuid(), os.getegid(), Path("/root"))


@pytest.fixture
def boot(tmp_path: Path) -> BootFolders:
    return msgspec.structs.replace(build.boot_folders(tmp_path), uploads_max_mb=1)


def opener(boot: BootFolders, caller: Account) -> uploads.Opener:
    """Opens what *caller* may read; what comes over http is kept in ``fetched`` meanwhile."""
    folder = Path(boot.http_root).parent
    return partial(OfAccount(build.site(folder), caller).opened, into=folder / "fetched")


def store(boot: BootFolders, *sources: Path, caller: Account = ALICE) -> list[Path]:
    """Where the sources are under *http_root*."""
    names = uploads.store([str(source) for source in sources], boot, caller.name, opener(boot, caller))
    return [Path(boot.http_root) / name for name in names]


def source(folder: Path, name: str, content: bytes | int = b"content") -> Path:
    """A user's file; a number is its size."""
    path = folder / name
    path.write_bytes(bytes(content) if isinstance(content, int) else content)
    return path


def test_a_file_is_found_over_http_and_tftp_under_its_users_name(tmp_path: Path, boot: BootFolders) -> None:
    (path,) = store(boot, source(tmp_path, "vmlinuz", b"kernel"))
    assert path == tmp_path / "http" / "kernels" / "pxe-alice--vmlinuz"
    for each in (path, tmp_path / "tftp" / "kernels" / "pxe-alice--vmlinuz"):
        assert each.read_bytes() == b"kernel"
        assert stat.S_IMODE(each.stat().st_mode) == 0o644


def test_the_callers_home_counts_for_every_file_of_the_option_and_not_roots(
    tmp_path: Path, boot: BootFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    source(tmp_path, "vmlinuz", b"kernel")
    source(tmp_path, "initrd", b"initrd")
    named = [Path(word) for word in operation.uploads("~/vmlinuz,~/initrd")]
    stored = store(boot, *named, caller=ALICE._replace(home=tmp_path))
    assert [path.read_bytes() for path in stored] == [b"kernel", b"initrd"]


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
        uploads.name_of("/home/x/vmlinuz", "alice--x")


def test_a_url_gives_its_last_part_as_name() -> None:
    assert uploads.name_of("https://host/path/vmlinuz?version=6", "alice") == "pxe-alice--vmlinuz"


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


def test_a_stream_that_does_not_end_is_cut_off_and_nothing_is_left(tmp_path: Path, boot: BootFolders) -> None:
    """A file may grow while it is copied."""
    with pytest.raises(FileError, match="uploads_max_mb is 1"):
        store(boot, source(tmp_path, "vmlinuz", 2 * MEGA))
    assert list((tmp_path / "http" / "kernels").iterdir()) == []


@pytest.mark.parametrize(("user", "file"), [("a-", "x"), ("a", "x"), ("a", "x--y"), ("a", "x-")])
def test_a_stored_name_tells_user_and_file_apart(boot: BootFolders, user: str, file: str) -> None:
    name = uploads.name_of(file, user)
    readings = [
        (name[len(uploads.PREFIX) : at], name[at + 2 :])
        for at in range(len(uploads.PREFIX), len(name))
        if name[at : at + 2] == "--"
    ]
    possible = []
    for each, base in readings:
        with contextlib.suppress(OptionError):
            possible += [(each, base)] * (uploads.name_of(base, each) == name)
    assert possible == [(user, file)]


def test_a_file_whose_name_begins_with_a_dash_is_refused_with_what_to_do(tmp_path: Path, boot: BootFolders) -> None:
    with pytest.raises(OptionError, match="the first of them no -"):
        store(boot, source(tmp_path, "-x"))


def test_a_folder_that_cannot_be_made_is_named_with_the_settings(tmp_path: Path, boot: BootFolders) -> None:
    (tmp_path / "http").write_text("in the way")
    with pytest.raises(ConfigError, match=r"boot\.http_root, boot\.tftp_root"):
        store(boot, source(tmp_path, "vmlinuz"))


# --- room -------------------------------------------------------------------------------------------------------

HOURS = 3600.0


@pytest.fixture
def room(boot: BootFolders) -> BootFolders:
    """Room for three megabytes."""
    return msgspec.structs.replace(boot, uploads_max_mb=3)


def upload(room: BootFolders, tmp_path: Path, name: str, *, written: float = 0, read: float = 0) -> Path:
    """A file of one megabyte, uploaded and read last that many seconds ago."""
    source = tmp_path / name
    source.write_bytes(b"x" * MEGA)
    [stored] = uploads.store([str(source)], room, "alice", opener(room, ALICE))
    path, now = Path(room.http_root) / stored, time.time()
    os.utime(path, (now - read, now - written))
    return path


def names(root: str) -> set[str]:
    return {path.name.rpartition("--")[2] for path in Path(root).glob(f"*/{uploads.PREFIX}*")}


def test_the_file_that_nobody_used_for_longest_goes_from_both_places_and_no_more_than_needed(
    room: BootFolders, tmp_path: Path
) -> None:
    upload(room, tmp_path, "older", written=30 * HOURS, read=20 * HOURS)
    upload(room, tmp_path, "oldest", written=29 * HOURS, read=29 * HOURS)
    upload(room, tmp_path, "old", written=10 * HOURS, read=10 * HOURS)
    upload(room, tmp_path, "new")
    assert names(room.http_root) == names(room.tftp_root) == {"older", "old", "new"}


def test_a_file_that_a_node_has_just_read_stays_however_old_it_is(room: BootFolders, tmp_path: Path) -> None:
    upload(room, tmp_path, "in-use", written=900 * HOURS, read=0.9 * HOURS)
    upload(room, tmp_path, "idle", written=2 * HOURS, read=2 * HOURS)
    upload(room, tmp_path, "just-written", written=0.9 * HOURS, read=900 * HOURS)
    upload(room, tmp_path, "new")
    assert names(room.http_root) == {"in-use", "just-written", "new"}


def test_a_file_that_is_read_over_tftp_stays_where_tftp_has_a_copy_of_its_own(
    room: BootFolders, tmp_path: Path
) -> None:
    """On another disk there is no hard link, and the times of the other file tell nothing."""
    path = upload(room, tmp_path, "in-use", written=9 * HOURS, read=9 * HOURS)
    copy = Path(room.tftp_root) / path.parent.name / path.name
    copy.unlink()
    copy.write_bytes(path.read_bytes())
    upload(room, tmp_path, "idle", written=2 * HOURS, read=2 * HOURS)
    upload(room, tmp_path, "new")
    upload(room, tmp_path, "newer")
    assert names(room.http_root) == {"in-use", "new", "newer"}


def test_a_file_that_does_not_fit_is_refused_and_nothing_is_left(tmp_path: Path, boot: BootFolders) -> None:
    with pytest.raises(FileError, match=r"no room.*uploads_max_mb is 1"):
        store(boot, source(tmp_path, "vmlinuz", MEGA + 1))
    assert list((tmp_path / "http" / "kernels").iterdir()) == []


def test_ones_own_old_file_does_not_count_when_it_is_replaced(tmp_path: Path, boot: BootFolders) -> None:
    store(boot, source(tmp_path, "vmlinuz", MEGA * 2 // 3))
    (path,) = store(boot, source(tmp_path, "vmlinuz", MEGA * 3 // 4))
    assert path.stat().st_size == MEGA * 3 // 4


def test_files_of_images_are_not_removed_for_uploads(tmp_path: Path, boot: BootFolders) -> None:
    with uploads.locked(boot) as folder:
        theirs = source(folder, "env-0-vmlinuz", MEGA)
    os.utime(theirs, (0, 0))
    store(boot, source(tmp_path, "vmlinuz", MEGA // 2))
    assert theirs.exists()


@pytest.mark.parametrize("linkable", [True, False])
def test_the_file_for_tftp_is_a_link_or_else_a_copy(
    linkable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = (tmp_path / root / "kernels" / "name" for root in ("http", "tftp"))
    for each in (path, other):
        each.parent.mkdir(parents=True)
    path.write_bytes(b"kernel")
    other.write_bytes(b"before")
    if not linkable:
        monkeypatch.setattr(os, "link", _refuse)
    for _ in range(2):  # the second time both are the same file already
        uploads.link(path, build.boot_folders(tmp_path))
        assert other.read_bytes() == b"kernel"
        assert other.samefile(path) == linkable
        assert stat.S_IMODE(other.stat().st_mode) == 0o644
    assert list(other.parent.iterdir()) == [other]


def _refuse(_source: Path, _target: Path) -> None:
    raise OSError(18, "Invalid cross-device link")
