"""Macro-steps, implementations and micro-steps: the playbooks are the register."""

from __future__ import annotations

from pathlib import Path

import pytest

from kadeploy.config.folder import collection
from kadeploy.errors import ConfigError
from kadeploy.runner import playbooks

NOWHERE = Path("/nonexistent")
OURS = collection()


# --- implementations ----------------------------------------------------------------------------------------------


def test_every_playbook_of_ours_that_is_named_after_a_macro_step_is_an_implementation() -> None:
    known = playbooks.implementations(NOWHERE)
    assert {playbooks.generic(name) for name in known} == set(playbooks.MACRO_STEPS)
    assert "SetDeploymentEnvUntrusted" in known
    assert "PowerOn" not in known
    assert all(path.is_file() for path in known.values())


def test_a_file_in_the_sites_folder_registers_an_implementation_and_takes_precedence(tmp_path: Path) -> None:
    folder = tmp_path / "playbooks"
    folder.mkdir()
    for name in ("SetDeploymentEnvBurnIn", "BootNewEnvKexec"):
        (folder / f"{name}.yml").write_text("- {hosts: kadeploy_nodes, roles: [burn_in]}\n")
    known = playbooks.implementations(tmp_path)
    assert known["SetDeploymentEnvBurnIn"] == folder / "SetDeploymentEnvBurnIn.yml"
    assert known["BootNewEnvKexec"] == folder / "BootNewEnvKexec.yml"
    assert known["BootNewEnvClassical"].parent != folder


def test_micro_steps_are_the_roles_of_the_playbook_in_order() -> None:
    found = playbooks.micro_steps(playbooks.implementations(NOWHERE)["BootNewEnvClassical"], NOWHERE)
    assert found == ("switch_pxe", "umount_deploy_part", "reboot_from_deploy_env", "set_vlan", "wait_reboot")


def test_roles_may_be_words_mappings_or_names_of_a_collection(tmp_path: Path) -> None:
    playbook = tmp_path / "p.yml"
    playbook.write_text(
        "- hosts: a\n  roles: [one, {role: kadeploy.core.two}, {name: three}, one, finish]\n- {hosts: b, roles: }\n"
    )
    assert playbooks.micro_steps(playbook, NOWHERE) == ("one", "two", "three")


@pytest.mark.parametrize("text", ["{roles: [a]}", "just words", "- [a]", "- {"])
def test_a_file_that_is_no_playbook_is_refused_by_name(tmp_path: Path, text: str) -> None:
    playbook = tmp_path / "SetDeploymentEnvBroken.yml"
    playbook.write_text(text)
    with pytest.raises(ConfigError, match=r"SetDeploymentEnvBroken\.yml"):
        playbooks.micro_steps(playbook, NOWHERE)


def test_micro_steps_whose_condition_does_not_hold_are_left_out() -> None:
    playbook = playbooks.implementations(NOWHERE)["BroadcastEnvChain"]
    wants = {"mount_after_broadcast": False, "mount_deploy_part": True, "send_key": False, "check_kernel_files": True}
    assert playbooks.left_out(playbook, wants) == {"mount_deploy_part", "send_key"}
    untrusted = playbooks.implementations(NOWHERE)["SetDeploymentEnvUntrusted"]
    assert "mount_deploy_part" not in playbooks.left_out(untrusted, wants)


def test_a_playbook_tells_what_its_boot_profiles_boot() -> None:
    ours = playbooks.implementations(NOWHERE)
    assert playbooks.boots(ours["SetDeploymentEnvNfsroot"], NOWHERE) == ("nfsroot",)
    assert playbooks.boots(ours["BootNewEnvKexec"], NOWHERE) == ("deployed",)
    assert playbooks.boots(ours["SetDeploymentEnvProd"], NOWHERE) == ()


@pytest.mark.parametrize("path", [*OURS.glob("playbooks/*.yml"), *OURS.glob("roles/*/*/*.yml")], ids=str)
def test_no_playbook_and_no_role_needs_more_than_one_screen(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_our_playbooks_are_found_in_a_checkout_and_roles_lie_beside_them() -> None:
    assert (collection() / "playbooks" / "deploy.yml").is_file()
    assert (collection() / "roles" / "switch_pxe").is_dir()
