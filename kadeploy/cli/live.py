"""Lines that scroll above a view of the present, on a terminal: Rich's one home."""

from __future__ import annotations

import os
import shutil
import signal
import termios
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_KEPT = 500
"""Lines that are shown again when the window has another size."""
_INTERVAL = 0.5
"""Seconds after which the view is drawn anew."""
_NARROW = 110
"""Columns below which there is no room for a bar."""
_SHOW_CURSOR = b"\r\x1b[J\x1b[?25h"
"""Back to the line's beginning, the rest of the screen empty, and the cursor to be seen (ECMA-48, DECTCEM)."""


class Row(NamedTuple):
    """A line of the view; *share* is how far something is, from 0 to 1."""

    time: str
    what: str
    names: str
    share: float | None = None
    progress: str = ""


class View:
    """Shows what *rows* answers, drawn anew twice a second, beneath the lines that are printed.

    It may be entered from a program's main thread alone: it hears of the window's changes by a signal. *rows* may wait
    for whoever prints; so it is asked while no lock of the view is held, neither ours nor Rich's, for which who prints
    waits.
    """

    def __init__(self, stream: IO[str], rows: Callable[[], Sequence[Row]], keyboard: IO[str] | None = None) -> None:
        self._console = Console(file=stream)
        self._stream = stream
        self._rows = rows
        self._keyboard = _Keyboard(keyboard)
        self._printed: deque[tuple[str, str]] = deque(maxlen=_KEPT)
        self._lock = threading.RLock()
        self._live = self._new(self._table())

    def _new(self, drawn: Table) -> Live:
        return Live(drawn, console=self._console, auto_refresh=False, transient=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it while this lasts; afterwards the lines alone are there."""
        before = signal.signal(signal.SIGWINCH, self._window_changed)
        self._keyboard.silence()
        self._live.start()
        over = threading.Event()
        threading.Thread(target=self._draw_on, args=(over,), name="view", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            signal.signal(signal.SIGWINCH, before)
            with self._lock:
                self._live.stop()
            self._keyboard.restore()

    def _draw_on(self, over: threading.Event) -> None:
        with suppress(OSError):  # the terminal is gone: who prints there sees to it
            while not over.wait(_INTERVAL):
                self.draw()

    def draw(self) -> None:
        """Show the present."""
        drawn = self._table()
        with self._lock:
            if self._live.is_started:
                self._live.update(drawn, refresh=True)

    def print(self, text: str, style: str = "") -> None:
        """Print lines above the view; *style* is Rich's, such as ``red``."""
        with self._lock:
            self._printed.extend((line, style) for line in text.split("\n"))
            self._console.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)

    def abandon(self) -> None:
        """Leave the terminal as it was found, when the process ends at once; safe in a signal's handler."""
        with suppress(OSError, ValueError):
            os.write(self._stream.fileno(), _SHOW_CURSOR)
        self._keyboard.restore()

    def _window_changed(self, _number: int, _frame: object) -> None:
        """Locks must not be waited for in a signal's handler."""
        threading.Thread(target=self._redraw, name="redraw", daemon=True).start()

    def _redraw(self) -> None:
        """Terminals break lines anew when they become narrower, each in its way: begin on an empty screen."""
        drawn = self._table()
        with self._lock:
            if not self._live.is_started:
                return
            self._live.stop()
            self._console.clear()
            height = shutil.get_terminal_size().lines
            for line, style in list(self._printed)[-height:]:
                self._console.print(line, style=style or None, markup=False, highlight=False, soft_wrap=True)
            self._live = self._new(drawn)
            self._live.start(refresh=True)

    def _table(self) -> Table:
        return table(self._rows(), self._console.width)


def table(rows: Sequence[Row], width: int) -> Table:
    """The view itself, *width* columns wide; names give way first."""
    grid = Table.grid(padding=(0, 1), expand=True)
    if width < _NARROW:
        for share in (None, 3, 2):
            grid.add_column(no_wrap=True, overflow="ellipsis", ratio=share)
        for row in rows:
            grid.add_row(Text(row.time, style="dim"), Text(row.what, style="cyan"), row.progress or row.names)
        return grid
    for share in (None, None, 1, None, None):
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=share)
    for row in rows:
        bar = "" if row.share is None else ProgressBar(total=1.0, completed=row.share, width=20)
        grid.add_row(Text(row.time, style="dim"), Text(row.what, style="cyan"), row.names, bar, Text(row.progress))
    return grid


class _Keyboard:
    """Keeps a terminal from showing what is typed, ENTER and ^C: it would push the view down and leave lines behind."""

    def __init__(self, keyboard: IO[str] | None) -> None:
        self._descriptor = -1
        self._found: list[int | list[bytes | int]] | None = None
        with suppress(OSError, ValueError, termios.error):
            if keyboard is not None and os.tcgetpgrp(keyboard.fileno()) == os.getpgrp():
                self._descriptor = keyboard.fileno()

    def silence(self) -> None:
        """No echo from now on."""
        with suppress(OSError, ValueError, termios.error):
            self._found = termios.tcgetattr(self._descriptor)
            changed = list(self._found)
            flags = self._found[3]
            changed[3] = (flags if isinstance(flags, int) else 0) & ~termios.ECHO
            termios.tcsetattr(self._descriptor, termios.TCSANOW, changed)

    def restore(self) -> None:
        """As it was found."""
        if self._found is not None:
            with suppress(OSError, termios.error):
                termios.tcsetattr(self._descriptor, termios.TCSANOW, self._found)
