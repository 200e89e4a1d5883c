"""The inventory plugin under the real tools: what users wrote stays text, wherever it is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kadeploy.config.cluster import NodeRange
from kadeploy.config.site import Ssh
from kadeploy.runner import request
from kadeploy.runner.request import Options
from tests.unit import build

pytestmark = pytest.mark.versions

ROOT = Path(__file__).resolve().parents[3]


def write(folder: Path, **changes: Any) -> Path:
    ssh = Ssh(private_key=f"{folder}/key", host_key=build.HOST_KEY, port=2222)
    cluster = build.cluster(nodes=(NodeRange(name="gdx-[1-2].site", address="127.0.0.[1-2]"),))
    return request.write(build.request(folder, site=build.site(folder, ssh=ssh), cluster=cluster, **changes))


def tool(folder: Path, name: str, *arguments: str | Path) -> str:
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_HOME": str(folder / "ansible")}
    command = [Path(sys.executable).with_name(name), *arguments]
    done = subprocess.run(command, env=env, cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def listed(folder: Path, source: Path) -> dict[str, Any]:
    """What ``ansible-inventory --list`` shows."""
    output = tool(folder, "ansible-inventory", "-i", source, "--list")
    shown: dict[str, Any] = json.loads(output, object_hook=lambda item: item.get("__ansible_unsafe", item))
    return shown


def test_nodes_are_in_their_groups_with_the_variables_to_reach_them(tmp_path: Path) -> None:
    source = write(tmp_path, environment=build.environment())
    shown = listed(tmp_path, source)
    names = ["gdx-1.site", "gdx-2.site"]
    assert {group: shown[group]["hosts"] for group in ("kadeploy_nodes", "cluster_gdx", "os_linux")} == {
        "kadeploy_nodes": names,
        "cluster_gdx": names,
        "os_linux": names,
    }
    variables = shown["_meta"]["hostvars"]["gdx-2.site"]
    assert (variables["ansible_host"], variables["ansible_port"]) == ("127.0.0.2", 2222)
    assert variables["kadeploy_request_file"] == str(source)
    assert variables["kadeploy_env"]["KADEPLOY_CLUSTER"] == "gdx"


def test_a_request_without_environment_has_no_group_of_systems(tmp_path: Path) -> None:
    shown = listed(tmp_path, write(tmp_path, operation="reboot"))
    assert not [group for group in shown if group.startswith("os_")]


HOSTILE = [
    "{{ lookup('pipe', 'touch FILE') }}",
    "{% for x in lookup('pipe', 'touch FILE') %}{% endfor %}",
    "$(touch FILE) `touch FILE` ; touch FILE",
    'it\'s "quoted" \\ and\n- more: [lines]\n',
    "!unsafe {{ x }}",
    "{#comment#} é",
]


def test_what_users_wrote_is_never_evaluated_and_arrives_as_it_was(tmp_path: Path) -> None:
    """Read by ansible-inventory, and used as a task's argument by ansible-playbook."""
    file = tmp_path / "evaluated"
    texts = {f"TEXT_{number}": text.replace("FILE", str(file)) for number, text in enumerate(HOSTILE)}
    together = "".join(texts.values())
    environment = build.environment(kernel_params=together, custom_variables=texts)
    source = write(tmp_path, environment=environment, options=Options(authorized_keys=together))
    seen = listed(tmp_path, source)["_meta"]["hostvars"]["gdx-1.site"]["kadeploy_env"]
    assert {name: seen[f"KADEPLOY_{name}"] for name in texts} == texts
    assert seen["KADEPLOY_AUTHORIZED_KEYS"] == together
    assert seen["KADEPLOY_ENV_KERNEL_PARAMS"] == together.strip()
    copy = {"content": "{{ kadeploy_env['KADEPLOY_' ~ item] }}", "dest": f"{tmp_path}/{{{{ item }}}}"}
    local = {"connection": "local", "run_once": True, "vars": {"ansible_python_interpreter": sys.executable}}
    task = {"ansible.builtin.copy": copy, "loop": [*texts, "AUTHORIZED_KEYS"], **local}
    play = {"hosts": "kadeploy_nodes", "gather_facts": False, "tasks": [task]}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    tool(tmp_path, "ansible-playbook", "-i", source, tmp_path / "play.yml")
    for name, text in (texts | {"AUTHORIZED_KEYS": together}).items():
        assert (tmp_path / name).read_text() == text
    assert not file.exists()


def test_other_files_are_left_to_other_plugins(tmp_path: Path) -> None:
    other = tmp_path / "inventory.yml"
    other.write_text("all: {hosts: {somebody: }}\n")
    assert "somebody" in listed(tmp_path, other)["ungrouped"]["hosts"]


def test_a_file_that_is_no_request_ends_ansible_before_another_plugin_reads_it(tmp_path: Path) -> None:
    """Ansible's own YAML plugin would make templates of its texts; the message names the key that is wrong."""
    file = tmp_path / "evaluated"
    variables = {"x": f"{{{{ lookup('pipe', 'touch {file}') }}}}"}
    source = write(tmp_path)
    source.write_text(source.read_text() + yaml.safe_dump({"all": {"hosts": {"gdx-1": variables}}}))
    with pytest.raises(AssertionError, match="unknown field `all`"):
        tool(tmp_path, "ansible-playbook", "-i", source, _playbook(tmp_path))
    assert not file.exists()


def _playbook(folder: Path) -> Path:
    path = folder / "play.yml"
    path.write_text("- {hosts: all, gather_facts: false, tasks: [{debug: {var: x}}]}\n")
    return path


def test_the_plugin_is_documented(tmp_path: Path) -> None:
    shown = tool(tmp_path, "ansible-doc", "-t", "inventory", "kadeploy")
    assert "*.kadeploy.yml" in shown
    assert "ansible-inventory" in shown
