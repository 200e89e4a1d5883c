"""What a light node makes of its boot profile: the two answers that PXELINUX or GRUB would act upon."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from kadeploy.boot.profile import Loader, file_name
from kadeploy.lab.lab import Lab, LabNode
from kadeploy.lab.virtual import Payload

_LOADERS: dict[str, Loader] = {"bios": "pxelinux", "uefi": "grub"}
_KERNEL = re.compile(r"^\s*(?:KERNEL|(?:if )?linux)\s+([^\s;]+)", re.IGNORECASE | re.MULTILINE)
_PARAMETERS = re.compile(r"^\s*(?:APPEND|(?:if )?linux\s+\S+)\s+(.*?)(?:; then)?$", re.IGNORECASE | re.MULTILINE)
_PARTITION = re.compile(r"\bhd0[ ,](\d+)")
"""``APPEND hd0 3`` of chain.c32, ``set root='hd0,3'`` of GRUB."""


def file(lab: Lab, node: LabNode) -> Path:
    """The node's profile in the TFTP folder."""
    return lab.tftp / file_name(_LOADERS[lab.firmware], node.address)


def read(lab: Lab, node: LabNode) -> str:
    """What *node* boots: see `system`; without a profile its disk, as the firmware does."""
    try:
        return system(file(lab, node).read_text())
    except FileNotFoundError:
        return "nothing: no profile, and no boot loader on the disk itself"


def command_line(lab: Lab, node: LabNode) -> str:
    """The kernel parameters that *node* boots with; empty without a profile."""
    try:
        return parameters(file(lab, node).read_text())
    except FileNotFoundError:
        return ""


def parameters(text: str) -> str:
    r"""Kernel parameters in a profile.

    >>> parameters("KERNEL http://10.177.0.1/deploy-vmlinuz\nAPPEND initrd=x a=1 b")
    'initrd=x a=1 b'
    >>> parameters("\t\tif linux (http,10.177.0.1)/deploy-vmlinuz 'a=1' 'b' BOOTIF=01-$net_default_mac; then\n")
    'a=1 b BOOTIF=01-$net_default_mac'
    """
    found = _PARAMETERS.search(text)
    return " ".join(shlex.split(found[1])) if found else ""


def system(text: str) -> str:
    r"""``deploy``, the number of a partition, or why neither.

    >>> system("KERNEL http://10.177.0.1/deploy-vmlinuz\nAPPEND initrd=x"), system("COM32 chain.c32\nAPPEND hd0 3")
    ('deploy', '3')
    """
    if kernel := _KERNEL.search(text):
        name = kernel[1].rpartition("/")[2]
        return "deploy" if name == Payload.kernel else f"nothing: light nodes cannot run the kernel {name}"
    if partition := _PARTITION.search(text):
        return partition[1]
    return "nothing: the profile names neither a kernel nor a partition"
