"""``--no-wait``: an operation in a process of its own, in a session of its own.

Who asks waits until the operation has begun, or is refused; then the process belongs to nobody. What it does is in the
journal and in the event file of its run, and what goes wrong with the process itself in `errors` beside it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, cast

import msgspec

from kadeploy.caller import Account
from kadeploy.config.folder import load_configuration
from kadeploy.config.site import Site
from kadeploy.errors import KadeployError
from kadeploy.events import Began, Ended, Event
from kadeploy.operations.launch import carry_out
from kadeploy.operations.requests import DeployRequest, PowerRequest, RebootRequest, Wish
from kadeploy.operations.work import run_folder
from kadeploy.state.controllers import ERRORS


class _Order(msgspec.Struct, frozen=True):
    """What the process is told on its standard input."""

    request: DeployRequest | RebootRequest | PowerRequest
    config_dir: str
    name: str
    uid: int
    gid: int
    home: str

    @property
    def account(self) -> Account:
        return Account(self.name, self.uid, self.gid, Path(self.home))


class _Answer(msgspec.Struct, frozen=True):
    """What it says on its standard output, once."""

    wid: str = ""
    refusal: str = ""


def start(request: Wish, config_dir: Path, account: Account) -> str:
    """Carry out *request* in the background: the workflow id, once the operation has begun.

    Raises:
        KadeployError: the request is refused, or none of its nodes can take part; no node was touched.
    """
    order = _Order(request, str(config_dir.resolve()), account.name, account.uid, account.gid, str(account.home))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    said = _exchange(process, msgspec.json.encode(order))
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie behind
    try:
        answer = msgspec.json.decode(said, type=_Answer)
    except msgspec.DecodeError as error:
        raise KadeployError("The operation could not be started: its process ended without a word.") from error
    if answer.refusal:
        raise KadeployError(answer.refusal)
    return answer.wid


def _exchange(process: subprocess.Popen[bytes], order: bytes) -> bytes:
    """Give the process its order; what it says until it closes its output, which it does once it has begun."""
    with cast("IO[bytes]", process.stdin) as into, suppress(BrokenPipeError):
        into.write(order)
    with cast("IO[bytes]", process.stdout) as out:
        return out.read()


@dataclass
class _Announcer:
    """A listener that answers who has started the process, once; from then on errors go to a file of the run."""

    descriptor: int | None
    site: Site | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Began):
            if self.site:
                _keep_errors(run_folder(self.site, event.wid))
            self.answer(_Answer(wid=event.wid))
        elif isinstance(event, Ended):  # nobody took part
            self.answer(_Answer(refusal="\n".join(f"{name}: {why}" for name, why in event.report.ko.items())))

    def answer(self, answer: _Answer) -> bool:
        """False when there was an answer already."""
        if self.descriptor is None:
            return False
        with suppress(OSError):  # nobody waits any more
            os.write(self.descriptor, msgspec.json.encode(answer))
        os.close(self.descriptor)
        self.descriptor = None
        return True


def main() -> int:
    """What the process does; started by `start` alone."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    announcer = _Announcer(os.dup(1))
    _leave_standard_streams()
    try:
        configuration = load_configuration(Path(order.config_dir))
        announcer.site = configuration.site
        report = carry_out(order.request, configuration, order.account, announcer, _stop())
    except Exception as error:  # whatever it is: who waits is told; later nobody does, and it is kept
        if not announcer.answer(_Answer(refusal=_told(error))):
            print(traceback.format_exc()[-ERRORS_BYTES:], _told(error)[:ERRORS_BYTES], sep="\n", file=sys.stderr)
        return 1
    return 3 if report.ko else 0


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, KadeployError) else f"{type(error).__name__}: {error}"


def _leave_standard_streams() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


ERRORS_BYTES = 1 << 16
"""About how much is kept of what the process says on its standard error: its end."""


def _keep_errors(folder: Path) -> None:
    """From here on standard error is a file of the run, readable for its owner alone."""
    with suppress(OSError):  # a full disk: then nothing is kept
        file = os.open(folder / ERRORS, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(file, 2)
        threading.Thread(target=_bound, args=(file,), daemon=True, name="errors").start()


def _bound(file: int) -> None:
    """Keep the end of *file* when it has become too long; what is written is appended (open(2), O_APPEND)."""
    while True:
        time.sleep(1)
        with suppress(OSError):
            size = os.fstat(file).st_size
            if size > 2 * ERRORS_BYTES:
                end = os.pread(file, ERRORS_BYTES, size - ERRORS_BYTES)
                os.ftruncate(file, 0)
                os.write(file, end)


def _stop() -> threading.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop


if __name__ == "__main__":
    sys.exit(main())
