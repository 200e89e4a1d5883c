"""The state database: made, migrated, shared by processes, and refused with advice."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import peewee
import pytest

from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.environments.environment import Archive, Environment, FileSystem, Image
from kadeploy.errors import DatabaseError
from kadeploy.state import database, history, journal, nodes, notifications, quarantine, tables, tokens
from kadeploy.state.database import DB
from kadeploy.state.notifications import Choice
from kadeploy.state.tables import EnvironmentRow, Log, NodeState, Progress, Right, SchemaVersion

GOLDEN = Path(__file__).parents[2] / "golden"


BACK = {
    8: ("ALTER TABLE log DROP COLUMN given_up",),
    7: ("DROP TABLE notifications", "DROP TABLE outbox", "DROP TABLE days"),
    6: ("DROP TABLE quarantine",),
    5: ("ALTER TABLE claims DROP COLUMN part",),
    4: ("DROP TABLE tokens",),
    3: (
        "DROP INDEX environmentrow_name_version_user_arch",
        *(f"ALTER TABLE environments DROP COLUMN {column}" for column in ("alias", "arch", "options")),
        "ALTER TABLE nodes DROP COLUMN env_arch",
        "ALTER TABLE environments ALTER COLUMN version TYPE INTEGER",
        "ALTER TABLE nodes ALTER COLUMN env_version TYPE INTEGER",
        "ALTER TABLE workflows ALTER COLUMN env_version TYPE INTEGER",
        'CREATE UNIQUE INDEX environmentrow_name_version_user ON environments (name, version, "user")',
    ),
    2: ("ALTER TABLE progress DROP COLUMN told",),
    1: ("ALTER TABLE rights DROP COLUMN until",),
}
"""What leads a database of PostgreSQL to a version from the one after it."""


def make_version(site: Site, version: int, *statements: str) -> None:
    """Leave the database as that version had it, with the rows that the file of that version holds.

    Where the file's SQL is not understood, the database is led back, and *statements* make the rows.
    """
    if site.database.startswith("sqlite"):
        with sqlite3.connect(site.state / "kadeploy.db") as connection:
            connection.executescript((GOLDEN / f"schema-{version}.sql").read_text(encoding="utf-8"))
        connection.close()
        return
    database.connect(site)
    for statement in (*(each for known, back in BACK.items() if known >= version for each in back), *statements):
        DB.execute_sql(statement)
    SchemaVersion.update(version=version).execute()
    database.disconnect()


def in_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_a_new_database_has_the_current_schema(site: Site) -> None:
    database.connect(site)
    assert [row.version for row in SchemaVersion.select()] == [database.SCHEMA_VERSION]
    assert all(table.table_exists() for table in tables.TABLES)


def test_connecting_again_gives_the_same_database(site: Site) -> None:
    assert database.connect(site) is database.connect(site)


def test_a_database_of_version_1_is_migrated_and_keeps_its_rows(site: Site) -> None:
    make_version(
        site,
        1,
        "INSERT INTO rights (\"user\", node, part) VALUES ('alice', 'gdx-1.site', '/dev/sda3')",
    )
    database.connect(site)
    [right] = Right.select()
    assert (right.user, right.node, right.part, right.until) == ("alice", "gdx-1.site", "/dev/sda3", None)
    Right.update(until=1700000000).execute()
    assert [row.until for row in Right.select()] == [1700000000]
    assert SchemaVersion.get().version == database.SCHEMA_VERSION


def test_a_workflow_that_runs_under_version_2_is_migrated_and_goes_on(site: Site) -> None:
    make_version(
        site,
        2,
        "INSERT INTO workflows VALUES"
        " ('D-1', 'deploy', 'alice', '', NULL, '', false, 1600000000, NULL, 'running', 'old', 1, '1', 'x', 1600000000)",
        "INSERT INTO progress VALUES ('D-1', 'gdx-1.site', 'gdx', 'BroadcastEnvChain', 'send_environment', 'ok')",
    )
    database.connect(site)
    [progress] = Progress.select()
    assert (progress.node, progress.micro_step, progress.told) == ("gdx-1.site", "send_environment", "")
    journal.told("D-1", ["gdx-1.site"], "42 %")
    assert [row.told for row in Progress.select()] == ["42 %"]
    assert SchemaVersion.get().version == database.SCHEMA_VERSION


def test_environments_of_version_3_are_migrated_and_dates_fit_as_versions(site: Site) -> None:
    make_version(
        site,
        3,
        *(
            "INSERT INTO environments VALUES"
            f" ({rank}, 'debian', 12, '{user}', '', '', '{{\"file\":\"/tiny.tgz\",\"kind\":\"tgz\"}}', 'null', '[]',"
            f" '/vmlinuz', '', '', '', '', '83', 'ext4', 'linux', '{visibility}', 0, '')"
            for rank, user, visibility in ((101, "alice", "shared"), (102, "bob", "private"))
        ),
        "INSERT INTO nodes VALUES ('gdx-1.site', 'deployed', 'debian', 12, 'alice', 1600000000, 'alice')",
    )
    database.connect(site)
    kept = [row.environment for row in EnvironmentRow.select().order_by(EnvironmentRow.id)]
    assert [(each.name, each.version, each.user) for each in kept] == [("debian", 12, "alice"), ("debian", 12, "bob")]
    assert (kept[0].arch, kept[0].alias, kept[0].kexec, kept[0].custom_variables) == ("", "", True, {})
    [node] = NodeState.select()
    assert (node.env_name, node.env_version, node.env_arch) == ("debian", 12, "")
    today = msgspec.structs.replace(kept[0], version=20240902161530, arch="x86_64", custom_variables={"A": "1"})
    for each in (today, msgspec.structs.replace(today, arch="aarch64")):
        EnvironmentRow.insert(**tables.environment_columns(each)).execute()
    NodeState.update(env_version=today.version).execute()
    assert EnvironmentRow.select().where(EnvironmentRow.version == today.version).first().environment == today
    with pytest.raises(peewee.IntegrityError):
        EnvironmentRow.insert(**tables.environment_columns(today)).execute()


def test_a_database_of_version_4_gets_the_table_of_tokens_as_a_new_one_has_it(site: Site, other_site: Site) -> None:
    make_version(
        site,
        4,
        "INSERT INTO rights (\"user\", node, part, until) VALUES ('alice', 'gdx-1.site', '/dev/sda3', 1700000000)",
    )
    tables_of = {}
    for each in (site, other_site):
        database.connect(each)
        columns = [(column.name, column.null, column.primary_key) for column in DB.get_columns("tokens")]
        tables_of[each.name] = columns, sorted((index.name, index.unique) for index in DB.get_indexes("tokens"))
    assert tables_of["paris"] == tables_of["lyon"]
    database.connect(site)
    assert [(right.user, right.until) for right in Right.select()] == [("alice", 1700000000)]
    assert tokens.find(site, tokens.create(site, "alice", tables.Moment.END - 1)) == "alice"
    assert SchemaVersion.get().version == database.SCHEMA_VERSION


def test_claims_of_version_5_are_kept_and_tell_no_partition(site: Site) -> None:
    make_version(site, 5, "INSERT INTO claims VALUES ('gdx-1.site', 'D-1', 'alice', 'old', 1, '1', 'x', 1600000000)")
    database.connect(site)
    [held] = nodes.claims(site)
    assert (held.node, held.wid, held.since, held.part) == ("gdx-1.site", "D-1", 1600000000, "")
    assert nodes.claim(site, ["gdx-2.site"], "D-2", "bob", parts={"gdx-2.site": "x" * 300})[0] == ["gdx-2.site"]
    assert nodes.claims(site, ["gdx-2.site"])[0].part == "x" * 255
    assert SchemaVersion.get().version == database.SCHEMA_VERSION


def test_a_database_of_version_6_gets_the_table_of_quarantine_as_a_new_one_has_it(site: Site, other_site: Site) -> None:
    make_version(
        site, 6, "INSERT INTO claims VALUES ('gdx-1.site', 'D-1', 'alice', 'old', 1, '1', 'x', 1600000000, '/dev/sda3')"
    )
    tables_of = {}
    for each in (site, other_site):
        database.connect(each)
        tables_of[each.name] = [
            (column.name, column.null, column.primary_key) for column in DB.get_columns("quarantine")
        ]
    assert tables_of["paris"] == tables_of["lyon"]
    assert [(held.node, held.part) for held in nodes.claims(site)] == [("gdx-1.site", "/dev/sda3")]
    quarantine.put(site, ["gdx-1.site"], "ada", "its disk", tables.Moment.END - 1)
    assert [stay.reason for stay in quarantine.current(site)] == ["its disk"]
    assert SchemaVersion.get().version == database.SCHEMA_VERSION


@pytest.mark.parametrize("table", ["notifications", "outbox"])
def test_a_database_of_version_7_gets_the_tables_of_notifications_as_a_new_one_has_them(
    site: Site, other_site: Site, table: str
) -> None:
    make_version(site, 7, "INSERT INTO quarantine VALUES ('gdx-1.site', 1600000000, 'ada', 'its disk', NULL, NULL, '')")
    found = {}
    for each in (site, other_site):
        database.connect(each)
        columns = [(column.name, column.null, column.primary_key) for column in DB.get_columns(table)]
        found[each.name] = columns, {(index.name, tuple(index.columns)) for index in DB.get_indexes(table)}
    assert found["paris"] == found["lyon"]
    assert [stay.reason for stay in quarantine.current(site)] == ["its disk"]
    notifications.choose(site, "ada", Choice(webhook="https://hooks.example.org/"))
    notifications.put(site, {"D-1": "ada"}, ["webhook"])
    assert [each.wid for each in notifications.due(site)] == ["D-1"]
    assert SchemaVersion.get().version == database.SCHEMA_VERSION


def test_rows_of_version_8_tell_of_no_way_that_was_given_up(site: Site) -> None:
    make_version(site, 8)
    database.connect(site)
    journal.begin(site, "D-1", "deploy", "alice", None, {"gdx": ["gdx-1.site"]})
    journal.end("D-1", [journal.LogRow(hostname="gdx-1.site", success=True, given_up="BootNewEnvKexec")])
    assert [row.given_up for row in Log.select().where(Log.wid == "D-1")] == ["BootNewEnvKexec"]
    assert {column.name: column.null for column in DB.get_columns("log")}["given_up"] is False
    assert SchemaVersion.get().version == database.SCHEMA_VERSION


@pytest.mark.parametrize(
    ("kind", "dropped", "quoted"),
    [
        (peewee.SqliteDatabase, "DROP INDEX environmentrow_name_version_user", '"user"'),
        (peewee.PostgresqlDatabase, "DROP INDEX environmentrow_name_version_user", '"user"'),
        (peewee.MySQLDatabase, "DROP INDEX environmentrow_name_version_user ON environments", "`user`"),
    ],
)
def test_each_database_gets_migrations_in_its_own_spelling(
    kind: type[peewee.Database], dropped: str, quoted: str
) -> None:
    before = database._chosen.set(kind("kadeploy"))
    try:
        spelt = [database._spelt(statement) for statement in database.MIGRATIONS[4]]
        tokens_of_user = database._spelt(database.MIGRATIONS[5][-1])
    finally:
        database._chosen.reset(before)
    assert [statement for statement in spelt if statement.startswith("DROP INDEX")] == [dropped]
    assert spelt[-1].endswith(f"(name, version, {quoted}, arch)")
    assert tokens_of_user == f"CREATE INDEX token_user ON tokens ({quoted})"


def test_every_version_but_the_first_has_a_migration() -> None:
    assert sorted(database.MIGRATIONS) == list(range(2, database.SCHEMA_VERSION + 1))


def test_a_database_of_a_later_kadeploy_is_refused(site: Site) -> None:
    database.connect(site)
    SchemaVersion.update(version=99).execute()
    database.disconnect()
    with pytest.raises(DatabaseError, match="upgrade Kadeploy"):
        database.connect(site)


def test_processes_that_come_first_together_make_one_database(site: Site) -> None:
    code = (
        "from kadeploy.config.folder import load_site; from kadeploy.state import database;"
        " database.connect(load_site()); print('ready')"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[0] for process in processes] == [b"ready\n"] * 4
    database.connect(site)
    assert SchemaVersion.select().count() == 1


def test_upsert_replaces_only_what_it_is_told_to(site: Site) -> None:
    database.connect(site)
    NodeState.insert(hostname="gdx-1.site", state="deployed", user="alice", date=1).execute()
    rows = [{"hostname": f"gdx-{rank}.site", "state": "aborted", "user": "bob", "date": 2} for rank in range(1, 1202)]
    database.upsert(NodeState, rows, key=[NodeState.hostname], replaced=[NodeState.state])
    first = NodeState.get_by_id("gdx-1.site")
    assert (first.state, first.user, first.date) == ("aborted", "alice", 1)
    assert NodeState.select().count() == 1201


def test_the_memory_of_a_stream_does_not_grow_with_its_rows(site: Site) -> None:
    database.connect(site)
    row = {"wid": "D-1", "operation": "deploy", "user": "alice", "hostname": "n" * 200, "start": 1, "success": True}
    database.insert(Log, [row] * 10_000)
    tracemalloc.start()
    count = sum(1 for _ in database.stream(Log.select(Log.hostname)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 1_000_000, "the names alone take 2 MB"


def test_an_environment_comes_back_as_it_was_recorded(site: Site) -> None:
    database.connect(site)
    recorded = Environment(
        name="débian",
        alias="débian-x64",
        arch="x86_64",
        version=2024090216,
        image=Image(file="/srv/debian.tgz", kind="tgz", md5="1" * 32, sha256="2" * 64),
        preinstall=Archive(file="/srv/pre.tgz", kind="tgz", script="go.sh -x"),
        postinstalls=(Archive(file="http://server/post.tgz", kind="tbz2"),),
        kernel="/vmlinuz",
        filesystem="ext4",
        visibility="shared",
        demolishing_env=3,
        part="/dev/sda3",
        kexec=False,
        multipart=True,
        partitions=(FileSystem(id=0, device="/dev/sda2"), FileSystem(id=1, device="/dev/sda3")),
        block_device="/dev/sda",
        boot_partition=2,
        custom_variables={"A": "é 'b' {{ c }}"},
        user="alice",
    )
    EnvironmentRow.insert(**tables.environment_columns(recorded)).execute()
    assert EnvironmentRow.get().environment == recorded


def test_a_name_and_version_are_unique_per_owner(site: Site) -> None:
    database.connect(site)
    columns = {"name": "debian", "version": 1, "image": "{}"}
    EnvironmentRow.insert(**columns, user="alice").execute()
    EnvironmentRow.insert(**columns, user="bob").execute()
    with pytest.raises(peewee.IntegrityError):
        EnvironmentRow.insert(**columns, user="alice").execute()


def test_a_recorded_environment_that_is_damaged_is_a_refusal_that_names_it(site: Site) -> None:
    database.connect(site)
    row = EnvironmentRow.create(name="tiny", user="alice", image='{"file": "/x.tg')
    with pytest.raises(DatabaseError, match=f"'tiny' version 1 of alice is damaged.*row {row.id} of"):
        _ = EnvironmentRow.get_by_id(row.id).environment


def test_what_breaks_at_run_time_is_a_refusal_with_advice(site: Site) -> None:
    database.connect(site)
    with pytest.raises(DatabaseError, match="cannot be used"):
        DB.execute_sql("ROLLBACK TO SAVEPOINT never_made")


# --- several sites ----------------------------------------------------------------------------------------------


def side_by_side(work: Callable[[Site], Any], sites: Sequence[Site]) -> list[Any]:
    """What *work* gives for each site, in threads that run at once."""
    with ThreadPoolExecutor(len(sites)) as pool:
        return list(pool.map(work, sites))


def test_threads_of_one_process_use_different_sites_and_none_sees_anothers_rows(site: Site, other_site: Site) -> None:
    turn = threading.Barrier(2, timeout=60)

    def work(mine: Site) -> list[tuple[Any, ...]]:
        wid = f"D-{mine.name}"
        journal.begin(mine, wid, "deploy", mine.name, None, {"gdx": ["gdx-1.site"]})
        for step in range(20):
            turn.wait()
            with database.transaction():
                Right.insert(user=mine.name, node=f"gdx-{step}", part="*").execute()
                turn.wait()
                journal.micro_step(wid, ["gdx-1.site"], mine.name, str(step))
        users, steps = Right.select(Right.user).distinct(), Progress.select(Progress.macro_step, Progress.micro_step)
        found = database.fetch(users) + database.fetch(steps)
        database.disconnect()
        return found

    paris, lyon = side_by_side(work, [site, other_site])
    assert paris == [("paris",), ("paris", "19")]
    assert lyon == [("lyon",), ("lyon", "19")]


def test_both_schemas_are_made_at_once_each_by_several_threads(site: Site, other_site: Site) -> None:
    start = threading.Barrier(8, timeout=60)

    def work(mine: Site) -> int:
        start.wait()
        database.connect(mine)
        count = SchemaVersion.select().count()
        database.disconnect()
        return int(count)

    assert side_by_side(work, [site, other_site] * 4) == [1] * 8


def test_a_thread_that_never_connected_is_refused_whatever_others_did(site: Site) -> None:
    database.connect(site)

    def work(_: Site) -> list[str]:
        refusals = []
        for query in (lambda: Right.select().count(), database.transaction, lambda: database.stream(Right.select())):
            with pytest.raises(DatabaseError) as refusal:
                query()
            refusals.append(str(refusal.value))
        return refusals

    [refusals] = side_by_side(work, [site])
    assert all("works for no site" in each for each in refusals)


def test_a_thread_works_for_the_site_that_it_connected_to_last(site: Site, other_site: Site) -> None:
    for mine in (site, other_site):
        database.connect(mine)
        Right.insert(user=mine.name, node="*", part="*").execute()
    assert [row.user for row in Right.select()] == ["lyon"]
    database.connect(site)
    assert [row.user for row in Right.select()] == ["paris"]


def test_tasks_of_one_thread_and_the_threads_that_work_for_them_keep_their_sites(site: Site, other_site: Site) -> None:
    async def work(mine: Site, met: asyncio.Barrier) -> list[str]:
        database.connect(mine)
        await met.wait()
        Right.insert(user=mine.name, node="*", part="*").execute()
        await met.wait()
        return await asyncio.to_thread(lambda: [row.user for row in Right.select()])

    async def both() -> list[list[str]]:
        met = asyncio.Barrier(2)
        return await asyncio.gather(work(site, met), work(other_site, met))

    assert asyncio.run(both()) == [["paris"], ["lyon"]]


def test_a_stream_stays_with_the_site_it_was_begun_for(site: Site, other_site: Site) -> None:
    database.connect(site)
    Right.insert(user="paris", node="*", part="*").execute()
    rows = database.stream(Right.select(Right.user))
    database.connect(other_site)
    assert list(rows) == [("paris",)]


def test_a_refused_connection_leaves_the_thread_with_the_site_it_had(site: Site, other_site: Site) -> None:
    database.connect(other_site)
    SchemaVersion.update(version=99).execute()
    database.disconnect()
    database.connect(site)
    with pytest.raises(DatabaseError, match="upgrade Kadeploy"):
        database.connect(other_site)
    assert SchemaVersion.get().version == database.SCHEMA_VERSION


def test_a_disconnected_thread_holds_no_connection_and_works_for_no_site(site: Site, other_site: Site) -> None:
    databases = [database.connect(other_site), database.connect(site)]
    assert not any(each.is_closed() for each in databases)
    database.disconnect()
    assert all(each.is_closed() for each in databases)
    with pytest.raises(DatabaseError, match="works for no site"):
        Right.select().count()


# --- opening ----------------------------------------------------------------------------------------------------


def site_with(folder: Path, url: str) -> Site:
    """A site whose database is *url*."""
    text = f"""\
