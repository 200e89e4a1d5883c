"""The collection kadeploy.core, of a checkout, of the wheel and of Galaxy's artifact: one and the same, and sound."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
import yaml

from kadeploy import __version__
from kadeploy.runner import request
from tests.packaging.test_wheel import ROOT, checkout, installed, run
from tests.unit import build

__all__ = ["installed"]
pytestmark = pytest.mark.timeout(1800)

PLACE = Path("ansible_collections/kadeploy/core")
OWN = {"wheel": {"galaxy.yml"}, "artifact": {"MANIFEST.json", "FILES.json"}}
"""What each has by which Ansible knows its version."""
SANITY = (
    "action-plugin-docs",
    "compile",
    "empty-init",
    "ignores",
    "line-endings",
    "no-assert",
    "no-get-exception",
    "no-illegal-filenames",
    "no-smart-quotes",
    "replace-urlopen",
    "shebang",
    "shellcheck",
    "symlinks",
    "use-argspec-type-path",
    "use-compat-six",
)
"""Tests of ansible-test that need nothing from elsewhere."""
TEMPLATE = "{{ lookup('pipe', 'touch evaluated') }}"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``ansible-galaxy collection build`` makes of the checkout."""
    folder = tmp_path_factory.mktemp("artifact")
    run(
        folder,
        tool("ansible-galaxy"),
        "collection",
        "build",
        "--output-path",
        str(folder),
        str(checkout(tmp_path_factory)),
    )
    (path,) = folder.glob("kadeploy-core-*.tar.gz")
    return path


@pytest.fixture(scope="module")
def unpacked(artifact: Path) -> Path:
    """The artifact as a collection below ``ansible_collections``."""
    (artifact.parent / PLACE).mkdir(parents=True)
    subprocess.run(["tar", "-xzf", artifact, "-C", artifact.parent / PLACE], check=True)
    return artifact.parent / PLACE


@pytest.fixture(scope="module")
def bare(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with Ansible, and without our package and its collection."""
    folder = tmp_path_factory.mktemp("bare")
    run(installed, sys.executable, "-m", "venv", "--without-pip", str(folder))
    (theirs,) = (installed.parent / "lib").glob("*/site-packages")
    (ours,) = (folder / "lib").glob("*/site-packages")
    for each in theirs.iterdir():
        if not each.name.startswith(("kadeploy", "ansible_collections")):
            (ours / each.name).symlink_to(each)
    return folder / "bin"


def tool(name: str) -> str:
    """A program of the environment in which the tests run."""
    return str(Path(sys.executable).with_name(name))


def contents(collection: Path) -> dict[str, bytes]:
    """What each file of a collection holds, by its path."""
    files = (path for path in collection.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(collection)): path.read_bytes() for path in files}


def of_wheel(bin_folder: Path) -> Path:
    (place,) = (bin_folder.parent / "lib").glob(f"*/site-packages/{PLACE}")
    return place


def attempt(folder: Path) -> Path:
    """A request whose user has written a template."""
    (folder / "run").mkdir()
    return request.write(build.request(folder / "run", environment=build.environment(kernel_params=TEMPLATE)))


def ansible(
    bin_folder: Path, home: Path, program: str, *words: str | Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run Ansible in an empty folder, without any configuration."""
    empty = home / "empty"
    empty.mkdir(exist_ok=True)
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "ANSIBLE_NOCOLOR": "1", **more}
    command = [bin_folder / "python", "-m", "ansible", program, *words]
    return subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True, check=False)


def install(bin_folder: Path, artifact: Path, home: Path) -> Path:
    """Install the artifact as the user of *home* does, who has the wheel already or not; the collection."""
    done = ansible(bin_folder, home, "galaxy", "collection", "install", "--offline", "--force", artifact)
    assert "kadeploy.core:" in done.stdout, done.stdout + done.stderr
    assert (home / ".ansible/collections" / PLACE / "MANIFEST.json").exists()
    return home / ".ansible/collections" / PLACE


# --- one tree ---------------------------------------------------------------------------------------------------------


def test_the_wheel_and_the_artifact_hold_the_same_files(installed: Path, unpacked: Path) -> None:
    wheel, built = contents(of_wheel(installed)), contents(unpacked)
    assert set(wheel) - OWN["wheel"] == set(built) - OWN["artifact"]
    assert {name for name in set(wheel) & set(built) if wheel[name] != built[name]} == set()


