"""Accounts of units, as files of units name them; the accounts are this machine's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kadeploy.admin.check import accounts, unit_files
from kadeploy.caller import Account
from tests.accounts import made
from tests.unit.admin.sound_site import SoundSite

OURS = Path(__file__).parents[3] / "contrib" / "systemd"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def account(open_folder: Path) -> Iterator[Account]:
    """An account with a home folder, which nobody can log in to."""
    with made(open_folder) as found:
        yield found[0]


def install(units: Path, name: str, account: str) -> None:
    """Have our unit *name* installed, as *account*'s."""
    shutil.copy(OURS / name, units / name)
    drop_in = units / f"{name}.d/account.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(f"[Service]\nUser={account}\n")


def test_without_units_no_account_is_needed(sound: SoundSite, units: Path) -> None:
    assert sound.levels(accounts.check) == {"there": "ok"}
    assert list(units.iterdir()) == []


def test_our_units_name_their_accounts_and_drop_ins_name_others(units: Path, tmp_path: Path) -> None:
    for name in accounts.UNITS:
        shutil.copy(OURS / name, units / name)
    assert [unit_files.account(each) for each in accounts.UNITS] == ["kadeploy", "kadeploy-console", "kadeploy-boot"]
    install(units, unit_files.SERVICE, "daemon")
    assert unit_files.account(unit_files.SERVICE) == "daemon"
    again = tmp_path / f"etc/systemd/system/{unit_files.SERVICE}.d/account.conf"
    again.parent.mkdir(parents=True)
    again.write_text("[Service]\nUser = games\n")
    assert unit_files.account(unit_files.SERVICE) == "games"


def test_an_account_that_is_not_there_and_root_are_told(sound: SoundSite, units: Path) -> None:
    install(units, unit_files.SERVICE, "kadeploy-nobody-is-called-so")
    found = sound.one(accounts.check, "there", "fail")
    assert found.text == "kadeploy3d.service runs as kadeploy-nobody-is-called-so, and there is no such account"
    install(units, unit_files.SERVICE, "root")
    assert "runs as root" in sound.one(accounts.check, "there", "fail").text


@as_root
def test_an_account_of_debian_that_nobody_can_log_in_to_is_a_good_one(sound: SoundSite, units: Path) -> None:
    for name in accounts.UNITS:
        install(units, name, "games")
    assert set(sound.levels(accounts.check).values()) == {"ok"}


@as_root
def test_a_shell_a_password_and_a_number_of_people_are_told(
    sound: SoundSite, units: Path, account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(units, unit_files.SERVICE, account.name)
    assert "as people's accounts have" in sound.one(accounts.check, "login", "warn").text
    subprocess.run(["usermod", "--shell", "/bin/sh", account.name], check=True)
    found = [each.text for each in sound.found(accounts.check) if each.name == "login"]
    assert found[0].startswith(f"{account.name} has the shell /bin/sh: whoever comes in by a key")
    shadow = tmp_path / "shadow"
    monkeypatch.setattr(accounts, "SHADOW", shadow)
    shadow.write_text(f"root:*:1::::::\n{account.name}::1::::::\n")
    assert "by a password" in sound.one(accounts.check, "login", "fail").text
    subprocess.run(["usermod", "--shell", "/usr/sbin/nologin", account.name], check=True)
    assert "has a password" in next(each.text for each in sound.found(accounts.check) if each.name == "login")


@as_root
def test_groups_that_give_more_are_told_by_what_they_give(sound: SoundSite, units: Path, account: Account) -> None:
    install(units, unit_files.BOOT_SERVER, account.name)
    assert sound.levels(accounts.check)["groups"] == "ok"
    subprocess.run(["usermod", "--append", "--groups", "adm", account.name], check=True)
    assert sound.levels(accounts.check)["groups"] == "warn"
    subprocess.run(["usermod", "--append", "--groups", "disk", account.name], check=True)
    found = sound.one(accounts.check, "groups", "fail")
    assert found.text == f"{account.name} is in the group disk: it reads and writes all disks"
    assert found.advice == f"gpasswd --delete {account.name} disk"


@as_root
def test_a_secret_that_the_account_of_consoles_can_read_is_told(
    sound: SoundSite, units: Path, open_folder: Path
) -> None:
    install(units, unit_files.CONSOLES, "games")
    assert sound.levels(accounts.check)["reach"] == "ok"
    key = open_folder / "key"
    shutil.copy(sound.folder / "keys/site", key)
    sound.change("site", ssh__private_key=str(key))
    key.chmod(0o644)
    assert f"games can read {key}" in sound.one(accounts.check, "reach", "fail").text


@as_root
def test_a_home_folder_that_consoles_can_write_in_is_told(sound: SoundSite, units: Path, account: Account) -> None:
    install(units, unit_files.CONSOLES, account.name)
    found = sound.one(accounts.check, "reach", "fail")
    assert f"{account.name} can write in its home folder {account.home}" in found.text
    os.chown(account.home, 0, account.gid)
    account.home.chmod(0o750)
    assert sound.levels(accounts.check)["reach"] == "ok"


@as_root
def test_a_boot_folder_that_the_boot_server_cannot_read_is_told(
    sound: SoundSite, units: Path, open_folder: Path
) -> None:
    install(units, unit_files.BOOT_SERVER, "games")
    (open_folder / "http").mkdir()
    (open_folder / "tftp").mkdir(mode=0o700)
    sound.change("site", boot__http_root=f"{open_folder}/http", boot__tftp_root=f"{open_folder}/tftp")
    found = sound.one(accounts.check, "reach", "fail")
    assert found.text == f"games, who serves boot.tftp_root, cannot read {open_folder}/tftp"
