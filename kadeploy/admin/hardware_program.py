"""What the machine that this runs on is, as one JSON object on standard output.

It is sent to nodes as it is, for the Python of the deployment system: it needs nothing but the standard library, and
no program but ``ip`` and ``modprobe``. Everything is read from the kernel; nothing is changed.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import re
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SECTORS_OF_MIB = 2048
"""Of 512 bytes, which sysfs counts in."""
_BUSES = (
    ("/nvme", "nvme"),
    ("/usb", "usb"),
    ("/session", "iscsi"),
    ("/end_device", "sas"),
    ("/ata", "sata"),
    ("/virtio", "virtio"),
    ("/host", "scsi"),
)
"""What a disk's place among the devices has in it, and how it is connected."""


def main(root: str = "/") -> None:
    """Print it; *root*: where ``proc``, ``sys`` and ``dev`` are."""
    print(json.dumps(Machine(Path(root)).told()))


class Machine:
    """What the kernel tells."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def told(self) -> dict[str, Any]:
        """All of it."""
        dmi = {name: self.word(f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name", "product_serial")}
        return {
            "arch": os.uname().machine,
            "firmware": "uefi" if (self.root / "sys/firmware/efi").is_dir() else "bios",
            "boot_mac": self.boot_card(),
            "memory_mib": self.memory(),
            "processors": self.processors(),
            "disks": list(self.disks()),
            "cards": list(self.cards()),
            "bmc": bmc_address(),
            "product": " ".join(filter(None, (dmi["sys_vendor"], dmi["product_name"]))),
            "serial": dmi["product_serial"],
        }

    def word(self, path: str) -> str:
        """A file of one line, its blanks each one; empty where there is none."""
        try:
            return " ".join((self.root / path).read_text(errors="replace").split())
        except OSError:
            return ""

    def text(self, path: str) -> str:
        """A file; empty where there is none."""
        try:
            return (self.root / path).read_text(errors="replace")
        except OSError:
            return ""

    def boot_card(self) -> str:
        """MAC address of the card that the loader came by, or else of the one by which the controller asks."""
        told = re.search(r"\bBOOTIF=01-((?:[0-9A-Fa-f]{2}-){5}[0-9A-Fa-f]{2})", self.word("proc/cmdline"))
        if told:
            return told[1].replace("-", ":").lower()
        _, _, own, _ = (*os.environ.get("SSH_CONNECTION", "").split(), "", "", "", "")[:4]
        found = re.search(r"^\d+: (\S+)", output("ip", "-o", "addr", "show", "to", own)) if own else None
        found = found or re.search(r"\bdev (\S+)", output("ip", "-4", "route", "show", "default"))
        return self.word(f"sys/class/net/{found[1]}/address") if found else ""

    def memory(self) -> int:
        """MiB that are built in, as far as the kernel knows; what it has left of it changes from boot to boot."""
        folder = self.root / "sys/devices/system/memory"
        with contextlib.suppress(ValueError):
            size = int(self.word("sys/devices/system/memory/block_size_bytes"), 16)
            return len(list(folder.glob("memory[0-9]*"))) * size >> 20
        told = re.search(r"MemTotal: *(\d+)", self.text("proc/meminfo"))
        return (int(told[1]) + 0xFFFF) >> 16 << 6 if told else 0

    def processors(self) -> dict[str, Any]:
        """Model, sockets, cores and threads."""
        blocks = [
            dict(re.findall(r"^(.+?)\s*: ?(.*)$", block, re.MULTILINE))
            for block in self.text("proc/cpuinfo").split("\n\n")
            if "processor" in block
        ]
        cores = {(each.get("physical id", "0"), each.get("core id", str(rank))) for rank, each in enumerate(blocks)}
        return {
            "model": " ".join(blocks[0].get("model name", "").split()) if blocks else "",
            "sockets": len({socket for socket, _ in cores}),
            "cores": len(cores),
            "threads": len(blocks),
        }

    def disks(self) -> Iterator[dict[str, Any]]:
        """Disks that stay in the machine and can be written to, with the names that stay."""
        links = {kind: self.links(kind) for kind in ("by-id", "by-path")}
        for folder in sorted((self.root / "sys/block").glob("*")):
            where, name = os.path.realpath(folder), folder.name
            sectors = int(self.word(f"sys/block/{name}/size") or 0)
            flags = [self.word(f"sys/block/{name}/{flag}") for flag in ("ro", "removable", "hidden")]
            if not sectors or "1" in flags or not (folder / "device").exists():
                continue
            yield {
                "device": f"/dev/{name}",
                "mib": sectors // _SECTORS_OF_MIB,
                "model": self.word(f"sys/block/{name}/device/model"),
                "bus": next((bus for part, bus in _BUSES if part in where), ""),
                "rotates": self.word(f"sys/block/{name}/queue/rotational") == "1" and "/virtio" not in where,
                "ids": links["by-id"].get(name, []),
                "paths": links["by-path"].get(name, []),
            }

    def links(self, kind: str) -> dict[str, list[str]]:
        """Links below ``/dev/disk``, by the name of the disk."""
        found: dict[str, list[str]] = {}
        for link in sorted((self.root / "dev/disk" / kind).glob("*")):
            found.setdefault(Path(os.path.realpath(link)).name, []).append(f"/dev/disk/{kind}/{link.name}")
        return found

    def cards(self) -> Iterator[dict[str, Any]]:
        """Network cards, but none that are of software alone."""
        for path in sorted((self.root / "sys/class/net").glob("*")):
            where = f"sys/class/net/{path.name}"
            if not (path / "device").exists() or self.word(f"{where}/type") != "1":
                continue
            speed = self.word(f"{where}/speed")
            driver = path / "device/driver"
            yield {
                "name": path.name,
                "mac": self.word(f"{where}/address"),
                "driver": Path(os.path.realpath(driver)).name if driver.exists() else "",
                "mbps": int(speed) if speed.isdecimal() and len(speed) < len("4294967295") else 0,
            }


def output(*command: str) -> str:
    """What a program says; empty where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


