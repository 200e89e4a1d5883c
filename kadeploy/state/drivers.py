"""Drivers of databases, loaded when a site needs one: most have SQLite, and psycopg takes time at each command's start.

Peewee imports at once whatever drivers are installed. Here they are out of its sight while it is imported, and
:func:`load_psycopg` and :func:`load_pymysql` give it the one that a site's database is spoken to by.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

_LATER = ("psycopg", "pymysql")


@contextmanager
def _out_of_sight(names: tuple[str, ...]) -> Iterator[None]:
    """Within, importing any of the modules *names* fails as if it were not installed; those loaded already stay."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] # None: the documented way
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


with _out_of_sight(_LATER):
    import peewee


def load_psycopg() -> None:
    """Give peewee psycopg 3, if it is installed: the names that its own import of it would have set."""
    module: Any = peewee
    with suppress(ImportError):
        psycopg, pq, json = (import_module(name) for name in ("psycopg", "psycopg.pq", "psycopg.types.json"))
        module.psycopg, module.TransactionStatus = psycopg, pq.TransactionStatus
        module.Json_pg3, module.Jsonb_pg3 = json.Json, json.Jsonb
        adapter, status = module.Psycopg3Adapter, pq.TransactionStatus
        adapter.txn_idle, adapter.txn_inerror, adapter.txn_unknown = status.IDLE, status.INERROR, status.UNKNOWN


def load_pymysql() -> None:
    """Give peewee PyMySQL, if it is installed."""
    module: Any = peewee
    with suppress(ImportError):
        module.mysql = import_module("pymysql")
