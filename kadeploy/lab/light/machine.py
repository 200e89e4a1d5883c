"""A light node: namespaces around the deployment system's tree."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

from kadeploy.errors import MachineError
from kadeploy.lab import disk
from kadeploy.lab.lab import CONTROLLER, PREFIX, Lab, LabNode
from kadeploy.lab.light import loop, profile
from kadeploy.lab.machine import DIE_WITH_PARENT
from kadeploy.lab.network import BRIDGE, tap
from kadeploy.process import children, kill

_UNSHARE = ("unshare", "--mount", "--net", "--uts", "--ipc", "--pid")
_FIRST = ("/bin/sh", "-c", f'{" ".join(DIE_WITH_PARENT)} /bin/bash "$0"; exit $?')
"""Waits for the node's first process and tells how it ended; all others end with it, their mounts with this."""
_SHUTDOWN = signal.SIGUSR2
"""What busybox init takes for an order to power off."""
_ENDS = {128 + signal.SIGHUP: "reboot", 128 + signal.SIGINT: "power off", 128 + signal.SIGKILL: "reset or power cut"}
"""How the first process ends when its system reboots or powers off (pid_namespaces(7)), or when we kill it."""
_FINAL = "power off"
_LEAST_SECONDS = 1.0
"""A node that ends sooner than this after its start is not booted again: it would boot for ever."""


class LightMachine:
    """A machine that is a set of namespaces; the loop device of its disk is open while it is on."""

    def __init__(self, lab: Lab, node: LabNode) -> None:
        self._lab = lab
        self._node = node
        self._life: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._wanted = False

    @property
    def running(self) -> bool:
        """Whether it is on, even when it has found nothing to boot."""
        return self._life is not None and not self._life.done()

    async def on(self) -> None:
        """Attach the disk and boot."""
        if self._node.fault == "dead":
            raise MachineError("its BMC does not answer")
        if self.running:
            return
        try:
            attached = await asyncio.to_thread(loop.attach, disk.path(self._lab, self._node))
        except OSError as error:
            raise MachineError(f"no loop device for its disk: {error}") from error
        self._wanted = True
        self._life = asyncio.create_task(self._live(attached))

    async def off(self) -> None:
        """Kill everything in it."""
        self._wanted = False
        self._kill(signal.SIGKILL)
        if self._life:
            await self._life

    async def reset(self) -> None:
        """Kill everything in it; it boots again."""
        if not self.running:
            raise MachineError("it is off" if self._node.fault != "dead" else "its BMC does not answer")
        self._kill(signal.SIGKILL)

    async def shutdown(self) -> None:
        """Ask its first process to power off."""
        if not self.running:
            raise MachineError("it is off")
        self._kill(_SHUTDOWN)

    async def _live(self, disk_: loop.Loop) -> None:
        """Boot again and again, until the node powers itself off or is switched off."""
        try:
            while self._wanted:
                begun = time.monotonic()
                status = await self._boot(disk_)
                end = _ENDS.get(status, _FINAL)
                self._say(f"ended: {end} ({status})")
                if end == _FINAL:
                    return
                if time.monotonic() - begun < _LEAST_SECONDS:
                    await asyncio.sleep(_LEAST_SECONDS)
        finally:
            disk_.close()

    async def _boot(self, disk_: loop.Loop) -> int:
        """One boot from its beginning to its end; returns the status of the node's first process."""
        system = profile.read(self._lab, self._node) if self._node.fault != "mute" else "nothing: this node never boots"
        self._say(f"boots {system}")
        with self._lab.serial_log(self._node.name).open("ab") as serial:
            self._process = await asyncio.create_subprocess_exec(
                *DIE_WITH_PARENT,
                *_UNSHARE,
                *_FIRST,
                str(_file("init")),
                env=self._environment(disk_, system),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=serial,
                stderr=serial,
                cwd="/",
                start_new_session=True,
            )
        if not self._wanted:
            self._kill(signal.SIGKILL)
        return await self._process.wait()

    def _environment(self, disk_: loop.Loop, system: str) -> dict[str, str]:
        major, minor = disk_.number
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "NODE": self._node.name,
            "SYSTEM": system,
            "COMMAND_LINE": profile.command_line(self._lab, self._node),
            "TREE": str(self._lab.tree.resolve()),
            "ROOT": str(self._lab.run),
            "FILES": str(_file("init").parent),
            "MEMORY": f"{self._lab.memory}M",
            "DISK": disk_.name,
            "DISK_NUMBER": f"{major} {minor}",
            "LAB": self._lab.name,
            "BRIDGE": BRIDGE,
            "PORT": tap(self._node.rank),
            "MAC": self._node.mac,
            "ADDRESS": f"{self._node.address}/{PREFIX}",
            "CONTROLLER": CONTROLLER,
        }

    def _kill(self, number: signal.Signals) -> None:
        """Signal the node's first process: the child of the one that waits for it."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        for pid in children(process.pid):
            kill(pid, number)

    def _say(self, text: str) -> None:
        with self._lab.serial_log(self._node.name).open("a") as serial:
            serial.write(f"[{time.strftime('%H:%M:%S')} {self._node.name} {text}]\n")


def _file(name: str) -> Path:
    return Path(__file__).parent / "files" / name
