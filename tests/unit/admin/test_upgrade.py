"""Upgrades: from each schema that there was, with a backup before, and never beneath what runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kadeploy.admin import restore, upgrade
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, DatabaseError, FileError, NodeHeldError
from kadeploy.state import database, watch
from kadeploy.state.database import DB, SCHEMA_VERSION
from kadeploy.state.tables import SchemaVersion
from tests.unit.admin import keeping
from tests.unit.state.test_database import make_version

sqlite_alone = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def version(site: Site) -> int | None:
    with database.as_it_is(site) as found:
        return found


@pytest.mark.parametrize("before", range(1, SCHEMA_VERSION))
def test_a_database_of_each_schema_is_backed_up_and_brought_to_todays(
    site: Site, site_folder: Path, tmp_path: Path, before: int
) -> None:
    make_version(site, before)
    assert upgrade.stand(site_folder)[1].schema == before
    assert version(site) == before
    done = upgrade.upgrade(site_folder, tmp_path / "before.tar.zst")
    assert (done.schema, done.known, done.backup) == (before, SCHEMA_VERSION, f"{tmp_path}/before.tar.zst")
    assert version(site) == SCHEMA_VERSION
    wish = restore.Wish(replace=True, dry_run=True)
    assert restore.restore(Path(done.backup), site_folder, wish).manifest.schema == before
    again = upgrade.upgrade(site_folder)
    assert again.is_current
    assert not again.backup


def test_what_is_up_to_date_may_run_and_gets_no_backup(site: Site, site_folder: Path) -> None:
    database.connect(site)
    database.disconnect()
    with watch.watching(site):
        assert upgrade.upgrade(site_folder).is_current
    assert not (site.state / "backups").exists()


def test_a_site_that_nobody_used_yet_needs_none_and_none_is_made(site: Site, site_folder: Path) -> None:
    done = upgrade.upgrade(site_folder)
    assert (done.schema, done.is_current) == (None, True)
    assert version(site) is None


def test_nothing_is_changed_while_the_service_or_an_operation_runs(site: Site, site_folder: Path) -> None:
    keeping.begin(site, "D-runs")
    DB.execute_sql("ALTER TABLE claims DROP COLUMN part")
    SchemaVersion.update(version=5).execute()
    database.disconnect()
    with pytest.raises(NodeHeldError, match=r"An upgrade is for a site that stands still, .* D-runs"):
        upgrade.upgrade(site_folder)
    with watch.watching(site), pytest.raises(NodeHeldError, match="kadeploy3d runs for this site"):
        upgrade.upgrade(site_folder)
    assert version(site) == 5
    assert not (site.state / "backups").exists()


def test_a_database_of_a_later_kadeploy_is_left_alone(site: Site, site_folder: Path) -> None:
    database.connect(site)
    SchemaVersion.update(version=99).execute()
    database.disconnect()
    with pytest.raises(
        DatabaseError, match=rf"version 99, and this Kadeploy knows {SCHEMA_VERSION}: install the later .* restore"
    ):
        upgrade.upgrade(site_folder)
    assert version(site) == 99


@sqlite_alone
def test_all_keys_that_are_gone_are_told_at_once_and_nothing_is_changed(site: Site, site_folder: Path) -> None:
    make_version(site, 1)
    for name in ("site.yml", "clusters/gdx.yml", "clusters/nvm.yml"):
        with (site_folder / name).open("a") as file:
            file.write("since_long_gone: 1\n")
    with pytest.raises(ConfigError, match="nothing was changed") as refusal:
        upgrade.upgrade(site_folder)
    for name in ("site.yml", "gdx.yml", "nvm.yml"):
        assert str(refusal.value).count(name) == 1
    assert str(refusal.value).count("since_long_gone") == 3
    assert version(site) == 1


@sqlite_alone
@pytest.mark.skipif(os.geteuid() != 0, reason="the suite runs as root")
def test_root_leaves_no_file_of_its_own_in_the_state_of_another(
    site: Site, site_folder: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version(site, 3)
    kept = keeping.given_away(site_folder, open_folder, monkeypatch)
    done = upgrade.upgrade(kept)
    assert Path(done.backup).parent == kept / "state" / "backups"
    assert {path.stat().st_uid for path in (kept / "state").rglob("*")} == {keeping.NOBODY}


@sqlite_alone
def test_without_a_backup_there_is_no_upgrade(site: Site, site_folder: Path, tmp_path: Path) -> None:
    make_version(site, 2)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(FileError, match="is there and is no backup"):
        upgrade.upgrade(site_folder, tmp_path / "notes")
    assert version(site) == 2
