"""The deployment system: the kernel and initrd that nodes boot into while they are being deployed."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kadeploy.errors import ConfigError
from kadeploy.images import modules
from kadeploy.images.archive import pack_initrd
from kadeploy.images.bootstrap import Say, bootstrap, require_programs
from kadeploy.images.store import HERE, built, delete, fingerprint, install, locked, words

# What stays of the packages' files outside the commands; everything else of /usr and /etc goes.
KEPT_LIB = frozenset({"modules", "firmware", "grub", "python3.11", "openssh", "locale", "terminfo", "x86_64-linux-gnu"})
KEPT_ETC = frozenset(
    {"ld.so.conf.d", "mke2fs.conf", "modprobe.d", "host.conf", "gai.conf", "xattr.conf", "debian_version"}
)
FOLDERS = (
    *("dev", "proc", "sys", "run/sshd", "tmp", "root", "etc/ssh", "usr/share/locale", "var/log", "var/lib", "var/tmp"),
    *("mnt/dest", "rambin"),
)
KEPT_LIBRARIES = ("libgcc_s.so.1", "gconv/IBM850.so", "gconv/gconv-modules*")


@dataclass(frozen=True)
class DeploymentSystem:
    """What a build has made; all paths are in the cache folder and never change."""

    kernel: Path
    initrd: Path
    """cpio, zstd. It contains the private host key, as every node must."""
    tree: Path
    """The same system unpacked: `light` nodes run in it."""
    host_key_public: str
    """``ssh-ed25519 AAAA…``: what the controller pins."""
    key: str
    """The build's name in the cache: it changes when the recipe or its arguments do."""


def build_deployment_system(
    cache: Path,
    authorized_key: str,
    *,
    kernel_package: str = "linux-image-cloud-amd64",
    extra_modules: Sequence[str] = (),
    extra_packages: Sequence[str] = (),
    extra_commands: Sequence[str] = (),
    keyboard: str = "",
    host_key: Path | None = None,
    say: Say = print,
) -> DeploymentSystem:
    """Build the deployment system, or find it in `cache`; needs root.

    `authorized_key` is the public part of the site's deployment key. The cloud kernel boots quickest and knows virtual
    hardware only: a site takes ``linux-image-amd64``. `extra_modules` (names, or patterns under /lib/modules/VERSION)
    are added to files/deployment/drivers, `extra_packages` to the packages (firmware, for instance) and
    `extra_commands` to the commands that stay. `keyboard` is a layout of XKB such as ``fr`` or ``de(nodeadkeys)``, for
    the console; empty: that of the kernel, ``us``. `host_key` is an ed25519 private key with its .pub beside it; by
    default ``cache/deployment_host_ed25519``, made once. Raises ConfigError for an argument that cannot work or a build
    that fails.
    """
    require_programs()
    authorized_key = _one_public_key(authorized_key)
    host_key = host_key or make_key(cache / "deployment_host_ed25519", "deployment system")
    public = " ".join(host_key.with_name(host_key.name + ".pub").read_text().split()[:2])
    packages = (*words("deployment/packages"), kernel_package, *extra_packages)
    commands = frozenset((*words("deployment/commands"), *extra_commands))
    recipe = ("deployment.py", "modules.py", "archive.py", "bootstrap.py", "files/deployment", "files/shared")
    keymap = keymap_of(keyboard) if keyboard else b""
    key = fingerprint(recipe, packages, sorted(commands), sorted(extra_modules), authorized_key, public, keymap)

    def build(work: Path) -> None:
        tree = work / "tree"
        say(f"deployment system: installing {kernel_package} and {len(packages) - 1} other packages")
        bootstrap(cache, tree, packages, variant="extract", say=say)
        say("deployment system: choosing drivers, commands and libraries")
        _require_commands(tree, extra_commands)
        modules.prune(tree, words("deployment/drivers"), extra_modules)
        next((tree / "boot").glob("vmlinuz-*")).rename(work / "kernel")
        (work / "kernel").chmod(0o644)
        _trim(tree, commands)
        _configure(tree, authorized_key, host_key)
        if keymap:
            (tree / "etc/keymap").write_bytes(keymap)
        say("deployment system: packing the initrd")
        pack_initrd(tree, work / "initrd")
        say(f"deployment system: initrd of {(work / 'initrd').stat().st_size >> 20} MiB")

    folder = built(cache, f"deployment-system-{key}", build)
    return DeploymentSystem(folder / "kernel", folder / "initrd", folder / "tree", public, key)


