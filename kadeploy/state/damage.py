"""Rows that cannot be read: a column holds what it should not, as SQLite lets any program do.

Whoever decides by rows is refused at the first such one, and told which it is. Whoever lists them does so within
:func:`sparing`: such rows are left out, and told at the end.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from types import NoneType
from typing import Any, NamedTuple

import peewee

from kadeploy.errors import DatabaseError, KadeployError
from kadeploy.state.tables import Moment, SchemaVersion

_MOST = 20
"""Damaged rows of a table that are named."""
_SHOWN = 60
"""Signs of a wrong value that are shown."""

_left_out: ContextVar[dict[str, DatabaseError] | None] = ContextVar("kadeploy_left_out", default=None)
"""What is to be told at the end, by table or text; None where nothing may be left out."""


@contextmanager
def sparing() -> Iterator[None]:
    """Within, rows that cannot be read are left out.

    Raises:
        DatabaseError: at the end, when any was.
    """
    noted: dict[str, DatabaseError] = {}
    token = _left_out.set(noted)
    try:
        yield
    except KadeployError as error:
        if noted:  # what is not found may be what is damaged
            raise next(iter(noted.values())) from error
        raise
    finally:
        _left_out.reset(token)
    if noted:
        raise DatabaseError(" ".join(map(str, noted.values())))


def leave_out(damage: DatabaseError) -> None:
    """Note *damage* within `sparing`, else raise it."""
    noted = _left_out.get()
    if noted is None:
        raise damage
    noted.setdefault(str(damage), damage)


def spared(rows: Iterable[Any]) -> Iterator[Any]:
    """*rows* as far as they can be read, when some of them can: a page of the file may be damaged."""
    some = False
    try:
        for row in rows:
            yield row
            some = True
    except DatabaseError as damage:
        if not some:
            raise
        leave_out(damage)


def sound(database: Any, columns: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """*rows* with values of *columns*, as they are to be used, without the damaged ones.

    Raises:
        DatabaseError: one is damaged, and it may not be left out.
    """
    checks = list(map(_check, columns))
    dates = [rank for rank, each in enumerate(checks) if each.is_date]
    truths = [rank for rank, each in enumerate(checks) if each.is_truth]
    met: set[tuple[type, ...]] = set()
    for row in rows:
        kinds = tuple(map(type, row))
        wrong = [] if kinds in met else [rank for rank, each in enumerate(checks) if not each.takes(kinds[rank])]
        wrong = wrong or [rank for rank in dates if _is_no_date(row[rank])]
        if wrong:
            _note(database, columns[wrong[0]].model)
            continue
        met.add(kinds)
        yield _with_truths(row, truths) if truths else tuple(row)


def _with_truths(row: Sequence[Any], truths: Sequence[int]) -> tuple[Any, ...]:
    """SQLite keeps truths as numbers."""
    values = list(row)
    for rank in truths:
        values[rank] = bool(values[rank])
    return tuple(values)


def is_number(column: Any) -> Any:
    """Condition that SQLite's column of numbers holds one: it reckons with whatever it finds."""
    return peewee.fn.TYPEOF(column) == "integer"


# --- what a column may hold -------------------------------------------------------------------------------------


class _Check(NamedTuple):
    """What values of a column have to be."""

    types: frozenset[type] | None = None
    """None: any."""
    is_date: bool = False
    is_truth: bool = False

    def takes(self, kind: type) -> bool:
        return self.types is None or kind in self.types

    def fits(self, value: Any) -> bool:
        return self.takes(type(value)) and not (self.is_date and _is_no_date(value))


def _is_no_date(value: int | None) -> bool:
    return value is not None and not 0 <= value < Moment.END


def _check(column: Any) -> _Check:
    if not isinstance(column, peewee.Field):  # what the database reckons
        return _Check()
    nothing = {NoneType} if column.null else set()
    if isinstance(column, peewee.ForeignKeyField):
        return _check(column.rel_field)
    if isinstance(column, peewee.BooleanField):
        return _Check(frozenset({int, bool} | nothing), is_truth=True)
    if isinstance(column, peewee.IntegerField):
        return _Check(frozenset({int} | nothing), is_date=isinstance(column, Moment))
    return _Check(frozenset({str} | nothing))


# --- which rows they are ----------------------------------------------------------------------------------------


def _note(database: Any, table: Any) -> None:
    """Tell which rows of *table* are damaged, once."""
    noted = _left_out.get()
    if noted is None or table.__name__ not in noted:
        damage = _named(database, table)
        if noted is None:
            raise damage
        noted[table.__name__] = damage


def _named(database: Any, table: Any) -> DatabaseError:
    name = table._meta.table_name
    found = list(islice(_damaged(database, table), _MOST))
    if not found:
        return DatabaseError(f"A row of the table {name} was damaged a moment ago: try again.")
    places = [place for place, _ in found]
    what = found[0][1]
    rows = f"Row {places[0]}" if len(found) == 1 else f"{len(found)} rows ({', '.join(places)})"
    text = f"{rows} of the table {name} in the database {database.label} cannot be read: {what}. "
    if table is SchemaVersion:
        return DatabaseError(f"{text}Put the database back from a backup.")
    return DatabaseError(
        f"{text}Put it back from a backup, or, while no operation runs, {_removal(database, name, places)}."
    )


def _removal(database: Any, table: str, places: Sequence[str]) -> str:
    if not isinstance(database, peewee.SqliteDatabase):
        return "remove it"
    path = shlex.quote(str(database.database))
    statement = f"DELETE FROM {table} WHERE rowid IN ({', '.join(places)})"  # noqa: S608 - shown, not run
    return f"remove it: sqlite3 {path} {shlex.quote(statement)}"


def _damaged(database: Any, table: Any) -> Iterator[tuple[str, str]]:
    """Which rows are, by number or key, and what is wrong with each."""
    columns = list(table._meta.sorted_fields)
    checks = list(map(_check, columns))
    is_numbered = isinstance(database, peewee.SqliteDatabase)
    keys = [peewee.SQL("rowid")] if is_numbered else list(table._meta.get_primary_keys())
    for row in database.execute(table.select(*keys, *columns)):
        values = row[len(keys) :]
        for column, check, value in zip(columns, checks, values, strict=True):
            if not check.fits(value):
                place = " ".join(map(str, row[: len(keys)]))
                yield place, f"{column.column_name} is {repr(value)[:_SHOWN]}"
                break
