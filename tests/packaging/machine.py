"""A Debian 12 in a folder, in which packages are installed and commands run; nothing of them reaches this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kadeploy.images import bootstrap
from kadeploy.images.store import built, fingerprint

BARE = ("systemd", "man-db", "bash-completion", "fish", "zsh", "ca-certificates")
"""What a machine has besides apt, so that units, pages and completions can be looked at."""
_MOUNTS = """\
set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount --bind "$3" var/cache/apt/archives
shift 3
chroot . "$@"
exit $?
"""
"""The command is the second process: programs of systemd that are the first tell their faults to the kernel's log."""


@dataclass(frozen=True)
class Machine:
    """Layers of files, of which the uppermost is this machine's own."""

    folder: Path
    lower: tuple[Path, ...]
    """The layers below, the highest first."""
    archives: Path
    """Packages of Debian that were downloaded before."""

    def __post_init__(self) -> None:
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def upper(self) -> Path:
        """What differs from the layers below."""
        return self.folder / "upper"

    def with_state_of(self, other: Machine) -> Machine:
        """A machine in this one's folder that begins as *other* is now."""
        return Machine(self.folder, (other.upper, *other.lower), self.archives)

    def tried(self, *words: str, user: str = "root", stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in it, and end all that it has left behind."""
        apart = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--uts")
        layers = ":".join(map(str, self.lower))
        mounted = ("sh", "-c", _MOUNTS, "sh", layers, str(self.folder), str(self.archives))
        as_user = () if user == "root" else ("runuser", "-u", user, "--")
        return subprocess.run(
            [*apart, *mounted, *as_user, *words],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, *words: str, user: str = "root", stdin: str = "") -> str:
        """The output of a command that has to succeed."""
        done = self.tried(*words, user=user, stdin=stdin)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def has(self, path: str) -> bool:
        """Whether there is a file."""
        return self.tried("test", "-e", path).returncode == 0


def bare(cache: Path, folder: Path) -> Machine:
    """A Debian 12 with little in it, in *folder*; what it is made of is kept in *cache*."""
    packages: Sequence[str] = BARE
    name = f"packaging-{fingerprint(('bootstrap.py',), packages)}"

    def build(work: Path) -> None:
        tree = work / "tree"
        bootstrap.bootstrap(cache, tree, packages, variant="minbase", say=lambda _: None)
        (tree / "etc/apt/apt.conf.d/80kadeploy").write_text(bootstrap.acquire_settings())

    tree = built(cache, name, build) / "tree"
    machine = Machine(folder, (tree,), cache / "archives")
    unsafe = machine.upper / "etc/dpkg/dpkg.cfg.d/quick"
    unsafe.parent.mkdir(parents=True, exist_ok=True)
    unsafe.write_text("force-unsafe-io\n")  # no machine has to survive a power failure here
    for name in ("resolv.conf", "hosts"):
        target = machine.upper / "etc" / name
        shutil.copyfile(f"/etc/{name}", target)
    os.chmod(machine.upper / "etc", 0o755)  # noqa: PTH101 - umask of whoever tests
    return machine
