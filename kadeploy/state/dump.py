"""The whole database of a site as one file, taken while it is used, and back.

SQLite's is the database itself, as of one moment. PostgreSQL's and MySQL's are the SQL that their own programs write,
of our tables alone. No password is ever an argument of these programs.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import msgspec

from kadeploy.caller import Account, as_user
from kadeploy.commands import last_line
from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError
from kadeploy.state import database, nodes
from kadeploy.state.database import BUSY_SECONDS, DB, SCHEMA_VERSION
from kadeploy.state.tables import TABLES

Kind = Literal["sqlite", "postgresql", "mysql"]
MAGIC = b"SQLite format 3\0"
_PACKAGES: Mapping[str, str] = {
    "pg_dump": "postgresql-client",
    "mysqldump": "mariadb-client",
    "mysql": "mariadb-client",
}


class Dump(NamedTuple):
    """A database as of one moment."""

    kind: Kind
    version: int
    """Of its schema."""
    schema: str
    """In which PostgreSQL has its tables; empty for the others."""
    file: BinaryIO
    """Without a name; at its beginning."""


def kind_of(site: Site) -> Kind:
    """Which kind of database *site* has."""
    scheme = database.url_of(site).partition("://")[0]
    found: Kind = "postgresql" if scheme == "postgres" else cast("Kind", scheme)
    return found


@contextmanager
def taken(site: Site, keeper: Account, room: Path) -> Iterator[Dump]:
    """The database of *site*, whose state is *keeper*'s; of a server's, the file is in the folder *room*.

    Raises:
        DatabaseError: it cannot be read, is damaged, or its program is missing.
        OSError: no room for the file.
    """
    with as_user(keeper), database.as_it_is(site) as version:
        if version is None:
            raise DatabaseError(f"The database {shown(site)} holds no site.")
        if version > SCHEMA_VERSION:
            raise DatabaseError(
                f"The database has schema version {version}, this Kadeploy knows {SCHEMA_VERSION}: upgrade Kadeploy."
            )
        schema, tables = _schema(site), [name for name in _TABLES if DB.table_exists(name)]
        path = database.file_of(site)
    if path is not None:
        with as_user(keeper):
            copy = _snapshot(path)
        with copy:
            yield Dump("sqlite", version, "", copy)
        return
    with tempfile.TemporaryFile(prefix=".kadeploy-", dir=room) as target:
        argv, variables = _dumping(site, schema, tables)
        _run(argv, variables, keeper, stdout=target)
        target.seek(0)
        yield Dump(kind_of(site), version, schema, cast("BinaryIO", target))


_TABLES = [table._meta.table_name for table in TABLES]


def shown(site: Site) -> str:
    """Where the database of *site* is, without its password."""
    return database.printable_url(database.url_of(site))


def _schema(site: Site) -> str:
    if kind_of(site) != "postgresql":
        return ""
    return str(DB.execute_sql("SELECT current_schema()").fetchone()[0] or "")


# --- SQLite -----------------------------------------------------------------------------------------------------


def _snapshot(path: Path) -> BinaryIO:
    """A copy of SQLite's database *path* as of now, in the same folder and without a name."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.copy-", dir=path.parent)
    try:
        with (
            closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as source,
            closing(sqlite3.connect(name)) as target,
        ):
            target.execute("PRAGMA journal_mode = off")
            Path(name).unlink()
            source.execute("BEGIN")
            _require_sound(source, path)
            source.backup(target)
    except BaseException as error:
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error):
            raise DatabaseError(f"The database {path} cannot be copied: {error}.") from error
        raise
    return os.fdopen(descriptor, "rb")


