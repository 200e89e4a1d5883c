"""A program in a pseudo terminal of its own, whose other side is a descriptor of this process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kadeploy.caller import Account
from kadeploy.errors import KadeployError
from kadeploy.process import end_group

GRACE = 1.0
"""Seconds that a program has to end by itself once its terminal is gone."""
_SETSID = ("/usr/bin/setsid", "--ctty", "--")
_TICK = 0.02


class Cells(NamedTuple):
    """The size of a terminal."""

    rows: int
    columns: int


class Program:
    """A program that this process has started.

    Args:
        command: program and arguments; that there is no such program is what the terminal shows.
        environment: all of its variables.
        cells: size of its terminal, at first.
        account: as whom it runs, where this process is root and may choose.
        under: what starts the command.

    Raises:
        KadeployError: the machine has no terminal or no process left.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        cells: Cells,
        account: Account | None = None,
        under: Sequence[str] = (),
    ) -> None:
        try:
            self.line, other = pty.openpty()
        except OSError as error:
            raise KadeployError(f"The console cannot be opened: no terminal is left ({error.strerror}).") from error
        try:
            resize(self.line, cells)
            self._process = _start([*under, *_SETSID, *command], environment, account, other)
        except OSError as error:
            os.close(self.line)
            raise KadeployError(f"The console cannot be opened: {error}.") from error
        finally:
            os.close(other)

    @property
    def pid(self) -> int:
        """Its number, which is also that of its session and of its process group."""
        return self._process.pid

    def end(self) -> int:
        """Its exit status, once its terminal has been taken away; it is killed if that does not end it."""
        deadline = time.monotonic() + GRACE
        while self._process.poll() is None:
            if time.monotonic() >= deadline:
                self._kill()
                break
            time.sleep(_TICK)
        code = self._process.returncode
        return 128 + 9 if code is None else code if code >= 0 else 128 - code

    def _kill(self) -> None:
        end_group(self.pid)
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel, waiting for a device
            self._process.wait(GRACE)


def _start(
    argv: Sequence[str], environment: Mapping[str, str], account: Account | None, line: int
) -> subprocess.Popen[bytes]:
    """Start the program with *line* as its controlling terminal; between fork and exec no code of Python runs."""
    if account is None or os.geteuid() != 0:
        return subprocess.Popen(argv, stdin=line, stdout=line, stderr=line, env=environment)
    os.fchown(line, account.uid, -1)
    return subprocess.Popen(
        argv,
        stdin=line,
        stdout=line,
        stderr=line,
        env=environment,
        user=account.uid,
        group=account.gid,
        extra_groups=os.getgrouplist(account.name, account.gid),
    )


def resize(line: int, cells: Cells) -> None:
    """Say how large the terminal is.

    Raises:
        OSError: *line* is no terminal.
    """
    fcntl.ioctl(line, termios.TIOCSWINSZ, struct.pack("4H", *cells, 0, 0))
