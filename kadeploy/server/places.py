"""How many of something each user may have at a time: consoles, uploads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from kadeploy.errors import KadeployError


class Places:
    """Those that are taken in this process, by user."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @property
    def number(self) -> int:
        """How many there are, of all users."""
        return self._taken.total()

    @contextmanager
    def one(self, user: str, most: int, refusal: KadeployError) -> Iterator[None]:
        """Take one of the *most* places of *user* for a while; raises *refusal* where none is left."""
        if self._taken[user] >= most:
            raise refusal
        self._taken[user] += 1
        try:
            yield
        finally:
            self._taken[user] -= 1
            self._taken += Counter()  # forgets those at zero
