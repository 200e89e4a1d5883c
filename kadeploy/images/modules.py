"""Which kernel modules a tree keeps."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from kadeploy.errors import ConfigError

Dependencies = Mapping[str, tuple[str, ...]]
"""For each module, the modules that it needs, as paths under /lib/modules/VERSION (depmod's modules.dep)."""


def kernel_version(tree: Path) -> str:
    """The version of the one kernel in `tree`."""
    versions = [path.name for path in (tree / "usr/lib/modules").iterdir()]
    if len(versions) != 1:
        raise ConfigError(f"expected one kernel, found {versions}: name one kernel package")
    return versions[0]


def parse_dependencies(text: str) -> Dependencies:
    """Read modules.dep: ``path: path path …`` a line."""
    pairs = (line.partition(":") for line in text.splitlines() if line)
    return {module: tuple(needs.split()) for module, _, needs in pairs}


def select(known: Dependencies, patterns: Sequence[str], extra: Iterable[str] = ()) -> frozenset[str]:
    """The modules under `patterns` and those named in `extra`, with all that they need.

    A pattern is a folder (``kernel/drivers/scsi/``) or a path with wildcards, and may match nothing: kernels differ. An
    extra module is a name (``mlx5_core``) or a pattern, and must exist.
    """
    wanted = {module for module in known if any(_matches(module, pattern) for pattern in patterns)}
    for name in extra:
        found = {module for module in known if _is_named(module, name) or _matches(module, name)}
        if not found:
            raise ConfigError(f"no module {name!r} in this kernel: `modinfo -F filename` tells what it is called")
        wanted |= found
    return frozenset(wanted | {need for module in wanted for need in known[module]})


def prune(tree: Path, patterns: Sequence[str], extra: Iterable[str] = ()) -> None:
    """Delete the other modules from `tree`, which must contain kmod."""
    version = kernel_version(tree)
    folder = tree / "usr/lib/modules" / version
    depmod(tree, version)
    kept = select(parse_dependencies((folder / "modules.dep").read_text()), patterns, extra)
    for path in folder.rglob("*.ko*"):
        if str(path.relative_to(folder)) not in kept:
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    depmod(tree, version)


def depmod(tree: Path, version: str) -> None:
    """Index the modules of `tree` with its own kmod."""
    subprocess.run(["chroot", str(tree), "/usr/sbin/depmod", version], check=True)


def _matches(module: str, pattern: str) -> bool:
    return module.startswith(pattern) if pattern.endswith("/") else fnmatch(module, pattern)


def _is_named(module: str, name: str) -> bool:
    stem = PurePosixPath(module).name.partition(".")[0]
    return stem.replace("-", "_") == name.replace("-", "_")
