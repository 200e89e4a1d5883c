"""The reference is what the program goes by: pages are as they would be made, and nothing is missing in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kadeploy import errors
from kadeploy.admin import commented
from kadeploy.cli import reference
from kadeploy.environments import document, lines
from kadeploy.environments.environment import Environment
from kadeploy.errors import KadeployError
from kadeploy.runner import inventory, playbooks, variables
from kadeploy.state import tables
from tests.unit.runner.test_inventory import request

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "reference"
MAKE = "run: python -m kadeploy.cli.reference docs/reference"


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_of_the_reference_is_as_it_would_be_made(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == reference.PAGES[name](), MAKE


def test_no_page_of_the_reference_is_written_by_hand() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(reference.PAGES)


def test_pages_are_written_into_a_folder(tmp_path: Path) -> None:
    assert reference.main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(reference.PAGES)
    assert reference.main([]) == 1


@pytest.mark.parametrize("kind", [kind for kind, _ in reference.FILES.values()], ids=lambda kind: kind.__name__)
def test_every_key_of_a_file_has_a_meaning(kind: type) -> None:
    untold = {
        f"{place}.{key.name}"
        for place, section in reference.sections(kind)
        for key in commented.keys(section)
        if not key.told
    }
    assert untold == set()


def test_keys_of_sections_within_sections_and_lists_are_told_with_their_place() -> None:
    page = reference.keys()
    assert "### site.yml: `service.front_ends[]`" in page
    assert '| `header` | Header in which it names the user. | text | `"X-Remote-Ident"` |' in page
    assert 'everybody may do everything. | `db` `dummy` | `"db"` |' in page


def test_every_variable_of_scripts_plays_and_nodes_has_a_meaning_and_no_other_has() -> None:
    asked = request()
    assert set(variables.SCRIPTS) == set(inventory.script_variables(asked))
    assert set(variables.PLAYS) == set(inventory.variables(asked))
    assert set(variables.NODES) == set(inventory.host_variables(asked, asked.nodes[0]))


PROMISED = """
kadeploy_wants kadeploy_env kadeploy_boot kadeploy_power kadeploy_new_root ansible_host ansible_port ansible_user
ansible_ssh_private_key_file ansible_ssh_common_args ansible_host_key_checking CLUSTER ENV ENV_VERSION ENV_KERNEL
ENV_INITRD ENV_KERNEL_PARAMS ENV_HYPERVISOR ENV_HYPERVISOR_PARAMS ENV_EXTRACTION_DIR OS_KIND BLOCK_DEVICE DEPLOY_PART
DEPLOY_PART_NUM DEPLOY_PARTS PART_TYPE FS_TYPE MKFS_OPTIONS FS_TYPE_TMP MKFS_OPTIONS_TMP SWAP_PART SWAP_PART_NUM
PROD_PART PROD_PART_NUM TMP_PART TMP_PART_NUM EFI_PART EFI_PART_NUM PARTITION_TABLE PREPOST_EXTRACTION_DIR TMP_DIR
AUTHORIZED_KEYS FIRMWARE SECURE_BOOT BOOTS_FROM KEXEC_DIR DEPLOYMENT_KERNEL_PARAMS
"""


def test_what_a_site_may_rely_on_is_there() -> None:
    """Written down once more: a name that goes breaks roles and scripts of sites."""
    names = {name if name.islower() else f"KADEPLOY_{name}" for name in PROMISED.split()}
    assert names <= {*variables.SCRIPTS, *variables.NODES, *variables.PROMISED}
    assert set(variables.PLAYS) >= variables.PROMISED


def test_every_playbook_and_every_role_is_told() -> None:
    page = reference.steps()
    assert {f"| `{path.stem}` |" for path in (ROOT / "playbooks").glob("[A-Z]*.yml")} <= set(
        re.findall(r"^\| `\w+` \|", page, re.M)
    )
    assert {path.name for path in (ROOT / "roles").iterdir()} <= set(re.findall(r"^### (\w+)$", page, re.MULTILINE))


def test_a_conditional_micro_step_is_in_parentheses_and_only_it() -> None:
    row = next(line for line in reference.steps().splitlines() if line.startswith("| `SetDeploymentEnvUntrusted` |"))
    assert "`reboot`, `wait_reboot`, (`send_key_in_deploy_env`), (`create_partition_table`)" in row
    register = playbooks.micro_steps(ROOT / "playbooks" / "SetDeploymentEnvUntrusted.yml", reference.NOWHERE)
    assert re.findall(r"`(\w+)`", row)[1:] == list(register)


def test_every_table_and_every_column_is_told() -> None:
    page = reference.database()
    for kind in tables.TABLES:
        [section] = re.findall(rf"^## {kind._meta.table_name}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        told = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert told == [field.column_name for field in kind._meta.sorted_fields]


def test_every_refusal_is_told_with_its_statuses() -> None:
    kinds = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, KadeployError)}
    rows = dict(re.findall(r"^\| `(\w+Error)` \| (.*) \|$", reference.statuses(), re.MULTILINE))
    assert set(rows) == {kind.__name__ for kind in kinds}
    assert rows["NodeHeldError"].endswith("| `1` | `409`")
    assert rows["BrokenOffError"].endswith("| `4` | `400`")


def test_the_messages_are_those_of_the_source_with_dots_for_what_is_only_known_then() -> None:
    page = reference.messages()
    assert "Unknown implementation …; there are: … |" in page
    sections = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    assert {"ConfigError", "OptionError", "FileError", "RightsError"} <= set(sections)


def test_lines_and_yaml_of_a_description_lead_to_the_same_environment() -> None:
    fields = set(Environment.__struct_fields__)
    assert set(lines.KEYS.values()) <= fields
    assert {"name", "image", "boot", "os"} <= {key.name for key in commented.keys(document.FORM)}
