"""The wheel in an empty environment: every command, and the collection kadeploy.core beside Ansible."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.packaging.package import shared_folder

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1800)
"""The first test builds the wheel and installs all that it requires."""
COMMANDS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])


def checkout(factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout as it stands, without what git ignores."""
    folder = factory.getbasetemp() / "checkout"
    if not folder.exists():
        listed = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in listed.rstrip("\0").split("\0"):
            if os.path.lexists(ROOT / name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a virtual environment that holds the wheel and what it requires, nothing of the checkout.

    It is made once for all processes that test at a time, whichever modules want it, and nobody changes it.
    """
    with shared_folder(tmp_path_factory, "wheel") as folder:
        if not (folder / "done").exists():
            source = str(checkout(tmp_path_factory))
            run(folder, sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), source)
            run(folder, sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
            (wheel,) = folder.glob("*.whl")
            pip = [sys.executable, "-m", "pip", "--python", str(folder / "venv/bin/python"), "--quiet"]
            run(folder, *pip, "install", "--no-compile", str(wheel))
            (folder / "done").touch()
    return folder / "venv" / "bin"


def run(folder: Path, *words: str) -> str:
    """Output of a command that must succeed, run in *folder* without the checkout's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE", "PYTHON", "KADEPLOY"))}
    done = subprocess.run(words, cwd=folder, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_installed_and_answers(installed: Path, tmp_path: Path, command: str) -> None:
    assert "Usage" in run(tmp_path, str(installed / command), "--help")


def test_each_command_brings_its_manual_page(installed: Path) -> None:
    pages = installed.parent / "share" / "man" / "man1"
    assert {f"{command}.1" for command in COMMANDS} <= {page.name for page in pages.iterdir()}


def test_each_kind_of_file_has_its_manual_page(installed: Path) -> None:
    pages = installed.parent / "share" / "man" / "man5"
    assert {path.name for path in (ROOT / "docs" / "man5").iterdir()} <= {path.name for path in pages.iterdir()}


def test_what_surrounds_the_service_comes_with_it_and_programs_can_be_run(installed: Path) -> None:
    given = {path.relative_to(ROOT / "contrib"): path for path in (ROOT / "contrib").rglob("*") if path.is_file()}
    share = installed.parent / "share" / "kadeploy"
    assert {path.relative_to(share) for path in share.rglob("*") if path.is_file()} == set(given)
    for name, path in given.items():
        assert os.access(share / name, os.X_OK) == path.read_text().startswith("#!"), name


def test_ansible_finds_the_deployment_playbook_by_its_name(installed: Path, tmp_path: Path) -> None:
    listed = run(
        tmp_path, str(installed / "ansible-playbook"), "-i", "localhost,", "kadeploy.core.deploy", "--list-tasks"
    )
    assert listed.index("switch_pxe") < listed.index("send_environment") < listed.index("reboot_from_deploy_env")


def test_ansible_doc_explains_the_inventory_plugin(installed: Path, tmp_path: Path) -> None:
    assert "kadeploy.yml" in run(tmp_path, str(installed / "ansible-doc"), "-t", "inventory", "kadeploy.core.kadeploy")


def test_a_role_of_the_collection_can_be_imported(installed: Path, tmp_path: Path) -> None:
    playbook = tmp_path / "mine.yml"
    playbook.write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.import_role:\n        name: kadeploy.core.mount_deploy_part\n"
    )
    listed = run(tmp_path, str(installed / "ansible-playbook"), "-i", "localhost,", str(playbook), "--list-tasks")
    assert "Mount the deployment partition" in listed
