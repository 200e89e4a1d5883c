"""What many watch is made once a second for all of them, and what nobody asks for any more is dropped."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

PERIOD = 1.0
"""Seconds for which something is as good as new."""
IDLE = 10.0
"""Seconds after which something is dropped that nobody has asked for."""
MOST = 64
"""Things that are kept at a time; those that were asked for least recently go first."""

_ThingT = TypeVar("_ThingT")


@dataclass
class _Kept(Generic[_ThingT]):
    """A thing, and when it was made and asked for last."""

    asked: float
    made: float = 0.0
    thing: _ThingT | None = None
    making: threading.Lock = field(default_factory=threading.Lock)


class Recent(Generic[_ThingT]):
    """Things by their keys, shared by threads, each made anew once a period while somebody asks for it.

    Args:
        period: seconds for which a thing is as good as new.
        idle: seconds after which one is dropped that nobody has asked for; a timer runs while there are any.
        most: how many are kept.
        clock: seconds that never go back.
    """

    def __init__(
        self, period: float = PERIOD, idle: float = IDLE, most: int = MOST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._period, self._idle, self._most, self._clock = period, idle, most, clock
        self._kept: OrderedDict[Hashable, _Kept[_ThingT]] = OrderedDict()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def get(self, key: Hashable, renew: Callable[[_ThingT | None], _ThingT]) -> _ThingT:
        """The thing of *key*, at most a period old; *renew* makes it of what it was before, or of None.

        Who asks while it is made waits for it. What *renew* raises is raised here, and the thing stays as it was.
        """
        kept = self._asked_for(key)
        with kept.making:
            thing = kept.thing
            if thing is None or self._clock() - kept.made >= self._period:
                thing = kept.thing = renew(thing)
                kept.made = self._clock()
            return thing

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def drop_idle(self) -> None:
        """Drop what nobody has asked for."""
        oldest = self._clock() - self._idle
        with self._lock:
            for key in [key for key, kept in self._kept.items() if kept.asked <= oldest]:
                del self._kept[key]
            self._timer = None
            self._look_again()

    def _asked_for(self, key: Hashable) -> _Kept[_ThingT]:
        now = self._clock()
        with self._lock:
            kept = self._kept.setdefault(key, _Kept(now))
            kept.asked = now
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            self._look_again()
        return kept

    def _look_again(self) -> None:
        if self._kept and self._timer is None:
            self._timer = threading.Timer(self._idle, self.drop_idle)
            self._timer.daemon = True
            self._timer.start()
