"""From a tree to one file: an initrd or an environment's image."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kadeploy.environments.image import COMPRESSIONS

COMPRESSION = {each.tar: each.pack for each in COMPRESSIONS}
"""How each kind of environment image is compressed."""


def pack_initrd(tree: Path, initrd: Path, *, level: int = 9) -> None:
    """Write `tree` as a zstd-compressed cpio archive (newc, as the kernel reads it); same tree, same bytes."""
    script = (
        'set -o pipefail; cd "$1" && find . -print0 | LC_ALL=C sort -z'
        ' | cpio --null --reproducible --quiet -R 0:0 -H newc -o | zstd -q -T0 "-$3" -o "$2"'
    )
    subprocess.run(["bash", "-c", script, "pack", str(tree), str(initrd), str(level)], check=True)
    initrd.chmod(0o644)


def pack_image(tree: Path, image: Path, kind: str) -> None:
    """Write `tree` as an environment image of `kind` (a key of COMPRESSION)."""
    subprocess.run(
        [
            *("tar", "--create", "--file", str(image), "--use-compress-program", COMPRESSION[kind], "--sort=name"),
            *("--numeric-owner", "--xattrs", "--xattrs-include=*", "--directory", str(tree), "."),
        ],
        check=True,
    )
