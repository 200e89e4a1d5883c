"""Backups: what is in them, that they are of one moment and whole, and whose they are."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from kadeploy.admin import archive, backup, keeper
from kadeploy.admin.archive import Manifest, Member
from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError, FileError, KadeployError, OptionError
from kadeploy.state import database, rights
from tests.unit.admin import keeping

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="the suite runs as root")
sqlite_alone = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def lived(site: Site, site_folder: Path) -> Site:
    return keeping.furnish(site, site_folder)


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder


def unpacked(path: Path, into: Path) -> dict[str, bytes]:
    """As somebody unpacks it without our help; members by name, in their order."""
    into.mkdir()
    subprocess.run(["tar", "--zstd", "-xf", path, "-C", into], check=True)
    names = subprocess.run(["tar", "--zstd", "-tf", path], check=True, capture_output=True, text=True).stdout
    return {name: (into / name).read_bytes() for name in names.splitlines()}


def read(path: Path) -> Manifest:
    with path.open("rb") as file:
        return archive.read(file, str(path))


def test_it_holds_what_cannot_be_made_anew_and_its_first_member_says_what(
    lived: Site, site_folder: Path, backups: Path, tmp_path: Path
) -> None:
    made = backup.make(site_folder, backups / "b.tar.zst")
    found = unpacked(Path(made.path), tmp_path / "unpacked")
    assert next(iter(found)) == "manifest.json"
    manifest = json.loads(found.pop("manifest.json"))
    told = {each["name"]: each for each in manifest["members"]}
    assert set(told) == set(found)
    assert all(hashlib.sha256(found[name]).hexdigest() == each["sha256"] for name, each in told.items())
    assert (manifest["site"], manifest["schema"]) == ("paris", database.SCHEMA_VERSION)
    contents = {each["path"]: found[name] for name, each in told.items() if each["kind"] != "database"}
    whole = {path for folder in (site_folder,) for path in folder.rglob("*") if path.is_file()}
    wanted = {
        str(path) for path in whole if not {"runs", "events"} & set(path.parts) and "kadeploy.db" not in path.name
    }
    assert {path for path in contents if not path.endswith("site.yml")} == {
        path for path in wanted if not path.endswith("site.yml")
    }
    assert all(Path(path).read_bytes() == content for path, content in contents.items())
    modes = {each["path"]: each["mode"] for each in told.values()}
    assert modes[f"{lived.state}/keys/bmc-gdx"] == 0o600
    status = Path(made.path).stat()
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, os.geteuid())


def test_run_folders_of_operations_that_have_ended_and_events_of_those_that_are_gone_are_in_it_on_demand(
    lived: Site, site_folder: Path, backups: Path
) -> None:
    keeping.begin(lived, "D-runs")
    (lived.run_folders / "D-runs").mkdir()
    (lived.run_folders / "D-runs" / "workflow.json").write_text("{}")
    made = backup.make(site_folder, backups, with_runs=True)
    assert [each.path for each in read(Path(made.path)).of_kind("run")] == [
        f"{lived.run_folders}/D-ended/01-SetDeploymentEnv/output"
    ]
    assert [each.path for each in read(Path(made.path)).of_kind("events")] == [f"{lived.kept_events}/D-gone.jsonl.xz"]


WRITER = """
import os, sys
from kadeploy.config.folder import load_site
from kadeploy.state import rights
site, number = load_site(), 0
while True:
    rights.add(site, f"user{os.getpid()}-{number}", ["gdx-1.site", "gdx-2.site", "gdx-3.site"], ["*"])
    number += 1
    print(number, flush=True)
