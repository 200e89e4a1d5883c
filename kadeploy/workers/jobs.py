"""The queue of shards: Procrastinate's one home.

It is in the PostgreSQL database of the site, in a schema of its own (`SCHEMA`): who may take shards needs no right to
anything else there. A job says where a shard is and by which key it is known; what is to be done, and whether it still
is, the service tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from kadeploy.errors import ConfigError, DatabaseError, KadeployError
from kadeploy.state.database import printable_url

if TYPE_CHECKING:
    import procrastinate
    import psycopg

SCHEMA = "kadeploy_workers"
_TASK = "kadeploy.shard"
_LOCK = 0x6B616477
"""Number of the advisory lock of whoever makes the tables."""
HEARTBEAT = 2.0
"""Seconds between two words of a worker to the queue."""
STALLED = 10.0
"""Seconds without one after which its jobs count as left."""
FORGOTTEN = 60.0
"""Seconds after which they are removed; who follows them has long given them up."""


class Job(msgspec.Struct, frozen=True):
    """A shard that a worker may take."""

    wid: str
    folder: str
    """Name of its run folder."""
    key: str
    """Of its lease."""


def queue_of(cluster: str) -> str:
    """The queue of a cluster's shards."""
    return f"shards.{cluster}"


def prepare(url: str, role: str = "") -> None:
    """Have the tables in the database *url*, which the database's *role* may use.

    Tables that another version of Procrastinate has made are replaced: jobs live for minutes.

    Raises:
        DatabaseError: they cannot be made.
    """
    with _refusals(url):
        asyncio.run(_prepare(url, role))


def defer(url: str, cluster: str, job: Job) -> int:
    """Offer *job* to the workers of *cluster*: its number.

    Raises:
        DatabaseError: the queue cannot be used.
    """

    async def work(app: procrastinate.App) -> int:
        task = app.configure_task(_TASK, queue=queue_of(cluster))
        return await task.defer_async(**msgspec.to_builtins(job))

    return _now(url, work)


def withdraw(url: str, number: int) -> None:
    """Take a job back that nobody has taken, and forget those that dead workers have left.

    Raises:
        DatabaseError: the queue cannot be used.
    """

    async def work(app: procrastinate.App) -> None:
        from procrastinate.jobs import Status  # noqa: PLC0415 - as in `_app`

        await app.job_manager.cancel_job_by_id_async(number, delete_job=True)
        for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=FORGOTTEN):
            await app.job_manager.finish_job(job, Status.FAILED, delete_job=True)

    _now(url, work)


def is_waiting(url: str, number: int) -> bool:
    """Whether nobody has taken a job yet.

    Raises:
        DatabaseError: the queue cannot be used.
    """

    async def work(app: procrastinate.App) -> bool:
        found = list(await app.job_manager.list_jobs_async(id=number))
        return any(job.status == "todo" for job in found)

    return _now(url, work)


async def serve(
    url: str, name: str, clusters: Iterable[str], at_a_time: int, take: Callable[[Job], Awaitable[None]], leave: float
) -> None:
    """Have *take* carry out jobs of *clusters*, so many *at a time*, until this is cancelled.

    What is under way has *leave* seconds then to come to its end.

    Raises:
        DatabaseError: the queue cannot be used.
    """
    with _refusals(url):
        app = _app(url, at_a_time)

        @app.task(name=_TASK)
        async def shard(**words: str) -> None:
            await take(msgspec.convert(words, Job))

        await (await _connected(url)).close()
        async with app.open_async():
            await app.run_worker_async(
                queues=[queue_of(cluster) for cluster in clusters],
                name=name,
                concurrency=at_a_time,
                fetch_job_polling_interval=2.0,
                delete_jobs="always",
                install_signal_handlers=False,
                shutdown_graceful_timeout=leave,
                update_heartbeat_interval=HEARTBEAT,
                stalled_worker_timeout=STALLED,
            )


# --- the database ---------------------------------------------------------------------------------------------------


def _app(url: str, connections: int = 1) -> procrastinate.App:
    """Procrastinate for our schema; imported where it is needed, for most sites do without."""
    try:
        import procrastinate  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("Workers need the queue Procrastinate: pip install 'kadeploy[workers]'.") from error
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigError("Workers need a PostgreSQL database: set `database: postgresql://…`.")
    connector = procrastinate.PsycopgConnector(
        conninfo=url.replace("postgres://", "postgresql://", 1),
        kwargs={"options": f"-c search_path={SCHEMA}"},
        min_size=1,
        max_size=connections + 3,  # those that wait for jobs, and for orders to end them
        timeout=_PATIENCE,
    )
    return procrastinate.App(connector=connector)


_PATIENCE = 10.0
"""Seconds until a database that does not answer counts as gone."""
AnswerT = TypeVar("AnswerT")


def _now(url: str, work: Callable[[procrastinate.App], Awaitable[AnswerT]]) -> AnswerT:
    """What *work* answers, in an event loop of its own; from any thread that has none."""

    async def main() -> AnswerT:
        await (await _connected(url)).close()
        async with _app(url).open_async() as app:
            return await work(app)

    with _refusals(url):
        return asyncio.run(main())


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    """What the queue's database raises becomes a refusal with advice."""
    try:
        yield
    except (KadeployError, asyncio.CancelledError):
        raise
    except Exception as error:
        cause = error.__cause__ or error
        said = " ".join(str(cause).split()) or type(cause).__name__
        raise DatabaseError(
            f"The queue of workers in {printable_url(url)} cannot be used: {said}. Is the server running, and may this "
            f"account use the schema {SCHEMA}?"
        ) from error


async def _connected(url: str) -> psycopg.AsyncConnection[Any]:
    """A connection; the queue's own would try for half a minute, and not say why there is none."""
    import psycopg  # noqa: PLC0415 - as in `_app`

    _app(url)
    where = url.replace("postgres://", "postgresql://", 1)
    return await psycopg.AsyncConnection.connect(where, autocommit=True, connect_timeout=round(_PATIENCE))


async def _prepare(url: str, role: str) -> None:
    from psycopg import sql  # noqa: PLC0415 - as in `_app`

    made = f"Procrastinate {version('procrastinate')}"
    app = _app(url)
    schema = sql.Identifier(SCHEMA)
    async with await _connected(url) as connection:
        await connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        found = await connection.execute(
            "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", (SCHEMA,)
        )
        row = await found.fetchone()
        if row is None or row[0] != made:
            await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(schema))
            await connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
            async with app.open_async():
                await app.schema_manager.apply_schema_async()
            await connection.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(schema, sql.Literal(made)))
        if role:
            for grant in _GRANTS:
                await connection.execute(sql.SQL(grant).format(schema, sql.Identifier(role)))


_GRANTS = (
    "GRANT USAGE ON SCHEMA {} TO {}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {} TO {}",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {} TO {}",
)