def keymap_of(layout: str) -> bytes:
    """The keyboard *layout* as busybox's ``loadkmap`` reads it; raises ConfigError where there is none such."""
    name, _, variant = layout.partition("(")
    if not re.fullmatch(r"[a-z]{2,}", name) or not re.fullmatch(r"(?:[\w-]+\))?", variant):
        raise ConfigError(f"keyboard {layout!r}: expected a layout of XKB such as fr, or fr(oss) with its variant")
    if missing := [program for program in ("ckbcomp", "loadkeys") if shutil.which(program) is None]:
        raise ConfigError(f"a keyboard layout needs {', '.join(missing)}: apt-get install console-setup kbd")
    command = ["ckbcomp", "-compact", "-model", "pc105", name, *filter(None, [variant.rstrip(")")])]
    made = subprocess.run(command, capture_output=True, check=False)
    convert = ["loadkeys", "--bkeymap", "--unicode"]
    keymap = subprocess.run(convert, input=made.stdout, capture_output=True, check=False).stdout
    if b"Can not find" in made.stderr or not made.stdout or not keymap.startswith(b"bkeymap"):
        raise ConfigError(f"there is no keyboard layout {layout!r}: /usr/share/X11/xkb/rules/base.lst lists them")
    return keymap


def make_key(path: Path, comment: str) -> Path:
    """An ed25519 private key at `path` (mode 0600, `path`.pub beside it), made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        if not path.exists():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ConfigError(f"cannot make the key {path}: {done.stderr.strip()}")
    return path


def _require_commands(tree: Path, names: Sequence[str]) -> None:
    for name in names:
        if not any((tree / folder / name).exists() for folder in ("usr/bin", "usr/sbin")):
            raise ConfigError(f"no command {name!r} in these packages: `apt-file search bin/{name}` tells which has it")


def _one_public_key(text: str) -> str:
    key = text.strip()
    if "PRIVATE KEY" in key or "\n" in key or len(key.split()) < 2:
        raise ConfigError("the deployment system wants one public key, a line like `ssh-ed25519 AAAA… comment`")
    return key


def _trim(tree: Path, commands: frozenset[str]) -> None:
    """Leave `commands`, what they load, and busybox for the names that are left."""
    for folder in (tree / "usr/bin", tree / "usr/sbin"):
        _keep(folder, commands)
    _keep(tree / "usr/lib", KEPT_LIB)
    _keep(tree / "etc", KEPT_ETC)
    _keep(tree / "usr", frozenset({"bin", "sbin", "lib", "lib64"}))
    grub = ("usr/lib/grub/x86_64-efi/monolithic", "usr/lib/grub/i386-pc/grub-bios-setup")
    for name in (*grub, "boot", "var", "lib32", "libx32", "srv", "opt", "media", "home"):
        delete(tree / name)
    _compile_python(tree)
    _prune_libraries(tree)
    (tree / "usr/bin/sh").symlink_to("dash")
    _fill_with_applets(tree)


def _keep(folder: Path, names: frozenset[str]) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            delete(path)


def _compile_python(tree: Path) -> None:
    """Byte code only: smaller, and a slow node does not compile at each start."""
    library = tree / "usr/lib/python3.11"
    command = [
        "/usr/bin/python3",
        "-m",
        "compileall",
        "-q",
        "-b",
        "-x",
        "/(test|lib2to3|idlelib)/",
        "/usr/lib/python3.11",
    ]
    subprocess.run(["chroot", str(tree), *command], check=True)
    for pattern in words("deployment/useless-python"):
        for path in (*library.glob(pattern), *library.glob(pattern + "c")):
            delete(path)
    for path in [*library.rglob("*.py"), *library.rglob("__pycache__")]:
        delete(path)


def _prune_libraries(tree: Path) -> None:
    """Delete the libraries that no program of the tree loads."""
    folder = tree / "usr/lib/x86_64-linux-gnu"
    programs = [*(tree / "usr/bin").iterdir(), *(tree / "usr/sbin").iterdir(), *(tree / "usr/lib/openssh").iterdir()]
    programs += (tree / "usr/lib/python3.11/lib-dynload").glob("*.so")
    kept = {path for pattern in KEPT_LIBRARIES for path in folder.glob(pattern)}
    wanted = {name for program in programs if _is_elf(program) for name in _loaded(tree, program)}
    wanted |= {name for library in list(kept) if _is_elf(library) for name in _loaded(tree, library)}
    kept |= {path for name in wanted for path in _with_target(folder / name)}
    kept |= {path for path in folder.iterdir() if path.name.startswith("ld-linux")}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in kept:
            path.unlink()
    for path in folder.glob("libicudata.so.*.*"):
        blank_data(path)


def _is_elf(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _loaded(tree: Path, program: Path) -> Iterator[str]:
    """Names of the shared libraries that `program` loads, as the tree's own loader finds them."""
    done = subprocess.run(
        ["chroot", str(tree), "/lib64/ld-linux-x86-64.so.2", "--list", "/" + str(program.relative_to(tree))],
        capture_output=True,
        text=True,
        check=False,  # a static program has none
    )
    for line in done.stdout.splitlines():
        words = line.split()
        if "=>" in words and "/" in words[2]:
            yield Path(words[2]).name


