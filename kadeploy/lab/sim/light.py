"""Nodes by the thousand: one asyncssh server for all of them, which plays the part of a shell.

A node answers to every script that it has succeeded. What it really understands is `_ACTS`, the broadcast, and files
that are sent to it. The broadcast's relay is the real program (see `relays`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from kadeploy.lab.lab import Lab, LabNode
from kadeploy.lab.sim import scripts, tree
from kadeploy.lab.sim.machine import KEXEC_FOLDER
from kadeploy.lab.sim.relays import Relays
from kadeploy.process import end_group

_LENGTH = re.compile(r" read -r -N (\d+) ")
_KILL = re.compile(r"kill -TERM -(\d+)")
_SECRET = re.compile(rb"^export KADEPLOY_SECRET=(\S+)$", re.MULTILINE)
_SECOND = 1.0

Process = asyncssh.SSHServerProcess[bytes]


class Light:
    """The server, and what it knows of the nodes that are up."""

    def __init__(self, lab: Lab, host_keys: Callable[[LabNode], Path]) -> None:
        self._host_keys = host_keys
        self._keys = asyncssh.import_authorized_keys(lab.public_key.read_text())
        self._nodes = {node.address: node for node in lab.members.values()}
        self._options: dict[Path, asyncssh.SSHServerConnectionOptions] = {}
        self._relays: Relays | None = None
        self._up: dict[str, _Up] = {}
        self._numbers = itertools.count(1 << 22)  # beyond what process numbers can be
        self._tasks: set[asyncio.Task[None]] = set()

    def boot(
        self,
        node: LabNode,
        deploy: bool,  # noqa: ARG002 - as `Backend`
        command_line: str,
        power: Callable[[str], None],
    ) -> None:
        """As `Backend.boot`."""
        self._up[node.name] = _Up(command_line, power)

    def serve(self, node: LabNode, connection: socket.socket) -> None:
        """As `Backend.serve`."""
        task = asyncio.create_task(self._connection(node, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, node: LabNode, connection: socket.socket) -> None:
        connection.setblocking(False)
        key = self._host_keys(node)
        if key not in self._options:
            self._options[key] = asyncssh.SSHServerConnectionOptions(
                server_host_keys=[str(key)],
                authorized_client_keys=self._keys,
                process_factory=self._process,
                encoding=None,
                line_editor=False,
            )
        with contextlib.suppress(OSError, asyncssh.Error):
            server = await asyncssh.run_server(connection, config=None, options=self._options[key])
            up = self._up.get(node.name)
            if up:
                up.connections.append(server)
            else:
                server.abort()

    def halt(self, node: LabNode) -> None:
        """As `Backend.halt`."""
        up = self._up.pop(node.name, None)
        if up:
            for connection in up.connections:
                connection.abort()
            for pid in up.relays:
                _kill(pid)

    async def _process(self, process: Process) -> None:
        """One command on a node."""
        node = self._nodes[process.get_extra_info("sockname")[0]]
        up = self._up.get(node.name)
        command = process.command or ""
        if up is None:
            process.exit(1)
        elif length := _LENGTH.search(command):
            await self._script(process, node, up, int(length[1]))
        else:
            if found := _KILL.search(command):
                _kill(int(found[1]))
            process.exit(0)

    async def _script(self, process: Process, node: LabNode, up: _Up, length: int) -> None:
        program = await process.stdin.readexactly(length)
        script = scripts.name_of(program)
        if node.fault == "slow":
            await asyncio.sleep(_SECOND)
        if script == "relay":
            await self._relay(process, node, up)
            return
        process.stderr.write(b"\x1e%d\n" % next(self._numbers))
        act = _ACTS.get(script, _believe)
        process.exit(await act(_Command(process, node, up, program)))

    async def _relay(self, process: Process, node: LabNode, up: _Up) -> None:
        program = await process.stdin.read()
        if node.fault == "die":
            program = program.replace(b"'sink': ", b"'sink': 'exec sleep infinity' or ", 1)
            asyncio.get_running_loop().call_later(_SECOND, up.power, "off")
        if lie := _LIES.get(node.fault):
            program = program.replace(*lie)
        self._relays = self._relays or Relays()
        (out, stdout), (err, stderr) = os.pipe(), os.pipe()
        pid = await self._relays.start(program, stdout, stderr)
        os.close(stdout)
        os.close(stderr)
        up.relays.add(pid)
        process.stderr.write(b"\x1e%d\n" % pid)
        await asyncio.gather(_copy(out, process.stdout), _copy(err, process.stderr))
        up.relays.discard(pid)
        process.exit(0)


class _Up:
    """A node that is up."""

    def __init__(self, command_line: str, power: Callable[[str], None]) -> None:
        self.command_line = command_line
        self.power = power
        self.begun = tree.now()
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.relays: set[int] = set()


@dataclass(frozen=True)
class _Command:
    """One script on a node."""

    process: Process
    node: LabNode
    up: _Up
    program: bytes
    """With the exports in front."""


async def _believe(_: _Command) -> int:
    return 0


async def _age(command: _Command) -> int:
    command.process.stdout.write(f"{tree.now():.2f} 0.00\n{tree.first_process(command.up.begun)}".encode())
    return 0


async def _command_line(command: _Command) -> int:
    command.process.stdout.write(f"{command.up.command_line}\n".encode())
    return 0


async def _reboot(command: _Command) -> int:
    asyncio.get_running_loop().call_later(_SECOND, command.up.power, "reboot")
    return 0


async def _kexec(command: _Command) -> int:
    kernel = f"{KEXEC_FOLDER}kernel" if b"KADEPLOY_KEXEC_TARGET=deploy\n" in command.program else "disk"
    if secret := _SECRET.search(command.program):
        kernel = f"{kernel} {secret[1].decode()}"
    asyncio.get_running_loop().call_later(_SECOND, command.up.power, f"kexec {kernel}")
    return 0


async def _receive(command: _Command) -> int:
    while await command.process.stdin.read(1 << 16):
        pass
    return 0


async def _partition(command: _Command) -> int:
    if command.node.fault == "hang":
        await asyncio.Event().wait()
    return _fail_if("small-disk", command, b"sfdisk: /dev/sda: not enough space for the partitions\n")


async def _format(command: _Command) -> int:
    return _fail_if("bad-disk", command, b"mkfs: Input/output error while writing\n")


def _fail_if(fault: str, command: _Command, words: bytes) -> int:
    if command.node.fault != fault:
        return 0
    command.process.stderr.write(words)
    return 1


_LIES = {
    "lie-bytes": (b'"bytes": self.ring.head', b'"bytes": 1'),
    "lie-digest": (b"self.digest.sha256.hexdigest()", b"hashlib.sha256().hexdigest()"),
    "spoil": (b"sock.send(self.read(offset, self.ready))", b"sock.send(bytes(len(self.read(offset, self.ready))))"),
}
"""What the relay of a node with this fault says, or passes on, in place of the truth."""


_ACTS: Mapping[str, Callable[[_Command], Awaitable[int]]] = {
    "age": _age,
    "command_line": _command_line,
    "kexec": _kexec,
    "reboot": _reboot,
    "reboot_from_deploy_env": _reboot,
    "receive": _receive,
    "create_partition_table": _partition,
    "format_partition": _format,
}
"""Script (see `scripts`) → what is acted; any other one has succeeded."""


async def _copy(source: int, target: Any) -> None:
    """All that comes out of a pipe."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(source, "rb", 0)
    )
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await reader.read(1 << 16):
            target.write(data)
    transport.close()


def _kill(pid: int) -> None:
    if pid < 1 << 22:
        with contextlib.suppress(PermissionError):
            end_group(pid)
