"""How often somebody may try to show who they are: a failed attempt makes the next one wait, longer each time.

What a failure does, and to whom:

* An address that failed for a user waits before it may try for the same user again.
* An address that failed often, for whatever users, waits for all of them, but for those who have come in from there
  before: a neighbour behind the same router, or on the same login machine, does not keep them out.
* A user for whom many addresses have failed is under attack. An address that fails for them now gets no second chance
  for a long time. One that has not failed is always listened to, so that nobody can lock a user out from elsewhere.

A success forgives what the address failed for this user, and nothing else: with an account of their own, people cannot
wipe out what they failed for others.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

from kadeploy.errors import TooManyAttemptsError

MOST = 4096
"""Entries of each kind that are remembered; the ones that failed longest ago go first."""
LONGEST = 900.0
"""Seconds that the next attempt waits at most."""
_MEMORY = 3600.0
"""Seconds without a failure after which all is forgotten."""
_FREE_FOR_USER = 5
_FREE_FOR_ADDRESS = 20
_UNDER_ATTACK = 20
"""Failures for one user, from wherever, after which an address that fails for them waits long at once."""
_AT_ONCE = 6
"""Such an address waits as if it had failed so often more: 64 s."""


class _Failures(NamedTuple):
    times: int
    last: float
    """As the clock tells it."""


_Key = TypeVar("_Key", bound=Hashable)


class _Memory(Generic[_Key]):
    """Failures by key, of those that failed last."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Key, _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, key: _Key, now: float) -> _Failures:
        found = self._known.get(key)
        return found if found and now - found.last < _MEMORY else _Failures(0, now)

    def add(self, key: _Key, now: float) -> None:
        self._known[key] = _Failures(self.of(key, now).times + 1, now)
        self._known.move_to_end(key)
        if len(self._known) > MOST:
            self._known.popitem(last=False)

    def forgive(self, key: _Key, count: int) -> None:
        found = self._known.get(key)
        if found and found.times > count:
            self._known[key] = found._replace(times=found.times - count)
        elif found:
            del self._known[key]


class Attempts:
    """What has failed, on all connections; threads may share it.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._of_pairs: _Memory[tuple[str, str]] = _Memory()
        self._of_addresses: _Memory[str] = _Memory()
        self._of_users: _Memory[str] = _Memory()
        self._welcome: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Addresses and users who have come in from there."""

    def __len__(self) -> int:
        with self._lock:
            return len(self._of_pairs) + len(self._of_addresses) + len(self._of_users) + len(self._welcome)

    def require_patience(self, address: str, user: str = "") -> None:
        """Refuse the next attempt of *address* as *user* while it has to wait.

        Raises:
            TooManyAttemptsError: tells for how long.
        """
        with self._lock:
            seconds = math.ceil(self._wait(_network(address), user))
        if seconds > 0:
            raise TooManyAttemptsError(
                f"Too many failed attempts from {address}: wait {seconds} s and try again.", seconds
            )

    def _wait(self, place: str, user: str) -> float:
        now = self._clock()
        pair = self._of_pairs.of((place, user), now)
        if (place, user) in self._welcome:
            return _delay(pair, now, _FREE_FOR_USER)
        is_attacked = user and self._of_users.of(user, now).times >= _UNDER_ATTACK
        own = _delay(pair, now, -_AT_ONCE if is_attacked else _FREE_FOR_USER)
        return max(own, _delay(self._of_addresses.of(place, now), now, _FREE_FOR_ADDRESS))

    def failed(self, address: str, user: str = "") -> None:
        """Note that *address* did not show to be *user*, whether or not there is such a user."""
        place = _network(address)
        with self._lock:
            now = self._clock()
            self._of_pairs.add((place, user), now)
            self._of_addresses.add(place, now)
            if user:
                self._of_users.add(user, now)

    def succeeded(self, address: str, user: str) -> None:
        """Note that *user* came in from *address*."""
        place = _network(address)
        with self._lock:
            count = self._of_pairs.of((place, user), self._clock()).times
            self._of_pairs.forgive((place, user), count)
            self._of_addresses.forgive(place, count)
            self._of_users.forgive(user, count)
            self._welcome[(place, user)] = None
            self._welcome.move_to_end((place, user))
            if len(self._welcome) > MOST:
                self._welcome.popitem(last=False)


def _delay(failures: _Failures, now: float, free: int) -> float:
    """Seconds still to wait: none after the first *free* failures, then 1, 2, 4 and so on from the last one."""
    if failures.times <= max(free, 0):
        return 0.0
    length = min(2.0 ** min(failures.times - free - 1, 60), LONGEST)
    return failures.last + length - now


def _network(address: str) -> str:
    """What one person has: an IPv4 address, or the network of 2^64 addresses that a line gets under IPv6."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)
