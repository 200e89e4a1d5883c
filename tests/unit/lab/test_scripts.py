"""What simulated nodes of the light backend know of the scripts that we send: every one, whoever sends it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kadeploy.config.cluster import Node, Power
from kadeploy.config.folder import collection
from kadeploy.lab.lab import LabNode
from kadeploy.lab.sim import light, scripts
from kadeploy.lab.sim.machine import KEXEC_FOLDER
from kadeploy.microsteps import send_image
from kadeploy.power import bmc, switch
from kadeploy.remote import connections, reach
from kadeploy.remote.connections import Connections
from kadeploy.remote.fanout import Credentials, Target
from kadeploy.remote.script import program
from kadeploy.workflow import Outcome, Verdict

TARGET = Target("node-1", "127.0.0.1", 22)
FILES = sorted((collection() / "roles").glob("*/files/*.sh"))


class Recorder(Connections):
    """Sends nothing, and keeps what would have been sent."""

    def __init__(self) -> None:
        super().__init__(Credentials(Path("/none"), "ssh-ed25519 AAAA", connect_timeout=1))
        self.programs: list[bytes] = []

    async def run(
        self, target: Target, script: bytes, env: Mapping[str, str] | None = None, *_: Any, **__: Any
    ) -> Outcome:
        self.programs.append(program(script, env))
        return Outcome(Verdict.OK, stdout=f"100.00 1.00\n1 (init) S {'0 ' * 18}1 0")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(collection())))
def test_the_script_of_a_role_is_known_by_its_name_whatever_is_exported(path: Path) -> None:
    env = {"KADEPLOY_ENV": "it's\nset -o pipefail\nsync", "KADEPLOY_PARTITION_TABLE": "label: gpt\n1 : size=1GiB\n"}
    assert scripts.name_of(program(path.read_bytes(), env)) == path.stem


class WellBmc:
    """A BMC that does what it is told."""

    async def order(self, *_: Any, **_named: Any) -> bmc.Answer:
        return bmc.Answer(1)


def test_what_the_engines_send_is_known(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    node = Node(name="node-1", bmc="127.0.0.2")

    async def send() -> list[bytes]:
        remote = Recorder()
        machines = switch._Machines(Power(), False, WellBmc(), remote, {})
        await reach.booted_after(remote, 0)(TARGET)
        await remote.send(TARGET, tmp_path / "file", "/tmp/file")
        await machines.do(TARGET, node, "reboot", "soft")
        await machines.do(TARGET, node, "off", "soft")
        return remote.programs

    assert [scripts.name_of(each) for each in asyncio.run(send())] == ["age", "receive", "reboot", "poweroff"]


def test_a_relay_is_known_and_a_users_command_is_not() -> None:
    assert scripts.name_of(program(send_image.RELAY)) == "relay"
    assert scripts.name_of(program(b"sfdisk /dev/sda; reboot -f")) == ""


def test_how_long_a_script_is_and_which_one_is_to_end_is_read_from_what_connections_send() -> None:
    asked = light._LENGTH.search(connections._START.format(1234))
    ended = light._KILL.search(connections._KILL.format(77))
    assert asked
    assert ended
    assert (asked[1], ended[1]) == ("1234", "77")


def test_everything_that_is_acted_is_sent_by_somebody() -> None:
    assert light._ACTS.keys() <= scripts.known().keys()


@pytest.mark.parametrize(("target", "kernel"), [("deploy", f"{KEXEC_FOLDER}kernel a=1"), ("user", "disk")])
def test_a_node_jumps_into_the_system_that_kexec_is_told(
    target: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(light, "_SECOND", 0.0)
    (path,) = (path for path in FILES if path.stem == "kexec")
    secret = {"KADEPLOY_SECRET": "a=1"} if target == "deploy" else {}
    text = program(path.read_bytes(), {"KADEPLOY_KEXEC_TARGET": target, "KADEPLOY_ENV": "x", **secret})
    orders: list[str] = []

    async def act() -> None:
        node = LabNode(rank=1, name="node-1", address="127.0.0.1", bmc="127.0.0.2", mac="")
        command = light._Command(None, node, light._Up("", orders.append), text)
        assert await light._ACTS[scripts.name_of(text)](command) == 0
        await asyncio.sleep(0.05)

    asyncio.run(act())
    assert orders == [f"kexec {kernel}"]
