"""Which files a loader consists of, which Debian package has them, and how they come into the folder that serves them.

DHCP names the first file of a loader, which fetches the others by itself, beside it. `LOADERS` is the one place that
knows them: what is installed, what a check looks for, and what the lab's machines boot.
"""

from __future__ import annotations

import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kadeploy import files
from kadeploy.caller import Account, as_user
from kadeploy.errors import FileError

UNDIONLY = "undionly.kpxe"
SNPONLY = "snponly.efi"
PXELINUX = "pxelinux.0"
PXELINUX_EFI = "syslinux.efi"
GRUB_BIOS = "grub/i386-pc/core.0"
GRUB_UEFI = "grub/x86_64-efi/core.efi"
GRUB_ARM64 = "grub/arm64-efi/core.efi"
SHIM = "bootx64.efi"

IN_GRUB = (
    *("normal", "configfile", "test", "echo", "sleep", "reboot", "serial", "terminal", "gzio", "search"),
    *("http", "linux", "multiboot2", "chain", "part_gpt", "part_msdos", "ext2", "xfs", "btrfs", "fat"),
)
"""What profiles need, as one file that the firmware fetches by windows: GRUB itself takes one small block at a time."""
_NOT_ON_ARM64 = {"multiboot2"}


class _Kind(NamedTuple):
    """How an image of GRUB is made."""

    format: str
    network: str
    """The module that speaks to the card."""


_KINDS = {
    GRUB_BIOS: _Kind("i386-pc-pxe", "pxe"),
    GRUB_UEFI: _Kind("x86_64-efi", "efinet"),
    GRUB_ARM64: _Kind("arm64-efi", "efinet"),
}

GRUB_FOLDERS = {name: Path("/usr/lib/grub") / name.split("/")[1] for name in (GRUB_BIOS, GRUB_UEFI, GRUB_ARM64)}
"""GRUB's modules, by the image that is made of them."""
_SYSLINUX = Path("/usr/lib/syslinux/modules")
_SIGNED = Path("/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed")


@dataclass(frozen=True, kw_only=True)
class Loader:
    """A boot loader: what DHCP names, and what it fetches by itself."""

    copied: Mapping[str, Path] = field(default_factory=dict)
    """Files of packages, by their name below the folder that is served."""
    is_made: bool = False
    """Whether its image is made here, by grub-mkimage(1)."""
    profile: str = ""
    """Where the profile of nodes that have none of their own is, below the same folder; empty where there is none."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Debian packages, by the file or program that each of them brings."""


def _from(package: str, copied: Mapping[str, Path]) -> Mapping[str, str]:
    return {str(path): package for path in copied.values()}


_OF_PXELINUX = {PXELINUX: Path("/usr/lib/PXELINUX/pxelinux.0")}
_MODULES = {
    name: _SYSLINUX / "bios" / name
    for name in (
        *("ldlinux.c32", "libcom32.c32", "libutil.c32", "chain.c32", "mboot.c32"),
        *("reboot.c32", "poweroff.c32"),
    )
}
_OF_PXELINUX_EFI = {
    PXELINUX_EFI: Path("/usr/lib/SYSLINUX.EFI/efi64/syslinux.efi"),
    "ldlinux.e64": _SYSLINUX / "efi64" / "ldlinux.e64",
}
_IPXE = Path("/usr/lib/ipxe")
_OF_SHIM = {SHIM: Path("/usr/lib/shim/shimx64.efi.signed")}
_OF_SIGNED_GRUB = {"grubx64.efi": _SIGNED}
_PXELINUX_PROFILE, _GRUB_PROFILE = "pxelinux.cfg/default", "grub/grub.cfg"


def _ipxe(name: str) -> Loader:
    copied = {name: _IPXE / name}
    return Loader(copied=copied, needs=_from("ipxe", copied))


def _of_grub(name: str, package: str) -> Loader:
    needs = {str(GRUB_FOLDERS[name] / "moddep.lst"): package, "grub-mkimage": "grub-common"}
    return Loader(is_made=True, profile=_GRUB_PROFILE, needs=needs)


