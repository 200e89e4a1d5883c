"""The time of what is told again: as it was, or so many times as fast."""

from __future__ import annotations

import math
import threading
import time

from kadeploy.errors import OptionError
from kadeploy.events import Event, Listener

SPEEDS = (0.01, 1000.0)
"""At least and at most."""


def require_speed(speed: float) -> None:
    """Refuse what is no speed.

    Raises:
        OptionError: says what is expected.
    """
    if not (math.isfinite(speed) and SPEEDS[0] <= speed <= SPEEDS[1]):
        raise OptionError(f"--speed {speed:g}: expected a number from {SPEEDS[0]:g} to {SPEEDS[1]:g}.")


class Pace:
    """A clock that shows the time of the first event when that is told, and goes *speed* times as fast from then on."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._first = self._last = 0.0
        """When events happened (Unix)."""
        self._begun = 0.0
        """When the first one was told, by the monotonic clock."""

    def now(self) -> float:
        """The time that it shows (Unix); of a run that goes on, once it has caught up, the present."""
        return min(self._due(), max(self._last, time.time())) if self._first else time.time()

    def _due(self) -> float:
        return self._first + (time.monotonic() - self._begun) * self._speed

    def paced(self, listener: Listener, stop: threading.Event) -> Listener:
        """*listener*, which hears of each event when the clock shows its time, and of none once *stop* is set."""

        def tell(event: Event) -> None:
            if not self._first:
                self._first, self._begun = event.at, time.monotonic()
            seconds = (event.at - self._due()) / self._speed
            if not stop.wait(min(max(0.0, seconds), threading.TIMEOUT_MAX)):
                self._last = max(self._last, event.at)
                listener(event)

        return tell
