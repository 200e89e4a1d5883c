"""The worker's end of what its tasks ask of their controller (`kadeploy.remote.errands`)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec

from kadeploy.errors import KadeployError
from kadeploy.remote import sockets
from kadeploy.remote.errands import Done, Errand, Profiles, Slot
from kadeploy.workers.connection import Controller

SOCKET = "controller.sock"
_LONGEST = 4 << 20
_DECODER: msgspec.json.Decoder[Errand] = msgspec.json.Decoder(Errand)


@contextmanager
def running(folder: Path, controller: Callable[[], Controller]) -> Iterator[Path]:
    """Listen in *folder*: the socket's path; each errand has a connection to the controller of its own."""
    with sockets.listening(folder, SOCKET) as listener:
        listener.setblocking(True)
        thread = threading.Thread(target=_listen, args=(listener, controller), name="errands", daemon=True)
        thread.start()
        try:
            yield folder / SOCKET
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _listen(listener: socket.socket, controller: Callable[[], Controller]) -> None:
    while True:
        try:
            asking, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(asking, controller), name="errand", daemon=True).start()


def _serve(asking: socket.socket, controller: Callable[[], Controller]) -> None:
    with asking, suppress(OSError, msgspec.DecodeError):
        errand = _DECODER.decode(_line(asking))
        try:
            with closing(controller()) as service:
                match errand:
                    case Slot():
                        _hold(asking, service, errand)
                    case Profiles():
                        _say(asking, Done(service.profiles(errand.boot, errand.nodes)))
        except KadeployError as error:
            _say(asking, Done(fault=str(error)))


def _hold(asking: socket.socket, service: Controller, errand: Slot) -> None:
    """Hold a slot until whoever asked is gone, or the controller takes it back."""
    threading.Thread(target=_cut_when_gone, args=(asking, service), name="slot", daemon=True).start()
    is_held = False
    with service.slot(errand.window) as lines:
        for line in lines:
            if line == b"held":
                is_held = True
                _say(asking, Done())
    if not is_held:
        _say(asking, Done(fault="the controller gives no slot any more"))


def _cut_when_gone(asking: socket.socket, service: Controller) -> None:
    with suppress(OSError):
        asking.recv(1)
    service.cut()


def _line(asking: socket.socket) -> bytes:
    content = bytearray()
    while not content.endswith(b"\n") and len(content) < _LONGEST:
        if not (piece := asking.recv(65536)):
            break
        content += piece
    return bytes(content)


def _say(asking: socket.socket, done: Done) -> None:
    asking.sendall(msgspec.json.encode(done) + b"\n")
