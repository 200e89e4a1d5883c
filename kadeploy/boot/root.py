"""Files that the boot server may show: regular ones below its root, and nothing else."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_below(root: Path, name: str) -> BinaryIO | None:
    """Open the regular file *name* below *root* for reading; None when there is none that may be served.

    *name* comes from the network. What was really opened is compared with *root*, so that neither ``..`` nor a
    symbolic link, even one that changes meanwhile, leads outside.
    """
    if "\0" in name:
        return None
    try:
        descriptor = os.open(root / name.lstrip("/"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return None
    opened = Path(f"/proc/self/fd/{descriptor}").readlink()
    if not opened.is_relative_to(root.resolve()) or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")
