"""Labs of virtual machines: everything between the power button and the ssh prompt is real."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kadeploy.images import build_deployment_system
from kadeploy.lab import bmc, dhcp, disk, loader, router
from kadeploy.lab.lab import CONTROLLER, Lab, LabNode
from kadeploy.lab.machine import OVMF_CODE, Machine, VirtualMachine
from kadeploy.lab.service import Service

Say = Callable[[str], None]
"""Where a step tells what it does."""

REQUIREMENTS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "/usr/lib/ipxe/qemu/pxe-virtio.rom": "ipxe-qemu",
    **loader.PACKAGES,
    str(OVMF_CODE): "ovmf",
    "dnsmasq": "dnsmasq-base",
    "ipmi_sim": "openipmi",
    "setpriv": "util-linux",
    "ip": "iproute2",
    "ssh-keygen": "openssh-client",
}
"""Program (or file) → Debian package."""


@dataclass(frozen=True)
class Payload:
    """What the machines boot to be deployed, as the cluster file names it."""

    host_key: str
    kernel: str = "deploy-vmlinuz"
    initrd: str = "deploy-initrd"
    params: str = "console=tty0 console=ttyS0,115200 norandmaps"
    """Programs always at the same addresses: an emulator translates them once, not each time that one is started."""
    power: Literal["ipmi", "command", "sim"] = "ipmi"
    """What switches the machines: names the file ``config/power-….yml``."""


def prepare(lab: Lab, cache: Path, say: Say) -> Payload:
    """Build or find the deployment system, fill the TFTP and HTTP folders, make the disks."""
    system = build_deployment_system(cache, lab.public_key.read_text().strip(), say=say)
    say("deployment system ready")
    payload = Payload(host_key=system.host_key_public.strip())
    lab.http.mkdir(exist_ok=True, mode=0o755)
    loader.install(lab)
    served = lab.tftp if lab.secure_boot else lab.http
    place(system.kernel, served / payload.kernel)
    place(system.initrd, served / payload.initrd)
    made = disk.create(lab)
    say(f"boot files and disks ready ({len(made)} new, {lab.nodes - len(made)} kept)")
    return payload


def prepare_bare(lab: Lab) -> None:
    """Make the disks, and nothing that the machines could boot."""
    disk.create(lab)


def place(source: Path, target: Path) -> None:
    """Put a file of the cache under a served name: linked when the file system allows, else copied."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def services(lab: Lab) -> list[Service]:
    """A router, one BMC per machine and, unless the lab is bare, DHCP and the boot server."""
    around = [*router.services(), *bmc.services(lab)]
    return around if lab.bare else [dhcp.service(lab), boot_server(lab), *around]


def boot_server(lab: Lab) -> Service:
    """TFTP and HTTP."""
    command = [sys.executable, "-I", "-m", "kadeploy.boot.server", "--address", CONTROLLER]
    command += ["--tftp-root", str(lab.tftp), "--http-root", str(lab.http)]
    return Service("boot server", command, (("udp", CONTROLLER, 69), ("tcp", CONTROLLER, 80)))


def machine(lab: Lab, node: LabNode) -> Machine:
    """The QEMU machine of *node*."""
    return VirtualMachine(lab, node)