def _with_target(path: Path) -> Iterator[Path]:
    yield path
    if path.is_symlink():
        yield path.parent / path.readlink()


def blank_data(library: Path) -> None:
    """Overwrite the biggest data section of an ELF library with zeros.

    aria2c is linked with libxml2 (for Metalink, which a deployment does not use), which is linked with 30 MB of Unicode
    tables that are never read: the library must be there, its tables need not travel to every node. (Layout: elf(5).)
    """
    with library.open("r+b") as file:
        header = file.read(64)
        (table,) = struct.unpack_from("<Q", header, 40)
        size, count = struct.unpack_from("<HH", header, 58)
        file.seek(table)
        rows = file.read(size * count)
        sections = [struct.unpack_from("<IIQQQQ", rows, at) for at in range(0, size * count, size)]
        start, length = max(((s[4], s[5]) for s in sections if s[1] == 1), key=lambda section: section[1])
        file.seek(start)
        file.write(bytes(length))


def _fill_with_applets(tree: Path) -> None:
    """A link to busybox for each applet whose name no command has."""
    done = subprocess.run(
        ["chroot", str(tree), "/bin/busybox", "--list-full"], capture_output=True, text=True, check=True
    )
    taken = {path.name for folder in ("usr/bin", "usr/sbin") for path in (tree / folder).iterdir()}
    for applet in done.stdout.split():
        if Path(applet).name not in taken:
            link = tree / ("usr/sbin" if "sbin" in applet else "usr/bin") / Path(applet).name
            link.symlink_to("/usr/bin/busybox")


def _configure(tree: Path, authorized_key: str, host_key: Path) -> None:
    """Put our own /etc, keys, folders and first process into the tree."""
    for name in FOLDERS:
        (tree / name).mkdir(parents=True, exist_ok=True)
    for path in (tree / "tmp", tree / "var/tmp"):
        path.chmod(0o1777)
    (tree / "var/run").symlink_to("/run")
    files = HERE / "files"
    install(files / "deployment/init", tree / "init")
    for name in ("inittab", "mdev.conf", "disk-links", "passwd", "profile"):
        install(files / "deployment" / name, tree / "etc" / name)
    for name in ("network", "dhcp-lease"):
        install(files / "shared" / name, tree / "etc" / name)
    install(files / "deployment/sshd_config", tree / "etc/ssh/sshd_config")
    texts = {
        "etc/group": "root:x:0:\ntty:x:5:\ndisk:x:6:\nnogroup:x:65534:\n",
        "etc/shadow": "root:*:19000::::::\nsshd:!:19000::::::\n",
        "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
        "etc/hostname": "kadeploy\n",
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
        "etc/resolv.conf": "",
        "etc/fstab": "",
        "etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n",
        "root/.ssh/authorized_keys": authorized_key + "\n",
        "etc/ssh/ssh_host_ed25519_key": host_key.read_text(),
        "etc/ssh/ssh_host_ed25519_key.pub": host_key.with_name(host_key.name + ".pub").read_text(),
    }
    (tree / "root/.ssh").mkdir(mode=0o700)
    for name, text in texts.items():
        (tree / name).write_text(text)
    for name in ("etc/shadow", "etc/ssh/ssh_host_ed25519_key", "root/.ssh/authorized_keys"):
        (tree / name).chmod(0o600)
    (tree / "etc/mtab").symlink_to("/proc/self/mounts")
    (tree / "root").chmod(0o700)
    subprocess.run(["ldconfig", "-r", str(tree)], check=True)
