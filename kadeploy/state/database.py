"""The state of a site in a database: connections, schema versions, and how rows are read and written.

SQLite in WAL mode by default (``state_dir/kadeploy.db``), PostgreSQL (psycopg 3) or MySQL (PyMySQL) by URL. Every
writing transaction is short and, on SQLite, takes the write lock at its start, so that a check and the write that
depends on it are one.

A thread (or an asyncio task) works for one site at a time, the one it connected to last: :func:`connect` chooses the
database that all queries of this thread go to, so that threads of one process can serve different sites. What
``asyncio.to_thread`` runs works for the site of its task; a new thread works for none until it connects. Every thread
has connections of its own.
"""

from __future__ import annotations

import atexit
import os
import re
import select
import shlex
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from contextvars import ContextVar
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import peewee

from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError
from kadeploy.state import damage, drivers
from kadeploy.state.tables import TABLES, LongText, Row, SchemaVersion

SCHEMA_VERSION = 9
BUSY_SECONDS = 30
"""How long a process waits for another one's write before it gives up."""
CHUNK = 500
"""Rows per statement: below the variable limits of all three databases."""

_chosen: ContextVar[Any] = ContextVar("kadeploy_database", default=None)


class _Chosen(peewee.DatabaseProxy):
    """Stands for the database that the calling thread has chosen."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Any], None]] = []

    @property
    def obj(self) -> Any:
        """Peewee's name for what a proxy stands for; None when nothing was chosen."""
        return _chosen.get()

    def __getattr__(self, name: str) -> Any:
        return getattr(_here(), name)


def _here() -> Any:
    database = _chosen.get()
    if database is None:
        raise DatabaseError("This thread works for no site: call kadeploy.state.database.connect(site) in it first.")
    return database


DB = _Chosen()
"""What the tables are bound to: the database of the calling thread, see :func:`connect`."""
for _table in TABLES:
    _table.bind(DB)

ItemT = TypeVar("ItemT")


# --- databases --------------------------------------------------------------------------------------------------


_STATEMENT = {"IntegrityError", "DataError", "ProgrammingError", "NotSupportedError"}
"""What drivers call a statement that is wrong, and peewee after them (PEP 249)."""
_DATABASE = {"OperationalError", "InterfaceError", "InternalError", "DatabaseError"}
"""What they call a database that cannot be used; some raise subclasses of these."""


_MISFIT = re.compile(
    r"no such (table|column): \S+|has no column named \S+|(?i:duplicate column.*)"
    r"|(relation|column) \S+ does not exist|Table \S+ doesn't exist|Unknown column '[^']+'"
)
"""How SQLite, PostgreSQL and MySQL say that a table or a column of ours is not there, or there before its time."""


