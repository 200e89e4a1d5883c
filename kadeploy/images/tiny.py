"""`tiny`: an environment that is deployed and boots in seconds, to try things out and to test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from kadeploy.images import modules
from kadeploy.images.archive import COMPRESSION, pack_initrd
from kadeploy.images.bootstrap import Say, bootstrap, require_programs
from kadeploy.images.environment import BuiltEnvironment, Recipe, check_kind, finish, found
from kadeploy.images.store import HERE, built, fingerprint, install, words

FOLDERS = (
    *(
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "mnt",
        "root",
        "home",
        "opt",
        "etc/dropbear",
        "var/log",
        "var/tmp",
        "var/lib",
    ),
    *("usr/local/bin", "usr/local/sbin"),
)

RECIPE = Recipe(
    name="tiny",
    description="Busybox, dropbear and a cloud kernel: boots in seconds",
    kernel="/boot/vmlinuz",
    initrd="/boot/initrd.img",
)


def build_tiny(cache: Path, *, kind: str = "tgz", say: Say = print) -> BuiltEnvironment:
    """Build the environment `tiny` as a `kind` (tgz, tbz2, txz, tar.zst), or find it in `cache`; needs root.

    Root logs in on the serial console (password ``kadeploy``) and, once the deployment has brought a key, by ssh. The
    image has no boot loader: the deployment installs it. Raises ConfigError for an unknown kind or a failed build.
    """
    require_programs()
    check_kind(kind)
    sources = ("tiny.py", "environment.py", "modules.py", "archive.py", "bootstrap.py", "files/tiny", "files/shared")
    name = f"tiny-{fingerprint(sources, kind, COMPRESSION[kind])}"

    def build(work: Path) -> None:
        tree = work / "tree"
        say("tiny: installing busybox, dropbear and a kernel")
        bootstrap(cache, tree, words("tiny/packages"), variant="extract", say=say)
        say("tiny: choosing drivers, making its initrd")
        modules.prune(tree, (*words("tiny/disk-drivers"), *words("tiny/drivers")))
        _trim(tree)
        _configure(tree)
        _make_initrd(tree, work / "initrd")
        (work / "initrd").rename(tree / "boot/initrd.img")
        say(f"tiny: packing {kind}")
        finish(RECIPE, tree, work, cache / name, kind)
        shutil.rmtree(tree)

    return found(built(cache, name, build))


def _trim(tree: Path) -> None:
    """Leave the kernel, its modules, busybox, dropbear and its libraries."""
    next((tree / "boot").glob("vmlinuz-*")).rename(tree / "boot/vmlinuz")
    (tree / "boot/vmlinuz").chmod(0o644)
    kept = {path for pattern in words("tiny/keep") for path in tree.glob(pattern)}
    kept |= set((tree / "usr/lib/modules").rglob("*"))
    folded = {tree / name for name in ("bin", "sbin", "lib", "lib64")}
    for path in sorted(tree.rglob("*"), reverse=True):
        if path in kept or path in folded:
            continue
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()
    _link_applets(tree)


def _link_applets(tree: Path) -> None:
    command = ["chroot", str(tree), "/bin/busybox", "--list-full"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for applet in map(Path, done.stdout.split()):
        folder = tree / ("usr/sbin" if "sbin" in applet.parts else "usr/bin")
        folder.mkdir(exist_ok=True)
        if not (folder / applet.name).exists():
            (folder / applet.name).symlink_to("/usr/bin/busybox")


def _configure(tree: Path) -> None:
    for name in FOLDERS:
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "tmp").chmod(0o1777)
    (tree / "var/tmp").chmod(0o1777)
    (tree / "root").chmod(0o700)
    (tree / "var/run").symlink_to("/run")
    for name in ("inittab", "rcS", "passwd", "shadow", "profile"):
        install(HERE / "files/tiny" / name, tree / "etc" / name)
    for name in ("network", "dhcp-lease"):
        install(HERE / "files/shared" / name, tree / "etc" / name)
    texts = {
        "group": "root:x:0:\ntty:x:5:\ndisk:x:6:\nnogroup:x:65534:\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost\n",
        "fstab": "# The root file system is the kernel's root= parameter. Further ones are mounted at boot.\n",
        "hostname": "tiny\n",
        "resolv.conf": "",
        "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
        "shells": "/bin/sh\n",
        "issue": "Deployed with Kadeploy: tiny \\n \\l\n",
        "os-release": 'ID=tiny\nNAME="Kadeploy tiny"\nPRETTY_NAME="Kadeploy tiny environment"\nVERSION_ID=1\n',
    }
    for name, text in texts.items():
        (tree / "etc" / name).write_text(text)
    (tree / "etc/shadow").chmod(0o600)
    subprocess.run(["ldconfig", "-r", str(tree)], check=True)


def _make_initrd(tree: Path, initrd: Path) -> None:
    """Busybox, the disk drivers and the few lines that find the root file system."""
    root = initrd.with_name("initrd.tree")
    for name in ("bin", "dev", "proc", "sys", "root"):
        (root / name).mkdir(parents=True)
    (root / "sbin").symlink_to("bin")
    shutil.copy2(tree / "usr/bin/busybox", root / "bin/busybox")
    for applet in (tree / "usr").glob("*bin/*"):
        if applet.is_symlink():
            (root / "bin" / applet.name).symlink_to("busybox")
    install(HERE / "files/tiny/initrd-init", root / "init")
    version = modules.kernel_version(tree)
    source = tree / "usr/lib/modules" / version
    chosen = modules.select(
        modules.parse_dependencies((source / "modules.dep").read_text()), words("tiny/disk-drivers")
    )
    target = root / "lib/modules" / version
    for name in (*chosen, "modules.dep", "modules.alias", "modules.builtin", "modules.order"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)
    pack_initrd(root, initrd)
    shutil.rmtree(root)
