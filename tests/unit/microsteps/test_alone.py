"""Machines of somebody's play, without a request: switched by real BMCs, where they are not as ordered already."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from kadeploy.config.folder import collection
from tests.unit.bmc import PASSWORD, USER
from tests.unit.playbook_lab import ANSIBLE

if TYPE_CHECKING:
    from tests.unit.bmc import Bmc

pytest_plugins = ["tests.unit.bmc"]


class Estate:
    """A folder with an inventory of machines, two of which have BMCs that answer."""

    def __init__(self, folder: Path, bmcs: list[Bmc]) -> None:
        self.folder = folder
        (folder / "ansible_collections/kadeploy").mkdir(parents=True)
        (folder / "ansible_collections/kadeploy/core").symlink_to(collection())
        hosts = {f"m-{number}": {"bmc": each.address} for number, each in enumerate(bmcs, start=1)}
        common = {"bmc_user": USER, "bmc_password": PASSWORD, "ansible_connection": "local"}
        (folder / "hosts.yml").write_text(yaml.safe_dump({"machines": {"hosts": hosts, "vars": common}}))

    def play(self, role: str, *words: str, **variables: object) -> dict[str, dict[str, int]]:
        """Run a role; the recap of each host, and what was said in *output*."""
        entry = {"role": f"kadeploy.core.{role}", **{f"{role}_{name}": value for name, value in variables.items()}}
        play = {"hosts": "machines", "gather_facts": False, "roles": [entry]}
        (self.folder / "play.yml").write_text(yaml.safe_dump([play]))
        own = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE", "KADEPLOY"))}
        own |= {"ANSIBLE_COLLECTIONS_PATH": str(self.folder), "ANSIBLE_HOME": str(self.folder / "home")}
        command = [ANSIBLE, "-v", "-i", "hosts.yml", "play.yml", *words]
        done = subprocess.run(
            command, cwd=self.folder, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        self.output = done.stdout + done.stderr
        recap = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=0\s+failed=(\d+)", done.stdout, re.M)
        assert recap, self.output
        return {host: {"changed": int(changed), "failed": int(failed)} for host, changed, failed in recap}


CHANGED, UNCHANGED, FAILED = ({"changed": 1, "failed": 0}, {"changed": 0, "failed": 0}, {"changed": 0, "failed": 1})


@pytest.fixture
def estate(tmp_path: Path, bmcs: list[Bmc]) -> Estate:
    return Estate(tmp_path, bmcs[:2])


def test_machines_are_switched_where_they_are_not_so_already(estate: Estate, bmcs: list[Bmc]) -> None:
    bmcs[1].turn(on=False)
    assert estate.play("power", operation="status") == {"m-1": UNCHANGED, "m-2": UNCHANGED}
    assert '"power": "on"' in estate.output
    assert '"power": "off"' in estate.output
    assert estate.play("power", "--check", operation="on", level="hard") == {"m-1": UNCHANGED, "m-2": CHANGED}
    assert "would switch on (hard at first)" in estate.output
    assert not bmcs[1].on
    assert estate.play("power", operation="on", level="hard") == {"m-1": UNCHANGED, "m-2": CHANGED}
    assert [each.done for each in bmcs[:2]] == [[], ["set power 1"]]


def test_a_reboot_is_always_a_change_and_begins_from_the_network(estate: Estate, bmcs: list[Bmc]) -> None:
    assert estate.play("reboot", "--check", level="hard") == {"m-1": CHANGED, "m-2": CHANGED}
    assert bmcs[0].done == []
    bmcs[1].break_("refusing")
    assert estate.play("reboot", level="hard") == {"m-1": CHANGED, "m-2": CHANGED}
    assert "set reset 1" in bmcs[0].done
    assert "set power 0" in bmcs[1].done


def test_a_bmc_that_lets_nobody_in_is_its_hosts_failure_and_no_password_is_shown(estate: Estate) -> None:
    secret = "not-the-s3cret"
    assert estate.play("power", "-vvv", "--limit", "m-1", operation="off", level="hard", password=secret) == {
        "m-1": FAILED
    }
    assert USER in estate.output
    assert secret not in estate.output.split("TASK [kadeploy.core.power : Switch")[1]
    assert estate.play("power", operation="status", bmc="") == {"m-1": FAILED, "m-2": FAILED}
    assert "has no BMC address" in estate.output
