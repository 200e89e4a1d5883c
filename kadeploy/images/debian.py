"""A real Debian, or one that is derived from it, installed by its own packages and kept small."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kadeploy.errors import ConfigError
from kadeploy.images.archive import COMPRESSION
from kadeploy.images.bootstrap import DEBIAN12, Origin, Say, bootstrap, require_programs
from kadeploy.images.environment import CONSOLE, BuiltEnvironment, Recipe, check_kind, finish, found
from kadeploy.images.store import HERE, built, delete, fingerprint, install, words

SOURCES = ("debian.py", "environment.py", "archive.py", "bootstrap.py", "files/debian", "files/tiny/shadow")
WRITTEN = (
    *("boot", "dev", "proc", "run", "tmp", "etc/network", "etc/ssh/sshd_config.d", "etc/systemd/system"),
    *("usr/sbin", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists", "var/lib/dbus", "var/log"),
)
"""Folders of a tree in which something is written, mounted or deleted while it is built."""
LOCKED = "!"
"""In place of a password's hash: nobody logs in with one."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an environment is to have."""

    name: str
    description: str
    version: int = 1
    author: str = "root"
    kernel: str = "linux-image-amd64"
    """Package of the kernel."""
    packages: tuple[str, ...] = ()
    """Packages besides those without which it would not boot, get an address and be entered."""
    origin: Origin = DEBIAN12
    password: str = LOCKED
    """Hash of root's password, for the console (crypt(5))."""


def lab_password() -> str:
    """The hash of ``kadeploy``: for environments to try things out, and no others."""
    return (HERE / "files/tiny/shadow").read_text().split(":")[1]


def debian12_min() -> Wanted:
    """`debian12-min`, the lab's."""
    return Wanted(
        name="debian12-min",
        description="Debian 12 (bookworm), minimal: systemd, ssh, DHCP",
        author="kadeploy-lab",
        kernel="linux-image-cloud-amd64",
        password=lab_password(),
    )


def build_debian(
    cache: Path, wanted: Wanted | None = None, *, kind: str = "tar.zst", say: Say = print
) -> BuiltEnvironment:
    """Build an environment, by default `debian12-min`, or find it in `cache`; needs root.

    Zstandard by default: a node unpacks it with a fraction of gzip's processor time, and the file is smaller. Once the
    deployment has brought a key, root logs in by ssh. Host key and machine id are made at the first boot. Raises
    ConfigError for an unknown kind or a failed build.
    """
    wanted = wanted or debian12_min()
    require_programs()
    check_kind(kind)
    name = f"{wanted.name}-{fingerprint(SOURCES, wanted, kind, COMPRESSION[kind])}"

    def build(work: Path) -> None:
        tree = work / "tree"
        say(f"{wanted.name}: installing {wanted.origin.release} with {wanted.kernel}, some minutes")
        packages = (*words("debian/packages"), wanted.kernel, *wanted.packages)
        bootstrap(cache, tree, packages, variant="minbase", origin=wanted.origin, say=say)
        configure(tree, wanted.password)
        say(f"{wanted.name}: packing {kind}")
        finish(recipe(tree, wanted), tree, work, cache / name, kind)
        shutil.rmtree(tree)

    return found(built(cache, name, build))


def recipe(tree: Path, wanted: Wanted) -> Recipe:
    """How the system in *tree*, which has one kernel, is described.

    Raises:
        ConfigError: it has none, several, or no initrd for it.
    """
    kernels = sorted((tree / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        has = ", ".join(path.name for path in kernels) or "none"
        raise ConfigError(f"{wanted.name} has to have one kernel in /boot, and has {has}: name one kernel package")
    version = kernels[0].name.partition("-")[2]
    initrds = [
        name for name in (f"initrd.img-{version}", f"initramfs-{version}.img") if (tree / "boot" / name).exists()
    ]
    if not initrds:
        raise ConfigError(f"{wanted.name} has no initrd for its kernel {version} in /boot: add initramfs-tools")
    return Recipe(
        name=wanted.name,
        description=wanted.description,
        kernel=f"/boot/{kernels[0].name}",
        initrd=f"/boot/{initrds[0]}",
        # systemd makes the root file system writable for an fstab entry only, and its partition is not known here.
        kernel_params=f"rw {CONSOLE}",
        version=wanted.version,
        author=wanted.author,
    )


def require_inside(tree: Path) -> None:
    """Refuse a system whose links would have this machine's own files written or deleted, in place of its own.

    Raises:
        ConfigError: names the link.
    """
    top = tree.resolve()
    for name in WRITTEN:
        for path in (*reversed((tree / name).parents), tree / name):
            if path.is_relative_to(tree) and not path.resolve().is_relative_to(top):
                raise ConfigError(f"/{path.relative_to(tree)} of the system is a link that leads out of it")


def configure(tree: Path, password: str) -> None:
    """Have the system in *tree* get an address and let root in, on whichever node it is; it has no identity of its own.

    *password* is root's, as a hash.

    Raises:
        ConfigError: a link of it leads out of it.
    """
    require_inside(tree)
    files = HERE / "files/debian"
    placed = {
        "etc/network/interfaces": "interfaces",
        "etc/ssh/sshd_config.d/kadeploy.conf": "sshd.conf",
        "etc/systemd/system/ssh-host-key.service": "ssh-host-key.service",
    }
    for name, source in placed.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        delete(tree / name)  # which may be a link
        install(files / source, tree / name)
    subprocess.run(["systemctl", f"--root={tree}", "--quiet", "enable", "ssh-host-key.service"], check=True)
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (tree / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    texts = {
        # Empty, not absent: systemd makes a new one at the first boot and does not take the boot for an installation.
        "machine-id": "",
        "hostname": "localhost\n",  # dhclient keeps a name that is not this one
        "hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        "fstab": "# The root file system is the kernel's root= parameter, writable by rw.\n",
        "resolv.conf": "",
    }
    for name, text in texts.items():
        delete(tree / "etc" / name)
        (tree / "etc" / name).write_text(text)
    subprocess.run(["chpasswd", "--encrypted", "--root", str(tree)], input=f"root:{password}\n", text=True, check=True)
    for path in (*(tree / "boot").glob("vmlinuz-*"), *(tree / "boot").glob("initrd.img-*")):
        if not path.is_symlink():
            path.chmod(0o644)
    for folder in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists", "var/log"):
        for path in (tree / folder).glob("*"):
            delete(path)
