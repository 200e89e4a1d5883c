"""The supervisor switches machines as a BMC asks, keeps services running, and takes everything with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from kadeploy import process
from kadeploy.errors import KadeployError, MachineError
from kadeploy.lab import chassis, control
from kadeploy.lab.kinds import Kind
from kadeploy.lab.lab import Lab, LabNode
from kadeploy.lab.service import Service
from kadeploy.lab.supervisor import Supervisor
from kadeploy.lab.virtual import Payload


class Lamp:
    """A machine that is nothing but a switch."""

    def __init__(self) -> None:
        self.running = False
        self.resets = 0

    async def on(self) -> None:
        self.running = True

    async def off(self) -> None:
        self.running = False

    async def reset(self) -> None:
        if not self.running:
            raise MachineError("it is off")
        self.resets += 1

    async def shutdown(self) -> None:
        self.running = False


def kind(services: list[Service]) -> Kind:
    def machine(lab: Lab, node: LabNode) -> Lamp:
        return Lamp()

    return Kind(
        summary="switches",
        requirements={},
        prepare=lambda lab, cache, say: Payload(host_key=""),
        services=lambda lab: services,
        machine=machine,
    )


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(name="light-supervisor", nodes=2, folder=str(tmp_path), service=False)
    made.save()
    made.logs.mkdir()
    yield made
    shutil.rmtree(made.run)


def supervised(lab: Lab, services: list[Service], job: Callable[[], Awaitable[None]]) -> None:
    """Run *job* while a supervisor works."""

    async def run() -> None:
        supervisor = Supervisor(lab, kind(services))
        working = asyncio.create_task(supervisor.run())
        while not lab.control.exists():
            await asyncio.sleep(0.01)
        try:
            await job()
        finally:
            supervisor.stop()
            await working

    asyncio.run(run())


async def bmc(lab: Lab, *words: str) -> tuple[int, str]:
    """What a BMC's chassis program answers: exit status and output."""
    program = [sys.executable, "-I", "-S", chassis.__file__, str(lab.control), "node-1", *words]
    done = await asyncio.to_thread(subprocess.run, program, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip()


def test_a_bmc_reads_and_switches_its_own_machine(lab: Lab) -> None:
    async def job() -> None:
        assert await bmc(lab, "get", "power") == (0, "power:0")
        assert await bmc(lab, "set", "power", "1") == (0, "")
        assert await bmc(lab, "get", "power") == (0, "power:1")
        answer = await asyncio.to_thread(control.ask, lab, "status")
        assert answer["nodes"] == {"node-1": True, "node-2": False}
        assert await bmc(lab, "set", "reset", "1") == (0, "")
        assert await bmc(lab, "set", "power", "0") == (0, "")
        assert await bmc(lab, "get", "power") == (0, "power:0")

    supervised(lab, [], job)


def test_resetting_a_machine_that_is_off_fails_as_on_real_ones(lab: Lab) -> None:
    async def job() -> None:
        status, text = await bmc(lab, "set", "reset", "1")
        assert (status, text) == (1, "node-1: reset: it is off")

    supervised(lab, [], job)


@pytest.mark.parametrize(
    ("fault", "claimed", "followed"),
    [("bmc-says-on", "power:1", True), ("bmc-says-off", "power:0", True), ("bmc-idle", "power:0", False)],
)
def test_a_bmc_may_lie_or_do_nothing_where_the_machines_own_button_does_not(
    lab: Lab, fault: str, claimed: str, followed: bool
) -> None:
    lab = msgspec.structs.replace(lab, faults={"node-1": fault})

    async def job() -> None:
        assert await bmc(lab, "get", "power") == (0, claimed)
        assert await bmc(lab, "set", "power", "1") == (0, "")
        told = await asyncio.to_thread(control.ask, lab, "status", "node-1")
        assert told["on"] is followed
        assert (await asyncio.to_thread(control.ask, lab, "on", "node-1"))["on"] is True

    supervised(lab, [], job)


def test_what_a_machine_does_not_have_is_refused(lab: Lab) -> None:
    async def job() -> None:
        assert (await bmc(lab, "set", "boot", "pxe"))[0] == 0  # it boots from the network in any case
        assert (await bmc(lab, "set", "identify", "1"))[0] == 1
        assert (await bmc(lab, "set", "power", "7"))[0] == 1

    supervised(lab, [], job)


def test_a_malformed_request_does_not_disturb_the_next(lab: Lab) -> None:
    def disturb() -> None:
        for line in (b"not json\n", b"[1]\n", b"\xff\n", b""):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(lab.control))
                connection.sendall(line)

    async def job() -> None:
        await asyncio.to_thread(disturb)
        assert await bmc(lab, "get", "power") == (0, "power:0")

    supervised(lab, [], job)


def test_a_supervisor_that_does_not_listen_yet_is_waited_for(lab: Lab) -> None:
    """Its socket is there a moment before it answers."""
    ourselves = process.find(os.getpid())
    assert ourselves is not None
    process.write(lab.pid_file, ourselves)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(lab.control))
        with pytest.raises(KadeployError, match="do not answer: supervisor"):
            control.wait_ready(lab, 0.5)


def test_a_service_that_ends_is_started_again(lab: Lab) -> None:
    once = Service("short", ["sh", "-c", "echo started; echo complaint >&2"])

    async def job() -> None:
        log = lab.log("short")
        while not log.exists() or log.read_text().count("started\ncomplaint\n") < 2:
            await asyncio.sleep(0.05)

    supervised(lab, [once], job)


def test_a_service_is_ready_when_its_port_is_bound(lab: Lab) -> None:
    with socket.create_server(("127.0.0.7", 0)) as server:
        number = server.getsockname()[1]
        services = [
            Service("there", ["sleep", "60"], (("tcp", "127.0.0.7", number),)),
            Service("not yet", ["sleep", "60"], (("tcp", "127.0.0.8", number),)),
        ]

        async def job() -> None:
            while True:
                states = (await asyncio.to_thread(control.ask, lab, "status"))["services"]
                if "stopped" not in states.values():
                    break
            assert states == {"there": "ready", "not yet": "starting"}

        supervised(lab, services, job)
