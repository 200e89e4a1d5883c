"""Sums of a day of the log as they are kept in the database, and whether they are of all its rows.

Who writes rows, or removes some, says so in the same transaction (`changed`); what was summed up meanwhile is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from kadeploy.state.database import conflict, fetch, insert, transaction
from kadeploy.state.tables import DayRow

DAY = 86400
KEPT = 100
"""Days for which sums stay behind the newest ones."""


def changed(starts: Iterable[int]) -> None:
    """Rows of operations that began then (Unix seconds) were written."""
    again = {DayRow.changes: DayRow.changes + 1, DayRow.sums: None}
    for day in sorted({start // DAY for start in starts}):
        DayRow.insert(day=day, changes=1).on_conflict(**conflict([DayRow.day]), update=again).execute()


def removed(before: int) -> None:
    """Rows of operations that began before the Unix second *before* are gone."""
    gone = DayRow.update({DayRow.changes: DayRow.changes + 1, DayRow.sums: None})
    gone.where(DayRow.day <= (before - 1) // DAY).execute()


def versions(first: int, end: int) -> dict[int, int]:
    """How often each day, from *first* to before *end* (since 1970, UTC), has changed; those unknown are missing."""
    query = DayRow.select(DayRow.day, DayRow.changes).where(DayRow.day >= first, DayRow.day < end)
    return dict(fetch(query))


def expect(days: Iterable[int]) -> None:
    """Have a version of each of *days*."""
    insert(DayRow, [{"day": day, "changes": 0} for day in days], ignore=True)


def kept(day: int) -> tuple[int, str] | None:
    """The version and the sums of *day*; None where they are not kept."""
    query = DayRow.select(DayRow.changes, DayRow.sums).where(DayRow.day == day, DayRow.sums.is_null(False))
    return next(iter(fetch(query)), None)


def keep(day: int, version: int, sums: str) -> None:
    """Keep the *sums* of a day, unless it is of another *version* by now."""
    with transaction():
        DayRow.update(sums=sums).where(DayRow.day == day, DayRow.changes == version).execute()
        DayRow.delete().where(DayRow.day < day - KEPT).execute()
