"""Keys of forms that are good once: whoever presses a button twice is shown what the first press has begun.

They are in the service's memory. One that is not known any more, since there were many others or the service began
anew, begins nothing.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from kadeploy.errors import ServiceError

OF_ONE_USER = 50
"""Keys of one user; the oldest are forgotten first."""
MOST = 10_000
"""Keys of all users, alike."""
PATIENCE = 60.0
"""Seconds for which a second press waits until the first one has begun something."""


class Once:
    """The keys of a service; threads may share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Future[str] | None] = OrderedDict()
        """By user and key, in the order of their making, what a key has begun."""

    def key(self, user: str) -> str:
        """A new key for a form of *user*'s."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._make_room(user)
            self._known[user, key] = None
        return key

    def begin(self, user: str, key: str, start: Callable[[], str]) -> str | None:
        """What *start* answers to the first who comes with *key*, for all who do; None: *user* has no such key.

        What is refused to the first one is refused to those who wait with it; then the key is good again.

        Raises:
            KadeployError: as *start* does.
            ServiceError: nothing has come of the first press for long.
        """
        mine: Future[str] = Future()
        with self._lock:
            if (user, key) not in self._known:
                return None
            first = self._known[user, key]
            if first is None:
                self._known[user, key] = mine
        return self._started((user, key), mine, start) if first is None else _waited_for(first)

    def _started(self, name: tuple[str, str], mine: Future[str], start: Callable[[], str]) -> str:
        try:
            mine.set_result(start())
        except BaseException as error:
            with self._lock:
                if name in self._known:
                    self._known[name] = None
            mine.set_exception(error)
        return mine.result()

    def _make_room(self, user: str) -> None:
        theirs = [name for name in self._known if name[0] == user]
        for name in theirs[: max(0, len(theirs) - OF_ONE_USER + 1)]:
            del self._known[name]
        while len(self._known) >= MOST:
            self._known.popitem(last=False)


def _waited_for(first: Future[str]) -> str:
    try:
        return first.result(PATIENCE)
    except TimeoutError as error:
        raise ServiceError("What you have begun takes long to begin: look for it among the runs.") from error
