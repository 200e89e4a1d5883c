"""Sessions: a browser has shown once who sits at it, and shows a cookie from then on.

They live in the service's memory, by the digest of their cookies, and end with the service, with what was shown for
them (a token that is revoked, a password that is changed), after hours without a request, or when people sign out.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from kadeploy.server.auth import Method

IDLE = 8 * 3600.0
"""Seconds without a request after which a session ends."""
LONGEST = 7 * 86_400.0
"""Seconds after which it ends in any case."""
MOST = 10_000
"""Sessions of all users; the ones that were used least recently end first."""
OF_ONE_USER = 50
"""Sessions of one user, alike."""


@dataclass(frozen=True)
class Session:
    """Somebody at a browser."""

    user: str
    how: Method
    """What was shown when it began."""
    proof: str
    """By which `Authenticator.still_holds` knows whether that still counts; no password."""
    begun: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """What forms of its pages send, and those of other servers cannot know."""


class Sessions:
    """Those of a service; threads may share them.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[Session, float]] = OrderedDict()
        """With the time of the last request, which they are in the order of."""

    def begin(self, user: str, how: Method, proof: str) -> str:
        """Begin one: the value of its cookie, which is not kept."""
        cookie = secrets.token_urlsafe(32)
        now = self._clock()
        with self._lock:
            self._make_room(user)
            self._known[_digest(cookie)] = Session(user, how, proof, now), now
        return cookie

    def find(self, cookie: str) -> Session | None:
        """The session whose cookie it is; None when it has ended, or never was."""
        key, now = _digest(cookie), self._clock()
        with self._lock:
            found = self._known.pop(key, None)
            if found is None or now - found[1] > IDLE or now - found[0].begun > LONGEST:
                return None
            self._known[key] = found[0], now
            return found[0]

    def end(self, cookie: str) -> None:
        """End the session whose cookie it is, if there is one."""
        with self._lock:
            self._known.pop(_digest(cookie), None)

    def _make_room(self, user: str) -> None:
        mine = [key for key, (session, _) in self._known.items() if session.user == user]
        for key in mine[: max(0, len(mine) - OF_ONE_USER + 1)]:
            del self._known[key]
        while len(self._known) >= MOST:
            self._known.popitem(last=False)


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode(errors="surrogateescape")).digest()
