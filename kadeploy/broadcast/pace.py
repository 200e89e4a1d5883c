"""Who in a broadcast is held up by those in front of it, and would be better off with the head itself.

A relay tells its pace while nothing below it holds it up. Whether that is slow is seen by what the head has given at
its best. The nodes that the head feeds share that: one is helped when its share would be at least `GAIN` times what it
gets. So nobody is helped when the head is the slow one, and each that is helped makes it less likely for the next.
"""

from __future__ import annotations

from dataclasses import dataclass

GAIN = 2.0
LEAST = 10e6
"""Bytes per second that any head can give: what it has shown is little when the first of a chain is the slow one."""
WINDOW = 0.4
"""Seconds after which the head's pace is measured anew, at least."""
RECENT = 2.5
"""Seconds for which it counts what a node told, and that it was helped, until the others notice."""
SHORT = 2.0
"""Seconds to the end that are not worth any help."""


@dataclass(frozen=True)
class Hunger:
    """What a relay says that wants more than it gets."""

    told: float
    by: int
    """Its predecessor."""
    left: int
    """Bytes of the image that it lacks."""
    pace: float
    """Bytes per second that it gets."""


class Paces:
    """How fast the head and the hungry are; members by their numbers, times in seconds by one clock."""

    def __init__(self) -> None:
        self.best = LEAST
        self._measured = (0.0, 0)
        self._hungry: dict[int, Hunger] = {}
        self._helped: dict[int, float] = {}

    def head_gave(self, now: float, total: int) -> None:
        """Note how many bytes have left all heads."""
        since, before = self._measured
        if now - since >= WINDOW:
            if since:
                self.best = max(self.best, (total - before) / (now - since))
            self._measured = (now, total)

    def hungry(self, member: int, hunger: Hunger) -> None:
        """Note what a member said last."""
        self._hungry[member] = hunger

    def help(self, now: float, streams: int) -> dict[int, Hunger]:
        """Those to be fed by the head from now on, beside its *streams*: each only once, and none behind another."""
        starving = {member for member, hunger in self._hungry.items() if self._starves(member, hunger, now, streams)}
        first = {
            member: self._hungry[member]
            for member in sorted(starving)
            if not self._waits(self._hungry[member].by, starving, now)
        }
        for member in first:
            self.helped(member, now)
        return first

    def helped(self, member: int, now: float) -> None:
        """Note that the head feeds a member."""
        self._helped.setdefault(member, now)

    def _starves(self, member: int, hunger: Hunger, now: float, streams: int) -> bool:
        slow = hunger.pace * GAIN < self.best / (streams + 1) and hunger.left > hunger.pace * SHORT
        return slow and now - hunger.told < RECENT and member not in self._helped

    def _waits(self, predecessor: int, starving: set[int], now: float) -> bool:
        """Whether a member's predecessor is about to get more, and so is the member."""
        return predecessor in starving or now - self._helped.get(predecessor, -RECENT) < RECENT
