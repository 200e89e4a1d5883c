"""A terminal that is closed, or a pipe nobody reads any more, while an operation runs.

The operation goes on: its nodes, the database, its files and its exit status do not need a reader. Only what it says
goes nowhere from then on.
"""

from __future__ import annotations

import os
import signal
import stat
from types import FrameType


def outlive() -> None:
    """From here on the end of the terminal does not end this process."""
    signal.signal(signal.SIGHUP, _terminal_is_gone)


def unread() -> None:
    """Nobody can read our standard output any more: it goes nowhere, and so does what else leads to a terminal."""
    _to_nowhere(1)
    leave_terminal()


def leave_terminal() -> None:
    """Whichever of the standard streams lead to a terminal lead nowhere."""
    for descriptor in (0, 1, 2):
        if _is_device(descriptor):
            _to_nowhere(descriptor)


def _terminal_is_gone(_number: int, _frame: FrameType | None) -> None:
    leave_terminal()


def _is_device(descriptor: int) -> bool:
    """Whether it is a terminal, dead or alive (isatty(3) tells of living ones only), or as good as one."""
    try:
        return stat.S_ISCHR(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