def test_the_artifact_holds_nothing_else_of_the_checkout(unpacked: Path) -> None:
    found = {path.name for path in unpacked.iterdir()} - OWN["artifact"]
    folders = {"meta", "playbooks", "plugins", "roles", "templates"}
    assert found == folders | {"CHANGELOG.md", "LICENSE", "README.md"}


def test_no_plugin_is_a_link_which_documentation_takes_for_another_name_of_it(unpacked: Path) -> None:
    assert [path for path in unpacked.glob("plugins/**/*") if path.is_symlink()] == []


def test_all_that_tells_a_version_tells_the_same(installed: Path, unpacked: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    manifest = json.loads((unpacked / "MANIFEST.json").read_text())["collection_info"]
    required = (unpacked / "meta" / "requirements.txt").read_text().strip()
    galaxy = yaml.safe_load((of_wheel(installed) / "galaxy.yml").read_text())
    assert {project["version"], manifest["version"], galaxy["version"]} == {__version__}
    assert required == f"kadeploy=={__version__}"


# --- without any configuration ----------------------------------------------------------------------------------------


@pytest.fixture(params=["wheel", "artifact"])
def home(request: pytest.FixtureRequest, installed: Path, artifact: Path, tmp_path: Path) -> Path:
    """The home of a user who has the wheel, or the wheel and the artifact."""
    if request.param == "artifact":
        install(installed, artifact, tmp_path)
    return tmp_path


def collection_of(installed: Path, home: Path) -> Path:
    """The collection that this user's Ansible takes."""
    own = home / ".ansible/collections" / PLACE
    return own if own.exists() else of_wheel(installed)


def test_a_request_is_an_inventory_whose_user_texts_stay_texts(installed: Path, home: Path) -> None:
    done = ansible(installed, home, "inventory", "-i", attempt(home), "--list")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    shown = json.loads(done.stdout, object_hook=lambda item: item.get("__ansible_unsafe", item))
    assert shown["kadeploy_nodes"]["hosts"]
    for variables in shown["_meta"]["hostvars"].values():
        assert TEMPLATE in variables["kadeploy_env"]["KADEPLOY_ENV_KERNEL_PARAMS"]
    assert not list(home.rglob("evaluated"))


def test_a_playbook_is_found_by_its_name_and_plays_on_the_nodes(installed: Path, home: Path) -> None:
    source = attempt(home)
    words = ("-i", source, "kadeploy.core.BroadcastEnvChain", "--list-tasks", "--list-hosts")
    done = ansible(installed, home, "playbook", *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"playbook: {collection_of(installed, home)}/playbooks/BroadcastEnvChain.yml" in done.stdout
    assert all(node.name in done.stdout for node in request.read(source).nodes)
    assert "kadeploy.core.sync : Write everything to the disks" in done.stdout


def test_a_file_of_before_that_names_no_plugin_is_read_where_the_plugin_is_enabled(installed: Path, home: Path) -> None:
    source = attempt(home)
    source.write_text(source.read_text().split("\n", 1)[1])
    enabled = {"ANSIBLE_INVENTORY_ENABLED": "kadeploy.core.kadeploy"}
    done = ansible(installed, home, "inventory", "-i", source, "--graph", **enabled)
    assert "@kadeploy_nodes" in done.stdout, done.stderr


def test_ansible_doc_tells_of_every_action_every_role_and_the_inventory(installed: Path, home: Path) -> None:
    listed = partial(ansible, installed, home, "doc", "--json")
    collection = collection_of(installed, home)
    actions = [f"kadeploy.core.{path.stem}" for path in (collection / "plugins/action").glob("*.py")]
    modules = json.loads(listed("--type", "module", *actions).stdout)
    assert all(modules[name]["doc"]["filename"].startswith(str(collection)) for name in actions)
    roles = {f"kadeploy.core.{path.name}" for path in (collection / "roles").iterdir()}
    shown = json.loads(listed("--type", "role", "--list", "kadeploy.core").stdout)
    assert roles <= set(shown)
    assert "kadeploy.core.kadeploy" in listed("--type", "inventory", "kadeploy.core.kadeploy").stdout


def test_the_tools_take_the_roles_of_their_own_wheel_whatever_else_is_installed(
    installed: Path, artifact: Path, tmp_path: Path
) -> None:
    other = install(installed, artifact, tmp_path)
    (other / "roles" / "dummy" / "tasks" / "main.yml").write_text("- name: Do mischief\n  ansible.builtin.meta: noop\n")
    script = (
        "import json, sys; from pathlib import Path; from kadeploy.runner import player, request;"
        "asked = request.read(Path(sys.argv[1]));"
        "print(json.dumps([player.environment(asked), str(player.find('BroadcastEnvDummy', Path('/none')))]))"
    )
    source = attempt(tmp_path)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    command = [installed / "python", "-c", script, source]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    settings, playbook = json.loads(told)
    Path(settings["ANSIBLE_CONFIG"]).touch()
    collections = {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path / ".ansible/collections")}
    words = ("-i", source, playbook, "--list-tasks")
    done = ansible(installed, tmp_path, "playbook", *words, **settings | collections)
    assert "Do nothing, to every node" in done.stdout, done.stderr
    assert "Do mischief" not in done.stdout


def test_an_artifact_of_another_version_is_told_and_works(installed: Path, artifact: Path, tmp_path: Path) -> None:
    manifest = install(installed, artifact, tmp_path) / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace(f'"version": "{__version__}"', '"version": "0.0.9"'))
    done = ansible(installed, tmp_path, "inventory", "-i", attempt(tmp_path), "--graph")
    assert done.returncode == 0
    assert "@kadeploy_nodes" in done.stdout
    assert "pip install kadeploy==0.0.9" in " ".join(done.stderr.split())


