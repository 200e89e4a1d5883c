"""Starts broadcast relays for nodes that have no shell: the program is the real one, only Python's own start is spared.

A process of its own that has the relay's program compiled and forks for every node. On its standard input, a unix
socket, comes one byte and three descriptors per relay: the program to read (as ``python3 -`` would), standard output
and standard error. The answer is the relay's process number.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from kadeploy.broadcast import relay

_PID = struct.Struct("!I")
_PROGRAM = Path(relay.__file__).read_text(encoding="utf-8")


class Relays:
    """The other end: where relays are asked for."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-I", __file__],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._turn = asyncio.Lock()

    async def start(self, program: bytes, stdout: int, stderr: int) -> int:
        """Start a relay; returns its process number."""
        source = os.memfd_create("relay")
        try:
            os.write(source, program)
            os.lseek(source, 0, os.SEEK_SET)
            async with self._turn:
                socket.send_fds(self._ours, [b"R"], [source, stdout, stderr])
                answer = await asyncio.get_running_loop().sock_recv(self._ours, _PID.size)
        finally:
            os.close(source)
        (pid,) = _PID.unpack(answer)
        return int(pid)


def main() -> None:
    """Fork a relay for each that is asked for, until the other end is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # relays that end need no wait
    compiled = compile(_PROGRAM, "<stdin>", "exec")
    asking = socket.socket(fileno=0)
    while True:
        word, descriptors, _, _ = socket.recv_fds(asking, 1, 3)
        if not word:
            return
        pid = os.fork()
        if not pid:
            _become(compiled, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        asking.sendall(_PID.pack(pid))


def _become(compiled: Any, descriptors: list[int]) -> None:
    """Run the program of the first descriptor, with the others as its outputs; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    status = 1
    try:
        with os.fdopen(0, "r", encoding="utf-8", closefd=False) as stream:
            text = stream.read()
        configuration, _, program = text.partition("\n")
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(configuration, names)  # noqa: S102 - what a node's `python3 -` would run
        names["CONFIG"]["sink"] = _swallow(names["CONFIG"]["sink"])
        exec(compiled if program == _PROGRAM else program, names)  # noqa: S102
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(status)


def _swallow(sink: str) -> str:
    """These nodes have no disk: the image is received, checked and forgotten."""
    return sink if sink.startswith("exec ") else "exec cat > /dev/null"


if __name__ == "__main__":
    main()
