"""A database with damaged values, rows, tables or pages: what each tool that reads it says, and what it still shows."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kadeploy.caller import caller
from kadeploy.cli import (
    kaconsole3,
    kadeploy3,
    kadeploy3d,
    kaenv3,
    kanodes3,
    kapower3,
    kareboot3,
    karights3,
    kastat3,
    shell,
)
from kadeploy.config.site import Site
from kadeploy.environments.environment import Image
from kadeploy.environments.reference import Reference
from kadeploy.state import database, environments, journal, nodes, quarantine, rights, tokens
from kadeploy.state.database import connect
from kadeploy.state.history import FIELDS, MORE_FIELDS
from kadeploy.state.journal import LogRow
from kadeploy.state.tables import TABLES
from tests.unit import build

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

APPS: dict[str, Any] = {
    module.NAME: module.app
    for module in (kaconsole3, kadeploy3, kadeploy3d, kaenv3, kanodes3, kapower3, karights3, kareboot3, kastat3)
}
HEALTHY = "gdx-2.site"
NODE = ("-m", "gdx-1.site")
DEPLOYS = ("kadeploy3", *NODE, "-e", "tiny", "--dry-run")
REBOOTS = ("kareboot3", *NODE, "-r", "env_recorded", "-e", "tiny", "-p", "2", "-c", "--dry-run")
RUNNING = ("kanodes3", "-y")
STATES = ("kanodes3", "-d")
STATISTICS = ("kastat3", "-d", "-o", "all", "-F", ",".join(FIELDS + MORE_FIELDS))
TOKENS = ("kadeploy3d", "token", "list")
READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "schema_version": (STATES, ("kaenv3", "-l")),
    "environments": (
        ("kaenv3", "-l"),
        ("kaenv3", "-l", "-u", "*", "-s", "--format", "json"),
        ("kaenv3", "-p", "tiny"),
        DEPLOYS,
        REBOOTS,
    ),
    "rights": (
        ("karights3", "-s"),
        ("karights3", "-s", "-u", "alice", "--format", "json"),
        ("karights3", "-a", "-u", "dave", *NODE, "-p", "/dev/sda3"),
        ("kanodes3", "-l"),
        ("kaconsole3", *NODE),
        ("kapower3", "--off", *NODE, "--dry-run"),
        DEPLOYS,
    ),
    "nodes": (STATES, ("kanodes3", "-d", "-m", "gdx-[1-4].site", "--format", "yaml"), REBOOTS),
    "claims": (STATES, RUNNING, ("kapower3", "--off", *NODE)),
    "workflows": (RUNNING, STATES, ("kanodes3", "-y", "-w", "D-ended", "--format", "json")),
    "progress": (RUNNING, ("kanodes3", "-y", "-w", "D-0", "--format", "json")),
    "log": (
        STATISTICS,
        ("kastat3", "-a", "1"),
        ("kastat3", "-b"),
        ("kastat3", "-c", "1", "-x", "2020-01-01", "--format", "json"),
        ("kastat3", "-d", "-F", "start,success,error", "--format", "json"),
    ),
    "tokens": (TOKENS, ("kadeploy3d", "token", "list", "alice", "--format", "json")),
    "quarantine": (STATES, ("kanodes3", "-l"), ("kanodes3", "-d", "--format", "json"), DEPLOYS),
}
"""The command lines that read a table."""
LISTS = {
    "environments": ("kaenv3", "-l", "-s", "-u", "*"),
    "rights": ("karights3", "-s"),
    "nodes": STATES,
    "workflows": RUNNING,
    "progress": RUNNING,
    "log": STATISTICS,
    "tokens": TOKENS,
}
"""What lists all columns of a table, but for those of `UNSEEN`."""
UNSEEN = {
    ("progress", "wid"),
    ("progress", "cluster"),
    ("workflows", "ended"),
    ("tokens", "digest"),
    ("quarantine", "released_by"),
}
DAMAGE = {
    "null": "NULL",
    "bytes": "X'DEADBEEF'",
    "no UTF-8": "CAST(X'6162FF63' AS TEXT)",
    "another type": "'x' || 1.5",
    "a fraction": "1.5",
    "infinity": "9e999",
    "the largest number": "9223372036854775807",
    "the smallest number": "-9223372036854775808",
    "nothing": "''",
}
COLUMNS = [
    (table._meta.table_name, column.column_name)
    for table in TABLES
    if table._meta.table_name in READERS
    for column in table._meta.sorted_fields
]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with rows in every table, several of each kind; what the tools name is in the first row."""
    folder = tmp_path_factory.mktemp("furnished")
    site, me = build.site(folder), caller().name
    connect(site)
    for user in (me, "alice", "bob"):
        rights.add(site, user, ["gdx-1.site", HEALTHY], ["/dev/sda3", "*"], until=4_000_000_000)
    (folder / "image.tgz").write_bytes(build.packed("image"))
    for name in ("tiny", "small", HEALTHY):
        image = Image(file=str(folder / "image.tgz"), kind="tgz")
        environments.add(site, build.environment(name=name, image=image, visibility="shared"), caller())
    for rank, name in enumerate(("gdx-1.site", HEALTHY, "gdx-3.site")):
        nodes.set_state([name], "deployed", environments.find(site, me, Reference("tiny")), me)
        nodes.claim(site, [name], f"D-{rank}", me)
        journal.begin(site, f"D-{rank}", "deploy", me, environments.find(site, me, Reference("tiny")), {"gdx": [name]})
        tokens.create(site, "alice", 4_000_000_000 + rank, note=name)
    quarantine.put(site, ["gdx-1.site", HEALTHY], me, "its disk", 4_000_000_000)
    journal.begin(site, "D-ended", "deploy", me, None, {"gdx": ["gdx-4.site", HEALTHY]})
    journal.end("D-ended", [LogRow(hostname=name, success=True) for name in ("gdx-4.site", HEALTHY)])
    database.disconnect()
    return file_of(site).read_bytes()