name: paris
state_dir: {folder}/state
database: {url!r}
server_address: 127.0.0.1
ssh: {{private_key: /key, host_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq7bhOPDK1mHvvcHQ0LvgcVxuPyG2ja9pXQQ8UIwPf}}
boot: {{tftp_root: /tftp, http_root: /http, http_url: 'http://127.0.0.1/'}}
"""
    (folder / "site.yml").write_text(text, encoding="utf-8")
    return load_site(folder)


def test_without_url_the_database_is_a_private_file_in_the_state_folder(tmp_path: Path) -> None:
    database.connect(site_with(tmp_path, ""))
    database.disconnect()
    assert (tmp_path / "state" / "kadeploy.db").stat().st_mode & 0o777 == 0o600


def test_sqlite_runs_in_wal_mode_with_foreign_keys(tmp_path: Path) -> None:
    connection = database.connect(site_with(tmp_path, ""))
    found = [connection.execute_sql(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "foreign_keys")]
    database.disconnect()
    assert found == ["wal", 1]


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("kadeploy.db", "is not a URL"),
        ("oracle://db/kadeploy", "use sqlite, postgresql or mysql"),
        ("sqlite:////nowhere/at/all/kadeploy.db", "/nowhere/at/all does not exist: create it"),
        ("postgresql://kadeploy:s3cret@/x?host=/nowhere", "Is its server running"),
    ],
)
def test_a_database_that_cannot_be_opened_is_refused_with_advice(tmp_path: Path, url: str, advice: str) -> None:
    with pytest.raises(DatabaseError, match=advice) as refusal:
        database.connect(msgspec.structs.replace(site_with(tmp_path, ""), database=url))
    assert "s3cret" not in str(refusal.value)


def test_who_may_not_write_is_told_to_become_root(tmp_path: Path) -> None:
    site_with(tmp_path, "")
    (tmp_path / "state").mkdir(mode=0o500)
    code = """
