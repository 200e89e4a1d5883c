"""The tools as processes that begin where the imports of a fresh interpreter have ended: these are most of their time.

``python -m tests.unit.forks SOCKET`` imports the tools and makes their commands once, and forks a process for each
`Call` that comes over the socket with three file descriptors. Each process has environment, folder and streams of its
own, begins with ``main`` of the tool's console script, and ends as an interpreter does. Tests of the package run the
installed scripts themselves.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

import msgspec

_MOST = 1 << 20
"""Bytes of a call: its arguments and its environment."""


class Call(msgspec.Struct, frozen=True):
    """What to run: all texts as `os.fsencode` has them."""

    arguments: list[bytes]
    """The path of the script first."""
    environment: dict[bytes, bytes]
    folder: str
    umask: int


# --- who asks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forks:
    """The process that forks the tools off, for one process of tests."""

    socket: Path

    def run(self, arguments: Sequence[str | bytes], stdin: str, environment: Mapping[str, str]) -> tuple[int, str, str]:
        """Exit status, output and errors of a tool, as `subprocess.run` tells them."""
        texts = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
        umask = os.umask(0)
        os.umask(umask)
        call = Call([os.fsencode(word) for word in arguments], texts, str(Path.cwd()), umask)
        inward, outward, errors = os.pipe(), os.pipe(), os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
            asking.connect(str(self.socket))
            theirs = (inward[0], outward[1], errors[1])
            socket.send_fds(asking, [msgspec.msgpack.encode(call)], theirs)
            for descriptor in theirs:
                os.close(descriptor)
            feeding = threading.Thread(target=_feed, args=(inward[1], stdin.encode()))
            feeding.start()
            output, said = _read((outward[0], errors[0]))
            feeding.join()
            return int(asking.recv(16)), _text(output), _text(said)


def _feed(descriptor: int, content: bytes) -> None:
    with open(descriptor, "wb") as stream:
        try:
            stream.write(content)
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # nobody reads on; nor does closing it fail


def _read(descriptors: Sequence[int]) -> list[bytes]:
    """All that comes from each of them, until nobody can write to it any more."""
    found = {descriptor: bytearray() for descriptor in descriptors}
    with selectors.DefaultSelector() as waiting:
        for descriptor in descriptors:
            waiting.register(descriptor, selectors.EVENT_READ)
        while waiting.get_map():
            for key, _ in waiting.select():
                piece = os.read(key.fd, 1 << 16)
                found[key.fd] += piece
                if not piece:
                    waiting.unregister(key.fd)
                    os.close(key.fd)
    return [bytes(content) for content in found.values()]


def _text(content: bytes) -> str:
    return content.decode().replace("\r\n", "\n").replace("\r", "\n")


def start(folder: Path) -> tuple[Forks, subprocess.Popen[bytes]]:
    """Start the process; it ends with its standard input."""
    path = folder / "forks"
    command = [sys.executable, "-m", __name__, str(path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return Forks(path), process


# --- who forks --------------------------------------------------------------------------------------------------


def _serve(path: str) -> None:
    scripts = {each.name: each.load() for each in entry_points(group="console_scripts") if _is_ours(each.value)}
    for name, function in scripts.items():
        sys.modules[function.__module__].app.made(name)
    sys.path[0] = str(Path(sys.executable).parent)  # that of the scripts
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(64)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who handles a call is waited for by nobody
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            calling, _ = listener.accept()
            with calling:
                if not os.fork():
                    listener.close()
                    _handle(calling, scripts)


def _is_ours(value: str) -> bool:
    return value.startswith("kadeploy.cli.")


def _handle(calling: socket.socket, scripts: Mapping[str, Callable[[], Any]]) -> NoReturn:
    """Have a call done by a child, and tell its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, descriptors, _, _ = socket.recv_fds(calling, _MOST, 3)
    child = os.fork()
    if not child:
        calling.close()
        _become(msgspec.msgpack.decode(message, type=Call), descriptors, scripts)
    for descriptor in descriptors:
        os.close(descriptor)
    _, status = os.waitpid(child, 0)
    calling.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(call: Call, descriptors: Sequence[int], scripts: Mapping[str, Callable[[], Any]]) -> NoReturn:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environb.clear()
    os.environb.update(call.environment)
    time.tzset()
    os.umask(call.umask)
    os.chdir(call.folder)
    sys.argv = [os.fsdecode(word) for word in call.arguments]
    sys.stdin, sys.stdout, sys.stderr = _stream(0, "r"), _stream(1, "w"), _stream(2, "w")
    os._exit(_end(_status(scripts[Path(sys.argv[0]).name])))


def _stream(descriptor: int, mode: str) -> io.TextIOWrapper:
    """As an interpreter begins with it."""
    errors = "backslashreplace" if descriptor == 2 else "strict"
    return open(descriptor, mode, encoding="utf-8", errors=errors, closefd=False)


def _status(function: Callable[[], Any]) -> int:
    """What ``sys.exit(function())`` makes of it."""
    try:
        code = function()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        return 1
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def _end(status: int) -> int:
    """What an interpreter does at its end."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            return 120
    return status


if __name__ == "__main__":
    _serve(sys.argv[1])
