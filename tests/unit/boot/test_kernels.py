"""Kernels out of images: whatever an image holds, nothing but its own files is taken, and not without bound."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy import process
from kadeploy.boot import kernels, uploads
from kadeploy.caller import Account
from kadeploy.config.cluster import Loader
from kadeploy.environments.environment import Environment, Image
from kadeploy.errors import EnvironmentRefusedError, FileError
from kadeploy.operations.sources import OfAccount
from tests.unit import build
from tests.unit.boot.programs import signed_program

PURE = Loader(method="pure_pxe")
COMPRESSORS = {"tgz": "gzip", "tbz2": "bzip2", "txz": "xz", "tar.zst": "zstd"}
Member = tuple[str, bytes | tarfile.TarInfo]


def member(name: str, kind: bytes, target: str = "") -> Member:
    """A member that is no regular file; *kind* is tar's."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def symlink(name: str, target: str) -> Member:
    return member(name, tarfile.SYMTYPE, target)


def tar(*members: Member) -> bytes:
    """A tar file, not compressed; a file has its content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, what in members:
            if isinstance(what, tarfile.TarInfo):
                archive.addfile(what)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(what)
                archive.addfile(info, io.BytesIO(what))
    return packed.getvalue()


def image(folder: Path, data: bytes, kind: str = "tgz") -> Callable[[], BinaryIO]:
    path = folder / f"image.{kind}"
    path.write_bytes(subprocess.run([COMPRESSORS[kind], "-c"], input=data, capture_output=True, check=True).stdout)
    return lambda: path.open("rb")


def digest(opened: Callable[[], BinaryIO]) -> str:
    with opened() as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def taken(folder: Path, data: bytes, *paths: str, kind: str = "tgz") -> dict[str, bytes]:
    """Contents of those of *paths* that the image holds."""
    aside = folder / "aside"
    aside.mkdir()
    opened = image(folder, data, kind)
    found = kernels.take(opened, kind, set(paths), aside, digest(opened))
    return {path: copy.read_bytes() for path, copy in found.items()}


# --- which files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method", "what"),
    [
        ("linux", "chainload", set()),
        ("linux", "pure_pxe", {"kernel", "initrd"}),
        ("xen", "chainload", {"kernel", "initrd", "hypervisor"}),
        ("xen", "pure_pxe", {"kernel", "initrd", "hypervisor"}),
        ("other", "pure_pxe", set()),
    ],
)
def test_only_systems_that_are_booted_over_the_network_need_files(kind: str, method: str, what: set[str]) -> None:
    environment = build.environment(environment_kind=kind, initrd="/initrd", hypervisor="/xen")
    assert set(kernels.wanted(environment, method)) == what  # type: ignore[arg-type]


def test_a_kernel_may_do_without_initrd() -> None:
    assert kernels.wanted(build.environment(), "pure_pxe") == {"kernel": "/vmlinuz"}


# --- out of an image --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(COMPRESSORS))
def test_files_come_out_of_every_kind_of_archive(tmp_path: Path, kind: str) -> None:
    data = tar(("./boot/vmlinuz", b"kernel"), ("boot/other", b"x"), ("boot/initrd", b"initrd"))
    assert taken(tmp_path, data, "/boot/vmlinuz", "/boot/initrd", kind=kind) == {
        "/boot/vmlinuz": b"kernel",
        "/boot/initrd": b"initrd",
    }


@pytest.mark.parametrize(
    "links",
    [
        [symlink("vmlinuz", "boot/vmlinuz-6")],
        [symlink("vmlinuz", "/boot/vmlinuz-6")],
        [symlink("vmlinuz", "../../boot/vmlinuz-6")],
        [symlink("vmlinuz", "vmlinuz.old"), symlink("vmlinuz.old", "boot/vmlinuz-6")],
        [member("vmlinuz", tarfile.LNKTYPE, "./boot/vmlinuz-6")],
    ],
    ids=["relative", "absolute", "above the root", "in two steps", "hard"],
)
@pytest.mark.parametrize("links_first", [True, False])
def test_links_are_followed_as_if_the_image_were_the_root(
    tmp_path: Path, links: list[Member], links_first: bool
) -> None:
    file: list[Member] = [("boot/vmlinuz-6", b"kernel")]
    data = tar(*(links + file if links_first else file + links))
    assert taken(tmp_path, data, "/vmlinuz") == {"/vmlinuz": b"kernel"}


def test_a_link_to_an_unusual_place_is_found_in_a_second_pass(tmp_path: Path) -> None:
    data = tar(("usr/lib/kernels/6/image", b"kernel"), symlink("vmlinuz", "usr/lib/kernels/6/image"))
    assert taken(tmp_path, data, "/vmlinuz") == {"/vmlinuz": b"kernel"}


def test_a_link_out_of_the_image_reads_nothing_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("ours")
    data = tar(symlink("vmlinuz", f"{tmp_path}/secret"), symlink("initrd", "/etc/passwd"))
    assert taken(tmp_path, data, "/vmlinuz", "/initrd") == {}


@pytest.mark.parametrize(
    "loop",
    [
        [symlink("vmlinuz", "vmlinuz")],
        [symlink("vmlinuz", "a"), symlink("a", "vmlinuz")],
        [member("vmlinuz", tarfile.LNKTYPE, "a"), member("a", tarfile.LNKTYPE, "vmlinuz")],
    ],
    ids=["itself", "each other", "hard"],
)
def test_links_in_a_circle_end(tmp_path: Path, loop: list[Member]) -> None:
    assert taken(tmp_path, tar(*loop), "/vmlinuz") == {}


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_what_is_no_regular_file_is_not_taken(tmp_path: Path, kind: bytes) -> None:
    assert taken(tmp_path, tar(member("vmlinuz", kind)), "/vmlinuz") == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give away")
def test_what_unpacks_an_image_has_nobodys_rights(tmp_path: Path) -> None:
    source, writer = os.pipe()
    before, rights = set(process.children(os.getpid())), list[str]()

    def look() -> None:
        deadline = time.monotonic() + 30
        started: list[int] = []
        while not started and time.monotonic() < deadline:
            time.sleep(0.01)
            found = set(process.children(os.getpid())) - before
            started = [pid for pid in found if Path(f"/proc/{pid}/comm").read_text() == "gzip\n"]
        rights.extend(line for pid in started for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        os.close(writer)

    looking = threading.Thread(target=look)
    looking.start()
    with pytest.raises(FileError):
        kernels.take(lambda: os.fdopen(source, "rb"), "tgz", {"/vmlinuz"}, tmp_path, digest(io.BytesIO))
    looking.join()
    assert "Uid:\t65534\t65534\t65534\t65534" in rights
    assert "CapEff:\t0000000000000000" in rights


def test_reading_ends_as_soon_as_all_is_found(tmp_path: Path) -> None:
    """What comes behind is not even looked at: it is no archive."""
    data = tar(("vmlinuz", b"kernel"))[: 2 * tarfile.BLOCKSIZE] + b"no header" * 1000
    assert taken(tmp_path, data, "/vmlinuz") == {"/vmlinuz": b"kernel"}


def test_an_image_that_cannot_be_read_to_its_end_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read: Input/output error"):
        kernels.take(partial(Path("/proc/self/mem").open, "rb"), "tgz", {"/vmlinuz"}, tmp_path, "")


@pytest.mark.parametrize("damage", ["cut short", "no archive"])
def test_a_damaged_image_is_refused(tmp_path: Path, damage: str) -> None:
    data = tar(("vmlinuz", b"kernel" * 1000))[:2000] if damage == "cut short" else b"no header" * 1000
    with pytest.raises(FileError, match="not a sound tgz archive"):
        taken(tmp_path, data, "/vmlinuz")


def test_an_image_of_another_kind_than_it_says_is_told_by_the_program_that_unpacks(tmp_path: Path) -> None:
    opened = image(tmp_path, tar(("vmlinuz", b"kernel")), "txz")
    with pytest.raises(FileError, match="not a sound tgz archive: gzip says: stdin: not in gzip format"):
        kernels.take(opened, "tgz", {"/vmlinuz"}, tmp_path, digest(opened))


@pytest.mark.parametrize("kind", COMPRESSORS)
@pytest.mark.parametrize("kept", [0.2, 0.9])
def test_a_truncated_image_is_refused_in_the_words_of_what_unpacks_it(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / "whole"
    image(tmp_path, tar(("etc/file", os.urandom(500_000)), ("vmlinuz", os.urandom(500_000))), kind)().close()
    whole = (tmp_path / f"image.{kind}").read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    (tmp_path / "aside").mkdir()
    with pytest.raises(FileError, match=rf"not a sound {kind} archive: {COMPRESSORS[kind]} says: .*[Ee]nd"):
        kernels.take(lambda: path.open("rb"), kind, {"/vmlinuz"}, tmp_path / "aside", digest(lambda: path.open("rb")))


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("MEMBERS", 2, "more than 2 files"),
        ("LINKS", 1, "more than 1 links"),
        ("IMAGE_LIMIT", 3 << 20, "bigger than 3 MB"),
        ("TIME_LIMIT", -1.0, "took longer"),
    ],
)
def test_what_an_image_makes_us_read_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, said: str
) -> None:
    monkeypatch.setattr(kernels, limit, value)
    links = [symlink(f"link-{number}", "x") for number in range(3)]
    with pytest.raises(FileError, match=said):
        taken(tmp_path, tar(("big", bytes(8 << 20)), *links), "/vmlinuz")


@pytest.mark.parametrize("limit", ["FILE_LIMIT", "ASIDE_LIMIT"])
def test_what_an_image_makes_us_keep_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(kernels, limit, 10)
    assert taken(tmp_path, tar(("vmlinuz", b"more than ten")), "/vmlinuz") == {}


@pytest.mark.parametrize("length", [1 << 16, 8 << 20])
def test_a_header_that_is_too_big_is_refused_and_a_long_name_is_not(tmp_path: Path, length: int) -> None:
    data = tar(("/".join(["long"] * (length // 5)), b""), ("vmlinuz", b"kernel"))
    if length < kernels._HEADER_LIMIT:
        assert taken(tmp_path, data, "/vmlinuz") == {"/vmlinuz": b"kernel"}
    else:
        with pytest.raises(FileError, match="header that is too big"):
            taken(tmp_path, data, "/vmlinuz")


NAMES = st.lists(st.sampled_from(["a", "b", "c", "..", ".", ""]), min_size=1, max_size=5).map("/".join)


@given(NAMES, st.dictionaries(st.sampled_from(["a", "b", "a/b", "b/c", "a/b/c"]), NAMES))
def test_a_path_with_links_stays_inside_the_image(path: str, symlinks: dict[str, str]) -> None:
    """Property: following ends, and what it finds has no step upwards and starts at the image's root."""
    found = kernels.resolve(path, symlinks)
    if found is not None:
        assert set(found.split("/")).isdisjoint({"..", "."})
        assert not found.startswith("/")


