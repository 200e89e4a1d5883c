"""Machines from ranges, and ranges from machines: what is read back is what came in."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.admin import node_ranges
from kadeploy.admin.sources.found import Entry
from kadeploy.config.cluster import Cluster, Disk, Node, NodeRange
from kadeploy.errors import NodeListError


def members(parts: list[dict[str, str]]) -> dict[str, Node]:
    """What a cluster file with these ``nodes`` has."""
    return Cluster(nodes=tuple(msgspec.convert(part, NodeRange) for part in parts), disk=Disk()).members


def as_nodes(machines: list[Entry]) -> dict[str, Node]:
    return {each.name: Node(name=each.name, address=each.address, bmc=each.bmc, mac=each.mac) for each in machines}


NAMES = st.one_of(
    st.builds("gdx-{}.paris".format, st.integers(0, 120)),
    st.builds("n{:03}".format, st.integers(0, 120)),
    st.builds("r{}c{:02}".format, st.integers(0, 3), st.integers(7, 12)),
    st.from_regex(r"[a-z][a-z0-9]{0,5}(-[0-9]{1,3})?", fullmatch=True),
)
ADDRESSES = st.one_of(
    st.just(""),
    st.builds("10.0.{}.{}".format, st.integers(0, 2), st.integers(0, 255)),
    st.builds("fd00::{:x}".format, st.integers(1, 300)),
    st.builds("host-{}".format, st.integers(0, 300)),
)
BMCS = st.one_of(
    st.just(""),
    st.builds("10.1.0.{}".format, st.integers(0, 255)),
    st.builds("https://bmc-{}.paris:8443/redfish/{}".format, st.integers(0, 200), st.integers(0, 2)),
    st.builds("http://10.1.1.{}".format, st.integers(0, 255)),
)
MACS = st.one_of(st.just(""), st.builds("52:54:00:00:00:{:02x}".format, st.integers(0, 255)))
MACHINES = st.builds(Entry, name=NAMES, address=ADDRESSES, bmc=BMCS, mac=MACS, where=st.just(""))


@given(st.lists(MACHINES, min_size=1, max_size=30, unique_by=lambda machine: machine.name))
def test_whatever_machines_come_in_are_read_back(machines: list[Entry]) -> None:
    assert members(node_ranges.folded(machines)) == as_nodes(machines)


@given(
    st.sampled_from(["gdx-{}", "gdx-{:03}.site", "r2-n{:02}", "a{}b7"]),
    st.sampled_from(["", "10.0.1.{}", "node{}-1", "10.{}.0.1"]),
    st.sampled_from(["", "10.0.2.{}", "https://bmc-{}/x", "https://10.0.0.1:{}/"]),
    st.integers(0, 150),
    st.integers(-3, 3),
    st.sets(st.integers(0, 90), min_size=1, max_size=60),
)
def test_series_with_holes_are_read_back(
    name: str, address: str, bmc: str, start: int, shift: int, ranks: set[int]
) -> None:
    machines = [
        Entry(
            name=name.format(start + rank),
            address=address.format(max(0, start + shift) + rank),
            bmc=bmc.format(start + rank),
            where="",
        )
        for rank in ranks
    ]
    assert members(node_ranges.folded(machines)) == as_nodes(machines)


def test_a_hundred_like_machines_are_one_line() -> None:
    machines = node_ranges.entries("gdx-[1-100].paris", "10.0.1.[1-100]", "gdx-[1-100]-bmc.paris")
    expected = {"name": "gdx-[1-100].paris", "address": "10.0.1.[1-100]", "bmc": "gdx-[1-100]-bmc.paris"}
    assert node_ranges.folded(reversed(machines)) == [expected]


def test_a_hole_in_the_addresses_begins_another_line() -> None:
    machines = node_ranges.entries("gdx-[1-4]", "10.0.1.[1-2,7-8]")
    assert [part["address"] for part in node_ranges.folded(machines)] == ["10.0.1.[1-2]", "10.0.1.[7-8]"]


def test_a_series_ends_where_another_number_counts() -> None:
    machines = [Entry(name=name, where="") for name in ("a1b1", "a1b2", "a2b2")]
    assert node_ranges.folded(machines) == [{"name": "a1b[1-2]"}, {"name": "a2b2"}]


def test_names_and_addresses_belong_together_in_the_order_in_which_they_are_typed() -> None:
    found = node_ranges.entries("b-1,a-[1-2]", "10.0.0.9,10.0.0.[3-4]")
    assert {each.name: each.address for each in found} == {"b-1": "10.0.0.9", "a-1": "10.0.0.3", "a-2": "10.0.0.4"}


def test_mac_addresses_have_ranges_of_hexadecimal_digits() -> None:
    found = node_ranges.entries("gdx-[1-3]", macs="52:54:00:00:00:[09-0b]")
    assert [each.mac for each in found] == [f"52:54:00:00:00:{end}" for end in ("09", "0a", "0b")]


def test_one_pattern_names_the_bmc_of_each_node() -> None:
    found = node_ranges.entries("gdx-[1-2].paris", bmcs="https://HOSTNAME_SHORT-bmc/")
    assert [each.bmc for each in found] == ["https://gdx-1-bmc/", "https://gdx-2-bmc/"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"nodes": "gdx-[1-3]", "addresses": "10.0.0.[1-2]"}, "--addresses 10.0.0.[1-2]: 2 values for 3 nodes"),
        ({"nodes": "gdx-1,gdx-1"}, "--nodes: gdx-1 is named twice"),
        ({"nodes": "gdx-[1"}, "--nodes: Invalid node range 'gdx-[1'"),
        ({"nodes": "gdx-[1-999999999]"}, "at most 100000"),
        ({"nodes": "gdx-[1-2]", "macs": "52:54:00:00:00:[0b-0a]"}, "expected one range of two hexadecimal digits"),
        ({"nodes": "gdx-[1-2]", "bmcs": "https://[1-2/"}, "--bmcs: Invalid node range"),
    ],
)
def test_ranges_that_make_no_sense_are_refused_by_their_option(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(NodeListError) as refused:
        node_ranges.entries(**wrong)
    assert said in str(refused.value)
