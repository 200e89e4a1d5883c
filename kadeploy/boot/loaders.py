"""What boots a deployed system: file system, boot loader and firmware, in one table.

With ``chainload`` a node goes from the network to its disk. Under BIOS that is the boot sector of the partition, where
GRUB has room in front of ext2 to ext4 only: xfs begins there itself, and btrfs leaves less than GRUB needs. Under UEFI
it is GRUB that came over the network; it reads ``grub.cfg`` and the kernel from the partition. With ``pure_pxe`` the
kernel comes over the network, whatever the file system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kadeploy.config import cluster
from kadeploy.environments.environment import Environment

Boots = Literal["linux", "xen", "disk"]
"""What a profile boots: a kernel or a hypervisor that comes over the network, or whatever the disk holds."""

FILESYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs")
"""Those that the table knows of; others are the site's own affair."""
BOOT_SECTOR = frozenset({"ext2", "ext3", "ext4"})
"""File systems that leave room for a boot sector and keep GRUB's blocks where they are."""
READ_BY_GRUB = frozenset(FILESYSTEMS)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the nodes of a cluster boot."""

    boots: frozenset[Boots]
    filesystems: frozenset[str]
    """Of Linux systems whose kernel the loader takes from the disk."""


_ALL: frozenset[Boots] = frozenset({"linux", "xen", "disk"})
_KERNELS: frozenset[Boots] = frozenset({"linux"})

WAYS: Mapping[tuple[str, str], Way] = {
    ("bios", "pxelinux"): Way(boots=_ALL, filesystems=BOOT_SECTOR),
    ("bios", "ipxe"): Way(boots=_ALL, filesystems=BOOT_SECTOR),
    ("bios", "grub"): Way(boots=_ALL, filesystems=BOOT_SECTOR),
    ("uefi", "pxelinux"): Way(boots=_KERNELS, filesystems=frozenset()),
    ("uefi", "ipxe"): Way(boots=_ALL, filesystems=READ_BY_GRUB),
    ("uefi", "grub"): Way(boots=_ALL, filesystems=READ_BY_GRUB),
}
"""By ``loader.firmware`` and ``loader.profiles``."""

_SIGNED = Way(boots=frozenset({"linux", "disk"}), filesystems=READ_BY_GRUB)
"""What GRUB boots as Debian has signed it: it has no ``multiboot2``, and takes no module from anywhere."""


def way(loader: cluster.Loader) -> Way:
    """The row of a cluster's loader."""
    return _SIGNED if loader.secure_boot else WAYS[loader.firmware, loader.profiles]


def unable(loader: cluster.Loader) -> str:
    """Why a row does not have everything."""
    if loader.secure_boot:
        return "Secure Boot: Debian's signed GRUB boots no hypervisor: take a cluster without loader.secure_boot."
    return "PXELINUX cannot boot a disk or a hypervisor under UEFI: set loader.profiles to grub."


def boots(loader: cluster.Loader, environment: Environment | None) -> Boots:
    """What the boot profile of a deployed system boots."""
    kind = environment.environment_kind if environment else "other"
    if kind == "other" or (kind == "linux" and loader.method == "chainload"):
        return "disk"
    return kind


def why_not(loader: cluster.Loader, environment: Environment) -> str:
    """Why an environment could not be booted once GRUB is installed for it; empty when it can, or nobody knows."""
    filesystem, readable = environment.filesystem, way(loader).filesystems
    known = filesystem in FILESYSTEMS and bool(readable)  # a loader without any has no profile for a disk either
    if boots(loader, environment) != "disk" or not known or filesystem in readable:
        return ""
    return (
        f"environment {environment.name} is on {filesystem}, and {loader.firmware.upper()} boots disks with "
        f"{', '.join(sorted(readable))} only. Take one of these, or a cluster that boots by UEFI and GRUB or has "
        "loader.method pure_pxe; with --disable-bootloader-install your own loader stays on the partition."
    )


_NAMES: Mapping[str, str] = {"pxelinux": "PXELINUX", "grub": "GRUB", "ipxe": "iPXE"}


def how(loader: cluster.Loader, environment: Environment) -> str:
    """How a deployed environment is booted, for people."""
    if boots(loader, environment) != "disk":
        return f"{_NAMES[loader.profiles]} boots its kernel over the network"
    if loader.firmware == "bios":
        return f"{_NAMES[loader.profiles]} goes on to the boot sector of the disk"
    return "GRUB, from the network, reads its grub.cfg on the disk"
