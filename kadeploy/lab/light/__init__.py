"""Labs of light nodes: the deployment system's tree in Linux namespaces, with a loop device as its disk.

What runs is real: the deployment system's sshd, marker port and commands, on a disk that is cut, formatted, filled and
mounted by the kernel. What is acted is what a namespace cannot have: firmware, boot loader and kernel. A node that is
switched on reads its boot profile in the TFTP folder and becomes either the deployment system or, when the profile
leads to a partition that has been made bootable, a user's system: sshd alone, with that partition's files and keys.
There is no kexec.
"""

from __future__ import annotations

from pathlib import Path

from kadeploy.errors import OptionError
from kadeploy.images import build_deployment_system
from kadeploy.lab import disk
from kadeploy.lab.lab import Lab, LabNode
from kadeploy.lab.light.machine import LightMachine
from kadeploy.lab.machine import Machine
from kadeploy.lab.service import Service
from kadeploy.lab.virtual import Payload, Say

REQUIREMENTS = {
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "ssh-keygen": "openssh-client",
}
"""Program → Debian package."""


def prepare(lab: Lab, cache: Path, say: Say) -> Payload:
    """Build or find the deployment system, since nodes run in its tree; make the disks.

    Raises:
        OptionError: a fault that only emulated disks can have.
    """
    broken = [name for name, fault in lab.faults.items() if fault == "bad-disk"]
    if broken:
        raise OptionError(f"--bad-disk {','.join(broken)}: light nodes have no such disks; take --kind vm.")
    system = build_deployment_system(cache, lab.public_key.read_text().strip(), say=say)
    lab.tree.unlink(missing_ok=True)
    lab.tree.symlink_to(system.tree.resolve())
    for folder in (lab.tftp, lab.http):
        folder.mkdir(exist_ok=True, mode=0o755)
    made = disk.create(lab)
    say(f"deployment system and disks ready ({len(made)} new, {lab.nodes - len(made)} kept)")
    return Payload(host_key=system.host_key_public.strip(), power="command")


def services(lab: Lab) -> list[Service]:  # noqa: ARG001 - other kinds need it
    """None: nodes are switched by the supervisor itself and read the TFTP folder directly."""
    return []


def machine(lab: Lab, node: LabNode) -> Machine:
    """The namespaces of *node*."""
    return LightMachine(lab, node)
