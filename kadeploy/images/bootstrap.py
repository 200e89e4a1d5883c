"""A Debian tree from packages, by mmdebstrap with this machine's own apt sources."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kadeploy.errors import ConfigError

RELEASE = "bookworm"
HOOKS = Path("/usr/share/mmdebstrap/hooks/merged-usr")
PROGRAMS = ("mmdebstrap", "cpio", "zstd", "tar", "unshare", "chroot")
Say = Callable[[str], object]

# A one-line source (`deb [options] URI bookworm main`) or the Suites field of a deb822 source.
_SERVES_RELEASE = re.compile(rf"^(?:deb\s|Suites:)(?:.*\s)?{RELEASE}(?:\s|$)", re.MULTILINE)
_ACQUIRE = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")


@dataclass(frozen=True)
class Origin:
    """Where packages come from."""

    release: str = RELEASE
    """Its code name."""
    sources: tuple[str, ...] = ()
    """Lines of apt, or mirrors' URLs; empty: this machine's own for Debian 12, else Debian's default mirror."""
    keyring: str = ""
    """File of the keys that sign it; empty: those that apt trusts."""

    @property
    def words(self) -> tuple[str, ...]:
        """The sources as mmdebstrap takes them."""
        own = apt_sources() if self.release == RELEASE else ()
        return self.sources or tuple(map(str, own))

    @property
    def options(self) -> tuple[str, ...]:
        """What mmdebstrap needs besides."""
        return (f"--keyring={self.keyring}",) if self.keyring else ()


DEBIAN12 = Origin()
"""Debian 12, from where this machine gets it."""


def require_programs() -> None:
    """Refuse early, naming the Debian packages to install, rather than fail in the middle of a build."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise ConfigError(f"building images needs {', '.join(missing)}: apt-get install mmdebstrap cpio zstd")


def apt_sources(apt: Path = Path("/etc/apt")) -> tuple[Path, ...]:
    """Files under `apt` that serve Debian 12; none means that mmdebstrap takes its default mirror."""
    lists = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    files = [path for path in lists if path.suffix in (".list", ".sources") and path.is_file()]
    return tuple(path for path in files if _SERVES_RELEASE.search(path.read_text()))


def bootstrap(
    cache: Path,
    tree: Path,
    packages: Sequence[str],
    *,
    variant: Literal["extract", "minbase"],
    origin: Origin = DEBIAN12,
    say: Say,
) -> None:
    """Fill `tree` with `packages` and what they depend on.

    ``extract`` only unpacks (no maintainer script runs: quick, and all of /etc is ours); ``minbase`` is a real
    installation. Downloaded packages are kept in ``cache/archives``, which all builds share. Raises ConfigError when
    mmdebstrap fails.
    """
    archives = cache / "archives"
    archives.mkdir(exist_ok=True)
    options = tree.with_suffix(".apt.conf")
    options.write_text(acquire_settings())
    # Hooks are run by sh with the tree as last argument. Hard links cost nothing: the tree is beside the archives.
    # Saved twice: unpacked trees never reach the customize hook, installed ones download more after the extract hook.
    inside, outside = '"$1"/var/cache/apt/archives', _quoted(archives)
    bring = f"mkdir -p {inside} && cp -ln {outside}/*.deb {inside}/ 2>/dev/null || true"
    keep = f"cp -ln {inside}/*.deb {outside}/ 2>/dev/null || true"
    command = [
        # A mount namespace of its own: whatever ends the build, no mount is left in the tree.
        *("unshare", "--mount", "--propagation", "private"),
        *("mmdebstrap", "--mode=root", "--format=directory", f"--variant={variant}", f"--include={','.join(packages)}"),
        *("--skip=download/empty", "--skip=essential/unlink", f"--hook-dir={HOOKS}", f"--aptopt={options}"),
        *(f"--setup-hook={bring}", f"--extract-hook={keep}", f"--customize-hook={keep}", *origin.options),
        *(origin.release, str(tree), *origin.words),
    ]
    _run_telling(command, say)
    (tree / "etc/apt/apt.conf.d/99mmdebstrap").unlink(missing_ok=True)
    options.unlink()


def acquire_settings() -> str:
    """How this machine reaches its mirrors (proxy, retries, checks), as an apt.conf for the tree being built."""
    done = subprocess.run(["apt-config", "dump", "--no-empty", "Acquire"], check=True, capture_output=True, text=True)
    return "".join(f"{line}\n" for line in done.stdout.splitlines() if line.startswith(_ACQUIRE))


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"


def _run_telling(command: Sequence[str], say: Say) -> None:
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None  # noqa: S101 - asked for above; tells mypy
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith(("I: running apt-get", "I: downloading", "I: extracting", "I: installing")):
                say("  " + line[3:].rstrip())
    if process.returncode:
        raise ConfigError("mmdebstrap failed (does `apt-get update` work here?):\n" + "\n".join(lines[-15:]))