LOADERS: Mapping[str, Loader] = {
    UNDIONLY: _ipxe(UNDIONLY),
    SNPONLY: _ipxe(SNPONLY),
    PXELINUX: Loader(
        copied={**_OF_PXELINUX, **_MODULES},
        profile=_PXELINUX_PROFILE,
        needs={**_from("pxelinux", _OF_PXELINUX), **_from("syslinux-common", _MODULES)},
    ),
    PXELINUX_EFI: Loader(
        copied=_OF_PXELINUX_EFI,
        profile=_PXELINUX_PROFILE,
        needs={
            str(_OF_PXELINUX_EFI[PXELINUX_EFI]): "syslinux-efi",
            str(_OF_PXELINUX_EFI["ldlinux.e64"]): "syslinux-common",
        },
    ),
    GRUB_BIOS: _of_grub(GRUB_BIOS, "grub-pc-bin"),
    GRUB_UEFI: _of_grub(GRUB_UEFI, "grub-efi-amd64-bin"),
    GRUB_ARM64: _of_grub(GRUB_ARM64, "grub-efi-arm64-bin"),
    SHIM: Loader(
        copied={**_OF_SHIM, **_OF_SIGNED_GRUB},
        profile=_GRUB_PROFILE,
        needs={**_from("shim-signed", _OF_SHIM), **_from("grub-efi-amd64-signed", _OF_SIGNED_GRUB)},
    ),
}
"""By the first file, as DHCP names it."""


def needed(name: str) -> tuple[str, ...]:
    """Files that have to be below the folder that is served, so that loader *name* comes up, itself first.

    >>> needed("bootx64.efi")
    ('bootx64.efi', 'grubx64.efi', 'grub/grub.cfg')
    """
    loader = LOADERS[name]
    found = dict.fromkeys((name, *loader.copied, *([loader.profile] if loader.profile else [])))
    return tuple(found)


def missing_packages(names: Iterable[str]) -> list[str]:
    """Debian packages that are not there, and without which the loaders *names* cannot be installed."""
    wanted = {what: package for name in names for what, package in LOADERS[name].needs.items()}
    lacking = {package for what, package in wanted.items() if not _is_there(what)}
    return sorted(lacking)


def _is_there(what: str) -> bool:
    return Path(what).exists() if what.startswith("/") else shutil.which(what) is not None


# --- profiles of nodes that have none of their own ---------------------------------------------------------------

_MARK = "# Written by Kadeploy, and again when loaders are installed: remove this line to keep a change.\n"

_PXELINUX_DEFAULT = f"""\
{_MARK}SERIAL 0 115200
DEFAULT disk
LABEL disk
SAY No profile for this node: booting from its disk.
COM32 chain.c32
APPEND hd0
"""

_PXELINUX_EFI_DEFAULT = f"""\
{_MARK}SERIAL 0 115200
DEFAULT none
LABEL none
SAY No profile for this node.
LOCALBOOT -1
"""

_GRUB_DEFAULT = """\
{mark}if [ -z "$kadeploy_has_asked" ]; then
	# A signed GRUB, and one that came by HTTP, do not look for the node's own profile by themselves.
	set kadeploy_has_asked=yes
	export kadeploy_has_asked
	set prefix=(tftp,{server})/grub
	normal
fi
serial --unit=0 --speed=115200
terminal_output console serial
echo "No profile for this node: booting from its disk."
exit
"""


def _default(name: str, server: str) -> str:
    """Text of the profile of nodes that have none of their own."""
    if LOADERS[name].profile == _GRUB_PROFILE:
        return _GRUB_DEFAULT.format(mark=_MARK, server=server)
    return _PXELINUX_DEFAULT if name == PXELINUX else _PXELINUX_EFI_DEFAULT


# --- installing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What has become of a file."""

    path: Path
    how: str
    """``new``, ``renewed``, ``unchanged``, or ``kept``: the site's own."""


FOLDERS = ("grub", "ipxe", "pxelinux.cfg")
"""Where the profiles of nodes are put; who deploys has to be able to write there."""


