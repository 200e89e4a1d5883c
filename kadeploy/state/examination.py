"""What a site's database says of itself, asked without changing anything: nothing is made, migrated or recorded."""

from __future__ import annotations

import sqlite3
import time
from typing import Any, NamedTuple

import peewee

from kadeploy.config.site import Site
from kadeploy.state import database


class Seen(NamedTuple):
    """What was seen."""

    server: str
    """Its kind and version: ``PostgreSQL 15.3``."""
    version: int | None
    """Of the schema; None: there are no tables yet."""
    ahead: float = 0.0
    """Seconds by which its clock is ahead of this machine's; 0 where there is one clock."""
    damage: str = ""
    """What it says of its own file; empty where all is well."""


def look(site: Site) -> Seen:
    """Look at the database, which must be there; whoever calls is a user who may write it.

    Raises:
        DatabaseError: it cannot be used, or not be written; the text says what to do.
    """
    with database.as_it_is(site) as version:
        server: Any = database.DB.obj
        is_file = isinstance(server, peewee.SqliteDatabase)
        with server.refusals(), database.transaction() as transaction:
            if version is not None and not is_file:  # SQLite has taken its lock for writing already
                server.execute_sql("UPDATE schema_version SET version = version")
            transaction.rollback()
        if not is_file:
            return _server(server, version)
        with server.refusals():
            said = [str(row[0]) for row in server.execute_sql("PRAGMA quick_check(3)").fetchall()]
        return Seen(f"SQLite {sqlite3.sqlite_version}", version, damage="" if said == ["ok"] else "; ".join(said))


_QUESTIONS = {
    peewee.PostgresqlDatabase: ("SHOW server_version", "SELECT EXTRACT(EPOCH FROM clock_timestamp())", "PostgreSQL"),
    peewee.MySQLDatabase: ("SELECT VERSION()", "SELECT UNIX_TIMESTAMP(NOW(6))", "MySQL"),
}
"""What each kind is asked for its version and for its clock, and what it is called."""


def _server(server: Any, version: int | None) -> Seen:
    version_of, clock_of, name = next(each for kind, each in _QUESTIONS.items() if isinstance(server, kind))
    told = str(_one(server, version_of)).split()[0]
    before = time.time()
    clock = float(_one(server, clock_of))
    return Seen(f"{name} {told}", version, ahead=clock - (before + time.time()) / 2)


def _one(server: Any, question: str) -> Any:
    return server.execute_sql(question).fetchone()[0]
