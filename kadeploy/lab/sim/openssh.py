"""Nodes behind OpenSSH: sshd itself serves every connection, and starts a real shell in the node's own root."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kadeploy import process
from kadeploy.lab.lab import Lab, LabNode
from kadeploy.lab.sim import tree

SSHD = "/usr/sbin/sshd"
_PRIVILEGE_SEPARATION = Path("/run/sshd")
"""sshd refuses to start without it."""
_CONFIGURATION = f"""\
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
PrintMotd no
PrintLastLog no
MaxSessions 1000
PidFile none
LogLevel ERROR
SetEnv PATH={tree.PATH} SHLVL=3
"""  # SHLVL: bash reads root's .bashrc when sshd starts it, unless it believes to be inside another shell


class OpenSsh:
    """sshd in its inetd mode, one process per connection, as a listening sshd would start it."""

    def __init__(self, lab: Lab, host_keys: Callable[[LabNode], Path]) -> None:
        self._host_keys = host_keys
        self._stage = tree.stage(lab)
        self._key = lab.public_key.read_text()
        self._configuration = lab.run / "sshd_config"
        self._configuration.write_text(_CONFIGURATION)
        self._log = lab.log("sshd").open("ab")
        self._sessions: dict[str, set[subprocess.Popen[bytes]]] = {}
        self._authorized: dict[str, Path] = {}
        _PRIVILEGE_SEPARATION.mkdir(exist_ok=True, mode=0o755)

    def boot(self, node: LabNode, deploy: bool, command_line: str, power: Callable[[str], None]) -> None:
        """As `Backend.boot`."""
        fresh = node.name not in self._authorized
        root = tree.plant(self._stage, node)
        if fresh:
            fifo = os.open(root / "dev" / "power", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            asyncio.get_running_loop().add_reader(fifo, partial(_obey, fifo, power))
        tree.boot(root, node, self._key, command_line)
        system = root if deploy else root / "mnt" / "dest"
        self._authorized[node.name] = system / "root" / ".ssh" / "authorized_keys"

    def serve(self, node: LabNode, connection: socket.socket) -> None:
        """As `Backend.serve`."""
        root = self._stage / node.name
        options = {
            "HostKey": self._host_keys(node),
            "AuthorizedKeysFile": self._authorized[node.name],
            "ChrootDirectory": root,
        }
        words = [SSHD, "-i", "-e", "-f", str(self._configuration)]
        words += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        with connection:
            connection.setblocking(True)
            inetd, environment = connection.fileno(), {"PATH": os.defpath}
            session = subprocess.Popen(words, stdin=inetd, stdout=inetd, stderr=self._log, cwd="/", env=environment)
        self._sessions.setdefault(node.name, set()).add(session)
        ended = os.pidfd_open(session.pid)
        asyncio.get_running_loop().add_reader(ended, partial(self._ended, node, session, ended))

    def _ended(self, node: LabNode, session: subprocess.Popen[bytes], ended: int) -> None:
        asyncio.get_running_loop().remove_reader(ended)
        os.close(ended)
        session.wait()
        self._sessions[node.name].discard(session)

    def halt(self, node: LabNode) -> None:
        """As `Backend.halt`."""
        for session in self._sessions.get(node.name, ()):
            for pid in process.family(session.pid):
                process.kill(pid)


def _obey(fifo: int, power: Callable[[str], None]) -> None:
    """Read what the node's commands have written; several at once are one."""
    if words := os.read(fifo, 4096).decode(errors="replace").split("\n"):
        power(words[0])
