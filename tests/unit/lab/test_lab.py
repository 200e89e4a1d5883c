"""A lab's names, addresses and paths follow from its settings, and settings that make no sense are refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.errors import KadeployError, OptionError
from kadeploy.lab.lab import FAULTS, MARKER, MAX_NODES, Lab, checked, faults, saved
from kadeploy.nodeset import expand


@given(st.integers(1, MAX_NODES))
def test_columns_list_what_the_members_have(nodes: int) -> None:
    lab = Lab(nodes=nodes)
    members = lab.members.values()
    assert expand(lab.column("node-")) == list(lab.members)
    assert expand(lab.column("10.177.1.")) == [member.address for member in members]
    assert expand(lab.column("10.177.2.")) == [member.bmc for member in members]
    assert len({member.mac for member in members}) == nodes


def test_a_fault_belongs_to_the_node_that_was_named() -> None:
    lab = Lab(nodes=3, faults=faults({"dead": "node-2", "mute": "node-[1,3]"}))
    assert [member.fault for member in lab.members.values()] == ["mute", "dead", "mute"]


def test_a_node_cannot_have_two_faults() -> None:
    with pytest.raises(OptionError, match="node-2 cannot be both dead and mute"):
        faults({"dead": "node-[1-2]", "mute": "node-2"})


@pytest.mark.parametrize(
    ("lab", "message"),
    [
        (Lab(name="../x"), "--name"),
        (Lab(name="x" * 40), "--name"),
        (Lab(nodes=0), "--nodes 0"),
        (Lab(nodes=MAX_NODES + 1), "--nodes"),
        (Lab(firmware="coreboot"), "expected bios, uefi, secure-boot"),
        (Lab(firmware="secure-boot", kind="light"), "take --kind vm"),
        (Lab(folder="here"), "--folder"),
        (Lab(nodes=1, faults={"node-2": "dead"}), "has no 'node-2'. There is node-1."),
        (Lab(nodes=1, nvme=("node-2",)), "has no 'node-2'. There is node-1."),
        (Lab(nodes=1, big_sectors=("node-2",)), "has no 'node-2'. There is node-1."),
        (Lab(nodes=1, kind="light", nvme=("node-1",)), "take --kind vm"),
        (Lab(nodes=1, kind="sim", big_sectors=("node-1",)), "take --kind vm"),
    ],
)
def test_settings_that_make_no_sense_are_refused(lab: Lab, message: str) -> None:
    with pytest.raises(KadeployError, match=message):
        checked(lab)


def test_the_longest_name_leaves_room_for_the_sockets() -> None:
    lab = checked(Lab(name="x" * 31, nodes=MAX_NODES))
    assert all(len(bytes(lab.serial(name))) < 108 for name in lab.members)


def test_a_lab_is_found_again_by_its_folder(tmp_path: Path) -> None:
    lab = Lab(name="unit-test-nowhere", nodes=3, faults={"node-1": next(iter(FAULTS))}, folder=str(tmp_path))
    (tmp_path / MARKER).write_bytes(msgspec.json.encode(lab))
    assert saved("unit-test-nowhere", str(tmp_path)) == lab


def test_no_lab_is_found_in_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("not ours")
    assert saved("unit-test-nowhere", str(tmp_path)) is None