@pytest.fixture
def ready(site: Site, site_folder: Path, furnished: bytes) -> Site:
    """A site with that database."""
    site_folder.joinpath("site.yml").open("a").write("demolishing: {threshold: 0, auto_tag: true}\n")
    with (site_folder / "clusters" / "gdx.yml").open("a", encoding="utf-8") as file:
        file.write("console: cat\npower: {driver: command, commands: {hard_off: 'true', status: 'false'}}\n")
    connect(site)
    restore(site, furnished)
    return site


def file_of(site: Site) -> Path:
    return site.state / "kadeploy.db"


@contextmanager
def opened(site: Site) -> Iterator[sqlite3.Connection]:
    """The database as any program may open it: constraints are off."""
    database.disconnect()
    with closing(sqlite3.connect(file_of(site), isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        connection.execute("PRAGMA foreign_keys = 0")
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
        connection.execute("PRAGMA writable_schema = RESET")
        yield connection


def damaged(site: Site, table: str, column: str, value: str) -> None:
    """The first row of *table* has another *value* in *column*."""
    with opened(site) as connection, suppress(sqlite3.IntegrityError):  # a row's own number is a number
        connection.execute(f'UPDATE {table} SET "{column}" = {value} WHERE rowid = (SELECT min(rowid) FROM {table})')


def run(capfd: pytest.CaptureFixture[str], name: str, *words: str) -> tuple[int, str, str]:
    """Status, output and errors of a tool in this process: an exception that it lets through fails the test."""
    database.disconnect()
    status = shell.run(APPS[name], name, words)
    return status, *capfd.readouterr()


def require_a_sentence(status: int, errors: str) -> None:
    """A refusal that says where the damage is and what to do."""
    lines = [line for line in errors.splitlines() if line.startswith("ERROR: ")]
    assert status == 1
    assert len(lines) == 1, errors
    assert "backup" in lines[0] or "removing" in lines[0], lines


def restore(site: Site, content: bytes) -> None:
    database.disconnect()
    file_of(site).write_bytes(content)


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_no_value_in_any_column_is_more_than_a_refusal(
    table: str, column: str, ready: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    sound = file_of(ready).read_bytes()
    for value in DAMAGE.values():
        restore(ready, sound)
        damaged(ready, table, column, value)
        for words in READERS[table]:
            status, _, errors = run(capfd, *words)
            if "cannot be read" in errors or "damaged" in errors:
                require_a_sentence(status, errors)


@pytest.mark.parametrize(
    ("table", "column"), [place for place in COLUMNS if place[0] in LISTS and place[1] != "id" and place not in UNSEEN]
)
def test_a_list_shows_what_is_well_tells_what_is_not_and_how_to_remove_it(
    table: str, column: str, ready: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged(ready, table, column, DAMAGE["bytes"])
    status, output, errors = run(capfd, *LISTS[table])
    require_a_sentence(status, errors)
    assert f"Row 1 of the table {table} in the database {file_of(ready)} cannot be read: {column} is b'" in errors
    assert HEALTHY in output
    (statement,) = re.findall(r"sqlite3 \S+ '(.+)'", errors)
    with opened(ready) as connection:
        connection.execute(statement)
    status, again, errors = run(capfd, *LISTS[table])
    assert (status, timeless(again), unusual(errors)) == (0, timeless(output), "")


def timeless(text: str) -> str:
    """*text* without how long workflows have been running."""
    return re.sub(r"(?m)^ *seconds: \d+\n", "", text)


def unusual(errors: str) -> str:
    """*errors* without what kanodes3 tells beside its lists."""
    return "".join(line for line in errors.splitlines(keepends=True) if "in quarantine since" not in line)


def test_a_right_whose_end_cannot_be_read_lets_nobody_in(ready: Site, capfd: pytest.CaptureFixture[str]) -> None:
    """To SQLite any text is later than any date."""
    damaged(ready, "rights", "until", "'tomorrow'")
    status, _, errors = run(capfd, *DEPLOYS)
    require_a_sentence(status, errors)
    assert "until is 'tomorrow'" in errors


@pytest.mark.parametrize("table", list(READERS))
def test_a_table_that_is_not_there_is_told_by_its_name(
    table: str, ready: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    with opened(ready) as connection:
        connection.execute(f"DROP TABLE {table}")
    for words in READERS[table]:
        status, _, errors = run(capfd, *words)
        require_a_sentence(status, errors)
        assert table in errors


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_a_column_that_is_not_there_is_told_by_its_name(
    table: str, column: str, ready: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    with opened(ready) as connection:
        connection.execute(f'ALTER TABLE {table} RENAME "{column}" TO something_else')
    said = []
    for words in READERS[table]:
        status, _, errors = run(capfd, *words)
        assert "cannot be used" not in errors
        if "damaged" in errors:
            require_a_sentence(status, errors)
            said.append(column in errors)
    assert all(said)
    assert said or (table, column) in UNSEEN or column == "id"


@pytest.mark.parametrize("seed", range(6))
def test_damaged_pages_are_no_more_than_a_refusal(seed: int, ready: Site, capfd: pytest.CaptureFixture[str]) -> None:
    with opened(ready) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    sound, chance = file_of(ready).read_bytes(), random.Random(seed)
    for _ in range(4):
        content, page = bytearray(sound), chance.randrange(len(sound) // size)
        for _ in range(chance.choice((1, 8, 200))):
            content[page * size + chance.randrange(size)] = chance.randrange(256)
        restore(ready, bytes(content))
        for commands in READERS.values():
            status, _, errors = run(capfd, *commands[0])
            if "malformed" in errors:
                require_a_sentence(status, errors)