def _require_sound(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        what = " ".join(str(found).replace("***", "").split())
        raise DatabaseError(
            f"The database {path} is damaged ({what}). Put it back from a backup, or save what can still be read: "
            f"sqlite3 {path} .recover"
        )


def settle_file(site: Site, path: Path, reason: str) -> dict[str, list[str]]:
    """Make SQLite's file *path*, a `Dump` of *site* under another name, ready to be its database.

    It is brought to this program's schema, and its operations are ended for *reason*: nodes by workflow.

    Raises:
        DatabaseError: it is damaged, or no database of ours.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise DatabaseError("The database in the backup is none of SQLite's.")
    try:
        with closing(sqlite3.connect(path)) as connection:
            _require_sound(connection, path)
    except sqlite3.Error as error:
        raise DatabaseError(f"The database in the backup is damaged: {error}.") from error
    beside = msgspec.structs.replace(site, database=f"sqlite://{path}")
    database.disconnect()
    try:
        with database.as_it_is(beside) as version:
            if version is None:
                raise DatabaseError("The database in the backup has no schema version: it is none of a site.")
        database.connect(beside)
        return nodes.abort_all(beside, reason)
    finally:
        database.disconnect()
        database.marker_of(path).unlink(missing_ok=True)


def checkpoint(path: Path) -> None:
    """Have all of SQLite's database *path* in that file, and none of it in the journal beside it, if that can be."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


# --- servers: writing ---------------------------------------------------------------------------------------------


def _dumping(site: Site, schema: str, tables: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The program that writes *tables* as SQL, and the variables that it gets."""
    if kind_of(site) == "postgresql":
        url, password = without_password(database.url_of(site))
        names = [f'--table="{schema}"."{table}"' for table in tables]
        options = ["--no-owner", "--no-privileges", "--encoding=UTF8", "--no-password", *names]
        return ["pg_dump", *options, f"--dbname={url}"], {"PGPASSWORD": password} if password else {}
    options = ["--single-transaction", "--skip-lock-tables", "--no-tablespaces", "--hex-blob", "--skip-comments"]
    words, variables = _mysql_words(site)
    (name,) = words[-1:]
    return ["mysqldump", *words[:-1], *options, name, *tables], variables


def without_password(url: str) -> tuple[str, str]:
    """*url* without its password, and that.

    >>> without_password("postgresql://kadeploy:s%40fe@db.site/kadeploy?sslmode=require")
    ('postgresql://kadeploy@db.site/kadeploy?sslmode=require', 's@fe')
    """
    parts = urlsplit(url)
    who, at, where = parts.netloc.rpartition("@")
    user, _, password = who.partition(":")
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name != "password"]
    named = [value for name, value in parse_qsl(parts.query) if name == "password"]
    query = urlencode(kept, safe="/", quote_via=quote)
    rest = urlunsplit(("", "", parts.path, query, ""))
    return f"{parts.scheme}://{user}{at}{where}{rest}", unquote(password) or "".join(named[-1:])


def _mysql_words(site: Site) -> tuple[list[str], dict[str, str]]:
    """Arguments of MySQL's programs, the name of the database last, and the variables that they get."""
    parts = urlsplit(database.url_of(site))
    options: dict[str, Any] = {"host": parts.hostname, "port": parts.port, "user": parts.username}
    options.update(parse_qsl(parts.query))
    password = unquote(parts.password) if parts.password else options.pop("password", "")
    known = {"host": "host", "port": "port", "user": "user", "unix_socket": "socket"}
    words = [f"--{known[name]}={value}" for name, value in options.items() if name in known and value]
    return [*words, "--default-character-set=utf8mb4", parts.path.lstrip("/")], (
        {"MYSQL_PWD": password} if password else {}
    )


def _run(
    argv: Sequence[str],
    variables: Mapping[str, str],
    keeper: Account,
    stdin: BinaryIO | int = subprocess.DEVNULL,
    stdout: Any = subprocess.DEVNULL,
) -> None:
    """Run a program of a database as *keeper*.

    Raises:
        DatabaseError: it is missing, or failed.
    """
    program = shutil.which(argv[0])
    if program is None:
        package = _PACKAGES[argv[0]]
        raise DatabaseError(f"{argv[0]} is needed for this database, and is not there: apt-get install {package}.")
    with tempfile.TemporaryFile() as words:
        done = subprocess.run(
            [program, *argv[1:]],
            stdin=stdin,
            stdout=stdout,
            stderr=words,
            check=False,
            env={**os.environ, "HOME": str(keeper.home), "LC_ALL": "C.UTF-8", **variables},
            **_whose(keeper),
        )
        words.seek(0)
        if done.returncode:
            said = last_line(words.read().decode(errors="replace")) or f"exit status {done.returncode}"
            raise DatabaseError(f"{argv[0]} failed: {said.rstrip('.')}.")


def _whose(keeper: Account) -> dict[str, Any]:
    if os.geteuid() == keeper.uid:
        return {}
    return {
        "user": keeper.uid,
        "group": keeper.gid,
        "extra_groups": os.getgrouplist(keeper.name, keeper.gid),
    }


# --- servers: reading ---------------------------------------------------------------------------------------------


def load(site: Site, dump: Dump, keeper: Account, replace: bool, mark: str, reason: str) -> dict[str, list[str]]:
    """Have what is in *dump* as the database of *site*, brought to this program's schema, its operations ended.

    With PostgreSQL all of it or nothing happens, and `loaded` tells *mark* from then on. MySQL knows no such thing: its
    database has to be empty (`require_room`), and is so again when something goes wrong.

    Raises:
        DatabaseError: it does not fit, or the server refuses it.
    """
    if kind_of(site) == "mysql":
        return _load_mysql(site, dump, keeper, reason)
    with as_user(keeper), database.as_it_is(site):
        if (here := _schema(site)) != dump.schema:
            raise DatabaseError(
                f"The tables of the backup are in the schema {dump.schema} of PostgreSQL, and `database` in its "
                f"site.yml leads to {here or 'none'}: create the schema {dump.schema} there (CREATE SCHEMA), or let "
                "the search_path of the database's user begin with it."
            )
        with DB.atomic():
            if replace:
                DB.drop_tables(TABLES, safe=True, cascade=True)
            with DB.obj.refusals(), _refused():
                _feed(dump.file)
            database.migrate()
            ended = nodes.abort_all(site, reason)
            DB.execute_sql(f"COMMENT ON TABLE schema_version IS '{_safe(mark)}'")
        return ended


def loaded(site: Site, keeper: Account) -> str:
    """The mark of what `load` has done last to PostgreSQL's database of *site*; empty when it never did."""
    with as_user(keeper), database.as_it_is(site):
        query = "SELECT obj_description(to_regclass('schema_version')::oid, 'pg_class')"
        return str(DB.execute_sql(query).fetchone()[0] or "")


def _safe(mark: str) -> str:
    if not re.fullmatch(r"[\w-]+", mark):
        raise ValueError(mark)
    return mark


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("psycopg"):
            raise
        said = " ".join(str(error).partition("\n")[0].split()).rstrip(".")
        raise DatabaseError(f"PostgreSQL refuses the database in the backup: {said}.") from error


_LEFT_OUT = (b"SET ", b"SELECT pg_catalog.set_config(", b"\\restrict ", b"\\unrestrict ", b"--")
"""Lines that are about the program which reads them, or that an older server does not know; all names are complete."""


def _feed(file: BinaryIO) -> None:
    """Give SQL of pg_dump to the server. It is not for psql, which would take some lines for orders to itself."""
    cursor = DB.connection().cursor()
    cursor.execute("SET client_encoding = 'UTF8'")
    pending = bytearray()
    for line in file:
        if line.startswith(b"COPY ") and line.endswith(b" FROM stdin;\n"):
            _execute(cursor, pending)
            with cursor.copy(line.rstrip(b";\n")) as copy:
                for row in iter(file.readline, b"\\.\n"):
                    if not row:
                        raise DatabaseError("The database in the backup ends in the middle of a table.")
                    copy.write(row)
        elif not line.startswith(_LEFT_OUT):
            pending += line
    _execute(cursor, pending)


def _execute(cursor: Any, pending: bytearray) -> None:
    if pending.strip():
        cursor.execute(bytes(pending))
    pending.clear()


def require_room(site: Site, keeper: Account) -> None:
    """Refuse a MySQL database that holds a site: what `load` has begun there is undone by dropping all of ours.

    Raises:
        DatabaseError: says what to do.
    """
    if kind_of(site) != "mysql":
        return
    with as_user(keeper), database.as_it_is(site):
        if database.has_tables():
            raise DatabaseError(
                "MySQL cannot replace a site's tables in one step: give `database` in the backup's site.yml an empty "
                f"database, or drop these tables first: {', '.join(_TABLES)}."
            )


def _load_mysql(site: Site, dump: Dump, keeper: Account, reason: str) -> dict[str, list[str]]:
    words, variables = _mysql_words(site)
    try:
        _run(["mysql", *words[:-1], "--binary-mode", words[-1]], variables, keeper, stdin=dump.file)
        with as_user(keeper):
            database.disconnect()
            database.connect(site)
            return nodes.abort_all(site, reason)
    except BaseException:
        unload(site, keeper)
        raise
    finally:
        database.disconnect()


def unload(site: Site, keeper: Account) -> None:
    """Drop the tables of *site* again, which a `load` has made in MySQL that was broken off."""
    with as_user(keeper), database.as_it_is(site):
        DB.drop_tables(list(TABLES), safe=True)
