"""What Ansible shows of our actions is what they take."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
ACTIONS = sorted(path.stem for path in (ROOT / "plugins" / "action").glob("*.py"))


def documents(action: str) -> dict[str, str]:
    """The texts of the document of an action, by their names."""
    found: dict[str, str] = {}
    exec((ROOT / "plugins" / "modules" / f"{action}.py").read_text(encoding="utf-8"), found)
    return found


def plain(option: dict[str, Any]) -> dict[str, Any]:
    """An option without its descriptions, in the words of an argument specification."""
    kept = {name: value for name, value in option.items() if name not in ("description", "suboptions")}
    inner = option.get("suboptions")
    return kept | ({"options": {name: plain(each) for name, each in inner.items()}} if inner else {})


@pytest.mark.parametrize("action", ACTIONS)
def test_the_document_of_an_action_has_the_arguments_that_it_takes(action: str) -> None:
    told = yaml.safe_load(documents(action)["DOCUMENTATION"])
    assert told["module"] == action
    arguments = getattr(import_module(f"kadeploy.microsteps.{action}"), "ARGUMENTS", {})
    arguments = {name: {key: option[key] for key in option.keys() - {"no_log"}} for name, option in arguments.items()}
    assert {name: plain(option) for name, option in told.get("options", {}).items()} == arguments


@pytest.mark.parametrize("action", ACTIONS)
def test_the_examples_of_an_action_use_it_by_its_full_name(action: str) -> None:
    tasks = yaml.safe_load(documents(action)["EXAMPLES"])
    assert any(f"kadeploy.core.{action}" in task for task in tasks)


def test_a_checkout_and_the_collection_have_one_inventory_plugin() -> None:
    (plugin,) = (ROOT / "inventory_plugins").glob("*.py")
    assert plugin.resolve() == ROOT / "plugins" / "inventory" / plugin.name
