"""Simulated nodes: an address each, and faults for the share of them that was asked for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.broadcast import chain
from kadeploy.errors import OptionError
from kadeploy.lab.lab import FAULTS, MAX_SIM_NODES, Lab, checked
from kadeploy.lab.sim import light
from kadeploy.lab.sim.faults import chosen
from kadeploy.lab.sim.tree import first_process
from kadeploy.remote.reach import first_process_age

NODES = [f"node-{rank}" for rank in range(1, 201)]


@pytest.mark.parametrize("nodes", [1, 249, 250, 251, 500, 501, MAX_SIM_NODES])
def test_no_address_is_given_twice(nodes: int) -> None:
    members = checked(Lab(kind="sim", nodes=nodes)).members.values()
    assert len({member.address for member in members} | {member.bmc for member in members}) == 2 * nodes
    assert len({member.mac for member in members}) == nodes


@pytest.mark.parametrize("nodes", [0, MAX_SIM_NODES + 1])
def test_a_lab_of_another_size_is_refused(nodes: int) -> None:
    with pytest.raises(OptionError, match="--nodes"):
        checked(Lab(kind="sim", nodes=nodes))


@given(st.integers())
def test_a_share_is_rounded_up_and_no_node_has_two_faults(seed: int) -> None:
    found = list(chosen("refuse-ssh=5%,hang=3,mute=1%", NODES, seed).values())
    assert {fault: found.count(fault) for fault in found} == {"refuse-ssh": 10, "hang": 3, "mute": 2}
    assert list(chosen("hang=1%", NODES[:7], seed).values()) == ["hang"]


def test_the_seed_chooses_the_nodes() -> None:
    assert chosen("hang=5%", NODES, 1) == chosen("hang=5%", NODES, 1)
    assert len({tuple(chosen("hang=5%", NODES, seed)) for seed in range(10)}) > 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tired=5%", f"expected one of {', '.join(FAULTS)}"),
        ("hang", "expected hang=5% or hang=3"),
        ("hang=101%", "expected hang=5% or hang=3"),
        ("hang=-1", "expected hang=5% or hang=3"),
        ("hang=60%,slow=60%", "240 faults for 200 nodes"),
    ],
)
def test_faults_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        chosen(text, NODES, 0)


def test_the_controller_reads_when_a_simulated_node_was_booted() -> None:
    assert first_process_age(f"120.50 0.00\n{first_process(100.0)}") == pytest.approx(20.5)


def test_a_relay_that_lies_says_the_same_with_both_backends() -> None:
    """Each changes one place of the program as it is today."""
    act = Path(light.__file__).with_name("files") / "act"
    program = chain.PROGRAM.encode()
    scripts = re.findall(r"lie='(s/.*)' ;;", act.read_text())
    lies = [subprocess.run(["sed", each], input=program, capture_output=True, check=True).stdout for each in scripts]
    assert all(program.count(before) == 1 for before, _ in light._LIES.values())
    assert set(lies) == {program.replace(*lie) for lie in light._LIES.values()}
