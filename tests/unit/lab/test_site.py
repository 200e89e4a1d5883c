"""The generated configuration is one that the tools accept, and says what the lab is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from kadeploy.config.partition import Partition
from kadeploy.lab import disk, site
from kadeploy.lab.lab import FIRMWARE, MAX_SIM_NODES, Lab
from kadeploy.lab.virtual import Payload
from kadeploy.nodeset import expand
from tests.unit import build

FIRMWARE_KEYS = {"bios": ("bios", False), "uefi": ("uefi", False), "secure-boot": ("uefi", True)}
PAYLOAD = Payload(host_key=build.HOST_KEY)


@pytest.fixture(params=FIRMWARE)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
    return Lab(name="somewhere", nodes=3, firmware=request.param, folder=str(tmp_path))


def test_the_tools_accept_it(lab: Lab) -> None:
    read = site.write(lab, PAYLOAD)
    members = read.clusters["lab"].members
    assert {name: (node.address, node.bmc) for name, node in members.items()} == {
        node.name: (node.address, node.bmc) for node in lab.members.values()
    }
    loader = read.clusters["lab"].loader
    assert (loader.firmware, loader.secure_boot) == FIRMWARE_KEYS[lab.firmware]
    assert read.site.network_namespace == "somewhere"
    assert read.site.ssh.host_key == PAYLOAD.host_key


def test_one_node_is_enough(lab: Lab) -> None:
    read = site.write(Lab(name="one", nodes=1, firmware=lab.firmware, folder=lab.folder), PAYLOAD)
    assert list(read.clusters["lab"].members) == ["node-1"]


def test_every_key_of_the_example_is_explained(lab: Lab) -> None:
    """A block is a top-level key with what it holds; a comment stands above it or beside its lines."""
    for text in (site.site(lab, PAYLOAD), cluster_text(lab)):
        blocks = [block for block in text.split("\n\n") if re.search(r"^\w+:", block, re.MULTILINE)]
        assert len(blocks) > 6
        assert [block for block in blocks if "# " not in block] == []


@pytest.mark.parametrize(
    ("kind", "nodes"), [("vm", 1), ("vm", 200), *(("sim", many) for many in (1, 249, 250, 251, 501, MAX_SIM_NODES))]
)
def test_the_ranges_list_what_the_members_have(kind: str, nodes: int) -> None:
    lab = Lab(kind=kind, nodes=nodes)
    (ranges,) = yaml.safe_load(cluster_text(lab))["nodes"]
    members = lab.members.values()
    assert expand(ranges["name"]) == [member.name for member in members]
    assert expand(ranges["address"]) == [member.address for member in members]
    assert expand(ranges["bmc"]) == [member.bmc for member in members]


def test_nodes_with_an_nvme_disk_are_a_cluster_of_their_own(lab: Lab) -> None:
    mixed = Lab(name="two", nodes=3, nvme=("node-2",), big_sectors=("node-3",), folder=lab.folder)
    clusters = site.write(mixed, PAYLOAD).clusters
    assert {name: list(cluster.members) for name, cluster in clusters.items()} == {
        "lab": ["node-1", "node-3"],
        "nvme": ["node-2"],
    }
    assert {name: cluster.disk.device for name, cluster in clusters.items()} == {
        "lab": "/dev/sda",
        "nvme": "/dev/nvme0n1",
    }
    assert list(site.write(lab, PAYLOAD).clusters) == ["lab"]


def test_no_secret_is_in_it(lab: Lab) -> None:
    lab.keys.mkdir()
    lab.bmc_password.write_text("very-secret\n")
    site.write(lab, PAYLOAD)
    assert all("very-secret" not in path.read_text() for path in lab.config.rglob("*.yml"))


def test_the_bad_disk_is_bad_where_the_deployment_partition_begins(lab: Lab) -> None:
    layout = site.write(lab, PAYLOAD).clusters["lab"].disk
    before = [part for part in layout.partitions if part.number < (layout.number("deploy") or 0)]
    mib = sum(config_size(part) for part in before)
    assert (1 + mib) << 20 == disk.DEPLOY_START  # the first partition begins at 1 MiB (sfdisk(8))


def cluster_text(lab: Lab) -> str:
    return site.cluster(lab, PAYLOAD, list(lab.members.values()))


def config_size(part: Partition) -> int:
    """MiB of a partition."""
    number, unit = re.fullmatch(r"(\d+)(MiB|GiB)", part.size).groups()  # type: ignore[union-attr]
    return int(number) * {"MiB": 1, "GiB": 1024}[unit]
