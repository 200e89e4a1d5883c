"""An environment of half a megabyte, for nodes that do not really boot it."""

from __future__ import annotations

import random
from pathlib import Path

from kadeploy.images.environment import BuiltEnvironment, Recipe, finish, found
from kadeploy.images.store import built

_VERSION = 1
"""To be raised when `_fill` changes."""
_KERNEL_BYTES = 500_000
_RECIPE = Recipe(
    name="sim",
    description="Small environment for simulated nodes: it has what a deployment looks for, and does not boot",
    kernel="/boot/vmlinuz",
    initrd="/boot/initrd.img",
)


def build(cache: Path) -> BuiltEnvironment:
    """Build it, or find it in the cache."""
    name = f"sim-{_VERSION}"
    return found(built(cache, name, lambda work: _fill(work, cache / name)))


def _fill(work: Path, final: Path) -> None:
    tree = work / "tree"
    for folder in ("boot", "dev", "etc", "proc", "root", "sys", "tmp"):
        (tree / folder).mkdir(parents=True)
    (tree / "boot" / "vmlinuz-1").write_bytes(random.Random(_VERSION).randbytes(_KERNEL_BYTES))  # noqa: S311
    (tree / "boot" / "vmlinuz").symlink_to("vmlinuz-1")
    (tree / "boot" / "initrd.img").write_bytes(b"an initrd\n")
    (tree / "etc" / "hostname").write_text("sim\n")
    finish(_RECIPE, tree, work, final, "tgz")
