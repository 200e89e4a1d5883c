"""Configuration files: what is read, and refusals that name the file, the key and what was expected."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kadeploy.config import cluster as cluster_module
from kadeploy.config import hardware, partition, service, site
from kadeploy.config.cluster import Disk
from kadeploy.config.file import Struct
from kadeploy.config.folder import Configuration, load_configuration, load_site
from kadeploy.config.partition import Partition
from kadeploy.errors import ConfigError, NodeListError
from tests.unit import build

SITE: dict[str, Any] = {
    "name": "lab",
    "state_dir": "/var/lib/kadeploy",
    "server_address": "10.0.0.1",
    "ssh": {"private_key": "/keys/id", "host_key": build.HOST_KEY},
    "boot": {"tftp_root": "/tftp", "http_root": "/http", "http_url": "http://10.0.0.1/"},
}
LOGIN = {"user": "admin", "password_file": "bmc"}
CLUSTER: dict[str, Any] = {
    "nodes": [{"name": "gdx-[1-3].site", "address": "10.0.1.[1-3]"}],
    "disk": {"device": "/dev/sda", "partitions": [{"number": 3, "role": "deploy"}]},
    "power": {"driver": "ipmi", "address": "10.0.2.[1-3]", **LOGIN},
}


def folder(tmp_path: Path, site: dict[str, Any] = SITE, **clusters: dict[str, Any]) -> Path:
    (tmp_path / "clusters").mkdir()
    (tmp_path / "site.yml").write_text(yaml.safe_dump(site))
    for name, cluster in (clusters or {"gdx": CLUSTER}).items():
        (tmp_path / "clusters" / f"{name}.yml").write_text(yaml.safe_dump(cluster))
    return tmp_path


def test_names_addresses_and_bmcs_are_paired_in_order(tmp_path: Path) -> None:
    members = load_configuration(folder(tmp_path)).clusters["gdx"].members
    assert [(node.name, node.address, node.bmc) for node in members.values()] == [
        ("gdx-1.site", "10.0.1.1", "10.0.2.1"),
        ("gdx-2.site", "10.0.1.2", "10.0.2.2"),
        ("gdx-3.site", "10.0.1.3", "10.0.2.3"),
    ]


def test_redfish_urls_are_expanded_per_node(tmp_path: Path) -> None:
    power = {"driver": "redfish", "address": "https://bmc-[1-3].site:8443/redfish"}
    members = load_configuration(folder(tmp_path, gdx={**CLUSTER, "power": power})).clusters["gdx"].members
    assert members["gdx-2.site"].bmc == "https://bmc-2.site:8443/redfish"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 3}, ["site.yml:5: name: 3 is a number", "expected text"]),
        ({"sshh": {}}, ["site.yml", "sshh"]),
        ({"windows": {"reboot": "many"}}, ["site.yml", "windows.reboot: many is text; expected a whole number"]),
        ({"rights": "none"}, ["site.yml", "rights: unknown word none; expected one of db, dummy."]),
    ],
)
def test_a_wrong_site_key_is_refused_by_file_key_and_expectation(
    tmp_path: Path, change: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_configuration(folder(tmp_path, {**SITE, **change}))
    assert all(word in str(refusal.value) for word in said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nodes": [{"name": "n-[1-3]", "address": "10.0.0.[1-2]"}]}, "2 values for 3 nodes"),
        ({"nodes": [{"name": "n-[3-1]"}]}, "nodes"),
        ({"disk": {"partitions": []}}, "role 'deploy'"),
        (
            {"disk": {"partitions": [{"number": "three"}]}},
            "disk.partitions[0].number: three is text; expected a whole number of at least 1.",
        ),
        ({"macro_steps": {"BroadcastEnv": []}}, "SetDeploymentEnv"),
    ],
)
def test_a_wrong_cluster_key_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_configuration(folder(tmp_path, gdx={**CLUSTER, **change})).require_sound()
    assert "gdx.yml" in str(refusal.value)
    assert said in str(refusal.value)


UNKNOWN: dict[str, Any] = {
    "macro_steps": {
        "SetDeploymentEnv": [{"implementation": "SetDeploymentEnvUntrusted"}],
        "BroadcastEnv": [{"implementation": "BroadcastEnvChian"}],
        "BootNewEnv": [{"implementation": "BootNewEnvClassical"}],
    }
}


def test_a_mistake_of_one_cluster_stops_no_other_where_its_machines_are_known(tmp_path: Path) -> None:
    where = folder(tmp_path, a=CLUSTER, b={**OTHER, **UNKNOWN})
    found = load_configuration(where)
    assert list(found.faults) == ["b"]
    assert list(found.cluster_of) == ["gdx-1.site", "gdx-2.site", "gdx-3.site", "b-1", "b-2"]
    found.require_sound(["a"])
    for asked in (["a", "b"], None):
        with pytest.raises(ConfigError) as refusal:
            found.require_sound(asked)
        first, last = str(refusal.value).splitlines()
        assert first.startswith(f"{where}/clusters/b.yml:")
        assert "unknown implementation BroadcastEnvChian" in first
        assert first.endswith("Did you mean BroadcastEnvChain?")
        assert last == "Nothing is done with b until this is corrected."


def test_work_for_workers_that_the_site_does_not_have_is_a_mistake_of_its_cluster_alone(tmp_path: Path) -> None:
    where = folder(tmp_path, a=CLUSTER, b={**OTHER, "workers": "only"})
    found = load_configuration(where)
    assert list(found.faults) == ["b"]
    assert "workers: only is given" in found.faults["b"]
    assert "service.workers in site.yml" in found.faults["b"]
    with (where / "site.yml").open("a") as file:
        file.write("\nservice: {workers: {users: [worker]}}\n")
    assert load_configuration(where).faults == {}


@pytest.mark.parametrize("users", ["[]", "worker", "['two words']"])
def test_who_may_work_is_a_list_of_accounts(tmp_path: Path, users: str) -> None:
    where = folder(tmp_path, a=CLUSTER)
    with (where / "site.yml").open("a") as file:
        file.write(f"\nservice: {{workers: {{users: {users}}}}}\n")
    with pytest.raises(ConfigError, match=r"service\.workers\.users"):
        load_configuration(where)


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": [{"name": "b-[1-2]", "address": "10.0.9.[1-3]"}]},
        {"nodes": [{"name": "b-[1-2]", "address": "10.0.9.[1-2]", "mac": "52-54-00-00-00-00"}]},
        {"power": {"driver": "ipmi", "address": "10.0.8.[1-2].x y", **LOGIN}},
        {"name": "two words"},
        {"nodess": []},
        {"disk": "none"},
    ],
)
def test_a_mistake_that_leaves_it_open_which_machines_a_cluster_has_stops_all(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"b\.yml:\d+: "):
        load_configuration(folder(tmp_path, a=CLUSTER, b={**OTHER, **UNKNOWN, **change}))


def test_a_cluster_that_calls_itself_other_than_its_file_is_told_by_the_file(tmp_path: Path) -> None:
    found = load_configuration(folder(tmp_path, a=CLUSTER, b={**OTHER, "name": "other"}))
    assert {name: cluster.file for name, cluster in found.clusters.items()} == {
        "a": "clusters/a.yml",
        "other": "clusters/b.yml",
    }


def test_a_machine_of_two_clusters_is_seen_though_one_of_them_has_a_mistake(tmp_path: Path) -> None:
    twice = {**OTHER, **UNKNOWN, "nodes": [{"name": "b-[1-2]", "address": "10.0.1.[1-2]"}]}
    with pytest.raises(ConfigError, match=r"b-1 has the address 10\.0\.1\.1 of gdx-1\.site"):
        load_configuration(folder(tmp_path, a=CLUSTER, b=twice))


def test_a_node_belongs_to_one_cluster_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gdx-1\.site belongs to cluster a already"):
        load_configuration(folder(tmp_path, a=CLUSTER, b=CLUSTER))


OTHER: dict[str, Any] = {
    **CLUSTER,
    "nodes": [{"name": "b-[1-2]", "address": "10.0.9.[1-2]", "mac": "52-54-00-00-00-0[1-2]"}],
    "power": {"driver": "ipmi", "address": "10.0.8.[1-2]", **LOGIN},
}


def ranges(*nodes: tuple[str, dict[str, str]]) -> dict[str, Any]:
    """Nodes with what is known of each, without BMCs."""
    return {"nodes": [{"name": name, **known} for name, known in nodes], "power": {}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (ranges(("GDX-2.SITE", {})), r"GDX-2\.SITE belongs to cluster a already"),
        (
            {"nodes": [{"name": "b", "address": "10.0.1.2"}], "power": {}},
            r"b has the address 10\.0\.1\.2 of gdx-2\.site",
        ),
        (
            {"power": {"driver": "ipmi", "address": "10.0.2.[3-4]", **LOGIN}},
            r"b-1 has the BMC 10\.0\.2\.3 of gdx-3\.site",
        ),
        (
            {"power": {"driver": "redfish", "address": "https://10.0.2.[3-4]/"}},
            r"b-1 has the BMC https://10\.0\.2\.3/ of gdx-3\.site",
        ),
        (ranges(("b", {}), ("c", {"address": "B"})), "c has the address B of b"),
        (
            ranges(("b", {"address": "10.0.9.1"}), ("c", {"address": "10.0.9.1"})),
            r"c has the address 10\.0\.9\.1 of b \(cluster b\)",
        ),
        (
            {
                "nodes": [{"name": "b", "mac": "aa:bb:cc:00:00:01"}, {"name": "c", "mac": "AA-BB-CC-00-00-01"}],
                "power": {},
            },
            r"c has the MAC address AA-BB-CC-00-00-01 of b",
        ),
        (
            ranges(("b", {"address": "fe80::0:1"}), ("c", {"address": "FE80::1"})),
            r"c has the address FE80::1 of b",
        ),
        (ranges(("b", {}), ("b", {})), "b is listed twice"),
    ],
)
def test_two_nodes_that_would_be_one_machine_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refusal:
        load_configuration(folder(tmp_path, a=CLUSTER, b={**OTHER, **change}))
    assert "b.yml" in str(refusal.value)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"power": {"driver": "ipmi", "address": "10.0.2.[1-2]", "port": 1623, **LOGIN}},
        {"power": {"driver": "redfish", "address": "https://10.0.2.[1-2]:8443"}},
        {"power": {"driver": "redfish", "address": "https://10.0.2.[1-2]/redfish/v1/Systems/2"}},
        {"power": {"driver": "command", "address": "10.0.2.[1-2]", "commands": {"status": "ask HOSTNAME_FQDN"}}},
    ],
    ids=[
        "nothing in common",
        "other ports",
        "another web server",
        "other systems of a chassis",
        "a command that knows machines by other names",
    ],
)
def test_machines_that_can_be_told_apart_are_accepted(tmp_path: Path, change: dict[str, Any]) -> None:
    assert len(load_configuration(folder(tmp_path, a=CLUSTER, b={**OTHER, **change})).cluster_of) == 5


def test_addresses_that_are_not_used_may_be_the_same(tmp_path: Path) -> None:
    site = {**SITE, "use_address": False}
    nodes = ranges(("b", {"address": "10.0.1.2"}))
    assert load_configuration(folder(tmp_path, site, a=CLUSTER, b={**OTHER, **nodes})).cluster_of["b"] == "b"


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site\.yml.*KADEPLOY_CONFIG_DIR"):
        load_site(tmp_path)
    (tmp_path / "site.yml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_site(tmp_path)


def test_yaml_cannot_make_python_objects(tmp_path: Path) -> None:
    (tmp_path / "site.yml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError):
        load_site(tmp_path)


def test_nodes_are_grouped_by_cluster_and_unknown_ones_are_named(tmp_path: Path) -> None:
    other = {**CLUSTER, "nodes": [{"name": "b-1"}], "power": {}}
    found = load_configuration(folder(tmp_path, a=CLUSTER, b=other))
    assert found.cluster_nodes(["b-1", "gdx-2.site"]) == {"b": ["b-1"], "a": ["gdx-2.site"]}
    with pytest.raises(NodeListError, match="nobody"):
        found.cluster_nodes(["gdx-2.site", "nobody"])


def test_a_layout_knows_its_partitions_by_role() -> None:
    disk = Disk(partitions=(Partition(number=1, role="swap"), Partition(number=3, role="deploy")))
    assert (disk.number("swap"), disk.number("deploy"), disk.number("tmp")) == (1, 3, None)


MODULES = (cluster_module, hardware, partition, service, site)
STRUCTS = [
    kind
    for module in MODULES
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Struct) and kind not in (Struct, Configuration)
]


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_every_key_is_in_the_documentation(kind: type[Struct]) -> None:
    text = (Path(__file__).parents[3] / "docs/configuration.md").read_text()
    assert [name for name in kind.__struct_fields__ if name not in text] == []


# --- as root --------------------------------------------------------------------------------------------------------

NOBODY = 65534


def somebody_elses(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


def writable(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is called with sudo")
def test_variables_that_the_configuration_names_count_though_sudo_has_passed_them_on(tmp_path: Path) -> None:
    power = {"driver": "ipmi", "user": "admin", "password_env": "BMC_PASSWORD"}
    where = folder(tmp_path, {**SITE, "kept_variables": ["http_proxy"]}, gdx={**CLUSTER, "power": power})
    code = (
        "import os\nfrom kadeploy.caller import shed_environment\n"
        "from kadeploy.config.folder import load_configuration\n"
        "shed_environment(); load_configuration()\n"
        "print(*map(os.environ.get, ('http_proxy', 'BMC_PASSWORD', 'https_proxy')))"
    )
    given = dict.fromkeys(("http_proxy", "BMC_PASSWORD", "https_proxy"), "given")
    variables = os.environ | given | {"SUDO_UID": "65534", "KADEPLOY_CONFIG_DIR": str(where)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "given given None\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="it is root who must not believe others")
@pytest.mark.parametrize("change", [somebody_elses, writable])
@pytest.mark.parametrize("what", [".", "..", "site.yml", "clusters", "clusters/gdx.yml", "roles/mine/files/run.sh"])
def test_root_refuses_a_named_folder_that_others_could_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, change: Callable[[Path], None]
) -> None:
    (tmp_path / "eve").mkdir()
    (tmp_path / "eve" / "site").mkdir()
    where = folder(tmp_path / "eve" / "site")
    (where / "roles/mine/files").mkdir(parents=True)
    (where / "roles/mine/files/run.sh").touch()
    monkeypatch.setenv("KADEPLOY_CONFIG_DIR", str(where))
    assert load_configuration().site.name == "lab"
    change(where / what)
    for load in (load_configuration, load_site):
        with pytest.raises(ConfigError, match="could be changed by others than root"):
            load()


@pytest.mark.skipif(os.geteuid() != 0, reason="it is root who must not believe others")
def test_root_follows_a_link_once_and_looks_at_what_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    somebody_elses(folder(tmp_path / "site"))
    (tmp_path / "link").symlink_to("site")
    monkeypatch.setenv("KADEPLOY_CONFIG_DIR", str(tmp_path / "link"))
    with pytest.raises(ConfigError, match=f"{tmp_path}/site could be changed"):
        load_site()
