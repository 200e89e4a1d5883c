"""What machines tell of themselves, and how a cluster file says it: nodes that are alike are one item."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.admin import hardware, hardware_program
from kadeploy.admin.hardware import Card, Disk, Machine, Processors
from kadeploy.config.hardware import Hardware
from kadeploy.errors import KadeployError

PROGRAM = Path(hardware_program.__file__)


def machine(number: int = 1, **changes: Any) -> Machine:
    """One of several that were bought together."""
    found = Machine(
        arch="x86_64",
        firmware="uefi",
        boot_mac=f"52:54:00:00:00:{number:02x}",
        memory_mib=196608,
        processors=Processors("Xeon Gold 6130", 2, 32, 64),
        disks=(
            Disk(
                device="/dev/sda",
                mib=457862,
                model="MZ7KM480HMHQ0D3",
                bus="sata",
                rotates=False,
                ids=(f"/dev/disk/by-id/wwn-0x5000c500a1b2c3{number:02x}",),
                paths=("/dev/disk/by-path/pci-0000:00:1f.2-ata-1",),
            ),
        ),
        cards=(
            Card(name="eth0", mac=f"52:54:00:00:00:{number:02x}", driver="ixgbe", mbps=10000),
            Card(name="eth1", mac=f"52:54:00:00:01:{number:02x}", driver="ixgbe", mbps=0),
        ),
        bmc=f"10.0.3.{number}",
        product="Dell Inc. PowerEdge C6420",
        serial=f"ABC{number}",
    )
    return msgspec.structs.replace(found, **changes)


# --- the program ------------------------------------------------------------------------------------------------------


def run(root: Path | str = "/", **environment: str) -> dict[str, Any]:
    """What it tells, run as on a node: from its standard input."""
    done = subprocess.run(
        [sys.executable, "-I", "-", str(root)],
        input=PROGRAM.read_bytes(),
        capture_output=True,
        env={"PATH": os.environ["PATH"], **environment},
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_this_machine_is_told_as_its_kernel_knows_it() -> None:
    told = run()
    assert told["arch"] == os.uname().machine
    assert told["processors"]["threads"] == os.sysconf("SC_NPROCESSORS_ONLN")
    seen = int(Path("/proc/meminfo").read_text().split()[1]) >> 10
    assert seen <= told["memory_mib"] < seen * 1.3
    cards = {each["name"]: each["mac"] for each in told["cards"]}
    assert "lo" not in cards
    assert all(Path(f"/sys/class/net/{name}/address").read_text().strip() == mac for name, mac in cards.items())
    assert hardware.read(json.dumps(told)).firmware in ("bios", "uefi")


def place(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def disk(root: Path, name: str, where: str, **flags: str) -> None:
    """A disk as sysfs shows it."""
    folder = root / "sys/devices" / where / "block" / name
    values = {"size": "937703088", "ro": "0", "removable": "0", "queue/rotational": "0", "device/model": "M 1  "}
    place(folder, values | flags)
    (root / "sys/block").mkdir(exist_ok=True)
    (root / "sys/block" / name).symlink_to(folder)


def test_disks_are_those_that_stay_in_the_machine_and_can_be_written(tmp_path: Path) -> None:
    pci = "pci0000:00/0000:00:1f.2"
    disk(tmp_path, "sda", f"{pci}/ata1/host0/target0:0:0/0:0:0:0", **{"queue/rotational": "1"})
    disk(tmp_path, "sdb", f"{pci}/usb1/1-1/host6/target6:0:0/6:0:0:0", removable="1")
    disk(tmp_path, "sdc", f"{pci}/host7/port-7:0/end_device-7:0/target7:0:0/7:0:0:0", ro="1")
    disk(tmp_path, "nvme0n1", "virtual/nvme-subsystem/nvme-subsys0")
    disk(tmp_path, "nvme0c0n1", f"{pci}/nvme/nvme0", hidden="1")
    disk(tmp_path, "sdd", f"{pci}/host8/port-8:0/end_device-8:0/target8:0:0/8:0:0:0")
    disk(tmp_path, "sde", f"{pci}/host9/target9:0:0/9:0:0:0", size="0")
    (tmp_path / "sys/devices/virtual/block/loop0").mkdir(parents=True)
    (tmp_path / "sys/block/loop0").symlink_to(tmp_path / "sys/devices/virtual/block/loop0")
    for kind, name in (("by-id", "wwn-0x5"), ("by-id", "ata-M_1"), ("by-path", "pci-0000:00:1f.2-ata-1")):
        place(tmp_path / "dev", {"sda": ""})
        (tmp_path / "dev/disk" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev/disk" / kind / name).symlink_to("../../sda")
    found = {each["device"]: each for each in run(tmp_path)["disks"]}
    assert {device: each["bus"] for device, each in found.items()} == {
        "/dev/nvme0n1": "nvme",
        "/dev/sda": "sata",
        "/dev/sdd": "sas",
    }
    assert found["/dev/sda"] == {
        "device": "/dev/sda",
        "mib": 457862,
        "model": "M 1",
        "bus": "sata",
        "rotates": True,
        "ids": ["/dev/disk/by-id/ata-M_1", "/dev/disk/by-id/wwn-0x5"],
        "paths": ["/dev/disk/by-path/pci-0000:00:1f.2-ata-1"],
    }


def test_processors_memory_and_the_card_that_booted_are_read(tmp_path: Path) -> None:
    threads = [(socket, core) for _ in "ab" for socket in "01" for core in "0123"]
    text = "".join(
        f"processor\t: {rank}\nmodel name\t: Xeon   Gold\nphysical id\t: {socket}\ncore id\t\t: {core}\n\n"
        for rank, (socket, core) in enumerate(threads)
    )
    place(
        tmp_path,
        {
            "proc/cpuinfo": text,
            "proc/cmdline": "console=ttyS0 BOOTIF=01-52-54-00-AB-CD-EF quiet",
            "proc/meminfo": "MemTotal:       32780000 kB\n",
            "sys/firmware/efi/config": "",
            "sys/class/dmi/id/sys_vendor": "Dell Inc.\n",
            "sys/class/dmi/id/product_name": " PowerEdge\n",
        },
    )
    told = run(tmp_path)
    assert told["processors"] == {"model": "Xeon Gold", "sockets": 2, "cores": 8, "threads": 16}
    assert (told["boot_mac"], told["firmware"], told["product"]) == ("52:54:00:ab:cd:ef", "uefi", "Dell Inc. PowerEdge")
    assert told["memory_mib"] == 32064, "whole pieces of 64 MiB: what the kernel has left changes"
    place(
        tmp_path,
        {
            "sys/devices/system/memory/block_size_bytes": "8000000\n",
            **{f"sys/devices/system/memory/memory{rank}/state": "online" for rank in range(256)},
        },
    )
    assert run(tmp_path)["memory_mib"] == 32768


# --- what a node tells ------------------------------------------------------------------------------------------------


@given(st.one_of(st.text(), st.dictionaries(st.text(), st.text()).map(json.dumps)))
def test_whatever_a_node_tells_it_is_a_machine_or_a_refusal(told: str) -> None:
    with pytest.raises(KadeployError, match="not what it was asked for"):
        hardware.read(told)


def test_words_of_firmware_are_made_fit_and_a_mac_address_that_is_none_is_not_taken() -> None:
    odd = machine(product="Evil\x1b[31m\n  Corp", boot_mac="ff:ff:ff:ff:ff:ff")
    found = hardware.read(msgspec.json.encode(odd).decode())
    assert "\x1b" not in found.product
    assert "\n" not in found.product
    assert found.boot_mac == ""


# --- the file ---------------------------------------------------------------------------------------------------------


def test_nodes_that_are_alike_are_one_item_and_what_each_has_alone_is_its_own_line() -> None:
    machines = {f"gdx-{number}": machine(number) for number in (10, 1, 2)}
    machines["gdx-3"] = machine(3, memory_mib=98304)
    first, second = hardware.kept([], machines)
    assert (first["nodes"], second["nodes"]) == ("gdx-[1-2,10]", "gdx-3")
    assert list(first["own"]) == ["gdx-1", "gdx-2", "gdx-10"]
    assert first["own"]["gdx-2"] == {
        "serial": "ABC2",
        "macs": {"eth0": "52:54:00:00:00:02", "eth1": "52:54:00:00:01:02"},
        "disks": {"/dev/sda": ["/dev/disk/by-id/wwn-0x5000c500a1b2c302"]},
    }
    assert [card.get("boots") for card in first["cards"]] == [True, None]
    for part in (first, second):
        assert msgspec.convert(part, Hardware).memory_mib == part["memory_mib"]


def test_what_is_known_of_other_nodes_stays_and_a_second_look_changes_nothing() -> None:
    before = hardware.kept([], {f"gdx-{number}": machine(number) for number in range(1, 6)})
    again = hardware.kept(before, {"gdx-3": machine(3)})
    assert again == before
    changed = hardware.kept(before, {"gdx-3": machine(3, memory_mib=1)})
    assert [part["nodes"] for part in changed] == ["gdx-[1-2,4-5]", "gdx-3"]
    assert hardware.kept(changed, {"gdx-3": machine(3)}) == before
