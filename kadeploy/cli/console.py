"""The user's terminal, joined to a console: to the program in a `kadeploy.operations.console.Session`, or to a service.

ESC typed four times leaves. The terminal is as it was before, however a console ends.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal, Protocol

from kadeploy.errors import UserInterruptError
from kadeploy.operations import console
from kadeploy.operations.console import PENDING, End, Opened, Size

ESCAPE = b"\x1b" * 4
"""ESC typed four times leaves."""
_PIECE = 256  # a terminal that select calls writable takes that much without blocking


class Stream(Protocol):
    """What a terminal is joined to. Nothing of it waits, but for `end`.

    It is read once before anybody waits for its descriptor: what it shows first may have come with the word that it is
    open.
    """

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""

    @property
    def waiting(self) -> bool:
        """Whether `write` is to be called even if nothing was typed, once the descriptor can be written to."""

    def fileno(self) -> int:
        """Descriptor to wait for, before reading or writing."""

    def read(self) -> bytes:
        """What is to be shown; nothing at all when that is nothing for now."""

    def write(self, keys: bytes) -> int:
        """Pass on what was typed: how much of it there was room for."""

    def resize(self, size: Size) -> None:
        """The terminal has another size."""

    def end(self, reason: Literal["left", "ended", "revoked"]) -> End:
        """Close it, since the user left, it is over, or the user may not stay."""


def _stay() -> bool:
    return True


def attach(stream: Stream, may_stay: Callable[[], bool] = _stay, terminal: int = 0, screen: int = 1) -> End:
    """Join the user's terminal (descriptors *terminal* to read from, *screen* to write to) to *stream* until its end.

    *may_stay* is asked every `console.CHECK` seconds; once it says no, or raises, the stream is ended. To be called in
    the main thread.

    Raises:
        UserInterruptError: by SIGTERM or SIGHUP.
    """
    reason: Literal["left", "ended", "revoked"] = "left"
    with stoppable():
        try:
            with raw(terminal), _sized(terminal, stream):
                reason = _Copy(terminal, screen, stream, may_stay).run()
        finally:
            for number in _STOPPING:
                signal.signal(number, signal.SIG_IGN)  # it ends already
            end = stream.end(reason)
    return end


def attach_remote(
    connection: socket.socket,
    path: str,
    headers: Callable[[], Iterable[tuple[str, str]]],
    host: str = "localhost",
    terminal: int = 0,
    screen: int = 1,
) -> tuple[Opened, End]:
    """Join the user's terminal to a console of a service: which it was, and how it ended.

    It is at *path*, over a *connection* to the service, by the name *host*.

    *headers* is called for the headers that say who asks. The connection is closed at the end.

    Raises:
        KadeployError: the service refuses; or it does not answer as one.
        UserInterruptError: by SIGTERM or SIGHUP.
    """
    from kadeploy.client.console import connect  # noqa: PLC0415 - not for those who need no service

    stream = connect(connection, path, headers(), host, size_of(terminal))
    greet(stream.opened.node)
    return stream.opened, attach(stream, terminal=terminal, screen=screen)


def greet(node: str) -> None:
    """Tell how to leave again."""
    print(f"Console of {node}; ESC typed four times leaves it.", flush=True)


# --- the user's terminal ----------------------------------------------------------------------------------------


def is_terminal() -> bool:
    """Whether both the input and the output of this process are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def size_of(terminal: int) -> Size:
    """How large a terminal is."""
    rows, columns = termios.tcgetwinsize(terminal)
    return Size(rows, columns)


@contextmanager
def raw(terminal: int, local: int = 0) -> Iterator[None]:
    """Pass every key on as it is, and restore the terminal afterwards.

    *local* has those local modes (termios(3)) that stay: ``ISIG`` lets Ctrl-C, and nothing else, be a signal.
    """
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    if local:
        mode = termios.tcgetattr(terminal)
        mode[3] |= local
        mode[6][termios.VSUSP] = mode[6][termios.VQUIT] = b"\0"
        termios.tcsetattr(terminal, termios.TCSANOW, mode)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


_STOPPING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stoppable() -> Iterator[None]:
    """Signals become an exception, so that nothing is left behind.

    Raises:
        UserInterruptError: by SIGTERM or SIGHUP.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        raise UserInterruptError(f"Console closed by {signal.Signals(number).name}.")

    before = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _sized(terminal: int, stream: Stream) -> Iterator[None]:
    """The program's terminal has the size of the user's, at first and whenever that changes."""

    def resize(_number: int, _frame: FrameType | None) -> None:
        stream.resize(size_of(terminal))

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        resize(signal.SIGWINCH, None)
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


class _Copy:
    """Copies between the two sides; neither can hold up the other, nor the look at the rights."""

    def __init__(self, terminal: int, screen: int, stream: Stream, may_stay: Callable[[], bool]) -> None:
        self.terminal, self.screen, self.stream = terminal, screen, stream
        self.may_stay = may_stay
        self.typed, self.said = bytearray(), bytearray(stream.read())
        self.escapes = 0

    def run(self) -> Literal["left", "ended", "revoked"]:
        """Until somebody ends it."""
        check = time.monotonic() + console.CHECK
        while not self.stream.over or self.said:
            if time.monotonic() >= check:
                if not self.may_stay():
                    return "revoked"
                check = time.monotonic() + console.CHECK
            readable, writable, _ = select.select(*self._wanted(), [], max(0.0, check - time.monotonic()))
            if self.stream in readable:
                self.said += self.stream.read()
            if self.terminal in readable and not self._type():
                return "left"
            if self.stream in writable:
                del self.typed[: self.stream.write(bytes(self.typed))]
            if self.screen in writable:
                del self.said[: os.write(self.screen, self.said[:_PIECE])]
        return "ended"

    def _wanted(self) -> tuple[list[int | Stream], list[int | Stream]]:
        """What to wait for: what to read from and what to write to."""
        reading: list[int | Stream] = [self.stream] if not self.stream.over and len(self.said) < PENDING else []
        if len(self.typed) < PENDING:
            reading.append(self.terminal)
        writing: list[int | Stream] = []
        if not self.stream.over and (self.typed or self.stream.waiting):
            writing.append(self.stream)
        return reading, [*writing, *([self.screen] if self.said else [])]

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