import os, sys
from pathlib import Path
from kadeploy.config.folder import load_site
from kadeploy.state import database
site = load_site(Path(sys.argv[1]))
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    database.connect(site)
except database.DatabaseError as refusal:
    print(refusal)
"""
    assert "run the command as root (sudo)" in in_process(code, str(tmp_path)).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_root_is_told_that_the_file_system_is_read_only(tmp_path: Path) -> None:
    site_with(tmp_path, "")
    (tmp_path / "state").mkdir()
    script = (
        'cd "$1" && mount --bind state state && mount -o remount,bind,ro state && '
        'exec "$2" -c "from kadeploy.cli.kanodes3 import main; raise SystemExit(main())" -d'
    )
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    variables = os.environ | {"KADEPLOY_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 1
    assert "is on a read-only file system: mount it writable" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_table_or_a_column_that_is_lost_is_damage_in_every_database(site: Site) -> None:
    database.connect(site)
    database.DB.execute_sql("ALTER TABLE nodes RENAME COLUMN date TO day")
    database.DB.execute_sql("DROP TABLE log")
    with pytest.raises(DatabaseError, match=r"is damaged \(.*\blog\b.*\): put it back from a backup"):
        list(history.rows(site, history.Selection(), history.FIELDS))
    with pytest.raises(DatabaseError, match=r"is damaged \(.*\bdate\b.*\): put it back from a backup"):
        list(nodes.states(site))


def test_a_lock_held_for_too_long_is_told_from_other_troubles(tmp_path: Path) -> None:
    """The busy time-out is half a minute, so the driver's words are put to the advice directly."""
    connection = database.connect(site_with(tmp_path, ""))
    advice = connection.advice(peewee.OperationalError("database is locked"))
    database.disconnect()
    assert "another process writes" in advice


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "kadeploy.db").write_bytes(b"not a database, whatever its name says" * 50)
    with pytest.raises(DatabaseError, match="not a database"):
        database.connect(site_with(tmp_path, ""))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql://kadeploy:secret@db.site/kadeploy", "mysql://kadeploy@db.site/kadeploy"),
        (
            "postgresql:///kadeploy?user=a&password=secret&port=5433",
            "postgresql:///kadeploy?user=a&password=…&port=5433",
        ),
        ("postgresql://db.site:5432/kadeploy", "postgresql://db.site:5432/kadeploy"),
    ],
)
def test_messages_show_no_password(url: str, shown: str) -> None:
    assert database.printable_url(url) == shown


