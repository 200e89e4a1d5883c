"""The deployment system names disks as udev does, from what the kernel tells of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kadeploy.images import store

PROGRAM = store.HERE / "files" / "deployment" / "disk-links"
WWN = bytes.fromhex("5000c500a1b2c3d4")


def descriptor(kind: int, data: bytes) -> bytes:
    return bytes([2, kind, 0, len(data)]) + data


def page(*descriptors: bytes) -> bytes:
    """Page 0x83 of SCSI's vital product data."""
    body = b"".join(descriptors)
    return b"\0\x83" + len(body).to_bytes(2, "big") + body


ATA = b"ATA     " + b"ST4000NM0033-9ZM170".ljust(40) + b"            Z1Z0ABCD"
DISKS = {
    "sda": (
        "pci0000:00/0000:00:1f.2/ata2/host1/target1:0:0/1:0:0:0/block/sda",
        {"device/vpd_pg83": page(descriptor(1, ATA), descriptor(3, WWN))},
        {"ata-ST4000NM0033-9ZM170_Z1Z0ABCD", "wwn-0x5000c500a1b2c3d4", "scsi-35000c500a1b2c3d4"},
        "pci-0000:00:1f.2-ata-2",
    ),
    "sdb": (
        "pci0000:00/0000:00:05.0/virtio1/host2/target2:0:0/2:0:0:0/block/sdb",
        {
            "device/vpd_pg83": page(descriptor(0, b"node-1")),
            "device/vendor": b"QEMU    \n",
            "device/model": b"QEMU HARDDISK   \n",
        },
        {"scsi-0QEMU_QEMU_HARDDISK_node-1"},
        "pci-0000:00:05.0-scsi-0:0:0:0",
    ),
    "nvme0n1": (
        "pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme0/nvme0n1",
        {
            "device/model": b"Samsung SSD 970 EVO 1TB                 \n",
            "device/serial": b"S5H9NS0N123456      \n",
            "wwid": b"eui.0025385b01234567\n",
        },
        {"nvme-Samsung_SSD_970_EVO_1TB_S5H9NS0N123456", "nvme-eui.0025385b01234567"},
        "pci-0000:01:00.0-nvme-1",
    ),
    "vda": ("pci0000:00/0000:00:04.0/virtio2/block/vda", {"serial": b"disk-7"}, {"virtio-disk-7"}, "pci-0000:00:04.0"),
}


def linked(folder: Path, name: str) -> dict[str, dict[str, str]]:
    """Links by folder, after the program has seen one disk with a third partition, twice."""
    where, files, _, _ = DISKS[name]
    disk = folder / "sys" / "devices" / where
    part = disk / f"{name}{'p' if name[-1].isdigit() else ''}3"
    for path, text in (
        {str(part / "partition"): b"3\n"} | {str(disk / key): value for key, value in files.items()}
    ).items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(text)
    (folder / "sys" / "block").mkdir()
    (folder / "sys" / "block" / name).symlink_to(disk)
    for _ in range(2):
        subprocess.run(["python3", "-IS", PROGRAM, folder / "sys", folder / "dev"], check=True)
    return {
        each.name: {link.name: str(link.readlink()) for link in each.iterdir()}
        for each in (folder / "dev/disk").iterdir()
    }


@pytest.mark.parametrize("name", DISKS)
def test_a_disk_and_its_partitions_have_the_names_that_udev_gives_them(tmp_path: Path, name: str) -> None:
    _, _, ids, path = DISKS[name]
    part = f"{name}p3" if name[-1].isdigit() else f"{name}3"
    found = linked(tmp_path, name)
    assert found["by-id"] == dict.fromkeys(ids, f"../../{name}") | {f"{id_}-part3": f"../../{part}" for id_ in ids}
    assert found["by-path"] == {path: f"../../{name}", f"{path}-part3": f"../../{part}"}


def test_a_disk_that_tells_nothing_has_no_links(tmp_path: Path) -> None:
    (tmp_path / "sys" / "block" / "loop0").mkdir(parents=True)
    subprocess.run(["python3", "-IS", PROGRAM, tmp_path / "sys", tmp_path / "dev"], check=True)
    assert not (tmp_path / "dev").exists()
