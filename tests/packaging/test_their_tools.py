"""Tools of Ansible people that know nothing of ours: what a step by hand tells in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.playbook_lab import Lab

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]
pytestmark = pytest.mark.timeout(1800)

NODE_2_FAILS = 'case $SSH_CONNECTION in *127.9.0.2*) echo "no space" >&2; exit 3;; esac'
REASON = "SetDeploymentEnvTest-format: no space"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with their packages, beside those that we need."""
    folder = tmp_path_factory.mktemp("theirs")
    words = ["-m", "pip", "install", "--quiet", "--no-compile", "--target", folder, "ara[server]", "ansible-navigator"]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return folder


@pytest.fixture
def lab(tmp_path: Path, nodes: Nodes) -> Lab:
    made = Lab(tmp_path, nodes)
    made.role("format", NODE_2_FAILS)
    return made


def test_ara_has_each_node_and_why_one_is_ko(lab: Lab, theirs: Path) -> None:
    settings = {
        "PYTHONPATH": f"{theirs}:{os.environ.get('PYTHONPATH', '')}",
        "ARA_BASE_DIR": str(lab.folder / "ara"),
        "ARA_API_CLIENT": "offline",
    }
    status, output = lab.run(**settings, ANSIBLE_CALLBACK_PLUGINS=str(theirs / "ara/plugins/callback"))
    assert status == 2, output

    def listed(*words: str) -> Any:
        command = [sys.executable, "-c", "from ara.cli.base import main; main()", *words, "-f", "json"]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    failures = {each["name"]: each["failed"] for each in listed("host", "list")}
    assert failures == {"node-1": 0, "node-2": 1, "node-3": 0, "localhost": 0}
    (failed,) = listed("result", "list", "--status", "failed")
    shown = listed("result", "show", str(failed["id"]), "--with-content")
    assert REASON in json.dumps(shown)


def test_ansible_navigator_shows_the_reason_and_ends_with_the_status(lab: Lab, theirs: Path) -> None:
    lab.tool = [sys.executable, "-m", "ansible_navigator", "run"]
    settings = {
        "PYTHONPATH": f"{theirs}:{os.environ.get('PYTHONPATH', '')}",
        "ANSIBLE_NAVIGATOR_LOG_FILE": str(lab.folder / "navigator.log"),
    }
    status, output = lab.run("--ee", "false", "--mode", "stdout", "--pae", "false", **settings)
    assert status != 0
    assert REASON in output, output
    assert "node-2                     : ok=" in output
