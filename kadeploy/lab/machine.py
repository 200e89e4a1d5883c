"""A machine of a lab: on means that its process runs, off that there is none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

from kadeploy.errors import MachineError
from kadeploy.lab import disk
from kadeploy.lab.lab import Lab, LabNode
from kadeploy.lab.network import tap
from kadeploy.process import reap

OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
OVMF_SECURE_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.ms.fd")
OVMF_SECURE_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
"""With Microsoft's keys enrolled, and Secure Boot on."""

DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""In front of a command: the kernel ends it when the supervisor is gone, however that died."""

_PATIENCE = 20.0
"""Seconds a machine's process may take to start or to end."""


class Machine(Protocol):
    """What a BMC can do to a machine, whatever it is made of."""

    @property
    def running(self) -> bool:
        """Whether it is on."""

    async def on(self) -> None:
        """Switch it on; nothing happens when it is on."""

    async def off(self) -> None:
        """Cut its power; nothing happens when it is off."""

    async def reset(self) -> None:
        """Press reset; raises MachineError when it is off."""

    async def shutdown(self) -> None:
        """Press the power button, which asks the system to stop; raises MachineError when it is off."""


class VirtualMachine:
    """A machine that is a QEMU process, a new one after each reset.

    QEMU keeps the code that it has translated for as long as it lives. After a reset, the next system overwrites that
    code byte by byte, and each byte costs a search through all translations. A system that had run for long would make
    the next one stand still for minutes.
    """

    def __init__(self, lab: Lab, node: LabNode) -> None:
        self._lab = lab
        self._node = node
        self._process: asyncio.subprocess.Process | None = None
        self._monitor: Monitor | None = None
        self._wanted = False
        self._switch = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether QEMU runs, or is about to run again: a guest that stops itself ends it."""
        alive = self._process is not None and self._process.returncode is None
        return alive or (self._wanted and self._monitor is not None and self._monitor.reset)

    async def on(self) -> None:
        """Start QEMU; returns once it answers."""
        async with self._switch:
            if self.running:
                return
            _mark(self._lab.serial_log(self._node.name), "power on")
            self._wanted = True
            await self._start()

    async def _start(self) -> None:
        monitor(self._lab, self._node).unlink(missing_ok=True)
        self._lab.serial(self._node.name).unlink(missing_ok=True)
        with (self._lab.logs / f"{self._node.name}.qemu.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *DIE_WITH_PARENT,
                *command(self._lab, self._node),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._process = process
        self._monitor = await self._answering(process)
        self._lab.lend(self._lab.serial(self._node.name))
        self._watcher = asyncio.create_task(self._watch(process, self._monitor))

    async def _answering(self, process: asyncio.subprocess.Process) -> Monitor:
        limit = time.monotonic() + _PATIENCE
        while True:
            try:
                return await Monitor.open(monitor(self._lab, self._node))
            except OSError as error:
                if process.returncode is not None:
                    raise MachineError(f"QEMU ended at once: see {self._node.name}.qemu.log") from error
                if time.monotonic() > limit:
                    raise MachineError("QEMU does not answer") from error
                await asyncio.sleep(0.05)

    async def _watch(self, process: asyncio.subprocess.Process, watched: Monitor) -> None:
        """Start QEMU again when it has ended because the machine was reset."""
        await process.wait()
        await watched.close()
        async with self._switch:
            if self._wanted and watched.reset and self._process is process:
                _mark(self._lab.serial_log(self._node.name), "reset")
                await self._start()

    async def off(self) -> None:
        """End QEMU: SIGTERM writes its buffers and quits, the guest is not asked."""
        async with self._switch:
            self._wanted = False
            process = self._process
            if process is None or process.returncode is not None:
                return
            process.terminate()
            await reap(process, _PATIENCE)

    async def reset(self) -> None:
        """Reset the machine: the firmware runs again."""
        await self._press("system_reset")

    async def shutdown(self) -> None:
        """Press the ACPI power button."""
        await self._press("system_powerdown")

    async def _press(self, button: str) -> None:
        async with self._switch:
            if not self.running or self._monitor is None:
                raise MachineError("it is off")
            try:
                await self._monitor.tell(button)
            except OSError as error:
                raise MachineError(f"QEMU does not answer: {error}") from error


class Monitor:
    """A connection to QEMU's machine protocol (QMP): commands, and how the machine ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._ear = asyncio.create_task(self._listen(reader))
        self.reset = False
        """Whether QEMU ended, or is ending, because the machine was reset."""

    @classmethod
    async def open(cls, path: Path) -> Monitor:
        """Connect; raises OSError when nobody answers."""
        reader, writer = await asyncio.open_unix_connection(path)
        opened = cls(reader, writer)
        await opened.tell("qmp_capabilities")
        return opened

    async def tell(self, name: str) -> None:
        """Give a command; raises OSError when QEMU does not answer, or refuses."""
        self._writer.write(json.dumps({"execute": name}).encode() + b"\n")
        await self._writer.drain()
        async with asyncio.timeout(_PATIENCE):
            answer = await self._answers.get()
        if "return" not in answer:
            raise OSError(f"{name}: {answer.get('error', {}).get('desc', 'connection closed')}")

    async def close(self) -> None:
        """Hear what was said last, and close."""
        await self._ear
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                message: dict[str, Any] = json.loads(line)
                if message.get("event") == "SHUTDOWN":
                    self.reset = message["data"]["reason"] in _RESETS
                elif "return" in message or "error" in message:
                    self._answers.put_nowait(message)
        self._answers.put_nowait({})