# --- the BMC, asked through the machine itself ----------------------------------------------------------------------

_TRANSPORT, _GET_LAN_PARAMETER, _IP_ADDRESS = 0x0C, 0x02, 3
"""IPMI 2.0, 23.2 and table 23-4."""
_SYSTEM_INTERFACE, _BMC_CHANNEL = 0x0C, 0x0F
_REQUEST, _RECEIVED = "@PIlBBHP", "@iPIlBBHP"
"""``struct ipmi_req`` and ``struct ipmi_recv`` of linux/ipmi.h."""
_SEND, _RECEIVE = 0x8028690D, 0xC030690B
"""``IPMICTL_SEND_COMMAND`` and ``IPMICTL_RECEIVE_MSG_TRUNC`` where pointers have 64 bits."""
_PATIENCE = 5.0
_LAN_CHANNELS = (1, 2, 3, 8)
_LONGEST = 272


def bmc_address(device: str = "/dev/ipmi0") -> str:
    """IPv4 address of the BMC; empty where there is none, or it has none."""
    if not Path(device).exists():
        for module in ("ipmi_si", "ipmi_devintf"):
            output("modprobe", "-q", module)
    try:
        descriptor = os.open(device, os.O_RDWR)
    except OSError:
        return ""
    try:
        for channel in _LAN_CHANNELS:
            answer = ask(descriptor, _TRANSPORT, _GET_LAN_PARAMETER, bytes((channel, _IP_ADDRESS, 0, 0)))
            if answer[:1] == b"\0" and len(answer) >= 6 and any(answer[2:6]):  # code, revision, address
                return ".".join(map(str, answer[2:6]))
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return ""


def ask(descriptor: int, netfn: int, command: int, data: bytes) -> bytes:
    """What the BMC answers, its completion code first; empty when it does not."""
    address = array.array("B", struct.pack("@ihBx", _SYSTEM_INTERFACE, _BMC_CHANNEL, 0))
    sender, body, room = (array.array("B", each) for each in (bytes(_LONGEST), data, bytes(_LONGEST)))
    where, size = address.buffer_info()
    request = struct.pack(_REQUEST, where, size, 1, netfn, command, len(body), body.buffer_info()[0])
    fcntl.ioctl(descriptor, _SEND, request)
    if not select.select([descriptor], [], [], _PATIENCE)[0]:
        return b""
    received = bytearray(struct.pack(_RECEIVED, 0, *sender.buffer_info(), 0, 0, 0, len(room), room.buffer_info()[0]))
    fcntl.ioctl(descriptor, _RECEIVE, received)
    return room.tobytes()[: struct.unpack(_RECEIVED, received)[6]]


if __name__ == "__main__":
    main(*sys.argv[1:])
