"""Nodes as an inventory, by ``ansible-inventory`` in an empty folder without any configuration of Ansible."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kadeploy.caller import caller
from kadeploy.config.site import Site
from kadeploy.environments.environment import Environment
from kadeploy.errors import NodeListError, OptionError
from kadeploy.operations import hosts
from kadeploy.operations.local import Local
from kadeploy.state import database, nodes, quarantine, rights
from kadeploy.state.tables import Log
from tests.unit import build
from tests.unit.serving import service, way

__all__ = ["service", "way"]

ROOT = Path(__file__).resolve().parents[3]
NODE = "gdx-1.site"
END = 4_000_000_000
FAILED = {"wid": "D-1", "operation": "deploy", "user": "alice", "start": 1000, "success": False, "env": "tiny:3"}
PLUGIN = "plugin: kadeploy.core.kadeploy\n"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """What is asked is tested with other databases where it is answered."""
    return f"sqlite://{tmp_path}/site/state/kadeploy.db"


@pytest.fixture
def used(site: Site) -> Site:
    """Alice has deployed two nodes, one of which failed."""
    recorded(build.environment(name="tiny", version=3, user="root"), site)
    rights.add(site, "alice", [NODE], ["/dev/sda3"], until=END)
    return site


def recorded(environment: Environment, site: Site, user: str = "alice", error: str = "time-out") -> None:
    database.connect(site)
    nodes.set_state([NODE], "deploy_failed", environment, user, date=1000)
    nodes.set_state(["gdx-2.site"], "deployed", environment, user, date=1000)
    database.insert(Log, [FAILED | {"hostname": NODE, "error": error}])


@pytest.fixture
def stock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command of Ansible's in an empty folder, whose ``nodes.kadeploy.yml`` has *text*."""
    folder, collections = tmp_path / "empty", tmp_path / "collections"
    folder.mkdir()
    (collections / "ansible_collections" / "kadeploy").mkdir(parents=True)
    (collections / "ansible_collections" / "kadeploy" / "core").symlink_to(ROOT)
    for name in [name for name in os.environ if name.startswith("ANSIBLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", str(collections))
    monkeypatch.setenv("ANSIBLE_HOME", str(tmp_path / "ansible"))

    def run(text: str, name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        (folder / "nodes.kadeploy.yml").write_text(text, encoding="utf-8")
        command = [str(Path(sys.executable).with_name(name)), "-i", "nodes.kadeploy.yml", *arguments]
        return subprocess.run(
            command, cwd=folder, env=os.environ | variables, text=True, capture_output=True, check=False
        )

    return run


def listed(stock: Run, text: str = PLUGIN, **variables: str) -> dict[str, Any]:
    """What ``ansible-inventory --list`` shows."""
    done = stock(text, "ansible-inventory", "--list", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    shown: dict[str, Any] = json.loads(done.stdout, object_hook=lambda item: item.get("__ansible_unsafe", item))
    return shown


KNOWN = {
    "kadeploy_cluster": "gdx",
    "kadeploy_arch": "",
    "kadeploy_disk": "/dev/sda",
    "kadeploy_partition": "/dev/sda3",
    "kadeploy_state": "deploy_failed",
    "kadeploy_since": 1000,
    "kadeploy_user": "alice",
    "kadeploy_environment": "tiny",
    "kadeploy_environment_version": 3,
    "kadeploy_environment_owner": "root",
    "kadeploy_environment_arch": "",
    "kadeploy_rights": [{"user": "alice", "part": "/dev/sda3", "until": END}],
    "kadeploy_rights_end": END,
    "kadeploy_last": {
        "operation": "deploy",
        "success": False,
        "error": "time-out",
        "start": 1000,
        "user": "alice",
        "environment": "tiny:3",
        "workflow": "D-1",
    },
    "kadeploy_quarantine": {"reason": "", "since": None, "until": None, "by": ""},
}


def test_nodes_are_in_groups_with_all_that_is_known_of_them_by_service_and_by_database(
    used: Site, stock: Run, way: str
) -> None:
    """A service keeps addresses to itself, as it does towards the tools."""
    shown = listed(stock)
    groups = {name: each.get("hosts") for name, each in shown.items() if name not in ("_meta", "all")}
    names = [f"gdx-{rank}.site" for rank in range(1, 21)]
    assert groups == {
        "cluster_gdx": names,
        "cluster_nvm": [f"nvm-{rank}.site" for rank in range(1, 5)],
        "state_deploy_failed": [NODE],
        "state_deployed": ["gdx-2.site"],
        "environment_tiny": [NODE, "gdx-2.site"],
        "user_alice": [NODE, "gdx-2.site"],
    }
    address = {"ansible_host": "127.9.1.1"} if way == "process" else {}
    assert shown["_meta"]["hostvars"][NODE] == KNOWN | address


def test_nodes_in_quarantine_are_in_its_group_with_the_reason_and_the_end_of_it(
    used: Site, stock: Run, way: str
) -> None:
    quarantine.put(used, ["gdx-4.site"], "root", "{{ 7 * 7 }} disks", until=END)
    quarantine.put_by_rule(used, {"gdx-5.site": "3 of its last 4 deployments failed"})
    shown = listed(stock)
    assert shown["quarantine"]["hosts"] == ["gdx-4.site", "gdx-5.site"]
    four, five = (shown["_meta"]["hostvars"][f"gdx-{rank}.site"]["kadeploy_quarantine"] for rank in (4, 5))
    assert four.pop("since") == pytest.approx(time.time(), abs=120)
    assert four == {"reason": "{{ 7 * 7 }} disks", "until": END, "by": "root"}
    assert (five["reason"], five["until"], five["by"]) == ("3 of its last 4 deployments failed", None, "")
    assert "quarantine" not in listed(stock, PLUGIN + "group_by: [cluster]\n")


def test_others_than_administrators_see_their_own_rights_alone_even_where_more_was_kept(
    used: Site, stock: Run, tmp_path: Path
) -> None:
    kept = f"cache: true\ncache_plugin: jsonfile\ncache_connection: {tmp_path}/kept\n"
    assert listed(stock, PLUGIN + kept)["_meta"]["hostvars"][NODE]["kadeploy_rights"]
    of_nobody = listed(stock, PLUGIN + kept, SUDO_UID="65534")["_meta"]["hostvars"][NODE]
    assert (of_nobody["kadeploy_rights"], of_nobody["kadeploy_rights_end"]) == ([], None)


def test_what_is_kept_is_shown_until_the_cache_is_flushed(used: Site, stock: Run, tmp_path: Path) -> None:
    kept = f"nodes: {NODE}\ncache: true\ncache_plugin: jsonfile\ncache_connection: {tmp_path}/kept\n"
    first = listed(stock, PLUGIN + kept)
    nodes.set_state([NODE], "deployed", None, "bob")
    assert listed(stock, PLUGIN + kept) == first
    flushed = stock(PLUGIN + kept, "ansible-inventory", "--list", "--flush-cache")
    assert '"user_bob"' in flushed.stdout


def test_nodes_clusters_and_kinds_of_groups_can_be_chosen_and_the_configuration_named(
    used: Site, stock: Run, site_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KADEPLOY_CONFIG_DIR")
    wanted = f"config_dir: {site_folder}\nnodes: ['gdx-[1,3].site', nvm-1]\nclusters: [gdx]\ngroup_by: [user]\n"
    shown = listed(stock, PLUGIN + wanted)
    assert set(shown["_meta"]["hostvars"]) == {NODE, "gdx-3.site"}
    assert {name for name in shown if name.startswith(("cluster_", "state_", "user_"))} == {"user_alice"}


MINE = """\
nodes: gdx-[1-3].site
compose:
  where: kadeploy_cluster ~ ':' ~ kadeploy_partition
groups:
  failed: kadeploy_last.success == false
keyed_groups:
  - {key: kadeploy_environment ~ '_' ~ kadeploy_environment_version, prefix: image}
"""


def test_groups_and_variables_of_ones_own_are_made_of_what_is_known(used: Site, stock: Run) -> None:
    shown = listed(stock, PLUGIN + MINE)
    assert shown["failed"]["hosts"] == [NODE]
    assert shown["image_tiny_3"]["hosts"] == [NODE, "gdx-2.site"]
    assert shown["_meta"]["hostvars"]["gdx-3.site"]["where"] == "gdx:/dev/sda3"


def test_an_expression_that_fails_is_passed_over_unless_it_is_strict(used: Site, stock: Run) -> None:
    text = f"{PLUGIN}nodes: {NODE}\ncompose: {{where: nothing.at.all}}\n"
    assert "where" not in listed(stock, text)["_meta"]["hostvars"][NODE]
    done = stock(f"{text}strict: true\n", "ansible-inventory", "--list")
    assert f"Could not set where for host {NODE}" in " ".join(done.stderr.split())


def test_what_users_wrote_is_never_evaluated_however_it_is_used(used: Site, stock: Run, tmp_path: Path) -> None:
    """In host variables, in groups and variables made of them, kept in a cache or not, and as a task's argument."""
    file, kept = tmp_path / "evaluated", tmp_path / "kept"
    text = f"{{{{ lookup('pipe', 'touch {file}') }}}}"
    environment = build.environment(name=text, version=1, user=text, arch="x")
    recorded(environment, used, user=text, error=text)
    wanted = (
        f"{PLUGIN}nodes: {NODE}\ncompose: {{copied: kadeploy_environment, joined: kadeploy_user ~ ''}}\n"
        "groups: {odd: kadeploy_environment == kadeploy_user}\nkeyed_groups: [{key: kadeploy_environment_owner}]\n"
        f"cache: true\ncache_plugin: jsonfile\ncache_connection: {kept}\n"
    )
    play = tmp_path / "play.yml"
    copy = {"content": "{{ kadeploy_environment }}{{ kadeploy_last.error }}{{ joined }}", "dest": f"{tmp_path}/copy"}
    local = {"hosts": NODE, "gather_facts": False, "connection": "local"}
    variables = {"ansible_python_interpreter": sys.executable}
    play.write_text(yaml.safe_dump([local | {"vars": variables, "tasks": [{"ansible.builtin.copy": copy}]}]))
    for _ in ("asked", "kept"):
        shown = listed(stock, wanted)["_meta"]["hostvars"][NODE]
        names = ("kadeploy_environment", "kadeploy_user", "kadeploy_environment_owner", "copied", "joined")
        assert {shown[name] for name in names} | {shown["kadeploy_last"]["error"]} == {text}
        done = stock(wanted, "ansible-playbook", str(play))
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "copy").read_text() == 3 * text
    assert not file.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cluster: [gdx]", "cluster: there is no such option. Did you mean clusters?"),
        ("clusters: [gdxx]", "clusters: there is no cluster gdxx. The clusters are gdx, nvm. Did you mean gdx?"),
        ("nodes: gdx-99.site", "Unknown node: gdx-99.site."),
        ("server: nowhere", "nowhere: no such server."),
        ("config_dir: /nonexistent", "/nonexistent/site.yml"),
    ],
)
def test_what_cannot_be_asked_is_told_and_is_an_error_where_ansible_is_told_to_make_it_one(
    site: Site, stock: Run, text: str, said: str
) -> None:
    done = stock(f"{PLUGIN}{text}\n", "ansible-inventory", "--list", ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="true")
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())


