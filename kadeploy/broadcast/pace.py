"""Who in a broadcast is held up by a neighbour, and would be better off with the head itself.

A relay tells its pace while its predecessor alone sets it, or one of its successors. Whether that is slow is seen by
what the head has given at its best. The nodes that the head feeds share that: a neighbourhood is split when the share
of one more would be at least `GAIN` times its pace. So none is when the head is the slow one, and each that is makes it
less likely for the next.
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
class Complaint:
    """What a relay says that is held up; members by their numbers, times in seconds by one clock."""

    told: float
    by: int
    """Its predecessor or successor."""
    left: int
    """Bytes of the image that it lacks, or its successor."""
    pace: float
    """Bytes per second."""


class Complaints:
    """What members have said last: all of their predecessors, or all of their successors."""

    def __init__(self) -> None:
        self._last: dict[int, Complaint] = {}
        self._heeded: dict[int, float] = {}

    def note(self, member: int, complaint: Complaint) -> None:
        """One more, by this member."""
        self._last[member] = complaint

    def heed(self, member: int, now: float) -> None:
        """Do not listen to this member again: it has been helped, and could ask without end."""
        self._heeded.setdefault(member, now)

    def heeded(self, now: float, share: float) -> dict[int, Complaint]:
        """Those that are right now, if the head can give *share* bytes per second, and not about another of them."""
        right = {member: last for member, last in self._last.items() if self._right(member, last, now, share)}
        found = {member: last for member, last in right.items() if last.by not in right and not self._soon(last, now)}
        for member in found:
            self.heed(member, now)
        return found

    def _right(self, member: int, last: Complaint, now: float, share: float) -> bool:
        slow = last.pace * GAIN < share and last.left > last.pace * SHORT
        return slow and now - last.told < RECENT and member not in self._heeded

    def _soon(self, last: Complaint, now: float) -> bool:
        """Whether the one it is about has just been helped, and so is this member soon."""
        return now - self._heeded.get(last.by, now - RECENT) < RECENT


class Best:
    """The most bytes per second that all heads have given together."""

    def __init__(self) -> None:
        self.pace = LEAST
        self._measured = (0.0, 0)

    def note(self, now: float, total: int) -> None:
        """How many bytes have left them."""
        since, before = self._measured
        if now - since >= WINDOW:
            if since:
                self.pace = max(self.pace, (total - before) / (now - since))
            self._measured = (now, total)

    def share(self, streams: int) -> float:
        """What one more node would get beside so many."""
        return self.pace / (streams + 1)
