"""What roles say of themselves as micro-steps."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
import yaml

from kadeploy.config.folder import collection
from kadeploy.errors import ConfigError
from kadeploy.runner import roles
from kadeploy.runner.roles import Role

NOWHERE = Path("/nonexistent")
ROOT = Path(__file__).parents[3]
OURS = {path.name: roles.find(path.name, NOWHERE) for path in sorted((collection() / "roles").iterdir())}


def write(config: Path, name: str, text: str) -> Path:
    path = config / "roles" / name / "meta" / "microstep.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_ours_say_what_they_do_to_nodes() -> None:
    assert [name for name, role in OURS.items() if role.silent] == ["drop_failed_nodes", "finish"]
    assert [name for name, role in OURS.items() if role.reboots] == ["kexec", "reboot", "reboot_from_deploy_env"]
    assert [name for name, role in OURS.items() if role.booted] == ["wait_reboot"]


def test_a_node_that_hangs_in_a_step_on_disks_is_given_up_within_minutes() -> None:
    on_disks = {name: role.timeout for name, role in OURS.items() if "part" in name or name == "install_bootloader"}
    assert on_disks
    assert {name: seconds for name, seconds in on_disks.items() if not 60 <= seconds <= 300} == {}


def test_the_variable_that_names_a_boot_profile_is_one_of_the_role() -> None:
    variables = {name: role.boot_profile for name, role in OURS.items() if role.boot_profile}
    assert variables
    for name, variable in variables.items():
        assert variable in yaml.safe_load((collection() / "roles" / name / "defaults" / "main.yml").read_text())


def test_a_role_of_the_site_takes_the_place_of_ours_whole(tmp_path: Path) -> None:
    assert roles.find("reboot", tmp_path) == Role(reboots=True)
    write(tmp_path, "reboot", "timeout: 7\n")
    assert roles.find("reboot", tmp_path) == Role(timeout=7)


def test_a_role_that_says_nothing_and_one_that_is_not_there_have_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "roles" / "quiet").mkdir(parents=True)
    assert roles.find("quiet", tmp_path) == roles.find("nonesuch", tmp_path) == roles.find("", tmp_path) == Role()


def test_what_a_role_says_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", "timeout: 1\n")
    assert roles.find("mine", tmp_path).timeout == 1
    path.write_text("timeout: 2\n")
    os.utime(path, ns=(1, 1))
    assert roles.find("mine", tmp_path).timeout == 2


@pytest.mark.parametrize("text", ["reboot: true\n", "timeout: soon\n", "- silent\n"])
def test_a_word_that_is_none_of_ours_is_refused_with_the_files_name(text: str, tmp_path: Path) -> None:
    write(tmp_path, "mine", text)
    with pytest.raises(ConfigError, match=r"roles/mine/meta/microstep\.yml"):
        roles.find("mine", tmp_path)


def test_python_knows_no_role_by_its_name() -> None:
    """But for the role before every hook, and what is named after a role: booleans of our playbooks, a site's command.

    A simulated lab acts scripts of ours, which it knows by their files' names.
    """
    names = {name for name in OURS if "_" in name} - {"set_vlan", "drop_failed_nodes"}
    files = [
        path for path in (ROOT / "kadeploy").rglob("*.py") if path.name != "inventory.py" and "lab" not in path.parts
    ]
    known = {
        (path.name, node.value)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    }
    assert known == set()


def test_every_word_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "workflow.md").read_text()
    assert [name for name in Role.__struct_fields__ if f"`{name}`" not in text] == []