# --- where loaders find them ------------------------------------------------------------------------------------


def provided(folder: Path, environment: Environment | None = None, **members: bytes) -> list[Path]:
    """Files under *http_root* of an environment whose kernel is /vmlinuz."""
    opened = image(folder, tar(*members.items()))
    boot = build.boot_folders(folder)
    found = kernels.provide(environment or build.environment(), digest(opened), PURE, boot, opened)
    return [folder / "http" / path for path in found.values()]


def test_files_are_readable_for_all_under_a_name_of_their_image(tmp_path: Path) -> None:
    (path,) = provided(tmp_path, vmlinuz=b"kernel")
    assert path.read_bytes() == b"kernel"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    (other,) = provided(tmp_path, vmlinuz=b"another")
    assert (path.read_bytes(), other.read_bytes()) == (b"kernel", b"another")


def test_nobody_waits_while_files_are_taken_out_of_somebody_elses_image(tmp_path: Path) -> None:
    boot, opened, go_on = build.boot_folders(tmp_path), threading.Event(), threading.Event()
    quick = image(tmp_path, tar(("vmlinuz", b"kernel")))

    def slow() -> BinaryIO:
        opened.set()
        assert go_on.wait(30)
        return quick()

    with ThreadPoolExecutor(2) as pool:
        theirs = pool.submit(kernels.provide, build.environment(), digest(quick), PURE, boot, slow)
        try:
            assert opened.wait(30)
            (tmp_path / "mine").write_bytes(b"mine")
            me = OfAccount(build.site(tmp_path), Account("alice", os.geteuid(), os.getegid(), tmp_path))
            opener = partial(me.opened, into=tmp_path / "fetched")
            stored = pool.submit(uploads.store, [str(tmp_path / "mine")], boot, "alice", opener)
            assert stored.result(10) == ["kernels/pxe-alice--mine"]
        finally:
            go_on.set()
        assert (tmp_path / "http" / theirs.result(30)["kernel"]).read_bytes() == b"kernel"
    assert not list((tmp_path / "http" / "kernels").glob(".*"))