# --- the collection without the package -------------------------------------------------------------------------------


def test_a_request_without_the_package_is_refused_with_how_to_get_it(
    bare: Path, artifact: Path, tmp_path: Path
) -> None:
    install(bare, artifact, tmp_path)
    done = ansible(bare, tmp_path, "playbook", "-i", attempt(tmp_path), "kadeploy.core.BroadcastEnvChain")
    assert done.returncode != 0
    assert "pip install kadeploy" in done.stderr
    assert "PLAY" not in done.stdout


def test_an_action_without_the_package_says_how_to_get_it(bare: Path, artifact: Path, tmp_path: Path) -> None:
    install(bare, artifact, tmp_path)
    play = tmp_path / "play.yml"
    play.write_text("- hosts: localhost\n  gather_facts: false\n  tasks: [{kadeploy.core.on_nodes: {script: a}}]\n")
    done = ansible(bare, tmp_path, "playbook", "-i", "localhost,", play)
    assert done.returncode != 0
    assert "pip install kadeploy" in done.stderr
    assert "Traceback" not in done.stderr


# --- checked by the tools of others -----------------------------------------------------------------------------------


def check(folder: Path, *words: str, **more: str) -> str:
    """Output of a checker, which must be content; its programs are those of the tests' environment."""
    env = {"HOME": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LANG": "C.UTF-8"}
    done = subprocess.run(words, cwd=folder, env=env | more, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_document_is_sound(unpacked: Path) -> None:
    # Not that of the tests' environment, whose name may come before or after.
    only = {"ANSIBLE_COLLECTIONS_PATH": str(unpacked.parents[2]), "ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "false"}
    assert check(unpacked, tool("antsibull-docs"), "lint-collection-docs", "--plugin-docs", ".", **only) == ""


def test_galaxy_would_import_the_artifact(artifact: Path, tmp_path: Path) -> None:
    """Without its run of ansible-lint, which ``scripts/test`` does with the stricter settings of the checkout."""
    told = check(
        tmp_path,
        sys.executable,
        "-m",
        "galaxy_importer.main",
        str(artifact),
        GALAXY_IMPORTER_RUN_ANSIBLE_LINT="false",
    )
    lines = [line for line in told.splitlines() if line.startswith(("WARNING", "ERROR"))]
    assert set(lines) <= {"WARNING: Could not get role description, no role metadata found"}
    assert "Importer processing completed successfully" in told


def test_ansible_test_finds_nothing(unpacked: Path, tmp_path: Path) -> None:
    copy = tmp_path / PLACE
    shutil.copytree(unpacked, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "MANIFEST.json"))
    chosen = [word for name in SANITY for word in ("--test", name)]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    check(copy, tool("ansible-test"), "sanity", "--color", "no", "--python", version, *chosen)