def install(root: Path, names: Iterable[str], server: str) -> list[Installed]:
    """Put the loaders *names* below *root*, each file whole or not at all; profiles that are there stay.

    The files become those of the folder's owner, and are written with their rights: who keeps that folder could have
    links in it.

    Args:
        root: the folder that is served.
        names: loaders, as DHCP names them.
        server: address of the TFTP server, for GRUB.

    Raises:
        FileError: a package or the folder is missing, an image cannot be made, or the folder cannot be written to.
    """
    wanted = list(dict.fromkeys(names))
    require_packages(wanted)
    owner = _owner(root)
    contents = _contents(wanted, server)
    try:
        with as_user(owner):
            for folder in FOLDERS:
                (root / folder).mkdir(exist_ok=True, mode=0o755)
            found = [_placed(root / name, content) for name, content in contents.items()]
            found += [_profile(root / LOADERS[name].profile, _default(name, server)) for name in _with_profile(wanted)]
    except OSError as error:
        raise FileError(
            f"{error.filename or root}: {error.strerror}: not all loaders are installed. They are written as "
            f"{owner.name}, to whom {root} belongs: run this as root (sudo) or as {owner.name}."
        ) from error
    return found


def require_packages(names: Iterable[str]) -> None:
    """Refuse when packages of the loaders *names* are missing.

    Raises:
        FileError: names them.
    """
    if lacking := missing_packages(names):
        raise FileError(f"Boot loaders are missing on this machine: apt install {' '.join(lacking)}")


def _owner(root: Path) -> Account:
    try:
        status = root.stat()
    except OSError as error:
        raise FileError(
            f"{root}: {error.strerror}. Make this folder, for the account that deploys: install -d -o kadeploy {root}"
        ) from error
    try:
        name = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        name = str(status.st_uid)
    return Account(name, status.st_uid, status.st_gid, root)


def _with_profile(names: Iterable[str]) -> list[str]:
    """One loader for each different profile, PXELINUX of BIOS before that of UEFI."""
    found: dict[str, str] = {}
    for name in names:
        profile = LOADERS[name].profile
        if profile and (profile not in found or name == PXELINUX):
            found[profile] = name
    return list(found.values())


def _contents(names: Iterable[str], server: str) -> dict[str, bytes]:
    """What each file holds, by its name below the root, the first file of a loader behind its others."""
    found: dict[str, bytes] = {}
    for name in names:
        own = _grub(name, server) if LOADERS[name].is_made else _copied(name)
        found |= {other: content for other, content in own.items() if other != name}
        found[name] = own[name]
    return found


def _copied(name: str) -> dict[str, bytes]:
    return {each: path.read_bytes() for each, path in LOADERS[name].copied.items()}


def _grub(name: str, server: str) -> dict[str, bytes]:
    """GRUB with the modules that profiles need in it, and the others beside it.

    It is told its server: where UEFI came by HTTP, or a ProxyDHCP named the file, it would look for profiles elsewhere.
    """
    folder, kind = GRUB_FOLDERS[name], _KINDS[name]
    modules = [module for module in IN_GRUB if name != GRUB_ARM64 or module not in _NOT_ON_ARM64]
    with tempfile.TemporaryDirectory(prefix="kadeploy-grub-") as temporary:
        image, config = Path(temporary) / "image", Path(temporary) / "config"
        config.write_text(f"set root=(tftp,{server})\nset prefix=(tftp,{server})/grub\n")
        command = ["grub-mkimage", f"--directory={folder}", f"--format={kind.format}", f"--output={image}"]
        command += ["--prefix=/grub", f"--config={config}", kind.network, "tftp", *modules]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not image.exists():
            raise FileError(f"grub-mkimage failed: {done.stderr.strip() or done.stdout.strip()}.")
        made = {name: image.read_bytes()}
    modules_and_lists = sorted(path for path in folder.iterdir() if path.suffix in {".mod", ".lst"})
    return made | {f"{Path(name).parent}/{path.name}": path.read_bytes() for path in modules_and_lists}


def _placed(path: Path, content: bytes) -> Installed:
    if _content(path) == content:
        return Installed(path=path, how="unchanged")
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    files.replace_file(path, content, 0o644)
    return Installed(path=path, how="new" if is_new else "renewed")


def _profile(path: Path, text: str) -> Installed:
    """A profile takes the place of one of ours, not of what the site has written."""
    there = _content(path)
    if there is not None and not there.startswith(_MARK.encode()):
        return Installed(path=path, how="kept")
    return _placed(path, text.encode())


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
