"""The queue of shards, in a real PostgreSQL: whoever may take jobs sees nothing else, and what the dead leave goes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import quote

import psycopg
import pytest

from kadeploy.errors import ConfigError, DatabaseError
from kadeploy.workers import jobs
from kadeploy.workers.jobs import SCHEMA, Job
from tests import postgresql as server

JOB = Job("D-1", "01-BootNewEnvKexec", "k" * 43)
TABLES = f"SELECT count(*) FROM information_schema.tables WHERE table_schema = '{SCHEMA}'"
WAITING = f"SELECT count(*) FROM {SCHEMA}.procrastinate_jobs"
STALLED = """\
import asyncio, sys
from kadeploy.workers import jobs

async def take(job):
    print("taken", flush=True)
    await asyncio.sleep(600)

asyncio.run(jobs.serve(sys.argv[1], "stalled", ["gdx"], 1, take, 1.0))
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server for this module: the schema of the queue has one name."""
    with server.running() as running:
        yield running.url


@pytest.fixture
def queue(url: str) -> str:
    """The queue, empty."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    jobs.prepare(url)
    return url


def asked(url: str, question: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(question).fetchone()  # type: ignore[arg-type]
        return row[0] if row else None


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.05)


def served(url: str, most: int, clusters: tuple[str, ...] = ("gdx",), at_a_time: int = 1) -> list[Job]:
    """What a worker takes until it has had so many."""
    taken: list[Job] = []

    async def main() -> None:
        enough = asyncio.Event()

        async def take(job: Job) -> None:
            taken.append(job)
            if len(taken) >= most:
                enough.set()

        serving = asyncio.ensure_future(jobs.serve(url, "w1", clusters, at_a_time, take, 1.0))
        async with asyncio.timeout(60):
            await asyncio.wait([serving, asyncio.ensure_future(enough.wait())], return_when=asyncio.FIRST_COMPLETED)
        await ended(serving)

    asyncio.run(main())
    return taken


async def ended(serving: asyncio.Future[None]) -> None:
    """Cancel it, and hear what it died of before."""
    serving.cancel()
    try:
        async with asyncio.timeout(60):
            await serving
    except asyncio.CancelledError:
        pass


# --- the tables -------------------------------------------------------------------------------------------------------


def test_the_queue_is_prepared_as_often_as_one_likes_and_jobs_stay(queue: str) -> None:
    jobs.defer(queue, "gdx", JOB)
    tables = asked(queue, TABLES)
    jobs.prepare(queue)
    assert asked(queue, TABLES) == tables
    assert asked(queue, WAITING) == 1


def test_tables_of_another_version_are_replaced_with_their_jobs(queue: str) -> None:
    jobs.defer(queue, "gdx", JOB)
    with psycopg.connect(queue, autocommit=True) as connection:
        connection.execute(f"COMMENT ON SCHEMA {SCHEMA} IS 'Procrastinate 1.0'")
        connection.execute(f"DROP TABLE {SCHEMA}.procrastinate_periodic_defers")
    jobs.prepare(queue)
    assert asked(queue, WAITING) == 0
    jobs.defer(queue, "gdx", JOB)
    assert served(queue, 1) == [JOB]


def test_tables_that_were_half_made_are_made_again(queue: str) -> None:
    with psycopg.connect(queue, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
    jobs.prepare(queue)
    assert jobs.is_waiting(queue, jobs.defer(queue, "gdx", JOB))


def test_several_prepare_the_queue_at_once(queue: str) -> None:
    with psycopg.connect(queue, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
    command = [sys.executable, "-c", "import sys; from kadeploy.workers import jobs; jobs.prepare(sys.argv[1])", queue]
    made = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in made] == [0, 0, 0]
    assert jobs.is_waiting(queue, jobs.defer(queue, "gdx", JOB))


# --- whose rights are few ---------------------------------------------------------------------------------------------


@pytest.fixture
def role(queue: str) -> Iterator[str]:
    name = f"worker_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(queue, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN")
        connection.execute("CREATE TABLE IF NOT EXISTS public.claims (node text)")
        connection.execute("CREATE SCHEMA IF NOT EXISTS kadeploy_site")
        connection.execute("CREATE TABLE IF NOT EXISTS kadeploy_site.rights (node text)")
        jobs.prepare(queue, name)
        yield name
        connection.execute(f"DROP OWNED BY {name}")
        connection.execute(f"DROP ROLE {name}")


def url_of(queue: str, role: str) -> str:
    return queue.replace("user=kadeploy", f"user={quote(role)}")


def test_the_role_of_workers_takes_jobs_to_their_end(queue: str, role: str) -> None:
    for number in range(3):
        jobs.defer(queue, "gdx", Job("D-1", f"0{number}-A", "k"))
    assert [job.folder for job in served(url_of(queue, role), 3)] == ["00-A", "01-A", "02-A"]
    until(lambda: asked(queue, WAITING) == 0)


