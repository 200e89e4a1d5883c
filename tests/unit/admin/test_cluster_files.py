"""Cluster files get what was found out of machines; comments, order and everything else stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kadeploy.admin import cluster_files, contradictions
from kadeploy.admin.edit import apply, with_items
from kadeploy.admin.hardware import Machine
from kadeploy.admin.sources.found import Entry
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.errors import ConfigError
from tests.unit.admin.sound_site import SoundSite
from tests.unit.admin.test_hardware import machine

HEAD = """\
# Bought in 2024.
nodes:
  # The first rack.
  - name: gdx-[1-3].site   # short ones
    address: 127.9.1.[1-3]
  - {name: gdx-4.site, address: 127.9.1.4, mac: 52-54-00-00-00-04}  # lent
"""


@pytest.fixture
def file(sound: SoundSite) -> Path:
    """A cluster file that somebody has written by hand."""
    path = sound.folder / "clusters/gdx.yml"
    data = yaml.safe_load(path.read_text())
    del data["nodes"]
    data.pop("name", None)
    path.write_text(HEAD + yaml.safe_dump(data) + "# The end.\n")
    return path


def said(file: Path, machines: dict[str, Machine]) -> str:
    """The file once it says what *machines* are; it is good."""
    configuration = load_configuration(file.parents[1])
    edits = cluster_files.with_machines(configuration, machines)
    apply(configuration.folder, edits)
    assert not cluster_files.with_machines(load_configuration(file.parents[1]), machines), "once more changes nothing"
    return file.read_text()


def members(file: Path) -> dict[str, Any]:
    configuration: Configuration = load_configuration(file.parents[1])
    return dict(configuration.clusters["gdx"].members)


def test_a_range_falls_apart_where_its_nodes_differ_and_comments_stay(file: Path) -> None:
    rest = file.read_text().removeprefix(HEAD)
    text = said(file, {f"gdx-{number}.site": machine(number) for number in (1, 3)})
    assert text.startswith(
        """\
# Bought in 2024.
nodes:
  # The first rack.
  - {name: gdx-1.site, address: 127.9.1.1, bmc: 10.0.3.1, mac: '52:54:00:00:00:01'}
  - {name: gdx-2.site, address: 127.9.1.2}
  - {name: gdx-3.site, address: 127.9.1.3, bmc: 10.0.3.3, mac: '52:54:00:00:00:03'}
  - {name: gdx-4.site, address: 127.9.1.4, mac: 52-54-00-00-00-04}  # lent
