"""QEMU's command line makes the machine that was asked for, with the fault that was asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path

from kadeploy.lab import disk, machine
from kadeploy.lab.lab import SECTOR, Lab


def lab(folder: Path, **settings: object) -> Lab:
    made = Lab(folder=str(folder), nodes=1, **settings)  # type: ignore[arg-type]
    made.disks.mkdir()
    return made


def words(made: Lab) -> list[str]:
    return machine.command(made, made.members["node-1"])


def test_the_processor_is_emulated_unless_asked_otherwise(tmp_path: Path) -> None:
    made = lab(tmp_path)
    assert "tcg,thread=multi" in words(made)
    assert "kvm" in words(Lab(folder=str(tmp_path), nodes=1, kvm=True))


def test_the_network_comes_before_the_disk(tmp_path: Path) -> None:
    devices = [word for word in words(lab(tmp_path)) if "bootindex" in word]
    assert [word.split(",")[0] for word in devices] == ["virtio-net-pci", "scsi-hd"]
    assert ["bootindex=1" in devices[0], "bootindex=2" in devices[1]] == [True, True]


def test_a_disk_is_nvme_or_has_big_sectors_where_that_was_asked_for(tmp_path: Path) -> None:
    made = Lab(folder=str(tmp_path), nodes=4, nvme=("node-2", "node-4"), big_sectors=("node-3", "node-4"))
    disks = [
        word.split(",")
        for node in made.members.values()
        for word in machine.command(made, node)
        if "drive=disk" in word
    ]
    assert [options[0] for options in disks] == ["scsi-hd", "nvme", "scsi-hd", "nvme"]
    assert ["logical_block_size=4096" in options for options in disks] == [False, False, True, True]
    assert all("bootindex=2" in options for options in disks)


def test_uefi_has_variables_of_its_own(tmp_path: Path) -> None:
    made = lab(tmp_path, firmware="uefi")
    flash = [word for word in words(made) if "pflash" in word]
    assert any(str(made.disks / "node-1.efivars") in word for word in flash)
    assert (made.disks / "node-1.efivars").stat().st_size == machine.OVMF_VARS.stat().st_size


def test_secure_boot_knows_microsofts_keys_and_lets_nobody_else_write_its_variables(tmp_path: Path) -> None:
    made = lab(tmp_path, firmware="secure-boot")
    said = words(made)
    assert "q35,smm=on" in said
    assert "driver=cfi.pflash01,property=secure,value=on" in said
    assert any(str(machine.OVMF_SECURE_CODE) in word for word in said)
    assert (made.disks / "node-1.efivars").read_bytes() == machine.OVMF_SECURE_VARS.read_bytes()


def test_only_a_mute_machine_stands_still(tmp_path: Path) -> None:
    made = lab(tmp_path)
    assert "-S" not in words(made)
    assert "-S" in words(Lab(folder=str(tmp_path), nodes=1, faults={"node-1": "mute"}))


def test_a_bad_disk_fails_writes_only_where_file_systems_begin(tmp_path: Path) -> None:
    made = lab(tmp_path, faults={"node-1": "bad-disk"})
    wrapped = json.loads(disk.blockdev(made, made.members["node-1"]))
    assert wrapped["driver"] == "blkdebug"
    assert wrapped["image"]["file"]["filename"] == str(disk.path(made, made.members["node-1"]))
    assert {rule["iotype"] for rule in wrapped["inject-error"]} == {"write"}
    assert min(rule["sector"] for rule in wrapped["inject-error"]) * SECTOR == disk.DEPLOY_START


def test_disks_take_no_room_until_they_are_written(tmp_path: Path) -> None:
    made = Lab(folder=str(tmp_path), nodes=2, disk=8, faults={"node-2": "small-disk"})
    assert disk.create(made) == ["node-1", "node-2"]
    first, second = (disk.path(made, node).stat() for node in made.members.values())
    assert (first.st_size, second.st_size) == (8 * disk.GIB, disk.SMALL)
    assert first.st_blocks * 512 <= 4096, "more than what halts a machine without a system"


def test_a_machine_without_a_system_is_halted_where_its_firmware_would_run_what_is_on_the_disk(tmp_path: Path) -> None:
    bios, uefi = Lab(folder=str(tmp_path / "bios")), Lab(folder=str(tmp_path / "uefi"), firmware="uefi")
    for made in (bios, uefi):
        Path(made.folder).mkdir()
        disk.create(made)
    first, second = (disk.path(made, made.members["node-1"]) for made in (bios, uefi))
    assert first.read_bytes()[:4] == b"\xfa\xf4\xeb\xfd"  # cli; hlt; jump back to hlt
    assert second.stat().st_blocks == 0


def test_a_disk_is_kept_unless_its_size_changes(tmp_path: Path) -> None:
    small = Lab(folder=str(tmp_path), nodes=1, disk=1)
    disk.create(small)
    with disk.path(small, small.members["node-1"]).open("r+b") as stream:
        stream.write(b"boot sector")
        stream.flush()
        assert disk.create(small) == []
        assert os.pread(stream.fileno(), 11, 0) == b"boot sector"
    assert disk.create(Lab(folder=str(tmp_path), nodes=1, disk=2)) == ["node-1"]
