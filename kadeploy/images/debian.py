"""`debian12-min`: a real Debian 12, installed by its own packages and kept small."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from kadeploy.images.archive import COMPRESSION
from kadeploy.images.bootstrap import Say, bootstrap, require_programs
from kadeploy.images.environment import CONSOLE, BuiltEnvironment, Recipe, check_kind, finish, found
from kadeploy.images.store import HERE, built, delete, fingerprint, install, words


def build_debian(cache: Path, *, kind: str = "tar.zst", say: Say = print) -> BuiltEnvironment:
    """Build the environment `debian12-min`, or find it in `cache`; needs root.

    Zstandard by default: a node unpacks it with a fraction of gzip's processor time, and the file is smaller. Root logs
    in on the serial console (password ``kadeploy``) and, once the deployment has brought a key, by ssh. Host key and
    machine id are made at the first boot. Raises ConfigError for an unknown kind or a failed build.
    """
    require_programs()
    check_kind(kind)
    sources = ("debian.py", "environment.py", "archive.py", "bootstrap.py", "files/debian", "files/tiny/shadow")
    name = f"debian12-min-{fingerprint(sources, kind, COMPRESSION[kind])}"

    def build(work: Path) -> None:
        tree = work / "tree"
        say("debian12-min: installing Debian 12 with a kernel, some minutes")
        bootstrap(cache, tree, words("debian/packages"), variant="minbase", say=say)
        _configure(tree)
        say(f"debian12-min: packing {kind}")
        finish(_recipe(tree), tree, work, cache / name, kind)
        shutil.rmtree(tree)

    return found(built(cache, name, build))


def _recipe(tree: Path) -> Recipe:
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    version = kernel.name.partition("-")[2]
    return Recipe(
        name="debian12-min",
        description="Debian 12 (bookworm), minimal: systemd, ssh, DHCP",
        kernel=f"/boot/{kernel.name}",
        initrd=f"/boot/initrd.img-{version}",
        # systemd makes the root file system writable for an fstab entry only, and its partition is not known here.
        kernel_params=f"rw {CONSOLE}",
    )


def _configure(tree: Path) -> None:
    files = HERE / "files/debian"
    install(files / "interfaces", tree / "etc/network/interfaces")
    install(files / "sshd.conf", tree / "etc/ssh/sshd_config.d/kadeploy.conf")
    install(files / "ssh-host-key.service", tree / "etc/systemd/system/ssh-host-key.service")
    subprocess.run(["systemctl", f"--root={tree}", "--quiet", "enable", "ssh-host-key.service"], check=True)
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    # Empty, not absent: systemd makes a new one at the first boot and does not take the boot for an installation.
    (tree / "etc/machine-id").write_text("")
    (tree / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    # dhclient keeps a name that is not this one.
    (tree / "etc/hostname").write_text("localhost\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
    (tree / "etc/fstab").write_text("# The root file system is the kernel's root= parameter, writable by rw.\n")
    (tree / "etc/resolv.conf").write_text("")
    password = (HERE / "files/tiny/shadow").read_text().split(":")[1]
    subprocess.run(["chpasswd", "--encrypted", "--root", str(tree)], input=f"root:{password}\n", text=True, check=True)
    for path in (*(tree / "boot").glob("vmlinuz-*"), *(tree / "boot").glob("initrd.img-*")):
        path.chmod(0o644)
    for folder in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists", "var/log"):
        for path in (tree / folder).glob("*"):
            delete(path)
