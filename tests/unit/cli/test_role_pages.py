"""The pages of roles are as they would be made, and what a role says of its variables is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kadeploy.cli import role_pages
from kadeploy.cli.reference import specification
from kadeploy.runner import variables

ROLES = role_pages.folders(Path(__file__).parents[3] / "roles")
MAKE = "run: python -m kadeploy.cli.role_pages roles"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_page_of_a_role_is_as_it_would_be_made(role: Path) -> None:
    assert (role / "README.md").read_text(encoding="utf-8") == role_pages.page(role), MAKE


def is_so(option: dict[str, Any], default: object) -> bool:
    """Whether an option is told as it is, which has this *default*."""
    found = re.fullmatch(r"\{\{ .+ \| default\((.+)\) \}\}", str(default))
    otherwise = found[1] if found else ""
    if option.get("required"):
        return otherwise == "omit" and "default" not in option
    return option["default"] == default or (otherwise != "" and option["default"] == yaml.safe_load(otherwise))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_role_tells_its_variables_with_meaning_type_and_the_default_that_they_have(role: Path) -> None:
    """What a request would tell has the default that counts without one, or is required."""
    options = specification(role)["options"]
    assert all(option["description"] and option["type"] for option in options.values())
    file = role / "defaults" / "main.yml"
    defaults = yaml.safe_load(file.read_text()) if file.exists() else {}
    own = {name: option for name, option in options.items() if not name.startswith("kadeploy_")}
    assert own.keys() == defaults.keys()
    wrong = {name: option for name, option in own.items() if not is_so(option, defaults[name])}
    assert wrong == {}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_variable_of_the_inventory_that_the_tasks_of_a_role_use_is_told(role: Path) -> None:
    told = specification(role)["options"]
    tasks = (role / "tasks" / "main.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"\bkadeploy_\w+", tasks))
    assert used & set(variables.PLAYS) <= set(told)


def test_pages_are_written_into_the_folders_of_roles(tmp_path: Path) -> None:
    meta = tmp_path / "sync" / "meta"
    meta.mkdir(parents=True)
    (meta / "argument_specs.yml").write_text(
        "argument_specs:\n  main:\n    short_description: Wash the nodes\n    description: [With V(soap).]\n"
        "    options:\n      soap: {description: Which one., type: str, required: true}\n"
    )
    assert role_pages.main([str(tmp_path)]) == 0
    written = (tmp_path / "sync" / "README.md").read_text()
    assert "Wash the nodes." in written
    assert "With soap." in written
    assert "| `soap` | Which one. | str | required |" in written
    assert role_pages.main([]) == 1
