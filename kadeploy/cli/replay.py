"""A recording of a console on the terminal: at the speed it had, without the hours in which nothing happened."""

from __future__ import annotations

import os
import re
import sys
import termios
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from kadeploy.cli.console import raw, size_of, stoppable
from kadeploy.operations.recording import Header, Piece, texts
from kadeploy.printable import printable

LONGEST_GAP = 2.0
"""Seconds of silence that are waited for, at speed 1."""
RESTORED = (
    "\x1b[?1047l"  # back from the alternate screen (xterm's ctlseqs)
    "\x1b[!p"  # soft reset (DECSTR): cursor, scrolling region, colours, character set, keys
    "\x1b[?1000;1002;1003;1006l\x1b[?2004l"  # mouse and pastes are the terminal's own again
    "\x1b]104\x07\x1b[0m"
)
"""What a recording that breaks off may have left behind is taken back by this."""
_ESCAPES = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]"  # control sequences
    "|\x1b[\\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)?"  # strings: titles, links
    "|\x1b[ -/]*[0-~]?"
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONGEST_LINE = 1 << 16


def play(header: Header, pieces: Iterable[Piece], speed: float, screen: int = 1) -> None:
    """Play on the terminal *screen*, *speed* times as fast as it was; Ctrl-C leaves. The terminal is restored.

    Raises:
        FileError: a piece is none.
        UserInterruptError: by SIGTERM or SIGHUP.
    """
    mine = size_of(screen)
    if (mine.columns, mine.rows) < (header.width, header.height):
        print(
            f"Recorded on a terminal of {header.width} columns and {header.height} rows; yours has {mine.columns} and "
            f"{mine.rows}.",
            file=sys.stderr,
        )
    with stoppable(), _restored(screen), suppress(KeyboardInterrupt):
        for text in texts(_in_time(pieces, speed)):
            _write(screen, text.encode(errors="replace"))


def write_plain(pieces: Iterable[Piece], stream: TextIO) -> None:
    """Write what was shown as text, without waiting.

    Raises:
        FileError: a piece is none.
    """
    for line in _lines(texts(pieces)):
        stream.write(plain(line))


def plain(text: str) -> str:
    r"""*text* without what moves cursors and colours.

    >>> plain("\x1b]0;gdx-1\x07\x1b[1mlogin:\x1b[0m root\x08\r\n")
    'login: root\n'
    """
    return printable(_CONTROLS.sub("", _ESCAPES.sub("", text)))


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """The same text cut behind line ends, so that no escape sequence is in two pieces."""
    rest = ""
    for piece in pieces:
        whole, end, rest = (rest + piece).rpartition("\n")
        if end:
            yield whole + end
        if len(rest) > _LONGEST_LINE:
            yield rest
            rest = ""
    yield rest


def _in_time(pieces: Iterable[Piece], speed: float) -> Iterator[Piece]:
    """Each piece when it is due."""
    last, due = 0.0, time.monotonic()
    for piece in pieces:
        due += min(max(0.0, piece.time - last), LONGEST_GAP) / speed
        last = max(last, piece.time)
        time.sleep(max(0.0, due - time.monotonic()))
        yield piece


def _write(screen: int, data: bytes) -> None:
    while data:
        data = data[os.write(screen, data) :]


@contextmanager
def _restored(screen: int) -> Iterator[None]:
    """No key is shown, Ctrl-C alone does something, and what the terminal answered to the recording is dropped."""
    with raw(screen, termios.ISIG):
        try:
            yield
        finally:
            _write(screen, RESTORED.encode())
