"""What machines fetch before a kernel: which files there are, and how they come into a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kadeploy.boot import loader_files
from kadeploy.boot.loader_files import GRUB_BIOS, GRUB_UEFI, LOADERS, PXELINUX, SHIM, SNPONLY, UNDIONLY
from kadeploy.errors import FileError

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "templates" / "pxe"
SERVER = "10.0.0.1"


def installed(*names: str) -> pytest.MarkDecorator:
    """Skip where Debian's packages of these loaders are not."""
    lacking = loader_files.missing_packages(names)
    return pytest.mark.skipif(bool(lacking), reason=f"not installed: {', '.join(lacking)}")


def hows(root: Path, *names: str) -> dict[str, str]:
    return {str(each.path.relative_to(root)): each.how for each in loader_files.install(root, names, SERVER)}


@installed(PXELINUX)
def test_every_module_that_a_boot_profile_names_is_in_the_tftp_folder(tmp_path: Path) -> None:
    loader_files.install(tmp_path, [PXELINUX], SERVER)
    named = set(re.findall(r"COM32 (\S+)", (TEMPLATES / "pxelinux.j2").read_text(encoding="utf-8")))
    assert {"chain.c32", "mboot.c32"} <= named
    assert named <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", [pytest.param(name, marks=installed(name), id=name) for name in LOADERS])
def test_all_that_a_check_looks_for_is_there_after_an_installation(name: str, tmp_path: Path) -> None:
    loader_files.install(tmp_path, [name], SERVER)
    found = {each: (tmp_path / each).stat().st_size for each in loader_files.needed(name)}
    assert all(found.values())
    assert next(iter(found)) == name
    assert {(tmp_path / each).stat().st_mode & 0o777 for each in found} == {0o644}


@installed(UNDIONLY, SNPONLY, PXELINUX)
def test_a_second_installation_changes_nothing_and_one_after_an_update_what_is_old(tmp_path: Path) -> None:
    names = (UNDIONLY, SNPONLY, PXELINUX)
    assert set(hows(tmp_path, *names).values()) == {"new"}
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    assert set(hows(tmp_path, *names).values()) == {"unchanged"}
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before
    (tmp_path / UNDIONLY).write_bytes(b"an old one")
    assert {name for name, how in hows(tmp_path, *names).items() if how == "renewed"} == {UNDIONLY}
    assert (tmp_path / UNDIONLY).read_bytes() == LOADERS[UNDIONLY].copied[UNDIONLY].read_bytes()


@installed(PXELINUX)
def test_the_profiles_of_nodes_and_the_site_s_own_default_stay(tmp_path: Path) -> None:
    (tmp_path / "pxelinux.cfg").mkdir()
    node, default = (tmp_path / "pxelinux.cfg" / name for name in ("0A004207", "default"))
    node.write_text("LABEL kadeploy\n")
    default.write_text("LABEL mine\n")
    assert hows(tmp_path, PXELINUX)["pxelinux.cfg/default"] == "kept"
    assert (node.read_text(), default.read_text()) == ("LABEL kadeploy\n", "LABEL mine\n")


@installed(PXELINUX)
def test_a_default_of_ours_is_renewed_until_its_mark_is_gone(tmp_path: Path) -> None:
    loader_files.install(tmp_path, [PXELINUX], SERVER)
    default = tmp_path / "pxelinux.cfg" / "default"
    ours = default.read_text()
    default.write_text(ours.splitlines(keepends=True)[0] + "LABEL of an older version\n")
    assert hows(tmp_path, PXELINUX)["pxelinux.cfg/default"] == "renewed"
    assert default.read_text() == ours


@installed(PXELINUX)
def test_the_default_profile_names_no_module_that_is_absent(tmp_path: Path) -> None:
    loader_files.install(tmp_path, [PXELINUX], SERVER)
    named = re.findall(r"COM32 (\S+)", (tmp_path / "pxelinux.cfg" / "default").read_text())
    assert named
    assert all((tmp_path / name).exists() for name in named)


@installed(GRUB_UEFI)
def test_grub_looks_for_the_node_s_profile_at_the_tftp_server_however_it_came(tmp_path: Path) -> None:
    """By HTTP, or named by a ProxyDHCP, it would look elsewhere; a signed one begins with ``grub.cfg``."""
    loader_files.install(tmp_path, [GRUB_UEFI], SERVER)
    expected = f"set prefix=(tftp,{SERVER})/grub\n"
    assert expected.encode() in (tmp_path / GRUB_UEFI).read_bytes()
    assert expected in (tmp_path / "grub" / "grub.cfg").read_text()


@installed(GRUB_BIOS, GRUB_UEFI)
def test_grubs_of_both_firmwares_share_their_folder(tmp_path: Path) -> None:
    found = hows(tmp_path, GRUB_BIOS, GRUB_UEFI)
    assert {"grub/i386-pc/core.0", "grub/x86_64-efi/core.efi", "grub/grub.cfg"} <= set(found)
    assert list(found).index("grub/x86_64-efi/normal.mod") < list(found).index("grub/x86_64-efi/core.efi")


@installed(SHIM)
def test_the_signed_loaders_are_debian_s_to_the_byte(tmp_path: Path) -> None:
    loader_files.install(tmp_path, [SHIM], SERVER)
    assert (tmp_path / "bootx64.efi").read_bytes() == Path("/usr/lib/shim/shimx64.efi.signed").read_bytes()
    signed = Path("/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed")
    assert (tmp_path / "grubx64.efi").read_bytes() == signed.read_bytes()


def test_packages_that_are_missing_are_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileError, match=r"apt install .*grub-common"):
        loader_files.install(tmp_path, [GRUB_UEFI], SERVER)
    assert not list(tmp_path.iterdir())


@installed(UNDIONLY)
def test_a_folder_that_is_not_there_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"tftp: No such file or directory\. .*install -d -o kadeploy"):
        loader_files.install(tmp_path / "tftp", [UNDIONLY], SERVER)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@installed(PXELINUX)
def test_the_files_become_those_of_the_folder_s_owner_who_cannot_lead_root_elsewhere(open_folder: Path) -> None:
    root = open_folder / "tftp"
    root.mkdir()
    os.chown(root, 65534, 65534)
    loader_files.install(root, [PXELINUX], SERVER)
    assert {path.stat().st_uid for path in root.rglob("*")} == {65534}
    outside = open_folder / "outside"
    outside.mkdir(mode=0o755)
    for path in (root / "pxelinux.cfg").iterdir():
        path.unlink()
    (root / "pxelinux.cfg").rmdir()
    (root / "pxelinux.cfg").symlink_to(outside)
    with pytest.raises(FileError, match="Permission denied"):
        loader_files.install(root, [PXELINUX], SERVER)
    assert not list(outside.iterdir())
