"""What a module's documents say of its options is what it takes: people read the one, Ansible checks by the other."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
MODULES = {path.stem: path for path in (ROOT / "plugins/modules").glob("kadeploy_*.py")}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As ``ansible-doc`` puts them together from modules and fragments."""
    folder = tmp_path_factory.mktemp("collections")
    (folder / "ansible_collections/kadeploy").mkdir(parents=True)
    (folder / "ansible_collections/kadeploy/core").symlink_to(ROOT)
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ansible-doc",
            "-t",
            "module",
            "-j",
            *(f"kadeploy.core.{each}" for each in MODULES),
        ],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.rsplit(".", 1)[1]: found for name, found in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_options_are_documented_as_they_are_taken(documents: dict[str, Any], name: str) -> None:
    keys = ("type", "elements", "choices", "required", "default")
    told = {
        option: {
            key: about[key] for key in keys if about.get(key) is not None and (key, about[key]) != ("required", False)
        }
        for option, about in documents[name]["doc"]["options"].items()
    }
    taken = {
        option: {key: value for key, value in about.items() if key != "no_log"}
        for option, about in argument_spec(MODULES[name]).items()
    }
    assert told == taken


def argument_spec(module: Path) -> dict[str, dict[str, Any]]:
    """What it gives ``AnsibleModule``."""
    (found,) = (
        word.value
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg == "argument_spec"
    )
    spec: dict[str, dict[str, Any]] = ast.literal_eval(found)
    return spec


def test_all_that_ask_a_site_share_one_group_of_defaults() -> None:
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())
    assert runtime["action_groups"] == {"all": sorted(MODULES)}