"""
        + rest.removesuffix("# The end.\n")
    )
    assert text.endswith("# The end.\n")


def test_what_is_known_is_kept_and_a_range_that_stays_one_keeps_its_form(file: Path) -> None:
    file.write_text(file.read_text().replace("[1-3]\n", "[1-3]\n    bmc: 10.0.9.[1-3]\n", 1))
    found = {f"gdx-{number}.site": machine(number, boot_mac="", cards=()) for number in (1, 2, 3)}
    text = said(file, {**found, "gdx-4.site": machine(4)})
    assert text.startswith(HEAD.split("  - {name", maxsplit=1)[0].rstrip() + "\n    bmc: 10.0.9.[1-3]\n")
    assert members(file)["gdx-4.site"].mac == "52-54-00-00-00-04", "it is the same one in another form"
    assert members(file)["gdx-4.site"].bmc == "10.0.3.4"


def test_a_range_that_falls_apart_takes_along_what_the_whole_cluster_said_of_its_bmcs(file: Path) -> None:
    data = yaml.safe_load(file.read_text())
    data["nodes"] = [{"name": "gdx-[1-2].site", "address": "127.9.1.[1-2]", "mac": "52-54-00-00-00-[01-02]"}]
    data["power"] = {"driver": "redfish", "address": "https://10.0.9.[1-2]"}
    file.write_text(yaml.safe_dump(data))
    said(file, {"gdx-1.site": machine(1), "gdx-2.site": machine(77)})
    assert [node.bmc for node in members(file).values()] == ["https://10.0.9.1", "https://10.0.9.2"]
    assert [node.mac for node in members(file).values()] == ["52-54-00-00-00-01", "52:54:00:00:00:4d"]


def test_an_item_that_stays_one_gets_its_keys_in_order_and_no_bmc_that_the_cluster_names_for_all(file: Path) -> None:
    rest = yaml.safe_dump({key: value for key, value in yaml.safe_load(file.read_text()).items() if key != "nodes"})
    node = "nodes:\n- name: gdx-1.site  # alone\n  address: 127.9.1.1\n"
    file.write_text(node + rest)
    text = said(file, {"gdx-1.site": machine(1)})
    assert text.startswith(node + "  bmc: 10.0.3.1\n  mac: '52:54:00:00:00:01'\n")
    data = yaml.safe_load(rest)
    file.write_text(node + yaml.safe_dump(data | {"power": data["power"] | {"address": "10.0.9.1"}}))
    text = said(file, {"gdx-1.site": machine(1)})
    assert text.startswith(node + "  mac: '52:54:00:00:00:01'\n")
    assert members(file)["gdx-1.site"].bmc == "10.0.9.1"


def test_bmcs_of_a_redfish_cluster_become_urls(file: Path) -> None:
    data = yaml.safe_load(file.read_text())
    data["nodes"] = [{"name": "gdx-[1-2].site", "address": "127.9.1.[1-2]"}, {"name": "x", "bmc": "https://10.0.9.1"}]
    data["power"] = {"driver": "redfish"}
    file.write_text(yaml.safe_dump(data))
    said(file, {"gdx-1.site": machine(1), "gdx-2.site": machine(2)})
    assert [node.bmc for node in members(file).values()] == [
        *(f"https://10.0.3.{n}" for n in (1, 2)),
        "https://10.0.9.1",
    ]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(1, 4), st.integers(1, 250), min_size=1))
def test_every_node_that_told_has_its_mac_address_afterwards(file: Path, found: dict[int, int]) -> None:
    before, text = members(file), file.read_text()
    macs = {f"gdx-{node}.site": f"52:54:00:00:{node:02x}:{number:02x}" for node, number in found.items()}
    said(file, {node: machine(boot_mac=mac, bmc="") for node, mac in macs.items()})
    after = members(file)
    assert {name: node.mac for name, node in after.items()} == {name: node.mac for name, node in before.items()} | macs
    assert {name: node.address for name, node in after.items()} == {name: n.address for name, n in before.items()}
    file.write_text(text)


def test_bmcs_that_nobody_could_log_in_to_are_not_written_which_would_be_no_good_configuration(file: Path) -> None:
    data = yaml.safe_load(file.read_text())
    data["nodes"] = [{"name": "gdx-[1-2].site", "address": "127.9.1.[1-2]"}]
    data["power"] = {"driver": "ipmi"}
    file.write_text(yaml.safe_dump(data))
    machines = {"gdx-1.site": machine(1)}
    (finding,) = (
        each for each in contradictions.found(load_configuration(file.parents[1]), machines) if each.name == "bmc"
    )
    assert "nobody to log in as" in finding.text
    said(file, machines)
    assert [(node.bmc, node.mac) for node in members(file).values()] == [("", "52:54:00:00:00:01"), ("", "")]


def test_new_nodes_come_behind_the_others(file: Path) -> None:
    configuration = load_configuration(file.parents[1])
    new = [Entry(name=f"gdx-{n}.site", address=f"127.9.1.{n}", bmc=f"10.0.3.{n}", where="") for n in (5, 6)]
    edit = cluster_files.with_nodes(configuration, configuration.clusters["gdx"], new)
    assert edit.after == file.read_text().replace(
        "# lent\n",
        "# lent\n  - {name: 'gdx-[5-6].site', address: '127.9.1.[5-6]', bmc: '10.0.3.[5-6]'}\n",
    )
    apply(configuration.folder, [edit])
    assert list(members(file))[-2:] == ["gdx-5.site", "gdx-6.site"]


def test_a_file_that_changes_meanwhile_or_would_be_bad_is_not_written(file: Path) -> None:
    configuration = load_configuration(file.parents[1])
    twice = [Entry(name="gdx-1.site", address="127.9.1.9", where="")]
    edit = cluster_files.with_nodes(configuration, configuration.clusters["gdx"], twice)
    before = file.read_text()
    with pytest.raises(ConfigError, match=r"gdx\.yml:\d+: .*gdx-1\.site is listed twice"):
        apply(configuration.folder, [edit])
    edits = cluster_files.with_machines(configuration, {"gdx-1.site": machine()})
    file.write_text(before + "# somebody else\n")
    with pytest.raises(ConfigError, match="changed by somebody else"):
        apply(configuration.folder, edits)
    assert file.read_text() == before + "# somebody else\n"


@pytest.mark.parametrize("text", ["nodes: &n\n  - &a {name: x}\n  - *a\n", "nodes: {}\n"])
def test_a_list_of_an_unusual_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"unusual|no list"):
        with_items(text, ("nodes",), {1: [{"name": "y", "mac": "m"}]})


def test_the_file_of_a_cluster_that_has_another_name_is_found(file: Path) -> None:
    file.write_text(file.read_text() + "name: other\n")
    (file.parent / "aaa.yml").write_text(
        file.read_text()
        .replace("gdx-", "abc-")
        .replace("127.9.1.", "127.9.2.")
        .replace("00-04", "00-05")
        .replace("other", "aaa")
    )
    configuration = load_configuration(file.parents[1])
    assert configuration.folder / configuration.clusters["other"].file == file
    assert msgspec.structs.asdict(configuration.clusters["other"])["name"] == "other"


# --- nodes of an inventory ------------------------------------------------------------------------------------------

INVENTORY = """\
[gdx]
gdx-1.site ansible_host=127.9.1.1 card=52:54:00:00:00:01
gdx-2.site ansible_host=127.9.1.2
"""


@pytest.fixture
def estate(file: Path) -> Path:
    """The cluster file, whose nodes are from an inventory now."""
    (file.parents[1] / "hosts.ini").write_text(INVENTORY)
    text = "inventory: {source: hosts.ini, variables: {mac: card}}\n"
    file.write_text(text + file.read_text().removeprefix(HEAD))
    return file


def test_of_nodes_of_an_inventory_the_hardware_is_written_and_the_rest_told_by_host_and_variable(estate: Path) -> None:
    machines = {f"gdx-{number}.site": machine(number) for number in (1, 2)}
    configuration = load_configuration(estate.parents[1])
    told = [f"{each.text}: {each.advice}" for each in cluster_files.unwritten(configuration, machines)]
    assert told == [
        "gdx-1.site: it is not as hosts.ini says: set there, of the host gdx-1.site: bmc: 10.0.3.1",
        "gdx-2.site: it is not as hosts.ini says: set there, of the host gdx-2.site: "
        "card: 52:54:00:00:00:02, bmc: 10.0.3.2",
    ]
    text = said(estate, machines)
    assert yaml.safe_load(text)["hardware"]
    assert (estate.parents[1] / "hosts.ini").read_text() == INVENTORY


def test_nodes_of_an_inventory_are_not_written_and_the_refusal_says_what_belongs_there(estate: Path) -> None:
    configuration, before = load_configuration(estate.parents[1]), estate.read_bytes()
    with pytest.raises(ConfigError) as macs:
        cluster_files.with_macs(configuration, {"gdx-2.site": "52:54:00:00:00:02"})
    assert str(macs.value) == (
        "clusters/gdx.yml: its nodes are from hosts.ini. Write there, by host:\ngdx-2.site: card: 52:54:00:00:00:02"
    )
    entry = Entry(name="gdx-3.site", address="127.9.1.3", bmc="127.9.3.3", where="--sweep")
    with pytest.raises(ConfigError, match=r"gdx-3\.site: ansible_host: 127\.9\.1\.3, bmc: 127\.9\.3\.3$"):
        cluster_files.with_nodes(configuration, configuration.clusters["gdx"], [entry])
    assert estate.read_bytes() == before
