"""Disks of virtual machines: sparse raw files, which a killed machine cannot leave half-written inside."""

from __future__ import annotations

import json
import os
from pathlib import Path

from kadeploy.lab.lab import SECTOR, Lab, LabNode

GIB = 1 << 30
SMALL = 64 << 20
"""Bytes of a disk that is too small."""
DEPLOY_START = (1 + 256 + 1024) << 20
"""Byte where the deployment partition of the generated cluster file begins: 1 MiB, swap 256 MiB, prod 1 GiB."""
_HALT = bytes.fromhex("fa f4 eb fd")
"""Machine code in place of a loader, to which PXELINUX jumps: cli, hlt, again. Zeros would keep a processor busy."""
_SUPERBLOCKS = (0, 1024, 64 << 10)
"""Where file systems begin: xfs and vfat, ext2/3/4, btrfs."""


def path(lab: Lab, node: LabNode) -> Path:
    """The file that is *node*'s disk."""
    return lab.disks / f"{node.name}.raw"


def size(lab: Lab, node: LabNode) -> int:
    """Bytes of *node*'s disk."""
    return SMALL if node.fault == "small-disk" else lab.disk * GIB


def create(lab: Lab) -> list[str]:
    """Make the disks that are missing or of another size; returns the names of the nodes whose disk is new."""
    lab.disks.mkdir(exist_ok=True, mode=0o700)
    made = []
    for node in lab.members.values():
        file, wanted = path(lab, node), size(lab, node)
        if not file.exists() or file.stat().st_size != wanted:
            file.unlink(missing_ok=True)
            file.touch(mode=0o600)
            if not lab.uefi:
                file.write_bytes(_HALT)
            os.truncate(file, wanted)
            made.append(node.name)
    return made


def devices(node: LabNode) -> list[str]:
    """QEMU's ``-device`` words for *node*'s disk, second in the boot order, and for its controller."""
    options = f"drive=disk,bootindex=2,serial={node.name}"
    sectors = f"logical_block_size={node.sector},physical_block_size={node.sector}"
    if node.nvme:
        return ["-device", f"nvme,{options},{sectors}"]
    return ["-device", "virtio-scsi-pci", "-device", f"scsi-hd,{options},{sectors},werror=report,rerror=report"]


def blockdev(lab: Lab, node: LabNode) -> str:
    """QEMU's ``-blockdev`` value of the node called ``disk``.

    A guest's flush is not passed on: the disk outlives the machine's process, not a crash of the whole host.
    """
    plain = {
        "driver": "raw",
        "discard": "unmap",
        "cache": {"no-flush": True},
        "file": {"driver": "file", "filename": str(path(lab, node)), "cache": {"no-flush": True}, "discard": "unmap"},
    }
    if node.fault != "bad-disk":
        return json.dumps({"node-name": "disk", **plain})
    errors = [
        {"event": "none", "iotype": "write", "sector": (DEPLOY_START + offset) // SECTOR, "errno": 5}
        for offset in _SUPERBLOCKS
    ]
    return json.dumps({"node-name": "disk", "driver": "blkdebug", "image": plain, "inject-error": errors})
