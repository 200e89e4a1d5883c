"""What nodes fetch while they boot."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest

from kadeploy.admin.check import boot
from kadeploy.admin.check.boot import machine
from kadeploy.boot import loader_files
from tests.unit.admin.sound_site import ADDRESS, KERNEL, SoundSite
from tests.unit.boot.programs import program, signed_program

BIOS, EFI64 = (Path("/usr/lib/syslinux/modules") / name for name in ("bios", "efi64"))
PXELINUX = Path("/usr/lib/PXELINUX/pxelinux.0")
NAMES = ("loader", "kernel", "initrd", "profiles", "http-url", "http", "tftp")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="TFTP has a port of root's")


def test_what_is_there_is_fetched_by_http_and_tftp_as_a_node_would(served: SoundSite) -> None:
    assert served.levels(boot.check) == dict.fromkeys(NAMES, "ok")


@pytest.mark.parametrize(
    ("name", "look"),
    [
        ("tftp/pxelinux.0", "loader"),
        ("tftp/libutil.c32", "modules"),
        ("tftp/chain.c32", "modules"),
        ("http/deploy-vmlinuz", "kernel"),
        ("http/deploy-initrd", "initrd"),
    ],
)
def test_a_file_that_is_missing_is_told(served: SoundSite, name: str, look: str) -> None:
    (served.folder / name).unlink()
    assert Path(name).name in served.one(boot.check, look, "fail").text


def test_modules_of_another_firmware_are_told_by_their_header(served: SoundSite) -> None:
    shutil.copyfile(EFI64 / "libutil.c32", served.folder / "tftp/libutil.c32")
    assert "libutil.c32 is for x86_64, and bios" in served.one(boot.check, "architecture", "fail").text


def test_a_kernel_of_another_architecture_is_told(served: SoundSite) -> None:
    served.change("gdx", arch="aarch64")
    assert "deploy-vmlinuz is for x86_64, and gdx is aarch64" in served.one(boot.check, "architecture", "fail").text


@pytest.mark.parametrize(("name", "look"), [("deploy-vmlinuz", "kernel"), ("deploy-initrd", "initrd")])
def test_a_web_page_in_place_of_a_system_is_told(served: SoundSite, name: str, look: str) -> None:
    (served.folder / "http" / name).write_text("<html>404</html>" * 100)
    assert "does not begin as" in served.one(boot.check, look, "fail").text


def test_uefi_nodes_need_grub_and_one_that_is_for_uefi(served: SoundSite) -> None:
    served.change("gdx", loader={"firmware": "uefi", "profiles": "grub"})
    assert "core.efi is not there" in served.one(boot.check, "loader", "fail").text
    loader_files.install(served.folder / "tftp", [loader_files.GRUB_UEFI], ADDRESS)
    assert set(served.levels(boot.check).values()) == {"ok"}
    (served.folder / "tftp/grub/x86_64-efi/core.efi").write_bytes(pe(0xAA64))
    assert "core.efi is for aarch64" in served.one(boot.check, "architecture", "fail").text


def test_under_secure_boot_all_is_looked_for_below_the_tftp_root_and_has_to_be_signed(served: SoundSite) -> None:
    tftp = served.folder / "tftp"
    loader_files.install(tftp, [loader_files.SHIM], ADDRESS)
    served.change("gdx", loader={"firmware": "uefi", "profiles": "grub", "secure_boot": True})
    levels = served.levels(boot.check)
    assert (levels["kernel"], levels["initrd"]) == ("fail", "fail"), "they are below boot.http_root"
    for name, content in (("deploy-vmlinuz", signed_program(bytes(1 << 17))), ("deploy-initrd", None)):
        (tftp / name).write_bytes(content or (served.folder / "http" / name).read_bytes())
    assert set(served.levels(boot.check).values()) == {"ok"}
    fetched = {each.text.split(": ")[0] for each in served.found(boot.check) if each.name == "tftp"}
    assert {f"tftp://{ADDRESS}/{name}" for name in ("bootx64.efi", "deploy-vmlinuz", "deploy-initrd")} <= fetched
    for name in ("deploy-vmlinuz", "grubx64.efi"):
        before = (tftp / name).read_bytes()
        (tftp / name).write_bytes(program(bytes(1 << 17)))
        told = served.one(boot.check, "signature", "fail")
        assert f"{name} is not signed, and gdx has loader.secure_boot" in told.text
        (tftp / name).write_bytes(before)


def test_a_tftp_server_that_has_another_kernel_is_told(served: SoundSite, tmp_path: Path) -> None:
    shutil.copytree(served.folder / "tftp", tmp_path / "tftp")
    for folder, filler in ((served.folder / "tftp", b"a"), (tmp_path / "tftp", b"b")):
        loader_files.install(folder, [loader_files.SHIM], ADDRESS)
        (folder / "deploy-vmlinuz").write_bytes(signed_program(filler * (1 << 17)))
        (folder / "deploy-initrd").write_bytes((served.folder / "http/deploy-initrd").read_bytes())
    secure = {"firmware": "uefi", "profiles": "grub", "secure_boot": True}
    served.change("gdx", loader=secure)
    served.change("site", boot__tftp_root=f"{tmp_path}/tftp")
    assert "deploy-vmlinuz is another file than" in served.one(boot.check, "tftp", "fail").text


def test_a_loader_that_cards_may_have_themselves_is_odd_when_it_is_missing(served: SoundSite) -> None:
    (served.folder / "tftp/undionly.kpxe").unlink()
    assert "undionly.kpxe is not there" in served.one(boot.check, "loader", "warn").text


def test_loaders_are_looked_for_whether_names_of_nodes_resolve_or_not(served: SoundSite) -> None:
    nodes = [{"name": "no-such-node.invalid", "mac": "52:54:00:00:00:01", "bmc": "127.9.8.1"}]
    served.change("gdx", nodes=nodes)
    assert served.levels(boot.check)["loader"] == "ok"


def test_a_profile_of_nodes_without_one_is_missed(served: SoundSite) -> None:
    (served.folder / "tftp/pxelinux.cfg/default").unlink()
    assert "pxelinux.cfg/default" in served.one(boot.check, "default-profile", "warn").text


def test_profiles_that_no_loader_of_this_firmware_reads_are_told(served: SoundSite) -> None:
    served.change("gdx", arch="aarch64", loader={"firmware": "uefi", "profiles": "pxelinux"})
    assert "Debian has no pxelinux" in served.one(boot.check, "loader", "fail").text


def pe(number: int) -> bytes:
    return b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0" + struct.pack("<H", number) + bytes(100)


def test_headers_tell_machines() -> None:
    assert machine((BIOS / "ldlinux.c32").read_bytes()) == "i386"
    assert machine((EFI64 / "ldlinux.e64").read_bytes()) == "x86_64"
    assert (machine(pe(0x8664)), machine(pe(0xAA64)), machine(pe(0x14C))) == ("x86_64", "aarch64", "i386")
    assert (machine(KERNEL), machine(bytes(0x38) + b"ARM\x64")) == ("x86_64", "aarch64")
    assert (machine(b""), machine(b"MZ"), machine(b"\x7fELF" + bytes(99)), machine(PXELINUX.read_bytes())) == ("",) * 4


def test_a_boot_server_of_other_folders_is_told(served: SoundSite, tmp_path: Path) -> None:
    for name in ("tftp", "http"):
        shutil.copytree(served.folder / name, tmp_path / name)
    served.change("site", boot__tftp_root=f"{tmp_path}/tftp", boot__http_root=f"{tmp_path}/http")
    assert set(served.levels(boot.check).values()) == {"ok"}
    (tmp_path / "tftp/pxelinux.0").write_bytes(b"another one")
    (tmp_path / "http/deploy-vmlinuz").write_bytes(KERNEL + b"longer")
    levels = served.levels(boot.check)
    assert (levels["http"], levels["tftp"]) == ("fail", "fail")


def test_every_wrong_file_of_a_boot_server_is_told(served: SoundSite, tmp_path: Path) -> None:
    shutil.copytree(served.folder / "http", tmp_path / "http")
    served.change("site", boot__http_root=f"{tmp_path}/http")
    for name in ("deploy-vmlinuz", "deploy-initrd"):
        with (tmp_path / "http" / name).open("ab") as stream:
            stream.write(b"longer")
    kernel, system = [each.text for each in served.found(boot.check) if each.name == "http"]
    assert "/deploy-vmlinuz has " in kernel
    assert "/deploy-initrd has " in system
    assert "another file is served" in kernel
    assert "another file is served" in system


def test_a_boot_server_that_does_not_run_is_told_once(sound: SoundSite) -> None:
    assert f"http://{ADDRESS}:1/" in sound.one(boot.check, "http", "fail").text
    assert f"tftp://{ADDRESS}/undionly.kpxe" in sound.one(boot.check, "tftp", "fail").text


def test_the_profile_of_a_node_is_fetched_where_there_is_one(served: SoundSite) -> None:
    (served.folder / "tftp/pxelinux.cfg/7F090103").write_text("DEFAULT disk\n")
    found = [each.text for each in served.found(boot.check) if each.name == "tftp"]
    assert [text.split(": ")[0] for text in found] == [
        f"tftp://{ADDRESS}/undionly.kpxe",
        f"tftp://{ADDRESS}/pxelinux.0",
        f"tftp://{ADDRESS}/pxelinux.cfg/7F090103",
    ]


def test_a_folder_of_profiles_that_the_account_cannot_write_is_told(served: SoundSite, open_folder: Path) -> None:
    (open_folder / "state").mkdir(mode=0o700)
    os.chown(open_folder / "state", 65534, 65534)
    shutil.copytree(served.folder / "tftp", open_folder / "tftp")
    served.change("site", state_dir=f"{open_folder}/state", boot__tftp_root=f"{open_folder}/tftp")
    assert "nobody cannot write profiles" in served.one(boot.check, "profiles", "fail").text
    os.chown(open_folder / "tftp/pxelinux.cfg", 65534, 65534)
    assert served.levels(boot.check)["profiles"] == "ok"


def test_a_name_in_the_url_that_does_not_resolve_is_told(sound: SoundSite) -> None:
    sound.change("site", boot__http_url="http://no-such-host.invalid/")
    assert "no-such-host.invalid" in sound.one(boot.check, "http-url", "fail").text