@pytest.mark.parametrize("filler", [0, 4 << 20], ids=["read to its end", "enough before its end"])
def test_what_others_boot_with_the_same_image_comes_out_of_it_and_not_of_what_it_was_changed_to(
    tmp_path: Path, filler: int
) -> None:
    boot, environment = build.boot_folders(tmp_path), build.environment()
    good = image(tmp_path, tar(("vmlinuz", b"kernel"), ("filler", os.urandom(filler))))
    sha256 = digest(good)
    (tmp_path / "evil").mkdir()
    evil = image(tmp_path / "evil", tar(("vmlinuz", b"a stranger's"), ("filler", os.urandom(filler))))
    with pytest.raises(FileError, match="has changed since its checksum was taken"):
        kernels.provide(environment, sha256, PURE, boot, evil)
    assert not list((tmp_path / "http" / "kernels").iterdir())
    found = kernels.provide(environment, sha256, PURE, boot, good)
    assert (tmp_path / "http" / found["kernel"]).read_bytes() == b"kernel"


def test_kernel_and_initrd_may_be_one_file(tmp_path: Path) -> None:
    environment = build.environment(kernel="/both", initrd="/both")
    first, second = provided(tmp_path, environment, both=b"kernel")
    assert first == second
    assert first.read_bytes() == b"kernel"


