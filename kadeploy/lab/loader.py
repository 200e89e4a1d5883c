"""What the machines' firmware fetches first: PXELINUX for BIOS, GRUB for UEFI, and a profile for nodes without one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from kadeploy.errors import KadeployError
from kadeploy.lab.dhcp import UEFI_LOADER
from kadeploy.lab.lab import Lab

PXELINUX = Path("/usr/lib/PXELINUX/pxelinux.0")
MODULES = Path("/usr/lib/syslinux/modules/bios")
GRUB_MODULES = Path("/usr/lib/grub/x86_64-efi")

_PXELINUX_MODULES = (
    *("ldlinux.c32", "libcom32.c32", "libutil.c32", "chain.c32", "mboot.c32"),
    *("reboot.c32", "poweroff.c32"),
)

IN_GRUB = (
    *("normal", "configfile", "test", "echo", "sleep", "reboot", "serial", "terminal", "gzio", "search"),
    *("http", "linux", "multiboot2", "chain", "part_gpt", "part_msdos", "ext2", "xfs", "btrfs", "fat"),
)
"""What profiles need, as one file that the firmware fetches by windows: GRUB itself takes one small block at a time."""

_PXELINUX_DEFAULT = """\
SERIAL 0 115200
DEFAULT disk
LABEL disk
SAY No profile for this node: booting from its disk.
COM32 chain.c32
APPEND hd0
"""

_GRUB_DEFAULT = """\
serial --unit=0 --speed=115200
terminal_output serial
echo "No profile for this node: booting from its disk."
exit
"""


def install(lab: Lab) -> None:
    """Fill the TFTP folder; profiles that are there stay."""
    lab.tftp.mkdir(exist_ok=True, mode=0o755)
    _INSTALLERS[lab.firmware](lab.tftp)


def _pxelinux(root: Path) -> None:
    for source in (PXELINUX, *(MODULES / name for name in _PXELINUX_MODULES)):
        shutil.copyfile(source, root / source.name)
    (root / "pxelinux.cfg").mkdir(exist_ok=True)
    (root / "pxelinux.cfg" / "default").write_text(_PXELINUX_DEFAULT)


def _grub(root: Path) -> None:
    command = ["grub-mknetdir", f"--net-directory={root}", "--subdir=grub", f"--directory={GRUB_MODULES}"]
    command.append(f"--modules={' '.join(IN_GRUB)}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (root / UEFI_LOADER).exists():
        raise KadeployError(
            f"grub-mknetdir failed: {done.stderr.strip()}. Install grub-efi-amd64-bin and grub2-common."
        )
    (root / "grub" / "grub.cfg").write_text(_GRUB_DEFAULT)


_INSTALLERS = {"bios": _pxelinux, "uefi": _grub}
