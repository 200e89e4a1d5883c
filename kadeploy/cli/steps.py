"""Steps of something that takes minutes, told as they end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO


def telling(stream: TextIO | None = None) -> Callable[[str], None]:
    """A function that shows a step that ended, and how many seconds it took; on standard output by default."""
    last = time.monotonic()

    def say(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        print(f"  {now - last:5.1f} s  {text}", file=stream or sys.stdout, flush=True)
        last = now

    return say
