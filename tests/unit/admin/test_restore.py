"""Restores: everything is as in the backup or as it was before, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kadeploy.admin import archive, backup, exchange, restore
from kadeploy.admin.restore import Wish
from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, DatabaseError, FileError, NodeHeldError, OptionError
from kadeploy.state import database, dump, nodes, rights, watch
from kadeploy.state.database import DB
from kadeploy.state.tables import TABLES, Workflow
from tests.unit.admin import keeping
from tests.unit.state.test_database import make_version

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="the suite runs as root")
sqlite_alone = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
REPLACE = Wish(replace=True)
CACHES = ("state/kadeploy3d.lock", "state/backups/")


@pytest.fixture
def lived(site: Site, site_folder: Path) -> Site:
    return keeping.furnish(site, site_folder)


@pytest.fixture
def made(lived: Site, site_folder: Path, tmp_path: Path) -> Path:
    """A backup of the site, with its runs."""
    return Path(backup.make(site_folder, tmp_path / "b.tar.zst", with_runs=True).path)


def lose(site: Site, folder: Path) -> None:
    """The machine is another one: nothing is there, and the database is empty."""
    database.disconnect()
    if site.database.startswith("postgresql"):
        with database.as_it_is(site):
            DB.drop_tables(TABLES, cascade=True)
    shutil.rmtree(folder)


def change(site: Site, folder: Path) -> None:
    """Let the site live on after its backup."""
    rights.add(site, "bob", ["gdx-3.site"], ["*"])
    database.disconnect()
    (folder / "site.yml").write_text((folder / "site.yml").read_text() + "verbosity: 4\n")
    shutil.copy(folder / "clusters" / "nvm.yml", folder / "clusters" / "late.yml")
    text = (folder / "clusters" / "late.yml").read_text()
    (folder / "clusters" / "late.yml").write_text(text.replace("nvm-", "late-").replace("127.9.2", "127.9.3"))
    (folder / "deployment_key").write_text("another key")


def everything(site: Site, folder: Path) -> tuple[Any, Any]:
    return keeping.rows(site), keeping.tree(folder, *CACHES)


# --- what comes back ----------------------------------------------------------------------------------------------


def test_a_site_is_as_before_on_a_machine_that_has_nothing(lived: Site, site_folder: Path, made: Path) -> None:
    before = everything(lived, site_folder)
    lose(lived, site_folder)
    done = restore.restore(made, site_folder, Wish())
    assert {each.what for each in done.changes} == {"new"}
    assert everything(load_site(site_folder), site_folder) == before
    assert (site_folder / "state" / "keys").stat().st_mode & 0o777 == 0o700
    assert not list(site_folder.rglob(".kadeploy-*"))


def test_it_replaces_what_is_there_and_can_be_taken_back(lived: Site, site_folder: Path, made: Path) -> None:
    before = everything(lived, site_folder)
    change(lived, site_folder)
    later = everything(lived, site_folder)
    with pytest.raises(OptionError, match=r"There is a site already: .*--dry-run shows .* --replace does it"):
        restore.restore(made, site_folder, Wish())
    assert everything(lived, site_folder) == later
    done = restore.restore(made, site_folder, REPLACE)
    assert everything(lived, site_folder) == before
    assert not (site_folder / "clusters" / "late.yml").exists()
    restore.restore(Path(done.before), site_folder, REPLACE)
    assert everything(lived, site_folder) == later


def test_a_dry_run_tells_each_change_and_makes_none(lived: Site, site_folder: Path, made: Path) -> None:
    change(lived, site_folder)
    (site_folder / "htpasswd").unlink()
    later = everything(lived, site_folder)
    with watch.watching(lived):
        done = restore.restore(made, site_folder, Wish(dry_run=True))
    assert everything(lived, site_folder) == later
    told = {each.path: each.what for each in done.changes if each.what != "same"}
    assert told == {
        f"{site_folder}/site.yml": "changed",
        f"{site_folder}/deployment_key": "changed",
        f"{site_folder}/htpasswd": "new",
        f"{site_folder}/clusters/late.yml": "removed",
        str(database.file_of(lived) or dump.shown(lived)): "changed",
    }


def test_operations_that_ran_at_the_backup_are_aborted_and_their_nodes_free(
    lived: Site, site_folder: Path, tmp_path: Path
) -> None:
    keeping.begin(lived, "D-runs")
    made = Path(backup.make(site_folder, tmp_path / "b.tar.zst").path)
    lose(lived, site_folder)
    done = restore.restore(made, site_folder, Wish())
    assert done.aborted == {"D-runs": ["gdx-1.site"]}
    site = load_site(site_folder)
    assert not nodes.claims(site)
    assert {row.hostname: row.state for row in nodes.states(site)}["gdx-1.site"] == "aborted"
    assert [row.state for row in Workflow.select().where(Workflow.wid == "D-runs")] == ["aborted"]
    assert {row.wid for row in Workflow.select()} == {"D-runs", "D-ended"}


@only_root
@sqlite_alone
def test_files_belong_to_who_is_called_so_here_and_the_states_to_its_keeper(
    lived: Site, site_folder: Path, open_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keeping.given_away(site_folder, open_folder, monkeypatch)
    os.chown(kept / "deployment_key", 1, 1)
    made = Path(backup.make(kept, tmp_path / "b.tar.zst").path)
    shutil.rmtree(kept)
    restore.restore(made, kept, Wish())
    owners = {path: path.stat().st_uid for path in kept.rglob("*")}
    assert owners.pop(kept / "deployment_key") == 1
    inside = {path: uid for path, uid in owners.items() if path.is_relative_to(kept / "state")}
    assert set(inside.values()) == {keeping.NOBODY}
    assert {uid for path, uid in owners.items() if path not in inside} == {0}
    assert kept / "state" / "kadeploy.db" in inside


@only_root
@sqlite_alone
def test_an_account_that_is_not_here_is_told_and_the_keeper_gets_its_files(
    lived: Site, site_folder: Path, tmp_path: Path
) -> None:
    os.chown(site_folder / "htpasswd", 4_000_000, 4_000_000)
    made = Path(backup.make(site_folder, tmp_path / "b.tar.zst").path)
    lose(lived, site_folder)
    done = restore.restore(made, site_folder, Wish())
    assert done.warnings == (f"{site_folder}/htpasswd: there is no account 4000000 here, it is root's",)
    assert (site_folder / "htpasswd").stat().st_uid == 0


@sqlite_alone
@pytest.mark.parametrize("version", range(1, database.SCHEMA_VERSION))
def test_a_backup_of_an_earlier_schema_is_brought_to_todays(
    site: Site, site_folder: Path, tmp_path: Path, version: int
) -> None:
    make_version(site, version)
    made = backup.make(site_folder, tmp_path / "b.tar.zst")
    assert made.manifest.schema == version
    assert restore.restore(Path(made.path), site_folder, REPLACE).manifest.schema == version
    with database.as_it_is(site) as found:
        assert found == database.SCHEMA_VERSION


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_backup_of_a_later_kadeploy_is_refused(lived: Site, site_folder: Path, made: Path, tmp_path: Path) -> None:
    later = everything(lived, site_folder)
    newer = rewritten(made, tmp_path, lambda manifest: msgspec.structs.replace(manifest, schema=99, kadeploy="9.9"))
    with pytest.raises(
        DatabaseError, match=rf"made by Kadeploy 9.9, .* version 99; this Kadeploy knows {database.SCHEMA_VERSION}"
    ):
        restore.restore(newer, site_folder, REPLACE)
    assert everything(lived, site_folder) == later


def test_nothing_is_done_while_the_service_or_an_operation_runs(lived: Site, site_folder: Path, made: Path) -> None:
    keeping.begin(lived, "D-runs")
    later = everything(lived, site_folder)
    with pytest.raises(NodeHeldError, match=r"these operations run: D-runs\. .*kadeploy3 --cancel D-runs"):
        restore.restore(made, site_folder, REPLACE)
    with watch.watching(lived), pytest.raises(NodeHeldError, match=r"systemctl stop kadeploy3d.socket"):
        restore.restore(made, site_folder, REPLACE)
    assert everything(lived, site_folder) == later


def test_a_second_restore_waits_for_nobody(lived: Site, site_folder: Path, made: Path) -> None:
    with exchange.alone(site_folder), pytest.raises(FileError, match="a restore is under way there"):
        restore.restore(made, site_folder, REPLACE)


@sqlite_alone
def test_a_database_that_cannot_be_read_is_replaced_only_when_it_may_be_lost(
    lived: Site, site_folder: Path, made: Path
) -> None:
    before = everything(lived, site_folder)
    (lived.state / "kadeploy.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(DatabaseError, match=r"What is there cannot be read: .* --replace --without-backup"):
        restore.restore(made, site_folder, REPLACE)
    assert (lived.state / "kadeploy.db").read_bytes() == b"rubbish" * 1000
    restore.restore(made, site_folder, Wish(replace=True, without_backup=True))
    assert everything(lived, site_folder) == before


def rewritten(made: Path, tmp_path: Path, new: Callable[[archive.Manifest], archive.Manifest]) -> Path:
    """The same backup, sound, with another manifest."""
    files: list[Path] = []

    def take(_: archive.Manifest, __: archive.Member) -> Any:
        files.append(tmp_path / f"content-{len(files)}")
        return files[-1].open("wb")

    with made.open("rb") as file:
        manifest = new(archive.read(file, "it", take))
    sources = [archive.Source(path.open("rb"), 0) for path in files]
    other = tmp_path / "other.tar.zst"
    with other.open("wb") as target:
        archive.write(target, manifest, sources)
    for source in sources:
        source.file.close()
    return other


def elsewhere(kind: str, path: str) -> Callable[[archive.Manifest], archive.Manifest]:
    """The first file of *kind* is said to have been at *path*."""

    def new(manifest: archive.Manifest) -> archive.Manifest:
        first = next(each for each in manifest.members if each.kind == kind)
        moved = msgspec.structs.replace(first, path=path.format(c=manifest.configuration, s=manifest.state))
        members = tuple(moved if each is first else each for each in manifest.members)
        return msgspec.structs.replace(manifest, members=members)

    return new


@sqlite_alone
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("configuration", "{c}/../../outside"),
        ("configuration", "/outside"),
        ("configuration", "outside"),
        ("configuration", "{c}/clusters/../../outside"),
        ("file", "/outside"),
        ("file", "{s}/keys/../../outside"),
        ("file", "{s}/kadeploy.db"),
        ("audit", "{s}/keys/x"),
        ("run", "{s}/runs/../keys/x"),
        ("run", "{s}/keys/x"),
        ("events", "{s}/events/../keys/x"),
        ("events", "{s}/keys/x"),
        ("file", "{c}/.kadeploy-restore.json"),
        ("file", "{c}/site.yml"),
    ],
)
def test_a_file_goes_nowhere_but_to_its_place_in_the_site(
    lived: Site, site_folder: Path, made: Path, tmp_path: Path, kind: str, path: str
) -> None:
    later = everything(lived, site_folder)
    around = set(tmp_path.iterdir())
    other = rewritten(made, tmp_path, elsewhere(kind, path))
    with pytest.raises(FileError, match="so nothing was changed: "):
        restore.restore(other, site_folder, REPLACE)
    assert everything(lived, site_folder) == later
    assert {each.name for each in set(tmp_path.iterdir()) - around if "content-" not in each.name} == {other.name}


@sqlite_alone
def test_a_damaged_database_in_a_backup_changes_nothing(
    lived: Site, site_folder: Path, made: Path, tmp_path: Path
) -> None:
    later = everything(lived, site_folder)

    def spoil(manifest: archive.Manifest) -> archive.Manifest:
        path = tmp_path / "content-0"
        path.write_bytes(path.read_bytes()[:4096] + os.urandom(8192) + path.read_bytes()[12288:])
        with path.open("rb") as file:
            first = msgspec.structs.replace(manifest.members[0], sha256=archive.sha256(file))
        return msgspec.structs.replace(manifest, members=(first, *manifest.members[1:]))

    with pytest.raises(DatabaseError, match="damaged"):
        restore.restore(rewritten(made, tmp_path, spoil), site_folder, Wish(replace=True, without_backup=True))
    assert everything(lived, site_folder) == later
    assert not list(site_folder.rglob(".kadeploy-*"))


def test_postgresql_keeps_what_it_had_when_the_dump_fails(
    lived: Site, site_folder: Path, made: Path, tmp_path: Path, database_url: str
) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite's is another file")
    later = everything(lived, site_folder)

    def spoil(manifest: archive.Manifest) -> archive.Manifest:
        path = tmp_path / "content-0"
        path.write_bytes(path.read_bytes().replace(b"alice\t", b"alice\tone too many\t"))
        with path.open("rb") as file:
            first = msgspec.structs.replace(manifest.members[0], sha256=archive.sha256(file), size=path.stat().st_size)
        return msgspec.structs.replace(manifest, members=(first, *manifest.members[1:]))

    with pytest.raises(DatabaseError, match="extra data after last expected column"):
        restore.restore(rewritten(made, tmp_path, spoil), site_folder, REPLACE)
    assert everything(lived, site_folder) == later
    assert not list(site_folder.rglob(".kadeploy-*"))


# --- all or nothing -----------------------------------------------------------------------------------------------


@only_root
@sqlite_alone
def test_a_full_disk_leaves_everything_as_it_was(lived: Site, site_folder: Path, made: Path) -> None:
    change(lived, site_folder)
    whole = keeping.in_full_disk(site_folder, "size=20m", "restore", made, "--replace", "--without-backup")
    assert whole.returncode == 0, whole.stderr
    untouched = keeping.in_full_disk(site_folder, "size=20m", "restore", made, "--dry-run").stdout.partition("\n--\n")[
        2
    ]
    assert untouched
    assert whole.stdout.partition("\n--\n")[2] != untouched
    number = sum(1 for _ in site_folder.rglob("*"))
    refused = 0
    for more in range(1, 40):
        options = f"size=20m,nr_inodes={number + more}"
        done = keeping.in_full_disk(site_folder, options, "restore", made, "--replace", "--without-backup")
        if done.returncode == 0:
            break
        if "Everything is as it was before" in done.stderr:
            refused += 1
        rest = done.stdout.partition("--\n")[2]
        assert without_lock(rest) == without_lock(untouched), done.stderr
        assert done.stderr.startswith("ERROR: ")
        assert done.stderr.count("\n") == 1
    assert refused > 2
    used = sum(-(-path.stat().st_size // 4096) * 4 for path in site_folder.rglob("*") if path.is_file())
    done = keeping.in_full_disk(site_folder, f"size={used + 40}k", "restore", made, "--replace", "--without-backup")
    assert done.returncode == 1
    assert "The restore takes up to" in done.stderr


def without_lock(listing: str) -> list[str]:
    return [line for line in listing.splitlines() if not line.endswith("kadeploy3d.lock")]


def test_whenever_it_is_killed_the_site_is_whole_before_or_after_and_never_used_in_between(
    lived: Site, site_folder: Path, made: Path, tmp_path: Path
) -> None:
    before = everything(lived, site_folder)
    change(lived, site_folder)
    later = everything(lived, site_folder)
    now = backup.make(site_folder, tmp_path / "now.tar.zst", with_runs=True).path
    wish = Wish(replace=True, without_backup=True)
    seen = {"undone": 0, "finished": 0, "refused": 0}
    for at in range(1, 200, 1 if lived.database.startswith("sqlite") else 3):
        if not keeping.is_killed_at(at, lambda: restore.restore(made, site_folder, wish)):
            break
        told = [each.text for each in restore.half_way(site_folder)]
        found = None if stopped(site_folder) else everything(lived, site_folder)
        found_without = found and (found[0], {n: v for n, v in found[1].items() if ".kadeploy-" not in n})
        assert found_without in (None, before, later)
        seen["refused"] += found is None
        said = restore.resume(site_folder)
        assert bool(said) == bool(told)
        end = everything(load_site(site_folder), site_folder)
        if "finished" in said:
            assert end == before
            seen["finished"] += 1
            restore.restore(Path(now), site_folder, wish)
        elif said:
            assert "undone" in said
            assert end == later
            seen["undone"] += 1
        assert not list(site_folder.rglob(".kadeploy-*"))
        assert everything(lived, site_folder) in (before, later)
        if everything(lived, site_folder) == before:
            restore.restore(Path(now), site_folder, wish)
    assert all(seen.values()), seen
    assert everything(lived, site_folder) == before
    assert not restore.half_way(site_folder)


def stopped(folder: Path) -> bool:
    """Whether tools refuse the configuration because a restore is half-way."""
    if "restore_is_half_way" not in (folder / "site.yml").read_text():
        return False
    with pytest.raises(ConfigError, match="restore_is_half_way"):
        load_site(folder)
    return True