def test_any_file_of_yaml_that_names_the_plugin_is_read_by_it(used: Site, stock: Run, tmp_path: Path) -> None:
    (tmp_path / "empty" / "site.yaml").write_text(
        f"---\n# ours\nplugin: 'kadeploy.core.kadeploy'  # yes\nnodes: {NODE}\n"
    )
    done = stock(PLUGIN + "nodes: gdx-2.site\n", "ansible-inventory", "-i", "site.yaml", "--graph")
    assert NODE in done.stdout
    assert "gdx-2.site" in done.stdout


# --- the documentation ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plugin() -> Any:
    """The plugin as a module."""
    spec = importlib.util.spec_from_file_location("documented", ROOT / "plugins" / "inventory" / "kadeploy.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documentation_names_every_variable_and_every_kind_of_group(plugin: Any) -> None:
    told = yaml.safe_load(plugin.DOCUMENTATION)
    assert {name for name in KNOWN if f"C({name})" not in told["notes"][0]} == set()
    assert told["options"]["group_by"]["choices"] == told["options"]["group_by"]["default"] == list(hosts.KINDS)


def test_the_examples_have_no_other_options_than_there_are(plugin: Any) -> None:
    fragments = {"strict", "compose", "groups", "keyed_groups", "cache", "cache_plugin", "cache_timeout"}
    known = {*yaml.safe_load(plugin.DOCUMENTATION)["options"], *fragments, "cache_connection"}
    examples = [each for each in yaml.safe_load_all(plugin.EXAMPLES) if "format" not in each]
    assert len(examples) == 4
    assert [set(each) - known for each in examples] == [set()] * 4


def test_the_example_of_groups_of_ones_own_is_read_as_it_stands(used: Site, stock: Run, plugin: Any) -> None:
    [text] = [each for each in plugin.EXAMPLES.split("---\n") if "keyed_groups" in each]
    shown = listed(stock, text)
    assert shown["image_tiny_3"]["hosts"] == [NODE, "gdx-2.site"]
    assert [name for name in shown if name.startswith("image_")] == ["image_tiny_3"]
    assert shown["last_deploy"]["hosts"] == [NODE]
    assert "gdx-2.site" in shown["last_none"]["hosts"]
    assert shown["failed"]["hosts"] == [NODE]


# --- without Ansible ------------------------------------------------------------------------------------------------


def test_the_end_of_rights_is_that_of_the_last_and_none_where_one_has_none(used: Site) -> None:
    rights.add(used, "alice", ["gdx-2.site"], ["*"], until=END + 1)
    rights.add(used, "alice", ["gdx-3.site"], ["*"])
    rights.add(used, "bob", ["gdx-2.site", "gdx-3.site"], ["/dev/sda3"], until=END)
    found = hosts.of(Local(caller()), ["gdx-[2-4].site"], [], pytest.fail)
    assert [each["kadeploy_rights_end"] for each in found.values()] == [END + 1, None, None]


def test_of_a_node_that_was_never_operated_on_only_its_machine_is_known(site: Site) -> None:
    [found] = hosts.of(Local(caller()), ["nvm-1.site"], [], pytest.fail).values()
    for name in ("kadeploy_last", "kadeploy_quarantine"):
        assert set(found.pop(name).values()) == {"", None}
    told = {name: value for name, value in found.items() if value not in ("", None, [])}
    assert told == {
        "ansible_host": "127.9.2.1",
        "kadeploy_cluster": "nvm",
        "kadeploy_disk": "/dev/nvme0n1",
        "kadeploy_partition": "/dev/nvme0n1p1",
    }


def test_unknown_nodes_and_clusters_are_refused(site: Site) -> None:
    configuration = Local(caller()).configuration
    with pytest.raises(NodeListError, match="Unknown node: gdx-99"):
        hosts.chosen(configuration, ["gdx-99.site"], [], 100)
    with pytest.raises(OptionError, match="there is no cluster gdy"):
        hosts.chosen(configuration, [], ["gdy"], 100)


def test_a_damaged_row_is_told_and_the_others_are_there(used: Site) -> None:
    database.connect(used).execute_sql("UPDATE nodes SET date = 'yesterday' WHERE hostname = 'gdx-2.site'")
    told: list[str] = []
    found = hosts.of(Local(caller()), [], [], told.append)
    assert found[NODE]["kadeploy_state"] == "deploy_failed"
    assert found["gdx-2.site"]["kadeploy_state"] == ""
    assert "date is 'yesterday'" in told[0]