EMULATED_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"
"""Programs use wider vectors where there are some, and QEMU takes longer over them than over those they replace."""

_RESETS = frozenset({"guest-reset", "host-qmp-system-reset"})
"""Why QEMU may end and the machine boots again all the same."""


def monitor(lab: Lab, node: LabNode) -> Path:
    """QEMU's control socket."""
    return lab.run / f"{node.name}.qmp"


def command(lab: Lab, node: LabNode) -> list[str]:
    """QEMU's command line: network first, then disk, as the firmware's boot order; no screen, one serial line."""
    return [
        "qemu-system-x86_64",
        "-name", f"{node.name},process={lab.name}-{node.name}",
        "-machine", _machine(lab),
        *(("-accel", "kvm", "-cpu", "host") if lab.kvm else ("-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU)),
        "-smp", "1",
        "-m", str(lab.memory),
        "-no-user-config", "-nodefaults", "-display", "none",
        "-action", "reboot=shutdown",
        *(_flash(lab, node) if lab.uefi else ()),
        "-netdev", f"tap,id=net,ifname={tap(node.rank)},script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=net,mac={node.mac},bootindex=1" + (",romfile=" if lab.uefi else ""),
        "-blockdev", disk.blockdev(lab, node),
        *disk.devices(node),
        "-object", "rng-random,id=random,filename=/dev/urandom",
        "-device", "virtio-rng-pci,rng=random",
        "-chardev",
        f"socket,id=serial,path={lab.serial(node.name)},server=on,wait=off,"
        f"logfile={lab.serial_log(node.name)},logappend=on",
        "-serial", "chardev:serial",
        "-qmp", f"unix:{monitor(lab, node)},server=on,wait=off",
        *(("-S",) if node.fault == "mute" else ()),
    ]  # fmt: skip


def _machine(lab: Lab) -> str:
    if not lab.uefi:
        return "pc"
    return "q35,smm=on" if lab.secure_boot else "q35"


def _flash(lab: Lab, node: LabNode) -> tuple[str, ...]:
    """UEFI firmware, and this machine's own copy of its variables; with Secure Boot the firmware alone writes them."""
    code, initial = (OVMF_SECURE_CODE, OVMF_SECURE_VARS) if lab.secure_boot else (OVMF_CODE, OVMF_VARS)
    variables = lab.disks / f"{node.name}.efivars"
    if not variables.exists():
        shutil.copyfile(initial, variables)
    return (
        *(("-global", "driver=cfi.pflash01,property=secure,value=on") if lab.secure_boot else ()),
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}",
        "-drive", f"if=pflash,unit=1,format=raw,file={variables}",
    )  # fmt: skip


def _mark(log: Path, what: str) -> None:
    with log.open("a") as stream:
        stream.write(f"\n[{time.strftime('%H:%M:%S')} {what}]\n")
