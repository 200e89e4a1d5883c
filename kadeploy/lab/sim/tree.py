"""The files of simulated nodes that real shells run in: a folder each, which is their root.

Programs and libraries are this machine's, read-only. Commands that would touch a disk, a boot loader or the power are
`files/act` under their name, in front of the real ones. ``/dev/sda`` and its partitions are there, and lead to no
driver. All of it is mounted in the supervisor's mount namespace only, in memory, and ends with it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import time
from pathlib import Path

from kadeploy.lab.lab import Lab, LabNode

ACTED = (
    *("sfdisk", "partx", "partprobe", "parted", "fdisk", "blockdev", "udevadm", "lsblk", "blkid", "dd", "wipefs"),
    *("mkfs.ext2", "mkfs.ext3", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mkfs.vfat", "mkswap", "swapon", "swapoff"),
    *("mount", "umount", "findmnt", "sync", "grub-install", "modprobe"),
    *("kexec", "reboot", "poweroff", "halt", "shutdown"),
)
"""Commands that are acted."""
_FAULTY = {"die": ("tar",), "lie-bytes": ("python3",), "lie-digest": ("python3",), "spoil": ("python3",)}
"""Commands that are acted on nodes with a fault."""
PATH = "/sbin:/usr/sbin:/usr/bin:/bin"

_ACT = Path(__file__).parent / "files" / "act"
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_NO_DRIVER = 4000
"""A major number beyond those that block drivers can have: opening such a device fails (ENXIO)."""
_PARTITIONS = 6
_IN_MEMORY = ("root", "tmp", "rambin", "run", "dev/shm")
"""Folders that a boot empties."""

_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


def stage(lab: Lab) -> Path:
    """Make the folder that holds the nodes' roots, and what they share; returns it. Once per supervisor."""
    _mount("none", Path("/"), "", _MS_REC | _MS_PRIVATE)
    root = lab.run / "nodes"
    root.mkdir(exist_ok=True, mode=0o755)
    _mount("nodes", root, "tmpfs", 0, "mode=755,size=75%")
    for name in ("usr", "etc", *_real_folders()):
        shared = root / "shared" / name
        shared.mkdir(parents=True)
        _bind(Path("/") / name, shared)
        _mount("none", shared, "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    return root


def _real_folders() -> list[str]:
    """Top-level folders of libraries and programs that are not links into /usr."""
    return [name for name in ("bin", "lib", "lib32", "lib64") if Path("/", name).is_dir() and not _linked(name)]


def _linked(name: str) -> bool:
    return Path("/", name).is_symlink()


def plant(stage_: Path, node: LabNode) -> Path:
    """The root of *node*, made when it boots for the first time: its disk is empty."""
    root = stage_ / node.name
    if root.exists():
        return root
    for name in ("dev", "mnt/dest", "proc/1", "sbin", "sys", "var/tmp", *_IN_MEMORY):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib32", "lib64"):
        if _linked(name):
            (root / name).symlink_to(Path("/", name).readlink())
    for shared in (stage_ / "shared").iterdir():
        (root / shared.name).mkdir()
        _bind(shared, root / shared.name)
    (root / "proc" / "uptime").touch()
    _bind(Path("/proc/uptime"), root / "proc" / "uptime")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (root / "dev" / name).chmod(0o666)
    for number in range(_PARTITIONS + 1):
        device = root / "dev" / f"sda{number or ''}"
        os.mknod(device, stat.S_IFBLK | 0o600, os.makedev(_NO_DRIVER, number))
    os.mkfifo(root / "dev" / "power")
    shutil.copyfile(_ACT, root / "sbin" / "act")
    (root / "sbin" / "act").chmod(0o755)
    for name in (*ACTED, *_FAULTY.get(node.fault, ())):
        (root / "sbin" / name).symlink_to("act")
    return root


def boot(root: Path, node: LabNode, authorized_key: str, command_line: str) -> None:
    """What a boot changes: memory is empty, nothing is mounted, the first process is new."""
    for name in _IN_MEMORY:
        shutil.rmtree(root / name)
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "root" / ".ssh").mkdir(mode=0o700)
    (root / "root" / ".ssh" / "authorized_keys").write_text(authorized_key)
    (root / "run" / "fault").write_text(f"{node.fault}\n")
    (root / "proc" / "mounts").write_text("rootfs / rootfs rw 0 0\n")
    (root / "proc" / "cmdline").write_text(f"{command_line}\n")
    (root / "proc" / "swaps").write_text("Filename Type Size Used Priority\n")
    (root / "proc" / "1" / "stat").write_text(first_process(now()))


def now() -> float:
    """Seconds since this machine started, as its kernel counts them for processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def first_process(started: float) -> str:
    """``/proc/1/stat`` of a system whose first process began at *started* (proc(5))."""
    return f"1 (init) S 0 1 1 {'0 ' * 15}{int(started * os.sysconf('SC_CLK_TCK'))} 0\n"


def _bind(source: Path, target: Path) -> None:
    _mount(str(source), target, "", _MS_BIND)


def _mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), bytes(target), kind.encode(), flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", str(target))