"""


def test_it_is_of_one_moment_though_others_write_meanwhile(
    lived: Site, site_folder: Path, backups: Path, tmp_path: Path
) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for writer in writers:
            assert writer.stdout
            writer.stdout.readline()
        made = []
        for number in range(3):
            made.append(backup.make(site_folder, backups / f"{number}.tar.zst"))
            written = len(rights.users(lived))
            while len(rights.users(lived)) == written:
                time.sleep(0.05)
        assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    counts = [number_of_rights(Path(each.path), tmp_path / str(number)) for number, each in enumerate(made)]
    assert all(count > 1 and count % 3 == 1 for count in counts)
    assert counts[0] < counts[-1]


def number_of_rights(path: Path, into: Path) -> int:
    found = unpacked(path, into)
    ((name, content),) = [each for each in found.items() if each[0].startswith("database/")]
    if name.endswith(".sql"):
        table = content.partition(b"rights (id, ")[2].partition(b"FROM stdin;\n")[2].partition(b"\\.\n")[0]
        return len(table.splitlines())
    assert keeping.integrity(into / name) == "ok"
    with sqlite3.connect(into / name) as connection:
        return int(connection.execute("SELECT count(*) FROM rights").fetchone()[0])


def test_no_password_is_ever_an_argument_of_a_program(
    lived: Site, site_folder: Path, backups: Path, postgresql: str, database_url: str
) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite has none")
    secret = "s3cret%20"
    text = (site_folder / "site.yml").read_text()
    assert "user=kadeploy" in text
    (site_folder / "site.yml").write_text(text.replace("user=kadeploy", f"user=kadeploy&password={secret}"))
    seen: list[str] = []
    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE rights IN ACCESS EXCLUSIVE MODE")
        thread = threading.Thread(target=backup.make, args=(site_folder, backups))
        thread.start()
        limit = time.monotonic() + 30
        while not seen and time.monotonic() < limit:
            seen = [line for line in map(command_line, Path("/proc").glob("[0-9]*/cmdline")) if "pg_dump" in line]
            time.sleep(0.01)
        time.sleep(0.2)
        seen = [line for line in map(command_line, Path("/proc").glob("[0-9]*/cmdline")) if "--table=" in line]
    thread.join()
    assert seen
    assert not any("s3cret" in line for line in seen)
    assert len(list(backups.iterdir())) == 1


def command_line(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


# --- nothing half -------------------------------------------------------------------------------------------------


@only_root
def test_a_full_disk_leaves_nothing_of_it_and_the_one_before_as_it_was(
    lived: Site, site_folder: Path, backups: Path
) -> None:
    (site_folder / "big").write_bytes(os.urandom(3_000_000))
    done = keeping.in_full_disk(backups, "size=7m", "backup", backups / "b.tar.zst")
    assert done.returncode == 0
    done = keeping.in_full_disk(backups, "size=4m", "backup", backups / "b.tar.zst")
    assert (done.returncode, done.stdout) == (1, "--\n")
    assert "A backup takes up to" in done.stderr
    assert "make room there" in done.stderr
    backup.make(site_folder, backups / "b.tar.zst")
    size = (backups / "b.tar.zst").stat().st_size
    done = keeping.in_full_disk(backups, f"size={size + 8_000_000},nr_inodes=7", "backup", backups / "b.tar.zst")
    assert done.returncode == 0, done.stderr
    done = keeping.in_full_disk(backups, f"size={size + 8_000_000},nr_inodes=3", "backup", backups / "b.tar.zst")
    digest = hashlib.sha256((backups / "b.tar.zst").read_bytes()).hexdigest()
    assert done.returncode == 1
    assert done.stdout == f"--\n{digest}  ./b.tar.zst\n"
    assert "There is no backup" in done.stderr
    assert done.stderr.count("\n") == 1


def test_one_that_is_killed_at_any_moment_leaves_no_half_backup(lived: Site, site_folder: Path, backups: Path) -> None:
    for change in range(1, 50):
        done = keeping.killed_at(change, "backup", backups / "b.tar.zst")
        if done.returncode == 0:
            break
        assert done.returncode == -9
        if (backups / "b.tar.zst").exists():
            read(backups / "b.tar.zst")
        assert {path.name for path in backups.iterdir() if not path.name.startswith(".kadeploy-")} <= {"b.tar.zst"}
    assert change > 2
    for path in backups.iterdir():
        os.utime(path, (0, 0))
    backup.make(site_folder, backups / "b.tar.zst")
    assert [path.name for path in backups.iterdir()] == ["b.tar.zst"]


@sqlite_alone
def test_a_damaged_database_is_no_backup(lived: Site, site_folder: Path, backups: Path) -> None:
    path = lived.state / "kadeploy.db"
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096 * 2)
    with pytest.raises(DatabaseError, match="is damaged"):
        backup.make(site_folder, backups)
    assert not list(backups.iterdir())


@sqlite_alone
def test_a_database_that_was_lost_is_refused_and_a_site_that_nobody_used_has_one(
    site: Site, site_folder: Path, backups: Path
) -> None:
    made = backup.make(site_folder, backups)
    assert made.manifest.of_kind("database")
    database.disconnect()
    (site.state / "kadeploy.db").unlink()
    with pytest.raises(DatabaseError, match="is gone or empty"):
        backup.make(site_folder, backups)
    assert len(list(backups.iterdir())) == 1


# --- where to ----------------------------------------------------------------------------------------------------


def test_in_a_folder_the_oldest_of_this_site_go_and_nothing_else(lived: Site, site_folder: Path, backups: Path) -> None:
    first = Path(backup.make(site_folder, backups).path)
    others = [backups / "paris-20200101-000000.tar.zst", backups / "lyon-20200101-000000.tar.zst"]
    for path in others:
        path.write_bytes(first.read_bytes())
    (backups / "paris-20200101-000001.tar.zst").write_text("somebody's notes")
    second = backup.make(site_folder, backups, keep=2)
    assert second.path != str(first)
    assert second.removed == (str(others[0]),)
    assert sorted(path.name for path in backups.iterdir()) == sorted(
        [first.name, Path(second.path).name, others[1].name, "paris-20200101-000001.tar.zst"]
    )


@sqlite_alone
@pytest.mark.parametrize(
    ("target", "error", "said"),
    [
        ("notes", FileError, "is there and is no backup"),
        ("nowhere/b", FileError, "there is no such folder"),
        ("site/b.tar.zst", OptionError, "would be in every later backup"),
    ],
)
def test_a_place_that_was_not_meant_is_refused(
    lived: Site, site_folder: Path, tmp_path: Path, target: str, error: type[KadeployError], said: str
) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(error, match=said):
        backup.make(site_folder, tmp_path / target)
    assert (tmp_path / "notes").read_text() == "mine"
    with pytest.raises(OptionError, match="--keep is for a folder"):
        backup.make(site_folder, tmp_path / "b.tar.zst", keep=1)


# --- whose -------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(lived: Site, site_folder: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration folder of a site whose state is another account's, where that account can enter."""
    return keeping.given_away(site_folder, open_folder, monkeypatch)


