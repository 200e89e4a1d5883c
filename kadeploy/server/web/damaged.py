"""Lists that are shown although some of their rows are damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from kadeploy.errors import DatabaseError
from kadeploy.state.damage import sparing

_ItemT = TypeVar("_ItemT")


def readable(ask: Callable[[], Iterable[_ItemT]]) -> tuple[list[_ItemT], str]:
    """What *ask* finds as far as it can be read, and what people are told of the rest; mostly nothing.

    Raises:
        DatabaseError: nothing can be read.
    """
    rows: list[_ItemT] = []
    try:
        with sparing():
            rows.extend(ask())
    except DatabaseError as error:
        if not rows:
            raise
        return rows, str(error)
    return rows, ""
