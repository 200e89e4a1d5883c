"""Dates as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from kadeploy.errors import OptionError

_DATES = {
    "%Y:%m:%d:%H:%M:%S": timedelta(),
    "%Y-%m-%d %H:%M:%S": timedelta(),
    "%Y-%m-%dT%H:%M:%S": timedelta(),
    "%Y-%m-%d %H:%M": timedelta(),
    "%Y-%m-%dT%H:%M": timedelta(),
    "%Y-%m-%d": timedelta(days=1, seconds=-1),
}
"""Ways to write a date (the first is the wiki page's), and how far its last second is from its first."""
_ZONE = re.compile(r" ?(Z|UTC|GMT|[+-]\d\d:?\d\d)\Z", re.ASCII)


def moment(option: str, text: str, day_ends: bool = False) -> int:
    """Unix seconds of a date that *option* was given; of a day alone its first or last second.

    A zone may follow (``Z``, ``UTC``, ``+02:00``); without one it is local time.

    Raises:
        OptionError: not a date.
    """
    zone = _ZONE.search(text) if len(text) > len("yyyy-mm-dd") else None
    plain = text[: zone.start()] if zone else text
    for pattern, length in _DATES.items():
        try:
            start = datetime.strptime(plain, pattern)
            when = start + length if day_ends else start
            offset = _offset(zone[1]) if zone else None
            return int((when.replace(tzinfo=offset) if offset else when).timestamp())
        except (ValueError, OverflowError, OSError):
            continue
    raise OptionError(
        f"{option} {text}: not a date. Expected yyyy:mm:dd:hh:mm:ss, 'yyyy-mm-dd hh:mm' or a day yyyy-mm-dd, local "
        "time unless a zone such as Z or +02:00 follows."
    )


def _offset(zone: str) -> timezone:
    if zone[0] not in "+-":
        return UTC
    east = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
    return timezone(east if zone[0] == "+" else -east)
