"""The images' recipes: what can be proved without root and without a mirror. tests/vm boots what they build."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import threading
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.errors import ConfigError
from kadeploy.images import build_deployment_system, build_tiny, modules, store
from kadeploy.images.archive import COMPRESSION, pack_image, pack_initrd
from kadeploy.images.bootstrap import apt_sources
from kadeploy.images.deployment import blank_data, make_key
from kadeploy.images.environment import Recipe, check_kind, describe, finish, found

RECIPE = Recipe(name="small", description="a test", kernel="/boot/vmlinuz", initrd="/boot/initrd.img")

DEP = """\
kernel/drivers/scsi/sd_mod.ko: kernel/drivers/scsi/scsi_mod.ko
kernel/drivers/scsi/scsi_mod.ko:
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko
kernel/lib/crc16.ko:
"""


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_same_inputs_have_the_same_fingerprint_and_any_other_input_another() -> None:
    recipe = ("tiny.py", "files/shared")
    assert store.fingerprint(recipe, "tgz") == store.fingerprint(recipe, "tgz")
    others = {store.fingerprint(recipe, "txz"), store.fingerprint(("tiny.py",), "tgz"), store.fingerprint(recipe)}
    assert len(others | {store.fingerprint(recipe, "tgz")}) == 4


def test_a_finished_build_is_found_and_not_made_again(tmp_path: Path) -> None:
    made = []

    def build(work: Path) -> None:
        made.append(work)
        (work / "file").write_text("x")

    first, second = (store.built(tmp_path, "thing", build) for _ in range(2))
    assert first == second == tmp_path / "thing"
    assert len(made) == 1
    assert (first / "file").read_text() == "x"


def test_an_interrupted_build_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    def interrupted(work: Path) -> None:
        (work / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.built(tmp_path, "thing", interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_what_a_killed_build_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    (tmp_path / f"{store.UNFINISHED}thing-1" / "deep").mkdir(parents=True)
    store.built(tmp_path, "thing", lambda work: (work / "file").touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "thing"]


def test_two_builds_at_once_make_one(tmp_path: Path) -> None:
    started, may_end, made = threading.Event(), threading.Event(), []

    def build(work: Path) -> None:
        made.append(work)
        started.set()
        may_end.wait(30)

    threads = [threading.Thread(target=store.built, args=(tmp_path, "thing", build)) for _ in range(2)]
    threads[0].start()
    assert started.wait(30)
    threads[1].start()
    may_end.set()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1


def test_a_strict_umask_does_not_hide_what_is_built(tmp_path: Path) -> None:
    """An HTTP server that is not root serves the kernel and the initrd."""
    code = (
        "import os, sys; from pathlib import Path; from kadeploy.images import store; os.umask(0o077)\n"
        "store.built(Path(sys.argv[1]), 'thing', lambda work: (work / 'kernel').touch())"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "thing").stat().st_mode & 0o055 == 0o055
    assert (tmp_path / "thing/kernel").stat().st_mode & 0o044 == 0o044


def test_scripts_of_a_recipe_are_installed_executable_whatever_mode_they_came_with(tmp_path: Path) -> None:
    for name, executable in (("deployment/init", True), ("deployment/inittab", False)):
        source = tmp_path / "source"
        source.write_bytes((store.HERE / "files" / name).read_bytes())
        source.chmod(0o600)
        store.install(source, tmp_path / "target")
        assert bool((tmp_path / "target").stat().st_mode & 0o111) is executable


@pytest.mark.parametrize("path", sorted((store.HERE / "files").rglob("*")), ids=lambda path: path.name)
def test_every_script_in_the_images_parses(path: Path) -> None:
    """dash -n, the shell that runs them (busybox ash on tiny reads the same language)."""
    first = path.read_bytes().partition(b"\n")[0] if path.is_file() else b""
    if first.startswith(b"#!/usr/bin/python3"):
        compile(path.read_text(), path.name, "exec")
    elif first.startswith(b"#!"):
        done = subprocess.run(["sh", "-n", str(path)], capture_output=True, text=True, check=False)
        assert done.stderr == ""
    else:
        assert path.is_dir() or path.read_text()


def test_lists_are_words_without_their_comments() -> None:
    packages = store.words("deployment/packages")
    assert {"busybox", "openssh-server", "grub-pc-bin", "grub-efi-amd64-bin", "kexec-tools", "aria2"} <= set(packages)
    assert not [word for word in packages if "#" in word or word.isspace()]


def test_the_deployment_system_keeps_the_commands_that_a_deployment_runs() -> None:
    needed = """
        sfdisk fdisk parted partx partprobe blkid lsblk mkswap mount umount dd
        mkfs.ext2 mkfs.ext3 mkfs.ext4 mkfs.xfs mkfs.btrfs mkfs.vfat
        tar gzip bzip2 xz zstd aria2c python3 bash hostname ip sshd grub-install efibootmgr kexec
    """
    assert set(needed.split()) <= set(store.words("deployment/commands"))


# -- apt ---------------------------------------------------------------------------------------------------------------


def test_only_this_machines_sources_of_debian_12_are_taken(tmp_path: Path) -> None:
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (tmp_path / "sources.list").write_text("# deb http://a bookworm main\n")
    (folder / "debian.sources").write_text("Types: deb\nURIs: http://a\nSuites: bookworm bookworm-updates\n")
    (folder / "line.list").write_text("deb [signed-by=/k] http://a bookworm main\n")
    (folder / "other.list").write_text("deb http://a cloud-sdk-bookworm main\n")
    (folder / "other.sources").write_text("Types: deb\nSuites: nodistro\n")
    (folder / "debian.sources.disabled").write_text("Suites: bookworm\n")
    assert [path.name for path in apt_sources(tmp_path)] == ["debian.sources", "line.list"]


# -- kernel modules ----------------------------------------------------------------------------------------------------


def test_a_module_comes_with_what_it_needs() -> None:
    chosen = modules.select(modules.parse_dependencies(DEP), ["kernel/drivers/net/virtio_net.ko*"])
    assert {Path(module).stem for module in chosen} == {"virtio_net", "net_failover", "failover"}


def test_a_folder_that_the_kernel_lacks_selects_nothing() -> None:
    assert modules.select(modules.parse_dependencies(DEP), ["kernel/drivers/nvme/"]) == frozenset()


def test_extra_modules_are_found_by_name_with_either_dash() -> None:
    known = modules.parse_dependencies(DEP)
    assert (
        modules.select(known, [], ["sd-mod"])
        == modules.select(known, [], ["sd_mod"])
        == {
            "kernel/drivers/scsi/sd_mod.ko",
            "kernel/drivers/scsi/scsi_mod.ko",
        }
    )


def test_an_unknown_extra_module_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="bnx9x"):
        modules.select(modules.parse_dependencies(DEP), [], ["bnx9x"])


@given(st.dictionaries(st.text("abc/_", min_size=1), st.lists(st.text("abc/_", min_size=1)).map(tuple)))
def test_modules_dep_is_read_as_it_is_written(known: dict[str, tuple[str, ...]]) -> None:
    text = "".join(f"{module}: {' '.join(needs)}\n" for module, needs in known.items())
    assert modules.parse_dependencies(text) == known


# -- archives ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "boot").mkdir(parents=True)
    (root / "boot/vmlinuz").write_text("kernel")
    (root / "link").symlink_to("boot/vmlinuz")
    return root


@pytest.mark.parametrize("kind", sorted(COMPRESSION))
def test_an_image_of_each_kind_holds_the_tree(tree: Path, tmp_path: Path, kind: str) -> None:
    """Read back with the program that a node uses: GNU tar, told nothing but the compression."""
    pack_image(tree, tmp_path / "image", kind)
    flag = {"tgz": "--gzip", "tbz2": "--bzip2", "txz": "--xz", "tar.zst": "--zstd"}[kind]
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-x", flag, "-f", str(tmp_path / "image"), "-C", str(tmp_path / "out")], check=True)
    assert (tmp_path / "out/link").readlink() == Path("boot/vmlinuz")
    assert (tmp_path / "out/boot/vmlinuz").read_text() == "kernel"


def test_an_initrd_is_a_newc_archive_owned_by_root_and_the_same_tree_gives_the_same_bytes(
    tree: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        pack_initrd(tree, tmp_path / name, level=1)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    archive = subprocess.run(["zstd", "-dc", str(tmp_path / "one")], capture_output=True, check=True).stdout
    assert archive.startswith(b"070701")
    listing = subprocess.run(
        ["cpio", "-tvn", "--quiet"], input=archive, capture_output=True, check=True
    ).stdout.decode()
    assert {line.split()[8] for line in listing.splitlines()} == {".", "boot", "boot/vmlinuz", "link"}
    assert {tuple(line.split()[2:4]) for line in listing.splitlines()} == {("0", "0")}


def test_a_failed_pack_is_an_error_not_an_empty_initrd(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        pack_initrd(tmp_path / "absent", tmp_path / "initrd")


def test_a_library_with_blanked_data_still_loads(tmp_path: Path) -> None:
    """Any library of the interpreter with tables will do: only its data are zeros afterwards."""
    library = Path(str(import_module("_codecs_jp").__file__))
    copy = tmp_path / library.name
    shutil.copy(library, copy)
    blank_data(copy)
    assert copy.stat().st_size == library.stat().st_size
    assert copy.read_bytes().count(0) > library.read_bytes().count(0)
    subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(copy)!r}).PyInit__codecs_jp"], check=True)


# -- environments ------------------------------------------------------------------------------------------------------


def test_a_description_has_the_wiki_pages_fields_one_a_line() -> None:
    lines = describe(RECIPE, Path("/images/small.tgz"), "tgz").splitlines()
    assert lines[0] == "name : small"
    assert "tarball : /images/small.tgz|tgz" in lines
    assert {"fdisktype : 83", "filesystem : ext4", "visibility : public", "demolishing_env : 0"} <= set(lines)
    assert all(" : " in line for line in lines)


def test_what_was_finished_is_found_with_the_same_words(tree: Path, tmp_path: Path) -> None:
    work = tmp_path / "final"
    work.mkdir()
    finish(RECIPE, tree, work, work, "tar.zst")
    environment = found(work)
    assert (environment.name, environment.kind, environment.kernel) == ("small", "tar.zst", "/boot/vmlinuz")
    assert environment.image.is_file()
    assert f"tarball : {environment.image}|tar.zst" in environment.description_file.read_text()
    assert "console=ttyS0" in environment.kernel_params


def test_a_kind_that_cannot_be_built_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ddgz"):
        build_tiny(tmp_path, kind="ddgz")
    assert check_kind("tbz2") == "tbz2"
    assert list(tmp_path.iterdir()) == []


# -- keys --------------------------------------------------------------------------------------------------------------


def test_the_host_key_is_made_once_and_private(tmp_path: Path) -> None:
    first = make_key(tmp_path / "key", "test").read_text()
    assert make_key(tmp_path / "key", "test").read_text() == first
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "key.pub").read_text().startswith("ssh-ed25519 ")


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----", "ssh-rsa A\nssh-rsa B"])
def test_only_one_public_key_is_let_into_the_deployment_system(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="public key"):
        build_deployment_system(tmp_path, text)


def test_the_console_password_is_the_documented_one() -> None:
    """`openssl passwd` with the stored salt gives the stored hash."""
    stored = (store.HERE / "files/tiny/shadow").read_text().split(":")[1]
    _, method, salt, _ = stored.split("$")
    command = ["openssl", "passwd", f"-{method}", "-salt", salt, "kadeploy"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == stored


def test_an_image_names_no_owner_and_no_absolute_path(tree: Path, tmp_path: Path) -> None:
    """A node has other names for the same numbers, and unpacks under its mount point."""
    pack_image(tree, tmp_path / "image", "tgz")
    with tarfile.open(tmp_path / "image") as archive:
        assert all(member.name.startswith(".") and not member.uname for member in archive)
