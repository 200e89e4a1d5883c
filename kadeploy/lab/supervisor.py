"""The lab's one daemon: runs its services and its machines, and answers on a socket.

It lives in the lab's network namespace, outlives the ``kadeploy-lab up`` that started it, and takes everything it
started with it when it ends, even by SIGKILL. One JSON object per line: ``{"operation": "on", "node": "node-1"}`` →
``{"ok": true, "on": true}`` or ``{"ok": false, "error": "…"}``; ``{"operation": "status"}`` tells about all.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from kadeploy import process
from kadeploy.errors import MachineError
from kadeploy.lab import daemon
from kadeploy.lab.kinds import KINDS, Kind
from kadeploy.lab.lab import Lab, saved
from kadeploy.lab.machine import DIE_WITH_PARENT, Machine
from kadeploy.lab.service import Service

_PAUSE = 1.0
"""Seconds before a service that ended is started again."""

OPERATIONS: Mapping[str, Callable[[Machine], Awaitable[None]]] = {
    "on": lambda machine: machine.on(),
    "off": lambda machine: machine.off(),
    "reset": lambda machine: machine.reset(),
    "shutdown": lambda machine: machine.shutdown(),
}
"""What can be done to a machine."""
_CLAIMS = {"bmc-says-on": True, "bmc-says-off": False}
"""Fault → what the machine's BMC says of it."""
_LATE = 20.0
"""Seconds after which a BMC that is late does what it was told."""


class Call(msgspec.Struct, frozen=True):
    """One line on the socket."""

    operation: str
    """``status`` or one of `OPERATIONS`."""
    node: str = ""
    """Empty: all of them (``status`` only)."""
    by: str = "kadeploy-lab"
    """Who asks, for the log."""


class Supervisor:
    """Services, machines and the socket of one lab."""

    def __init__(self, lab: Lab, kind: Kind) -> None:
        self._lab = lab
        self._services = [*kind.services(lab), *daemon.services(lab)]
        self._machines = {name: kind.machine(lab, node) for name, node in lab.members.items()}
        self._locks = {name: asyncio.Lock() for name in self._machines}
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stopped = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT, then switch everything off."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)
        self._lab.control.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, self._lab.control)
        self._lab.lend(self._lab.control)
        keepers = [asyncio.create_task(self._keep(service)) for service in self._services]
        say(f"lab {self._lab.name} is up")
        await self._stopped.wait()
        server.close()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*(machine.off() for machine in self._machines.values()))
        for running in self._running.values():
            if running.returncode is None:
                running.terminate()
        say(f"lab {self._lab.name} is down")

    def stop(self) -> None:
        """Let `run` come to its end."""
        self._stopped.set()

    async def _keep(self, service: Service) -> None:
        """Run a service for ever."""
        path = self._lab.log(service.name)
        while True:
            with path.open("ab") as log:
                running = await asyncio.create_subprocess_exec(
                    *DIE_WITH_PARENT, *service.command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
                )
            self._running[service.name] = running
            say(f"{service.name} ended with status {await running.wait()}: started again, see {path.name}")
            await asyncio.sleep(_PAUSE)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(msgspec.json.decode(await reader.readline(), type=Call))
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (msgspec.MsgspecError, ValueError) as error:
            say(f"malformed request: {error}")
        except OSError as error:
            say(f"request failed: {error}")
        finally:
            writer.close()

    async def _answer(self, call: Call) -> dict[str, Any]:
        operation, name = call.operation, call.node
        if operation == "status" and not name:
            return self._status()
        machine = self._machines.get(name)
        if machine is None or operation not in {"status", *OPERATIONS}:
            return {"ok": False, "error": f"no operation {operation!r} on {name!r}"}
        fault = self._lab.members[name].fault if call.by == "bmc" else ""
        if operation != "status":
            if fault == "bmc-late":
                self._background.add(asyncio.create_task(self._later(call)))
            elif fault != "bmc-idle" and (error := await self._operate(call)):
                return {"ok": False, "error": error}
        return {"ok": True, "on": _CLAIMS.get(fault, machine.running)}

    async def _later(self, call: Call) -> None:
        await asyncio.sleep(_LATE)
        await self._operate(call)

    async def _operate(self, call: Call) -> str:
        """Do it; what went wrong, or nothing."""
        async with self._locks[call.node]:
            try:
                await OPERATIONS[call.operation](self._machines[call.node])
            except MachineError as error:
                say(f"{call.node}: {call.operation} failed: {error}")
                return f"{call.node}: {call.operation}: {error}"
        say(f"{call.node}: {call.operation} (asked by {call.by})")
        return ""

    def _status(self) -> dict[str, Any]:
        services = {service.name: self._state(service) for service in self._services}
        nodes = {name: machine.running for name, machine in self._machines.items()}
        return {"ok": True, "services": services, "nodes": nodes}

    def _state(self, service: Service) -> str:
        running = self._running.get(service.name)
        if running is None or running.returncode is not None:
            return "stopped"
        return "ready" if service.ready else "starting"


def say(text: str) -> None:
    """One line in the supervisor's log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main(name: str) -> None:
    """Supervise the lab called *name*; ``up`` has written its description."""
    lab = saved(name)
    if lab is None:
        sys.exit(f"No lab {name} here: `kadeploy-lab up` starts one.")
    ourselves = process.find(os.getpid())
    if ourselves:
        process.write(lab.pid_file, ourselves)
    asyncio.run(Supervisor(lab, KINDS[lab.kind]).run())


if __name__ == "__main__":
    main(sys.argv[1])
