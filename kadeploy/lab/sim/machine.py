"""A simulated node: ports that open and close as a real node's would, and what answers behind them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from kadeploy.errors import MachineError
from kadeploy.lab.lab import Lab, LabNode
from kadeploy.lab.light import profile

SSH_PORT = 22
MARKER_PORT = 25300
CONNECTIONS_LOG = "connections"
"""Log of connections to ssh ports, one line each: seconds since 1970, node, what it was: ``ssh`` or a ``probe``."""

_BACKLOG = 64
_WITHOUT_FIRMWARE = 0.25
"""Share of a boot's time that is left when kexec starts the next kernel."""
KEXEC_FOLDER = "/dev/shm/kexec/"  # noqa: S108 - on the node, where the deployment kernel is sent


class Backend(Protocol):
    """What answers ssh on a node."""

    def boot(self, node: LabNode, deploy: bool, command_line: str, power: Callable[[str], None]) -> None:
        """The node comes up, in the deployment system or in a user's; *power* takes what it orders itself."""

    def serve(self, node: LabNode, connection: socket.socket) -> None:
        """Somebody has connected to its ssh port."""

    def halt(self, node: LabNode) -> None:
        """End everything that runs on the node, at once."""


class SimMachine:
    """One simulated machine."""

    def __init__(self, lab: Lab, node: LabNode, backend: Callable[[], Backend]) -> None:
        self._lab = lab
        self._node = node
        self._backend = backend
        self._booting: asyncio.Task[None] | None = None
        self._listeners: list[socket.socket] = []
        self._system = ""
        self._command_line = ""

    @property
    def running(self) -> bool:
        """Whether it is on, even when it has found nothing to boot."""
        return self._booting is not None

    async def on(self) -> None:
        """Boot what the profile says."""
        if not self.running:
            self._boot()

    async def off(self) -> None:
        """Cut its power."""
        self._down()
        self._booting = None

    async def reset(self) -> None:
        """Boot anew."""
        if not self.running:
            raise MachineError("it is off")
        if not self._stays:
            self._boot()

    @property
    def _stays(self) -> bool:
        return self._node.fault == "stay" and self._system == "deploy"

    async def shutdown(self) -> None:
        """Its system ends, and it is off."""
        if not self.running:
            raise MachineError("it is off")
        await self.off()

    def order(self, word: str) -> None:
        """What the node's own commands ask: ``reboot``, ``off``, ``kexec KERNEL PARAMETERS``."""
        verb, _, rest = word.partition(" ")
        kernel, _, parameters = rest.partition(" ")
        self._say(f"orders: {word}")
        if verb == "off":
            self._down()
            self._booting = None
        elif verb == "kexec":
            self._boot(self._jumped_into(kernel), parameters)
        elif not self._stays:
            self._boot()

    def _jumped_into(self, kernel: str) -> str:
        """The system that comes up when kexec starts *kernel*."""
        if self._node.fault == "no-kexec":
            return "nothing: the next kernel hangs"
        return "deploy" if kernel.startswith(KEXEC_FOLDER) else "the deployed kernel"

    def _boot(self, system: str = "", command_line: str = "") -> None:
        try:
            self._down()
        except OSError as error:
            raise MachineError(f"it cannot be simulated: {error}") from error
        self._booting = asyncio.create_task(self._start(system, command_line))

    async def _start(self, system: str, command_line: str) -> None:
        await asyncio.sleep(self._lab.boot_delay * (_WITHOUT_FIRMWARE if system else 1))
        self._command_line = command_line if system else profile.command_line(self._lab, self._node)
        system = system or profile.read(self._lab, self._node)
        if self._node.fault == "impostor":
            self._command_line = ""
        if self._node.fault == "mute":
            system = "nothing: this node never boots"
        self._say(f"boots {system}")
        self._system = "deploy" if system == "deploy" else "user"
        if not system.startswith("nothing"):
            try:
                self._open()
            except OSError as error:
                self._say(f"cannot be simulated: {error}")

    def _open(self) -> None:
        self._backend().boot(self._node, self._system == "deploy", self._command_line, self.order)
        if self._system == "deploy":
            self._listen(MARKER_PORT, lambda connection: connection.close())
        if self._system == "user" or self._node.fault != "refuse-ssh":
            self._listen(SSH_PORT, self._serve)

    def _listen(self, port: int, handler: Callable[[socket.socket], None]) -> None:
        listener = socket.create_server((self._node.address, port), backlog=_BACKLOG)
        listener.setblocking(False)
        self._listeners.append(listener)
        asyncio.get_running_loop().add_reader(listener.fileno(), partial(_accept, listener, handler))

    def _serve(self, connection: socket.socket) -> None:
        """Tell probes, which close without a word, from ssh clients, which begin; a real sshd starts for both."""
        loop = asyncio.get_running_loop()

        def begun() -> None:
            loop.remove_reader(connection.fileno())
            try:
                what = "ssh" if connection.recv(1, socket.MSG_PEEK) else "probe"
            except OSError:
                what = "probe"
            with self._lab.log(CONNECTIONS_LOG).open("a") as log:
                log.write(f"{time.time():.3f} {self._node.name} {what}\n")
            self._backend().serve(self._node, connection)

        connection.setblocking(False)
        loop.add_reader(connection.fileno(), begun)

    def _down(self) -> None:
        """Nothing answers any more."""
        if self._booting:
            self._booting.cancel()
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        self._backend().halt(self._node)

    def _say(self, text: str) -> None:
        with self._lab.serial_log(self._node.name).open("a") as serial:
            serial.write(f"[{time.strftime('%H:%M:%S')} {self._node.name} {text}]\n")


def _accept(listener: socket.socket, handler: Callable[[socket.socket], None]) -> None:
    with contextlib.suppress(OSError):  # it has gone again
        while True:
            connection, _ = listener.accept()
            handler(connection)
