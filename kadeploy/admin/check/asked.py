"""Programs of this machine that are asked something, within a time."""

from __future__ import annotations

import asyncio

from kadeploy import commands
from kadeploy.commands import Ended

LIMIT = 10.0
"""Seconds that a program may take for its answer."""


def ask(*arguments: str, limit: float = LIMIT) -> Ended | None:
    """How the program ended, and what it said; None: it is not installed. Its `rc` is None when it took too long."""
    try:
        return asyncio.run(commands.run(arguments, limit))
    except OSError:
        return None
