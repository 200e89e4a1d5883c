"""What the machines' firmware fetches first: PXELINUX, GRUB or shim, and a profile for nodes without one."""

from __future__ import annotations

from collections.abc import Mapping

from kadeploy.boot import loader_files
from kadeploy.lab.lab import CONTROLLER, Lab

LOADERS: Mapping[str, str] = {
    "bios": loader_files.PXELINUX,
    "uefi": loader_files.GRUB_UEFI,
    "secure-boot": loader_files.SHIM,
}
"""What DHCP names, by the lab's firmware."""
PACKAGES: Mapping[str, str] = {
    what: package
    for firmware in ("bios", "uefi")
    for what, package in loader_files.LOADERS[LOADERS[firmware]].needs.items()
}
"""Debian packages by the file or program that each of them brings; those of signed loaders are missed where wanted."""


def install(lab: Lab) -> None:
    """Fill the TFTP folder; profiles that are there stay."""
    lab.tftp.mkdir(exist_ok=True, mode=0o755)
    loader_files.install(lab.tftp, [LOADERS[lab.firmware]], CONTROLLER)