class _Refusing:
    """Turns what a driver says when the database cannot be used into DatabaseError with advice."""

    label = ""
    extra = ""
    """What to install for it: an extra of the package."""

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        return self._guard(super().connect, *args, **kwargs)  # type: ignore[misc]

    def leave_lost(self) -> None:
        """Close this thread's connection where the server has ended it: a restart is no reason to fail for ever."""
        if not self.is_closed() and not self.in_transaction() and self.is_lost():  # type: ignore[attr-defined]
            self.close()  # type: ignore[attr-defined]

    def is_lost(self) -> bool:
        """Whether the server has ended the connection of this thread."""
        return False

    def begin(self, *args: Any, **kwargs: Any) -> Any:
        return self._guard(super().begin, *args, **kwargs)  # type: ignore[misc]

    def commit(self) -> Any:
        return self._guard(super().commit)  # type: ignore[misc]

    def rollback(self) -> Any:
        """It fails only after something else has, and that is what people have to know."""
        with suppress(peewee.PeeweeException):
            return super().rollback()  # type: ignore[misc]

    def execute_sql(self, *args: Any, **kwargs: Any) -> Any:
        return self._guard(super().execute_sql, *args, **kwargs)  # type: ignore[misc]

    def _guard(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.refusals():
            return function(*args, **kwargs)

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """What peewee and drivers raise within becomes DatabaseError, but for what is wrong with a statement."""
        try:
            yield
        except DatabaseError:
            raise
        except peewee.ImproperlyConfigured as error:
            raise DatabaseError(
                f"The database {self.label} needs a driver: pip install 'kadeploy[{self.extra}]'."
            ) from error
        except Exception as error:
            if misfit := _MISFIT.search(_words(error)):
                raise DatabaseError(
                    f"The database {self.label} is damaged ({misfit[0]}): put it back from a backup."
                ) from error
            if not isinstance(error, OSError) and _kind(error) not in _DATABASE:
                raise
            raise _refusal_within(error) or DatabaseError(self.advice(error)) from error

    def advice(self, error: Exception) -> str:
        return f"The database {self.label} cannot be used: {_words(error)}. Is its server running and `database` right?"


def _kind(error: Exception) -> str:
    """What PEP 249 calls it; empty for what comes from no driver."""
    names = (each.__name__ for each in type(error).__mro__)
    return next((name for name in names if name in _STATEMENT | _DATABASE), "")


def _refusal_within(error: Exception) -> DatabaseError | None:
    """Our own refusal, where peewee took it for the driver's exception of the same name."""
    original = getattr(error, "orig", None)
    return original if isinstance(original, DatabaseError) else None


class _SQLite(_Refusing, peewee.SqliteDatabase):
    def connect(self, *args: Any, **kwargs: Any) -> Any:
        path = Path(self.database)
        if _is_missing(path):
            self.refuse_to_replace_a_lost_one()
        with suppress(OSError):  # connecting says why
            _make(path, 0o600)
        return super().connect(*args, **kwargs)

    def _connect(self) -> Any:
        connection = super()._connect()  # type: ignore[misc]
        connection.text_factory = _text
        return connection

    @property
    def marker(self) -> Path:
        """A file that tells that the database was made once, so that a lost one is not taken for a new site."""
        path = Path(self.database)
        return path.with_name(f".{path.name}.made")

    def mark(self) -> None:
        """Remember that the database was made."""
        with suppress(OSError):  # whoever may write there will do it
            _make(self.marker, 0o644)

    def refuse_to_replace_a_lost_one(self) -> None:
        """Called when there is no database, or an empty one.

        Raises:
            DatabaseError: there was one.
        """
        if not _is_missing(self.marker):
            raise DatabaseError(
                f"The database {self.database} is gone or empty, and with it who holds which node. Put it back from a "
                f"backup; or, once nothing runs any more, begin anew by removing {self.marker}."
            )

    def advice(self, error: Exception) -> str:
        text, path = _words(error), Path(self.database)
        if "locked" in text:
            return f"The database {path} is locked: another process writes for more than {BUSY_SECONDS} s. Try again."
        if "malformed" in text or "not a database" in text:
            return (
                f"The database {path} is damaged: {text}. Put it back from a backup, or save what can still be read: "
                f"sqlite3 {shlex.quote(str(path))} .recover"
            )
        if "full" in text:
            return f"The database {path} cannot be written: its disk is full. Make room there, and try again."
        return _advice_on(path) or f"The database {path} cannot be used: {text}."


def _advice_on(path: Path) -> str:
    """What is wrong with the place of SQLite's file; empty: nothing that we know."""
    if _is_missing(path.parent):
        return f"The folder {path.parent} does not exist: create it, or correct `state_dir` in site.yml."
    if _is_read_only(path.parent):
        return f"The database {path} is on a read-only file system: mount it writable (mount -o remount,rw)."
    if not os.access(path.parent, os.W_OK) or not (_is_missing(path) or os.access(path, os.W_OK)):
        return f"The database {path} is not writable for you: run the command as root (sudo)."
    return ""


class _PostgreSQL(_Refusing, peewee.PostgresqlDatabase):
    extra = "postgresql"
    field_types: Mapping[str, str] = {**peewee.PostgresqlDatabase.field_types, LongText.field_type: "TEXT"}

    def is_lost(self) -> bool:
        connection = self.connection()  # type: ignore[no-untyped-call]
        return bool(connection.closed) or _has_something_to_say(connection.fileno())


class _MySQL(_Refusing, peewee.MySQLDatabase):
    extra = "mysql"

    def is_lost(self) -> bool:
        return not self.connection().open  # type: ignore[no-untyped-call]


def _has_something_to_say(descriptor: int) -> bool:
    """Whether the server does, unasked: only its end is a reason."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _text(content: bytes) -> str | bytes:
    """Text of a column; what is no UTF-8 stays as it is, and is damage (see `damage`)."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _is_missing(path: Path) -> bool:
    """Certainly not there, rather than out of sight for this user."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _is_read_only(folder: Path) -> bool:
    with suppress(OSError):
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return False


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _sqlite(path: Path) -> _SQLite:
    pragmas = {"journal_mode": "wal", "foreign_keys": 1, "synchronous": "normal"}
    database = _SQLite(str(path), pragmas=pragmas, timeout=BUSY_SECONDS, lock_type="IMMEDIATE")
    database.label = str(path)
    return database


def _make(path: Path, mode: int) -> None:
    """Have a file there; one that root makes belongs to whose folder it is in, which may be the service's account."""
    if path.exists():
        return
    path.touch(mode)
    if os.geteuid() == 0:
        folder = path.parent.stat()
        os.chown(path, folder.st_uid, folder.st_gid)


def _create_folder(path: Path) -> None:
    """Create the state folder, but not its parents: those missing are a typing error in site.yml."""
    with suppress(OSError):  # connecting says why
        path.mkdir(mode=0o755, exist_ok=True)


def _postgresql(url: str) -> _PostgreSQL:
    drivers.load_psycopg()
    return _PostgreSQL(url.replace("postgres://", "postgresql://", 1), prefer_psycopg3=True)


def _mysql(url: str) -> _MySQL:
    drivers.load_pymysql()
    parts = urlsplit(url)
    options: dict[str, Any] = {"host": parts.hostname, "port": parts.port, "user": parts.username}
    options["password"] = unquote(parts.password) if parts.password else None
    options.update(parse_qsl(parts.query))
    given = {key: value for key, value in options.items() if value is not None}
    return _MySQL(parts.path.lstrip("/"), charset="utf8mb4", **given)


def _open(url: str) -> Any:
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise DatabaseError(f"`database: {url}` in site.yml is not a URL (sqlite:///PATH, postgresql://…, mysql://…).")
    if scheme == "sqlite":
        return _sqlite(Path("/" + rest.lstrip("/")))
    openers: dict[str, Callable[[str], Any]] = {
        "postgresql": _postgresql,
        "postgres": _postgresql,
        "mysql": _mysql,
    }
    if scheme not in openers:
        raise DatabaseError(f"Unknown kind of database {scheme!r} in site.yml: use sqlite, postgresql or mysql.")
    database = openers[scheme](url)
    database.label = printable_url(url)
    return database


def printable_url(url: str) -> str:
    """*url* fit for a message.

    >>> printable_url("mysql://kadeploy:secret@db.site/kadeploy")
    'mysql://kadeploy@db.site/kadeploy'
    """
    return re.sub(r"(?<=password=)[^&]*", "…", re.sub(r"(://[^:/@]*):[^/]*@", r"\1@", url))


_known: dict[str, Any] = {}
"""Databases by URL, for all threads; each of them holds a connection per thread."""
_knowing = threading.Lock()


def connect(site: Site) -> Any:
    """Choose the database of *site* for this thread (a ``peewee.Database``), its tables bound and up to date.

    The same object for the same URL in all threads. Call it as often as you like, and :func:`disconnect` when done.

    Raises:
        DatabaseError: it cannot be opened, or a later Kadeploy made it; the text says what to do. The thread stays
            with the site it had.
    """
    database = _database(url_of(site))
    before = _chosen.set(database)
    database.leave_lost()
    if database.is_closed():
        try:
            _prepare(site)
        except BaseException:
            database.close()
            _chosen.reset(before)
            raise
    return database


def url_of(site: Site) -> str:
    """Where the database of *site* is: as the configuration says, or else in a file of its state folder."""
    return site.database or f"sqlite://{site.state / 'kadeploy.db'}"


def file_of(site: Site) -> Path | None:
    """The file of SQLite's database; None where the site has another kind."""
    database = _database(url_of(site))
    return Path(database.database) if isinstance(database, _SQLite) else None


def marker_of(path: Path) -> Path:
    """The file beside SQLite's database *path* that tells that it was made once."""
    return _sqlite(path).marker


@contextmanager
def as_it_is(site: Site) -> Iterator[int | None]:
    """Within, this thread works for the database of *site* as it is: neither made nor migrated.

    Tells its schema version; None where it has none, because nothing was made there yet for instance. At its end the
    thread works for no site.

    Raises:
        DatabaseError: it cannot be opened.
    """
    disconnect()
    database = _database(url_of(site))
    path = file_of(site)
    if path is not None and _is_missing(path):
        yield None
        return
    _chosen.set(database)
    try:
        database.connect()
        yield _version_if_any()
    finally:
        disconnect()


def has_tables() -> bool:
    """Whether the database that this thread works for has any table of ours."""
    return _chosen.get() is not None and any(DB.table_exists(table._meta.table_name) for table in TABLES)


def _database(url: str) -> Any:
    with _knowing:
        if url not in _known:
            _known[url] = _open(url)
        return _known[url]


def _prepare(site: Site) -> None:
    if not site.database:
        _create_folder(site.state)
    migrate()
    if isinstance(DB.obj, _SQLite):
        DB.obj.mark()


def disconnect() -> None:
    """Close the connections of this thread, to whatever databases; it works for no site until it connects again."""
    with _knowing:
        databases = list(_known.values())
    for database in databases:
        database.close()
    _chosen.set(None)


atexit.register(disconnect)  # SQLite then folds its journal back into one file


# --- schema versions --------------------------------------------------------------------------------------------


def _widened(table: str, column: str, kind: str) -> Iterator[str]:
    """SQL that gives a column of numbers another *kind*: each database has words of its own to do it in place."""
    yield f"ALTER TABLE {table} ADD COLUMN wider {kind}"
    yield f"UPDATE {table} SET wider = {column}"  # noqa: S608 - names of ours
    yield f"ALTER TABLE {table} DROP COLUMN {column}"
    yield f"ALTER TABLE {table} RENAME COLUMN wider TO {column}"


MIGRATIONS: Mapping[int, Sequence[str]] = {
    2: ("ALTER TABLE rights ADD COLUMN until BIGINT",),
    3: ("ALTER TABLE progress ADD COLUMN told VARCHAR(64) NOT NULL DEFAULT ''",),
    4: (
        "ALTER TABLE environments ADD COLUMN alias VARCHAR(255) NOT NULL DEFAULT ''",
        "ALTER TABLE environments ADD COLUMN arch VARCHAR(64) NOT NULL DEFAULT ''",
        "ALTER TABLE environments ADD COLUMN options TEXT",
        "ALTER TABLE nodes ADD COLUMN env_arch VARCHAR(64) NOT NULL DEFAULT ''",
        "DROP INDEX environmentrow_name_version_user ON environments",
        *_widened("environments", "version", "BIGINT NOT NULL DEFAULT 1"),
        *_widened("nodes", "env_version", "BIGINT"),
        *_widened("workflows", "env_version", "BIGINT"),
        'CREATE UNIQUE INDEX environmentrow_name_version_user_arch ON environments (name, version, "user", arch)',
    ),
    5: (
        'CREATE TABLE tokens (id VARCHAR(32) NOT NULL PRIMARY KEY, "user" VARCHAR(255) NOT NULL, '
        "digest VARCHAR(64) NOT NULL, note VARCHAR(255) NOT NULL, created BIGINT NOT NULL, until BIGINT NOT NULL, "
        "used BIGINT, revoked BIGINT)",
        'CREATE INDEX token_user ON tokens ("user")',
    ),
    6: ("ALTER TABLE claims ADD COLUMN part VARCHAR(255) NOT NULL DEFAULT ''",),
    7: (
        "CREATE TABLE quarantine (node VARCHAR(255) NOT NULL PRIMARY KEY, since BIGINT NOT NULL, "
        "put_by VARCHAR(255) NOT NULL, reason TEXT NOT NULL, until BIGINT, released BIGINT, "
        "released_by VARCHAR(255) NOT NULL)",
    ),
    8: (
        'CREATE TABLE notifications ("user" VARCHAR(255) NOT NULL PRIMARY KEY, mail BOOLEAN NOT NULL, '
        "address VARCHAR(255) NOT NULL, webhook TEXT NOT NULL, secret VARCHAR(64) NOT NULL, "
        "outcome VARCHAR(16) NOT NULL, operations VARCHAR(64) NOT NULL, since BIGINT NOT NULL)",
        "CREATE TABLE outbox (wid VARCHAR(64) NOT NULL, channel VARCHAR(16) NOT NULL, "
        '"user" VARCHAR(255) NOT NULL, made BIGINT NOT NULL, tries INTEGER NOT NULL, due BIGINT, sent BIGINT, '
        "error TEXT NOT NULL, PRIMARY KEY (wid, channel))",
        "CREATE INDEX outbox_due ON outbox (due)",
        "CREATE TABLE days (day BIGINT NOT NULL PRIMARY KEY, changes BIGINT NOT NULL, sums LONGTEXT)",
    ),
    9: ("ALTER TABLE log ADD COLUMN given_up VARCHAR(255) NOT NULL DEFAULT ''",),
}
"""SQL that leads from the version before to this one, for all three databases (see `_spelt`)."""


def migrate() -> None:
    """Create the tables, or bring those of an earlier Kadeploy to :data:`SCHEMA_VERSION`.

    Raises:
        DatabaseError: the tables are newer than this program.
    """
    if _version_if_any() == SCHEMA_VERSION:
        return
    with _migrating_alone(), DB.atomic():
        # Look again: another process may have been faster.
        found = _recorded_version() if DB.table_exists("schema_version") else None
        if found == SCHEMA_VERSION:
            return
        if found is None:
            _create()
        elif found < 1:
            raise _without_version()
        elif found > SCHEMA_VERSION:
            raise DatabaseError(
                f"The database has schema version {found}, this Kadeploy knows {SCHEMA_VERSION}: upgrade Kadeploy."
            )
        else:
            _upgrade(found)
        SchemaVersion.delete().execute()
        SchemaVersion.insert(version=SCHEMA_VERSION).execute()


def _create() -> None:
    if isinstance(DB.obj, _SQLite):
        _refuse_to_guess_the_version()
        DB.obj.refuse_to_replace_a_lost_one()
    if isinstance(DB.obj, peewee.MySQLDatabase):  # where, by default, alice and Alice are the same
        DB.execute_sql("ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
    DB.create_tables(TABLES)


def _refuse_to_guess_the_version() -> None:
    """SQLite makes all tables or none: where there are some, the one with the version was lost."""
    if any(DB.table_exists(table._meta.table_name) for table in TABLES if table is not SchemaVersion):
        raise _without_version()


def _without_version() -> DatabaseError:
    return DatabaseError(
        f"The database {DB.obj.label} is damaged (no schema version in its table schema_version): put it back from a "
        "backup."
    )


def _upgrade(found: int) -> None:
    for version in range(found + 1, SCHEMA_VERSION + 1):
        for statement in MIGRATIONS[version]:
            DB.execute_sql(_spelt(statement))


def _spelt(statement: str) -> str:
    """*statement* as this database writes it.

    MySQL quotes otherwise, and it alone drops an index ON its table; to PostgreSQL all texts are alike.
    """
    if isinstance(DB.obj, peewee.MySQLDatabase):
        return statement.replace('"', "`")
    if isinstance(DB.obj, peewee.PostgresqlDatabase):
        statement = statement.replace(LongText.field_type, "TEXT")
    return re.sub(r"\A(DROP INDEX \w+) ON \w+", r"\1", statement)


def _recorded_version() -> int | None:
    return max((version for (version,) in fetch(SchemaVersion.select(SchemaVersion.version))), default=None)


def _version_if_any() -> int | None:
    """The recorded version, without a lock; None where there is none yet, or somebody makes the tables just now.

    Whatever else may be wrong is told by those who look again behind the lock.
    """
    try:
        return _recorded_version()
    except (peewee.ProgrammingError, DatabaseError):  # SQLite calls a missing table an operational error
        return None


def _migrating_alone() -> AbstractContextManager[None]:
    return _alone("25300", "kadeploy")


def alone(what: str) -> AbstractContextManager[None]:
    """Within it, and around a transaction: other processes that come to do the same wait until this one has done it."""
    number = zlib.crc32(what.encode()) >> 1
    return _alone(f"25300, {number}", f"kadeploy-{number}")


@contextmanager
def _alone(key: str, name: str) -> Iterator[None]:
    """Other processes wait at this point. SQLite needs no more than the transaction, which takes its write lock."""
    locks = {
        peewee.PostgresqlDatabase: (f"SELECT pg_advisory_lock({key})", f"SELECT pg_advisory_unlock({key})"),
        peewee.MySQLDatabase: (f"SELECT GET_LOCK('{name}', {BUSY_SECONDS})", f"SELECT RELEASE_LOCK('{name}')"),
    }
    take, give = next((pair for kind, pair in locks.items() if isinstance(DB.obj, kind)), ("", ""))
    if take:
        DB.execute_sql(take).fetchall()
    try:
        yield
    finally:
        if give:
            DB.execute_sql(give).fetchall()


# --- for the modules above --------------------------------------------------------------------------------------


def transaction() -> Any:
    """Context manager: all or nothing, and on SQLite the only writer meanwhile. Keep it short, and at one site."""
    return _here().atomic()


def chunked(items: Iterable[ItemT], size: int = CHUNK) -> Iterator[list[ItemT]]:
    """*items* in lists of at most *size*.

    >>> list(chunked("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    values = list(items)
    return (values[start : start + size] for start in range(0, len(values), size))


def upsert(table: type[Row], rows: Iterable[Mapping[str, Any]], key: Sequence[Any], replaced: Sequence[Any]) -> None:
    """Insert *rows*; where one with the same *key* exists, replace its *replaced* columns."""
    for part in chunked(rows):
        table.insert_many(part).on_conflict(**conflict(key), preserve=replaced).execute()


def conflict(key: Sequence[Any]) -> dict[str, Any]:
    """What peewee wants to know of a row whose *key* exists: MySQL finds out by itself."""
    return {} if isinstance(DB.obj, peewee.MySQLDatabase) else {"conflict_target": key}


def insert(table: type[Row], rows: Iterable[Mapping[str, Any]], ignore: bool = False) -> None:
    """Insert *rows*, a few hundred per statement; with *ignore*, leave out those whose key exists."""
    for part in chunked(rows):
        query = table.insert_many(part)
        (query.on_conflict_ignore() if ignore else query).execute()


def fetch(query: Any) -> list[tuple[Any, ...]]:
    """All rows of *query* as tuples.

    Raises:
        DatabaseError: one of them cannot be read (see `damage`); its text says which.
    """
    database = _here()
    return list(_readable(database, query, _executed(database, query)))


def records(query: Any) -> list[Any]:
    """All rows of *query*, which selects whole ones, as objects of their table."""
    names = [column.name for column in query.selected_columns]
    return [query.model(**dict(zip(names, row, strict=True))) for row in fetch(query)]


def stream(query: Any) -> Iterator[tuple[Any, ...]]:
    """Rows of *query* as tuples, as the database finds them: memory does not grow with their number.

    They come from the site that this thread has chosen now, whatever it chooses before it has read them all.
    """
    database = _here()
    return _readable(database, query, _rows(database, *query.sql()))


Rows = Generator[Sequence[Any], None, None]


def _readable(database: Any, query: Any, rows: Rows) -> Iterator[tuple[Any, ...]]:
    with closing(rows):
        yield from damage.spared(damage.sound(database, query.selected_columns, rows))


def _executed(database: Any, query: Any) -> Rows:
    with database.refusals():
        yield from _read(database, database.execute(query))


_BATCH = 1000
_reading = threading.Lock()


def _read(database: Any, cursor: Any) -> Rows:
    """The rows of *cursor*; of SQLite's many at a time, while other threads wait here.

    Python's driver lets go of the interpreter at each row: several threads that read would hand it to each other a
    thousand times for a list, which takes five times as long.
    """
    if not isinstance(database, peewee.SqliteDatabase):
        yield from cursor
        return
    while True:
        with _reading:
            rows = cursor.fetchmany(_BATCH)
        if not rows:
            return
        yield from rows


def with_numbers(query: Any, *columns: Any) -> Any:
    """*query*, of which the database makes sums and means, where these *columns* hold numbers."""
    database = _here()
    if not isinstance(database, peewee.SqliteDatabase):
        return query
    good = reduce(and_, map(damage.is_number, columns))
    fetch(query.clone().columns(*columns).where(~good).limit(1))  # tells them
    return query.where(good)


def _rows(database: Any, sql: str, parameters: Sequence[Any]) -> Rows:
    with database.refusals():
        connection = database.connection()
        if isinstance(database, peewee.PostgresqlDatabase):
            with connection.cursor(name="kadeploy", withhold=True) as cursor:
                cursor.itersize = 1000
                yield from cursor.execute(sql, parameters)
            return
        cursor = connection.cursor(*_unbuffered(database))
        cursor.execute(sql, parameters)
        yield from _read(database, cursor)


def _unbuffered(database: Any) -> tuple[Any, ...]:
    """The kind of cursor, where the usual one would fetch all rows at once."""
    if not isinstance(database, peewee.MySQLDatabase):
        return ()
    from pymysql.cursors import SSCursor  # type: ignore[import-untyped]  # noqa: PLC0415 - MySQL sites only

    return (SSCursor,)