@pytest.mark.parametrize("url", ["sqlite:////dev/full", "postgresql://u@127.0.0.1:1/x"])
def test_a_refusal_says_once_that_the_database_cannot_be_used(tmp_path: Path, url: str) -> None:
    with pytest.raises(DatabaseError) as refusal:
        database.connect(site_with(tmp_path, url))
    assert str(refusal.value).count("The database") == 1


@pytest.mark.parametrize(
    ("driver", "url", "extra"),
    [("psycopg", "postgresql://localhost/x", "postgresql"), ("pymysql", "mysql://localhost/x", "mysql")],
)
def test_a_missing_driver_is_told_with_the_command_that_installs_it(
    tmp_path: Path, driver: str, url: str, extra: str
) -> None:
    site_with(tmp_path, url)
    code = f"""\
import sys
from pathlib import Path
sys.modules["{driver}"] = sys.modules["psycopg2"] = sys.modules["MySQLdb"] = None
from kadeploy.config.folder import load_site
from kadeploy.state import database
try:
    database.connect(load_site(Path(sys.argv[1])))
except database.DatabaseError as refusal:
    print(refusal)
"""
    assert f"pip install 'kadeploy[{extra}]'" in in_process(code, str(tmp_path)).stdout


def test_no_driver_is_loaded_for_sqlite(tmp_path: Path) -> None:
    site_with(tmp_path, "")
    code = """\
import sys
from pathlib import Path
from kadeploy.config.folder import load_site
from kadeploy.state import database, nodes
site = load_site(Path(sys.argv[1]))
database.connect(site)
list(nodes.states(site))
print({"psycopg", "pymysql"} & set(sys.modules))
import psycopg  # anybody else finds it
"""
    assert in_process(code, str(tmp_path)).stdout == "set()\n"


