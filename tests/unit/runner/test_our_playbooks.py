"""The playbooks that we ship, read as data: what they have in common, and that no role is forgotten in one of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from kadeploy.config.folder import collection
from kadeploy.runner import playbooks
from kadeploy.runner.inventory import variables, wants
from tests.unit.runner.test_inventory import request

OURS = collection()
PLAYBOOKS = {
    path.stem: path for path in sorted(OURS.glob("playbooks/*.yml")) if path.stem not in ("deploy", "failed_nodes")
}
PLAYS: dict[str, dict[str, Any]] = {name: yaml.safe_load(path.read_text())[0] for name, path in PLAYBOOKS.items()}
TEXT = "\n".join(path.read_text() for folder in ("playbooks", "roles") for path in (OURS / folder).rglob("*.yml"))
ENTRIES = [(name, entry) for name, play in PLAYS.items() for entry in play["roles"]]

FAMILIES: dict[str, tuple[str, dict[str, str]]] = {
    "BroadcastEnv": (
        "send_environment_method",
        {name.capitalize(): name for name in ("bittorrent", "chain", "custom", "kastafior", "tree")},
    ),
    "SetDeploymentEnv": ("switch_pxe_boot", {"Untrusted": "deploy", "Nfsroot": "nfsroot"}),
    "Power": ("power_operation", {name.capitalize(): name for name in ("on", "off", "status")}),
}
"""Playbooks that differ in one word: the variable of a role, and its value for each of them."""
ALONE = {"BroadcastEnvBittorrent": "mount_tmp_part"}
"""The role that one of a family has and the others have not."""
WANTS = {"mount_deploy_part": {"mount_deploy_part", "mount_after_broadcast", "umount_deploy_part"}}
"""Conditions of roles that have another one than the one of their name."""


def roles(name: str) -> list[dict[str, Any]]:
    """The ``roles:`` of a playbook of ours."""
    entries: list[dict[str, Any]] = PLAYS[name]["roles"]
    return entries


def names(name: str) -> list[str]:
    return [entry["role"] for entry in roles(name)]


@pytest.mark.parametrize("name", PLAYS)
def test_a_playbook_is_one_play_that_is_named_after_it_and_ends_with_finish(name: str) -> None:
    assert len(yaml.safe_load(PLAYBOOKS[name].read_text())) == 1
    common = {key: value for key, value in PLAYS[name].items() if key not in {"roles", "vars"}}
    assert common == {"name": name, "hosts": "kadeploy_nodes", "gather_facts": False, "run_once": True}
    assert PLAYS[name].get("vars", {"kadeploy_in_shards": False}) == {"kadeploy_in_shards": False}
    assert names(name)[-1] == "finish"


@pytest.mark.parametrize(("name", "entry"), ENTRIES, ids=lambda value: str(value)[:60])
def test_a_role_has_its_name_as_tag_its_own_condition_and_its_own_variables(name: str, entry: dict[str, Any]) -> None:
    role = entry["role"]
    assert (OURS / "roles" / role).is_dir()
    assert entry["tags"] == role
    assert entry.get("when", f"kadeploy_wants.{role}") in {f"kadeploy_wants.{want}" for want in WANTS.get(role, {role})}
    specs = yaml.safe_load((OURS / "roles" / role / "meta" / "argument_specs.yml").read_text())["argument_specs"]
    assert entry.keys() - {"role", "tags", "when"} <= specs["main"]["options"].keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_playbooks_of_a_family_differ_in_their_own_word_alone(family: str) -> None:
    variable, words = FAMILIES[family]
    bare = []
    for kind, word in words.items():
        name = f"{family}{kind}"
        entries = [entry for entry in roles(name) if entry["role"] != ALONE.get(name)]
        assert [entry[variable] for entry in entries if variable in entry] == [word]
        assert len(entries) == len(roles(name)) - (name in ALONE)
        bare.append([{key: value for key, value in entry.items() if key != variable} for entry in entries])
    assert bare == [bare[0]] * len(words)


def test_a_macro_step_can_be_left_out_alike() -> None:
    dummies = [roles(f"{macro_step}Dummy") for macro_step in playbooks.MACRO_STEPS]
    assert dummies == [dummies[0]] * 3


def test_every_way_into_the_deployment_system_goes_on_alike() -> None:
    """From the keys on `Kexec` does what `Untrusted` does; before that `UntrustedCustomPreInstall` does."""
    keys = names("SetDeploymentEnvUntrusted").index("send_key_in_deploy_env")
    begin, end = roles("SetDeploymentEnvUntrusted")[: keys + 1], roles("SetDeploymentEnvUntrusted")[keys:]
    assert roles("SetDeploymentEnvKexec")[-len(end) :] == end
    assert roles("SetDeploymentEnvUntrustedCustomPreInstall")[: keys + 1] == begin
    assert [entry for entry in end if entry in roles("SetDeploymentEnvProd")] == roles("SetDeploymentEnvProd")[1:]


@pytest.mark.parametrize("name", [name for name in PLAYS if name.startswith("Reboot")])
def test_every_kind_of_reboot_reboots_moves_and_waits(name: str) -> None:
    middle = [role for role in names(name) if role in ("reboot", "set_vlan", "wait_reboot")]
    assert middle == ["reboot", "set_vlan", "wait_reboot"]


@pytest.mark.parametrize("name", [name for name in PLAYS if name.startswith("BootNewEnv") and "Dummy" not in name])
def test_every_way_into_the_deployed_system_writes_its_profile_moves_and_waits(name: str) -> None:
    assert roles(name)[0] == {"role": "switch_pxe", "tags": "switch_pxe", "switch_pxe_boot": "deployed"}
    assert names(name)[-3:] == ["set_vlan", "wait_reboot", "finish"]


def test_every_condition_is_computed_and_every_one_computed_is_used() -> None:
    assert set(re.findall(r"kadeploy_wants\.(\w+)", TEXT)) == wants(request()).keys()


def test_every_variable_for_playbooks_is_used_by_one_or_by_a_connection() -> None:
    connections = "\n".join(path.read_text() for path in OURS.glob("plugins/connection/*.py"))
    assert [name for name in variables(request()) if not re.search(rf"\b{name}\b", TEXT + connections)] == []


def test_every_role_carries_the_scripts_that_it_runs() -> None:
    """So that it can be used in a playbook of a site, or copied and changed there."""
    for role in sorted((OURS / "roles").iterdir()):
        tasks = (role / "tasks" / "main.yml").read_text()
        assert {path.name for path in role.glob("files/*")} == set(re.findall(r"(?:script|look): (\S+\.sh)", tasks)), (
            role.name
        )


def test_scripts_of_one_name_are_one_script() -> None:
    texts: dict[str, set[str]] = {}
    for path in OURS.glob("roles/*/files/*"):
        texts.setdefault(path.name, set()).add(path.read_text())
    assert [name for name, different in texts.items() if len(different) > 1] == []