@only_root
@sqlite_alone
def test_roots_backup_in_the_state_folder_is_its_keepers_and_elsewhere_roots(kept: Path, backups: Path) -> None:
    lived = load_site(kept)
    before = set(lived.state.rglob("*"))
    made = backup.make(kept, backup.state_folder(lived, keeper.of(lived)))
    new = set(lived.state.rglob("*")) - before
    assert Path(made.path) in new
    assert {path.stat().st_uid for path in new} == {keeping.NOBODY}
    assert Path(backup.make(kept, backups).path).stat().st_uid == 0


@only_root
@sqlite_alone
def test_whoever_keeps_the_site_cannot_have_root_read_what_is_closed_to_them(
    kept: Path, backups: Path, open_folder: Path
) -> None:
    secret = open_folder / "roots"
    secret.write_text("root's own")
    secret.chmod(0o600)
    (load_site(kept).state / "keys" / "mine").symlink_to(secret)
    with pytest.raises(FileError, match="Permission denied"):
        backup.make(kept, backups)
    assert not list(backups.iterdir())


# --- reading -----------------------------------------------------------------------------------------------------


def tampered(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """The archive with other bytes in it."""
    plain = subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
    packed = subprocess.run(["zstd", "-c"], input=change(plain), check=True, capture_output=True).stdout
    path.write_bytes(packed)
    return path


@sqlite_alone
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.replace(b"bmc's password", b"bmc's passw0rd"), "its SHA-256 is another one"),
        (lambda data: data[:-2048], "ends too early|ends in the middle|not end after"),
        (lambda data: data[:5000], "ends too early|ends in the middle|malformed"),
        (lambda data: data + bytes(512), "does not end after its last file"),
        (lambda data: data.replace(b'"format": 1,', b'"format": 2,'), "It has the format 2, this Kadeploy knows 1"),
        (lambda data: data.replace(b'"kind": "audit"', b'"kind": "adieu"'), "malformed"),
        (lambda data: b"not a tar file at all" * 100, "is no tar archive"),
    ],
)
def test_what_is_not_exactly_what_it_says_is_no_backup(
    lived: Site, site_folder: Path, backups: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    path = tampered(Path(backup.make(site_folder, backups).path), change)
    with pytest.raises(FileError, match=f"is no sound backup of a site, so nothing was changed: .*({said})"):
        read(path)


@sqlite_alone
def test_a_truncated_file_is_no_backup(lived: Site, site_folder: Path, backups: Path) -> None:
    path = Path(backup.make(site_folder, backups).path)
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FileError, match="is no sound backup"):
            read(path)


@sqlite_alone
def test_members_come_out_as_they_went_in(lived: Site, site_folder: Path, backups: Path, tmp_path: Path) -> None:
    path = Path(backup.make(site_folder, backups).path)
    taken: dict[str, Path] = {}

    def take(_: Manifest, member: Member):  # type: ignore[no-untyped-def]
        taken[member.path] = tmp_path / f"out-{len(taken)}"
        return taken[member.path].open("wb")

    with path.open("rb") as file:
        archive.read(file, "it", take)
    assert taken[str(site_folder / "htpasswd")].read_text() == "alice:hash\n"
    assert len(taken) == len(read(path).members)
