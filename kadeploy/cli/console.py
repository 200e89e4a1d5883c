"""A node's console: a program of the site in a terminal of its own, joined to the user's terminal.

The program has a pseudo terminal as its controlling terminal, and runs as an account that the caller may be: whatever a
program lets people do who know its escapes, they do it as that account. Every few seconds it is checked whether the
user may stay; if not, the program is ended.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal, NoReturn

from kadeploy.caller import Account, environment_of
from kadeploy.errors import UserInterruptError
from kadeploy.process import end_group

ESCAPE = b"\x1b" * 4
"""ESC typed four times leaves."""
CHECK = 2.0
"""Seconds between two looks at the user's rights."""
GRACE = 1.0
"""Seconds that the program has to end by itself once its terminal is gone."""
_PIECE = 256  # a terminal that select calls writable takes that much without blocking
_PENDING = 64 << 10


@dataclass(frozen=True)
class End:
    """Why a console was closed: the user left, the program ended, or the user may not stay."""

    reason: Literal["left", "ended", "revoked"]
    status: int = 0
    """Exit status of a program that ended; 128 and the signal's number when one ended it."""


def attach(
    command: Sequence[str],
    may_stay: Callable[[], bool],
    account: Account | None = None,
    terminal: int = 0,
    screen: int = 1,
) -> End:
    """Run *command* on the user's terminal (descriptors *terminal* to read from, *screen* to write to) until its end.

    It runs as *account*, where this process is root and may choose.

    ESC typed four times leaves. *may_stay* is asked every `CHECK` seconds; once it says no, or raises, the program is
    ended. The terminal is as it was before, however this ends. To be called in the main thread.

    Raises:
        UserInterruptError: by SIGTERM or SIGHUP.
    """
    with _stoppable(), _raw(terminal):
        program, line = _start(command, account)
        try:
            with _sized(terminal, line):
                reason = _Copy(terminal, screen, line, may_stay).run()
        finally:
            for number in _STOPPING:
                signal.signal(number, signal.SIG_IGN)  # it ends already
            os.close(line)  # hangs up
            status = _end(program)
    return End(reason, status if reason == "ended" else 0)


# --- the program ------------------------------------------------------------------------------------------------


def _start(command: Sequence[str], account: Account | None) -> tuple[int, int]:
    """Its process and the master side of its terminal."""
    program, line = pty.fork()
    if program == 0:
        _become(command, account)
    os.set_blocking(line, False)
    return program, line


def _become(command: Sequence[str], account: Account | None) -> NoReturn:
    """Turn this process, which was forked for that, into the program; nothing else of ours may run in it."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, programs expect it
    try:
        environment = os.environ if account is None or os.geteuid() != 0 else _drop_root(account)
        os.execvpe(command[0], list(command), environment)  # noqa: S606 - no shell is what we want
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}: check `console` in the cluster file.\r\n".encode())
    finally:
        os._exit(127)


def _drop_root(account: Account) -> Mapping[str, str]:
    """Become *account* for good, with the terminal as its own; the environment that goes with it."""
    os.fchown(0, account.uid, -1)
    os.initgroups(account.name, account.gid)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    return environment_of(account)


def _end(program: int) -> int:
    """Exit status of a program that has lost its terminal; it is killed if that does not end it."""
    deadline = time.monotonic() + GRACE
    while True:
        ended, status = os.waitpid(program, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if time.monotonic() >= deadline:
            end_group(program)  # it leads its session, and so its group
            os.waitpid(program, 0)
            return 128 + signal.SIGKILL
        time.sleep(0.02)


# --- the user's terminal ----------------------------------------------------------------------------------------


@contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Pass every key on as it is, and restore the terminal afterwards."""
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


_STOPPING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Signals become an exception, so that nothing is left behind."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise UserInterruptError(f"Console closed by {signal.Signals(number).name}.")

    before = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _sized(terminal: int, line: int) -> Iterator[None]:
    """The program's terminal has the size of the user's, at first and whenever that changes."""

    def resize(_number: int, _frame: FrameType | None) -> None:
        size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, struct.pack("4H", 0, 0, 0, 0))
        fcntl.ioctl(line, termios.TIOCSWINSZ, size)

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        resize(signal.SIGWINCH, None)
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


class _Copy:
    """Copies between the two terminals; neither side can hold up the other, nor the look at the rights."""

    def __init__(self, terminal: int, screen: int, line: int, may_stay: Callable[[], bool]) -> None:
        self.terminal, self.screen, self.line = terminal, screen, line
        self.may_stay = may_stay
        self.typed, self.said = bytearray(), bytearray()
        self.escapes = 0
        self.ended = False

    def run(self) -> Literal["left", "ended", "revoked"]:
        """Until somebody ends it."""
        check = time.monotonic() + CHECK
        while not self.ended or self.said:
            if time.monotonic() >= check:
                if not self.may_stay():
                    return "revoked"
                check = time.monotonic() + CHECK
            readable, writable, _ = select.select(*self._wanted(), [], max(0.0, check - time.monotonic()))
            if self.line in readable:
                self._listen()
            if self.terminal in readable and not self._type():
                return "left"
            if self.line in writable:
                self._tell()
            if self.screen in writable:
                del self.said[: os.write(self.screen, self.said[:_PIECE])]
        return "ended"

    def _wanted(self) -> tuple[list[int], list[int]]:
        """What to wait for: descriptors to read from and to write to."""
        reading = [self.line] if not self.ended and len(self.said) < _PENDING else []
        if len(self.typed) < _PENDING:
            reading.append(self.terminal)
        writing = [self.line] if self.typed and not self.ended else []
        return reading, [*writing, *([self.screen] if self.said else [])]

    def _listen(self) -> None:
        try:
            piece = os.read(self.line, 1 << 14)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the other side open any more (pty(7))
            piece = b""
        self.said += piece
        self.ended = not piece

    def _tell(self) -> None:
        try:
            del self.typed[: os.write(self.line, self.typed)]
        except BlockingIOError:
            return
        except OSError:
            self.ended = True

    def _type(self) -> bool:
        """Take what was typed; False when the user leaves, or the terminal is gone."""
        try:
            keys = os.read(self.terminal, 1 << 12)
        except OSError:
            return False
        for key in keys:
            self.escapes = self.escapes + 1 if key == ESCAPE[0] else 0
            if self.escapes == len(ESCAPE):
                return False
        self.typed += keys
        return bool(keys)


def is_terminal() -> bool:
    """Whether both the input and the output of this process are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()
