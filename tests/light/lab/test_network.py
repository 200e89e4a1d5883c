"""A lab's network is made and removed with everything that lives in it, and one command at a time works on a lab."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from kadeploy.errors import KadeployError
from kadeploy.lab import lock, network
from kadeploy.lab.down import down
from kadeploy.lab.lab import RUN_ROOT, Lab

LAB = Lab(name="light-network", nodes=2, faults={"node-2": "dead"})


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    network.remove(LAB.name)
    yield
    network.remove(LAB.name)


def inside(*command: str) -> str:
    return subprocess.run(network.inside(LAB.name, command), capture_output=True, text=True, check=True).stdout


def test_it_holds_the_controller_the_bmcs_and_a_tap_per_machine() -> None:
    network.create(LAB)
    addresses = inside("ip", "-brief", "address", "show", "dev", "br0")
    assert "10.177.0.1/16" in addresses
    assert "10.177.2.1/32" in addresses
    assert inside("ip", "-brief", "link", "show", "master", "br0").split()[::4] == ["tap1", "tap2"]


def test_a_dead_bmc_has_no_address() -> None:
    network.create(LAB)
    assert "10.177.2.2" not in inside("ip", "-brief", "address")


def test_nothing_leads_outside() -> None:
    network.create(LAB)
    assert inside("ip", "route", "show", "default") == ""
    assert set(inside("ls", "/sys/class/net").split()) == {"br0", "lo", "tap1", "tap2"}


def test_making_it_again_replaces_what_was_left() -> None:
    network.create(LAB)
    network.create(LAB)
    assert network.exists(LAB.name)


def test_removing_it_ends_the_processes_inside() -> None:
    network.create(LAB)
    with subprocess.Popen(network.inside(LAB.name, ["sleep", "60"])) as stubborn:
        while stubborn.pid not in {found.pid for found in network.processes(LAB.name)}:
            pass
        network.remove(LAB.name)
        assert stubborn.wait() == -15
    assert not network.exists(LAB.name)


def test_down_removes_a_network_that_nobody_remembers() -> None:
    network.create(LAB)
    told: list[str] = []
    assert down(LAB.name, "", told.append)
    assert told == ["network removed"]
    assert not network.exists(LAB.name)
    assert not down(LAB.name, "", told.append)


def test_two_commands_do_not_work_on_a_lab_at_once() -> None:
    with lock.locked(LAB.name), pytest.raises(KadeployError, match="Another kadeploy-lab"), lock.locked(LAB.name):
        pytest.fail("locked twice")
    assert not (RUN_ROOT / f"{LAB.name}.lock").exists()


def test_two_labs_do_not_wait_for_each_other() -> None:
    with lock.locked(LAB.name), lock.locked("light-other"):
        assert (RUN_ROOT / "light-other.lock").exists()