@pytest.mark.parametrize(
    "question",
    [
        "SELECT count(*) FROM public.claims",
        "SELECT count(*) FROM kadeploy_site.rights",
        "INSERT INTO public.claims VALUES ('x') RETURNING 1",
        f"DROP TABLE {SCHEMA}.procrastinate_jobs",
        f"CREATE TABLE {SCHEMA}.mine (x int)",
        f"ALTER TABLE {SCHEMA}.procrastinate_jobs ADD COLUMN x int",
        "CREATE SCHEMA mine",
        "CREATE TABLE public.mine (x int)",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT count(*) FROM pg_authid",
    ],
)
def test_the_role_of_workers_reads_and_changes_nothing_else(queue: str, role: str, question: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asked(url_of(queue, role), question)


def test_the_rights_of_the_role_come_again_with_tables_of_another_version(queue: str, role: str) -> None:
    with psycopg.connect(queue, autocommit=True) as connection:
        connection.execute(f"COMMENT ON SCHEMA {SCHEMA} IS 'Procrastinate 1.0'")
    jobs.prepare(queue, role)
    jobs.defer(queue, "gdx", JOB)
    assert served(url_of(queue, role), 1) == [JOB]


def test_a_role_that_is_not_there_is_told(queue: str) -> None:
    with pytest.raises(DatabaseError, match=f"nobody_here.*{SCHEMA}"):
        jobs.prepare(queue, "nobody_here")


@pytest.mark.parametrize("role", ['x"; DROP SCHEMA public CASCADE; --', "a b"])
def test_the_name_of_a_role_is_data(queue: str, role: str) -> None:
    with pytest.raises(DatabaseError):
        jobs.prepare(queue, role)
    assert asked(queue, "SELECT count(*) FROM pg_namespace WHERE nspname = 'public'") == 1


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_jobs_go_to_workers_of_their_cluster_once_and_are_forgotten(queue: str) -> None:
    mine = [Job("D-1", f"0{number}-A", f"key-{number}") for number in range(4)]
    for job in mine:
        jobs.defer(queue, "gdx", job)
    other = jobs.defer(queue, "nvm", Job("D-1", "09-A", "key"))
    assert sorted(served(queue, 4, at_a_time=2), key=lambda job: job.folder) == mine
    until(lambda: asked(queue, WAITING) == 1)
    assert jobs.is_waiting(queue, other)


def test_a_job_that_nobody_has_taken_can_be_withdrawn_and_twice(queue: str) -> None:
    number = jobs.defer(queue, "gdx", JOB)
    assert jobs.is_waiting(queue, number)
    jobs.withdraw(queue, number)
    assert not jobs.is_waiting(queue, number)
    jobs.withdraw(queue, number)
    assert asked(queue, WAITING) == 0


def test_a_shard_that_breaks_ends_no_worker(queue: str) -> None:
    for number in range(2):
        jobs.defer(queue, "gdx", Job("D-1", f"0{number}-A", "k"))
    seen = []

    async def main() -> None:
        enough = asyncio.Event()

        async def take(job: Job) -> None:
            seen.append(job.folder)
            if len(seen) == 2:
                enough.set()
            raise OSError("no room")

        serving = asyncio.ensure_future(jobs.serve(queue, "w1", ["gdx"], 1, take, 1.0))
        async with asyncio.timeout(60):
            await enough.wait()
        await ended(serving)

    asyncio.run(main())
    assert seen == ["00-A", "01-A"]
    until(lambda: asked(queue, WAITING) == 0)


def test_what_is_under_way_is_cut_off_after_a_while_once_the_worker_is_to_end(queue: str) -> None:
    jobs.defer(queue, "gdx", JOB)
    cut: list[bool] = []

    async def main() -> None:
        taken = asyncio.Event()

        async def take(_job: Job) -> None:
            taken.set()
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                cut.append(True)
                raise

        serving = asyncio.ensure_future(jobs.serve(queue, "w1", ["gdx"], 1, take, 0.5))
        async with asyncio.timeout(60):
            await taken.wait()
        await ended(serving)

    asyncio.run(main())
    assert cut == [True]


def test_the_job_of_a_worker_that_was_killed_is_forgotten_and_taken_by_no_other(queue: str) -> None:
    number = jobs.defer(queue, "gdx", JOB)
    process = subprocess.Popen([sys.executable, "-c", STALLED, queue], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        assert not jobs.is_waiting(queue, number)
        os.kill(process.pid, signal.SIGKILL)
    with psycopg.connect(queue, autocommit=True) as connection:
        ago = f"now() - interval '{jobs.FORGOTTEN + 1} seconds'"
        connection.execute(f"UPDATE {SCHEMA}.procrastinate_workers SET last_heartbeat = {ago}")
    other = jobs.defer(queue, "gdx", Job("D-1", "02-A", "k"))
    assert [job.folder for job in served(queue, 1)] == ["02-A"]
    jobs.withdraw(queue, other)
    until(lambda: asked(queue, WAITING) == 0)


# --- a database that will not do --------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [jobs.prepare, lambda url: jobs.defer(url, "gdx", JOB)])
@pytest.mark.parametrize("other", ["sqlite:////tmp/x.db", "mysql://u:secret@h/d"])
def test_only_postgresql_will_do(work: Callable[[str], object], other: str) -> None:
    with pytest.raises(ConfigError, match="PostgreSQL") as refusal:
        work(other)
    assert "secret" not in str(refusal.value)


def test_a_database_without_the_queue_is_told_with_what_to_look_at(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    for work in (lambda: jobs.defer(url, "gdx", JOB), lambda: jobs.withdraw(url, 1), lambda: served(url, 1)):
        with pytest.raises(DatabaseError, match=SCHEMA):
            work()


def test_a_database_that_does_not_answer_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_PATIENCE", 1.0)
    away = "postgresql://kadeploy:secret@127.0.0.1:1/kadeploy"
    for work in (lambda: jobs.prepare(away), lambda: jobs.defer(away, "gdx", JOB), lambda: served(away, 1)):
        with pytest.raises(DatabaseError, match="Is the server running") as refusal:
            work()
        assert "secret" not in str(refusal.value)
