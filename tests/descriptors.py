"""The descriptors that this process has open."""

from __future__ import annotations

import gc
from pathlib import Path


def descriptors() -> int:
    """How many there are, without those that earlier tests have left behind and nobody can reach any more.

    What is collected in the middle of a test would make the number smaller for a reason that is not the test's.
    """
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))
