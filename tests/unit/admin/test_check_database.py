"""The database: looked at, and left as it is."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from kadeploy.admin.check import database, environments
from kadeploy.admin.check.subject import Subject
from kadeploy.config.folder import load_configuration
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment, Image
from kadeploy.state import database as state
from kadeploy.state import examination
from kadeploy.state.database import SCHEMA_VERSION
from kadeploy.state.tables import EnvironmentRow, environment_columns
from tests.unit.admin.sound_site import SoundSite


def levels(site_folder: Path) -> dict[str, str]:
    subject = Subject(configuration=load_configuration(site_folder), nodes=(), socket=site_folder / "none")
    return {each.name: each.level for each in database.check(subject)}


def test_a_database_that_is_in_use_is_sound_on_all_kinds(site: Site, site_folder: Path) -> None:
    state.connect(site)
    state.disconnect()
    assert levels(site_folder) == {"answers": "ok", "schema": "ok"}


def test_an_older_schema_is_told_and_stays(site: Site, site_folder: Path) -> None:
    state.connect(site).execute_sql(f"UPDATE schema_version SET version = {SCHEMA_VERSION - 1}")
    state.disconnect()
    assert levels(site_folder) == {"answers": "ok", "schema": "warn"}
    assert examination.look(site).version == SCHEMA_VERSION - 1


def test_a_later_schema_is_told(site: Site, site_folder: Path) -> None:
    state.connect(site).execute_sql(f"UPDATE schema_version SET version = {SCHEMA_VERSION + 1}")
    state.disconnect()
    assert levels(site_folder) == {"answers": "ok", "schema": "fail"}


def test_a_look_changes_nothing(site: Site, site_folder: Path) -> None:
    """Not even where nothing is yet: no table is made, no file."""
    before = sorted(site.state.rglob("*"))
    levels(site_folder)
    assert sorted(site.state.rglob("*")) == before
    if not site.database.startswith("sqlite"):
        with state.as_it_is(site):
            assert not state.has_tables()


def test_a_database_that_is_gone_is_told_apart_from_one_that_was_never_made(sound: SoundSite) -> None:
    assert sound.levels(database.check) == {"answers": "ok"}
    state.connect(sound.subject().site)
    state.disconnect()
    (sound.folder / "state/kadeploy.db").unlink()
    assert "is gone" in sound.one(database.check, "answers", "fail").text


def test_a_damaged_file_is_told(sound: SoundSite) -> None:
    state.connect(sound.subject().site)
    state.disconnect()
    path = sound.folder / "state/kadeploy.db"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    found = [each.text for each in sound.found(database.check) if each.level == "fail"]
    assert any("malformed" in text or "damaged" in text for text in found), found
    path.write_bytes(b"this is no database" * 999)
    assert "not a database" in sound.one(database.check, "answers", "fail").text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another account")
def test_a_file_that_the_account_of_the_state_cannot_write_is_told(sound: SoundSite, open_folder: Path) -> None:
    state.connect(sound.subject().site)
    state.disconnect()
    shutil.copytree(sound.folder / "state", open_folder / "state")
    os.chown(open_folder / "state", 65534, 65534)
    sound.change("site", state_dir=f"{open_folder}/state")
    assert "cannot be written by nobody" in sound.one(database.check, "owner", "fail").text
    for path in (open_folder / "state").iterdir():
        os.chown(path, 65534, 65534)
    assert sound.levels(database.check) == {"answers": "ok", "schema": "ok"}
    assert {path.stat().st_uid for path in (open_folder / "state").iterdir()} == {65534}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another account")
def test_a_folder_in_which_the_account_of_the_state_cannot_write_is_told(sound: SoundSite, open_folder: Path) -> None:
    """SQLite makes files beside its own."""
    for name in ("state", "elsewhere"):
        (open_folder / name).mkdir(mode=0o755)
    sound.change("site", state_dir=f"{open_folder}/state", database=f"sqlite://{open_folder}/elsewhere/kadeploy.db")
    state.connect(sound.subject().site)
    state.disconnect()
    for path in (open_folder / "state", *(open_folder / "elsewhere").iterdir()):
        os.chown(path, 65534, 65534)
    assert sound.levels(database.check) == {"answers": "fail"}
    os.chown(open_folder / "elsewhere", 65534, 65534)
    assert sound.levels(database.check) == {"answers": "ok", "schema": "ok"}


@pytest.mark.parametrize("url", ["postgresql://k@127.9.8.90:9/kadeploy", "mysql://k@127.9.8.90:9/kadeploy"])
def test_a_server_that_does_not_run_is_told_by_address(sound: SoundSite, url: str) -> None:
    sound.change("site", database=url)
    assert "127.9.8.90 port 9" in sound.one(database.check, "answers", "fail").text


def test_a_clock_that_goes_otherwise_is_told(sound: SoundSite, monkeypatch: pytest.MonkeyPatch) -> None:
    state.connect(sound.subject().site)
    state.disconnect()
    seen = examination.Seen("PostgreSQL 15", SCHEMA_VERSION, ahead=-61.0)
    monkeypatch.setattr(examination, "look", lambda _site: seen)
    assert "61 s behind" in sound.one(database.check, "clock", "warn").text


def test_the_clock_of_a_server_is_this_machines_where_it_runs_here(site: Site) -> None:
    state.connect(site)
    state.disconnect()
    assert abs(examination.look(site).ahead) < 1.0


# --- environments -------------------------------------------------------------------------------------------------


def recorded(sound: SoundSite, image: Path, kind: str = "tgz", sha256: str = "") -> None:
    """Record an environment as it would be after a migration: whatever its file is now."""
    environment = Environment(name="debian", user="root", image=Image(file=str(image), kind=kind, sha256=sha256))
    state.connect(sound.subject().site)
    EnvironmentRow.create(**environment_columns(environment))
    state.disconnect()


def test_images_that_are_where_they_were_are_sound(sound: SoundSite, tmp_path: Path) -> None:
    assert sound.levels(environments.check) == {"recorded": "ok"}
    (tmp_path / "debian.tgz").write_bytes(b"\x1f\x8b and so on")
    recorded(sound, tmp_path / "debian.tgz")
    assert "1 of 1" in sound.found(environments.check)[0].text


def test_an_image_that_is_gone_or_something_else_is_told(sound: SoundSite, tmp_path: Path) -> None:
    recorded(sound, tmp_path / "debian.tgz")
    assert "debian version 1 of root" in sound.one(environments.check, "files", "fail").text
    (tmp_path / "debian.tgz").write_bytes(b"<html>no</html>")
    assert "it is a web page" in sound.one(environments.check, "kinds", "fail").text


def test_checksums_are_compared_when_it_is_to_be_thorough(sound: SoundSite, tmp_path: Path) -> None:
    (tmp_path / "debian.tgz").write_bytes(b"\x1f\x8b and so on")
    recorded(sound, tmp_path / "debian.tgz", sha256="0" * 64)
    assert sound.levels(environments.check) == {"recorded": "ok"}
    assert "has changed" in sound.one(environments.check, "checksums", "fail", thorough=True).text


def test_environments_are_not_asked_for_where_the_database_is_of_another_version(
    sound: SoundSite, tmp_path: Path
) -> None:
    recorded(sound, tmp_path / "debian.tgz")
    with sqlite3.connect(sound.folder / "state/kadeploy.db") as connection:
        connection.execute(f"UPDATE schema_version SET version = {SCHEMA_VERSION - 1}")
    assert f"schema version {SCHEMA_VERSION - 1}" in sound.one(environments.check, "recorded", "warn").text
    assert examination.look(sound.subject().site).version == SCHEMA_VERSION - 1