def test_an_image_is_read_once(tmp_path: Path) -> None:
    (path,) = provided(tmp_path, vmlinuz=b"kernel")

    def closed() -> BinaryIO:
        raise AssertionError("the image is read again")

    boot = build.boot_folders(tmp_path)
    sha256 = digest(lambda: (tmp_path / "image.tgz").open("rb"))
    found = kernels.provide(build.environment(), sha256, PURE, boot, closed)
    assert found == {"kernel": str(path.relative_to(tmp_path / "http"))}


def test_a_file_that_the_image_does_not_hold_is_named_with_its_field_and_nothing_is_left(tmp_path: Path) -> None:
    environment = build.environment(initrd="/boot/initrd.img")
    with pytest.raises(EnvironmentRefusedError, match=r"no file /boot/initrd\.img.*`initrd`"):
        provided(tmp_path, environment, vmlinuz=b"kernel")
    assert not [path for path in (tmp_path / "http" / "kernels").iterdir() if path.name.startswith(".")]


def test_a_disk_image_is_refused_with_what_to_do(tmp_path: Path) -> None:
    environment = build.environment(image=Image(file="/image.dd.gz", kind="ddgz"))
    with pytest.raises(EnvironmentRefusedError, match="Make an archive of it"):
        provided(tmp_path, environment, vmlinuz=b"kernel")


def test_old_files_go_unless_a_profile_still_names_them(tmp_path: Path) -> None:
    (named,) = provided(tmp_path, vmlinuz=b"named")
    (unnamed,) = provided(tmp_path, vmlinuz=b"unnamed")
    (fresh,) = provided(tmp_path, vmlinuz=b"fresh")
    profile = tmp_path / "tftp" / "pxelinux.cfg" / "0A004207"
    profile.parent.mkdir()
    profile.write_text(f"KERNEL http://127.0.0.1/kernels/{named.name}\n")
    long_ago = time.time() - 2 * kernels.KEPT
    for path in (named, unnamed):
        os.utime(path, (long_ago, long_ago))
    provided(tmp_path, vmlinuz=b"kernel")
    assert [path.exists() for path in (named, unnamed, fresh)] == [True, False, True]


def test_names_of_users_cannot_leave_the_folder_or_break_a_profile(tmp_path: Path) -> None:
    odd = msgspec.structs.replace(build.environment(), kernel="/boot/vm linuz\n;{{ x }}")
    (path,) = provided(tmp_path, odd, **{"boot/vm linuz\n;{{ x }}": b"kernel"})
    assert path.parent == tmp_path / "http" / "kernels"
    assert kernels._MENTIONED.fullmatch(os.fsencode(path.name))


# --- under Secure Boot ------------------------------------------------------------------------------------------

SECURE = Loader(firmware="uefi", profiles="grub", method="pure_pxe", secure_boot=True)


def test_under_secure_boot_the_files_are_below_both_roots_and_go_from_both(tmp_path: Path) -> None:
    boot, kernel = build.boot_folders(tmp_path), signed_program(b"kernel")
    opened = image(tmp_path, tar(("vmlinuz", kernel)))
    (path,) = kernels.provide(build.environment(), digest(opened), SECURE, boot, opened).values()
    assert (tmp_path / "tftp" / path).read_bytes() == (tmp_path / "http" / path).read_bytes() == kernel
    (tmp_path / "tftp" / path).unlink()  # as where another cluster, without Secure Boot, had it first
    kernels.provide(build.environment(), digest(opened), SECURE, boot, opened)
    assert (tmp_path / "tftp" / path).read_bytes() == kernel
    os.utime(tmp_path / "http" / path, (0, 0))
    other = image(tmp_path, tar(("vmlinuz", signed_program(b"other"))))
    kernels.provide(build.environment(), digest(other), SECURE, boot, other)
    assert not (tmp_path / "http" / path).exists()
    assert not (tmp_path / "tftp" / path).exists()


def test_a_kernel_that_is_not_signed_is_refused_under_secure_boot_alone(tmp_path: Path) -> None:
    boot, opened = build.boot_folders(tmp_path), image(tmp_path, tar(("vmlinuz", b"kernel")))
    assert kernels.provide(build.environment(), digest(opened), PURE, boot, opened)
    with pytest.raises(EnvironmentRefusedError, match=r"its kernel /vmlinuz is not signed, and .*loader\.secure_boot"):
        kernels.provide(build.environment(), digest(opened), SECURE, boot, opened)
    assert not list((tmp_path / "tftp").rglob("env-*"))
