"""What ``hooks/ansible.cfg`` says of an estate's content: what of it counts, where it is, and what is refused."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from kadeploy.caller import Account, as_user
from kadeploy.config import content
from kadeploy.errors import ConfigError


def written(config: Path, text: str) -> Path:
    """A configuration folder with these settings."""
    (config / "hooks").mkdir()
    (config / content.FILE).write_text(text)
    return config


def test_without_the_file_nothing_is_said(tmp_path: Path) -> None:
    found = content.settings(tmp_path)
    assert (found.variables({"X": "1"}), found.secrets, found.ignored, found.missing) == ({}, frozenset(), (), [])


def test_what_says_where_content_is_counts_behind_what_is_given_and_nothing_else_does(tmp_path: Path) -> None:
    for name in ("hooks/passwords", "hooks/passwords/dev", "hooks/passwords/all"):
        (tmp_path / name).mkdir(parents=True) if name.endswith("passwords") else (tmp_path / name).write_text("x")
    text = """
[defaults]
roles_path = roles:/srv/roles ; of the estate
collections_path = ../collections
filter_plugins = /srv/filters
jinja2_extensions = jinja2.ext.do
vault_identity_list = dev@passwords/dev, passwords/all
vault_password_file = passwords/all
strategy = free
forks = 50
[ssh_connection]
pipelining = no
"""
    (tmp_path / content.FILE).write_text(text)
    found = content.settings(tmp_path)
    hooks = tmp_path / "hooks"
    assert found.variables({"ANSIBLE_ROLES_PATH": "/ours", "PATH": "/bin"}) == {
        "ANSIBLE_ROLES_PATH": f"/ours:{hooks}/roles:/srv/roles",
        "ANSIBLE_COLLECTIONS_PATH": f"{tmp_path}/collections:/usr/share/ansible/collections",
        "ANSIBLE_FILTER_PLUGINS": "/srv/filters",
        "ANSIBLE_JINJA2_EXTENSIONS": "jinja2.ext.do",
        "ANSIBLE_VAULT_IDENTITY_LIST": f"dev@{hooks}/passwords/dev,{hooks}/passwords/all",
        "ANSIBLE_VAULT_PASSWORD_FILE": f"{hooks}/passwords/all",
    }
    assert found.secrets == {hooks / "passwords" / "dev", hooks / "passwords" / "all"}
    assert found.ignored == ("strategy", "forks", "ssh_connection.pipelining")
    assert ("roles_path", hooks / "roles") in found.missing


def test_roles_of_the_estate_are_found_with_those_of_its_collections(tmp_path: Path) -> None:
    written(tmp_path, "[defaults]\nroles_path = roles\ncollections_path = .\n")
    plain = tmp_path / "hooks" / "roles" / "site.motd"
    packed = tmp_path / "hooks" / "ansible_collections" / "site" / "basics" / "roles" / "motd"
    for place in (plain, packed):
        place.mkdir(parents=True)
    assert content.role("site.motd", tmp_path) == plain
    assert content.role("site.basics.motd", tmp_path) == packed
    assert content.role("site.basics.mtod", tmp_path) is None
    assert {"site.motd", "sync"} <= {*content.roles(tmp_path)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[defaults\n", "it cannot be read: "),
        ("[defaults]\nvault_password_file = nowhere\n", "there is no file {hooks}/nowhere; expected one with the pass"),
        ("[defaults]\nvault_identity_list = dev@prompt\n", "password is asked for; expected a file that holds or prin"),
    ],
)
def test_settings_that_no_workflow_could_use_are_refused(tmp_path: Path, text: str, said: str) -> None:
    written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        content.settings(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / content.FILE}: ")
    assert said.format(hooks=tmp_path / "hooks") in str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_password_that_this_account_cannot_read_and_a_program_that_others_could_change_are_refused(
    open_folder: Path,
) -> None:
    written(open_folder, "[defaults]\nvault_password_file = secret\n")
    secret = open_folder / "hooks" / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    content.settings(open_folder)
    entry = pwd.getpwnam("nobody")
    with (
        as_user(Account("nobody", entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))),
        pytest.raises(ConfigError, match="/secret: let the account read it that runs deployments, and nobody else"),
    ):
        content.settings(open_folder)
    secret.chmod(0o622)
    with pytest.raises(ConfigError, match="secret could be changed by others than root"):
        content.settings(open_folder)