def damage(path: Path, table: str) -> None:
    """Overwrite the first page of *table*."""
    with sqlite3.connect(path) as connection:
        [page] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        [size] = connection.execute("PRAGMA page_size").fetchone()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with path.open("r+b") as stream:
        stream.seek((page - 1) * size)
        stream.write(b"\x77" * size)


def test_a_damaged_page_is_a_refusal_for_rows_that_are_streamed_too(tmp_path: Path) -> None:
    site = site_with(tmp_path, "")
    database.connect(site)
    database.disconnect()
    damage(site.state / "kadeploy.db", "nodes")
    with pytest.raises(DatabaseError, match=r"is damaged: .* backup, .* \.recover"):
        list(nodes.states(site))


@pytest.mark.parametrize("loss", [Path.unlink, lambda path: os.truncate(path, 0)], ids=["deleted", "emptied"])
def test_a_database_that_was_lost_is_not_made_anew_until_somebody_says_so(
    tmp_path: Path, loss: Callable[[Path], None]
) -> None:
    site = site_with(tmp_path, "")
    nodes.claim(site, ["gdx-1.site"], "D-1", "alice")
    database.disconnect()
    path = site.state / "kadeploy.db"
    loss(path)
    for _ in range(2):
        with pytest.raises(DatabaseError, match="is gone or empty, and with it who holds which node") as refusal:
            database.connect(site)
    Path(str(refusal.value).split()[-1].rstrip(".")).unlink()
    assert nodes.claim(site, ["gdx-1.site"], "D-2", "bob") == (["gdx-1.site"], {})
    database.disconnect()


def test_a_database_put_back_from_a_backup_is_used(tmp_path: Path) -> None:
    site = site_with(tmp_path, "")
    database.connect(site)
    nodes.set_state(["gdx-1.site"], "deployed", None, "alice")
    database.disconnect()
    path = site.state / "kadeploy.db"
    backup = path.rename(tmp_path / "backup")
    with pytest.raises(DatabaseError):
        database.connect(site)
    shutil.copy(backup, path)
    assert [row.state for row in nodes.states(site)] == ["deployed"]
    database.disconnect()


def test_the_database_is_closed_when_the_process_ends(tmp_path: Path) -> None:
    """SQLite then folds its journal files back, so that a backup is one file."""
    site_with(tmp_path, "")
    code = (
        "import sys; from pathlib import Path; from kadeploy.config.folder import load_site\n"
        "from kadeploy.state import database\n"
    )
    done = in_process(code + "database.connect(load_site(Path(sys.argv[1])))", str(tmp_path))
    assert done.returncode == 0
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"kadeploy.db", ".kadeploy.db.made"}
