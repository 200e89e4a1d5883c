"""Whose files are, and who may read and write them."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import pytest

from kadeploy.admin.check import files
from tests.unit.admin.sound_site import SoundSite

NOBODY = pwd.getpwnam("nobody")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs another account, and root to take its place")


def test_a_sound_site_has_files_that_nobody_else_can_change_or_read(sound: SoundSite) -> None:
    assert sound.levels(files.check) == dict.fromkeys(("configuration", "secrets", "state", "boot"), "ok")


@pytest.mark.parametrize("name", ["", "site.yml", "clusters", "clusters/gdx.yml"])
def test_a_configuration_that_others_may_change_is_told_by_name(sound: SoundSite, name: str) -> None:
    subject = sound.subject()
    path = sound.folder / name
    path.chmod(path.stat().st_mode | 0o002)
    found = [each for each in files.check(subject) if each.level == "fail"]
    assert [each.name for each in found if each.name == "configuration"] == ["configuration"]
    assert str(path) in found[0].text


@as_root
def test_a_configuration_that_belongs_to_somebody_is_told(sound: SoundSite) -> None:
    os.chown(sound.folder / "clusters/gdx.yml", NOBODY.pw_uid, NOBODY.pw_gid)
    assert "belongs to nobody" in sound.one(files.check, "configuration", "fail").text


@pytest.mark.parametrize("name", ["keys/site", "keys/bmc"])
def test_a_secret_that_others_can_read_is_told_with_its_mode(sound: SoundSite, name: str) -> None:
    (sound.folder / name).chmod(0o640)
    found = sound.one(files.check, "secrets", "fail")
    assert f"{name} (mode 0640)" in found.text
    assert found.advice == f"chmod 600 {sound.folder / name}"


def test_a_password_file_that_is_not_there_is_told(sound: SoundSite) -> None:
    (sound.folder / "keys/bmc").unlink()
    assert "power.password_file" in sound.one(files.check, "secrets", "fail").text


@as_root
def test_a_secret_that_the_account_of_the_state_cannot_read_is_told(sound: SoundSite, open_folder: Path) -> None:
    state = _given_away(sound, open_folder)
    found = [each.text for each in sound.found(files.check) if each.level == "fail" and each.name == "secrets"]
    assert len(found) == 2
    assert all("nobody, who carries out operations, cannot read" in each for each in found)
    assert sound.levels(files.check)["state"] == "ok"
    assert state.is_dir()


def _given_away(sound: SoundSite, folder: Path) -> Path:
    state = folder / "state"
    state.mkdir(mode=0o700)
    os.chown(state, NOBODY.pw_uid, NOBODY.pw_gid)
    sound.change("site", state_dir=str(state))
    return state


@as_root
def test_what_root_has_left_behind_in_the_services_state_is_told(sound: SoundSite, open_folder: Path) -> None:
    state = _given_away(sound, open_folder)
    (state / "kadeploy.db").touch()
    found = sound.one(files.check, "state", "fail")
    assert "kadeploy.db does not belong to nobody" in found.text
    assert found.advice == f"chown -R nobody: {state}"


@as_root
def test_a_folder_above_the_state_that_the_account_may_not_pass_is_told(sound: SoundSite, open_folder: Path) -> None:
    (open_folder / "shut").mkdir(mode=0o700)
    _given_away(sound, open_folder / "shut")
    assert f"may not pass through {open_folder / 'shut'}" in sound.one(files.check, "path", "fail").text


def test_a_state_that_others_may_look_into_or_write_to_is_told(sound: SoundSite) -> None:
    (sound.folder / "state").chmod(0o755)
    assert "mode 0755" in sound.one(files.check, "state", "warn").text
    (sound.folder / "state").chmod(0o777)
    assert "others may write" in sound.one(files.check, "state", "fail").text


def test_a_state_folder_that_is_not_there_is_odd_and_one_that_cannot_be_made_is_wrong(sound: SoundSite) -> None:
    shutil.rmtree(sound.folder / "state")
    assert sound.levels(files.check)["state"] == "warn"
    sound.change("site", state_dir="/no/such/folder/state")
    assert sound.levels(files.check)["state"] == "fail"


@as_root
def test_a_state_of_another_account_than_the_units_is_told(sound: SoundSite, units: Path) -> None:
    assert "account" not in sound.levels(files.check)
    (units / "kadeploy3d.service").write_text("[Service]\nUser=nobody\n")
    assert "belongs to root" in sound.one(files.check, "account", "fail").text
    (units / "kadeploy3d.service").write_text("[Service]\nUser=root\n")
    assert sound.levels(files.check)["account"] == "ok"


def test_a_boot_folder_that_is_not_there_is_told(sound: SoundSite) -> None:
    shutil.rmtree(sound.folder / "tftp")
    assert "boot.tftp_root" in sound.one(files.check, "boot", "fail").text


@as_root
def test_boot_folders_in_which_the_account_cannot_write_are_told(sound: SoundSite, open_folder: Path) -> None:
    _given_away(sound, open_folder)
    found = [each for each in sound.found(files.check) if each.name == "boot"]
    assert [each.level for each in found] == ["fail", "fail"]
    assert found[0].advice == f"chown nobody: {sound.folder}/tftp; chmod 755 {sound.folder}/tftp"
