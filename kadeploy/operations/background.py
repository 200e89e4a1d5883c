"""An operation in a process of its own, in a session of its own: begun there, or gone on with there.

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
from typing import IO, Literal, cast

import msgspec

from kadeploy.caller import Account
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.site import Site
from kadeploy.errors import KadeployError, OptionError, UnknownWorkflowError
from kadeploy.events import Began, Ended, Event, Note, Report
from kadeploy.operations import record
from kadeploy.operations.launch import carry_out
from kadeploy.operations.requests import DeployRequest, PowerRequest, RebootRequest, Wish
from kadeploy.operations.resume import go_on
from kadeploy.operations.service import Refusal
from kadeploy.operations.work import run_folder
from kadeploy.process import Controller, is_alive, is_here
from kadeploy.state import controllers
from kadeploy.state.controllers import ERRORS


class _Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Carry out a wish; the process is told on its standard input."""

    request: DeployRequest | RebootRequest | PowerRequest
    config_dir: str
    account: Account | None
    """Whose files they are; None: the user's client has sent them."""


class _GoOn(msgspec.Struct, frozen=True, tag="go_on"):
    """Go on with a workflow whose controller died."""

    wid: str
    config_dir: str


_Order = _Begin | _GoOn


class _Answer(msgspec.Struct, frozen=True):
    """What it says on its standard output, once."""

    wid: str = ""
    refusal: Refusal | None = None


def start(request: Wish, config_dir: Path, account: Account | None) -> str:
    """Carry out *request* in the background: the workflow id, once the operation has begun.

    Raises:
        KadeployError: the request is refused, or none of its nodes can take part; no node was touched.
    """
    return _started(_Begin(request, str(config_dir.resolve()), account))


def resume(wid: str, config_dir: Path) -> None:
    """Go on with *wid*, whose controller died, in the background; returns once it goes on.

    Raises:
        KadeployError: it cannot go on, or does so in another process already.
    """
    _started(_GoOn(wid, str(config_dir.resolve())))


def _started(order: _Order) -> str:
    """Start a process and give it its order: the workflow id, once the operation has begun."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    said = _exchange(process, record.encode(order))
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie behind
    try:
        answer = msgspec.json.decode(said, type=_Answer)
    except msgspec.DecodeError as error:
        raise KadeployError("The operation could not be started: its process ended without a word.") from error
    if answer.refusal:
        answer.refusal.raised()
    return answer.wid


def _exchange(process: subprocess.Popen[bytes], order: bytes) -> bytes:
    """Give the process its order; what it says until it closes its output, which it does once it has begun."""
    with cast("IO[bytes]", process.stdin) as into, suppress(BrokenPipeError):
        into.write(order)
    with cast("IO[bytes]", process.stdout) as out:
        return out.read()


Cancelled = Literal["stopping", "dead", "ended"]
"""What became of a workflow that was to be stopped: it stops within seconds, its controller is dead, it had ended."""


def cancel(site: Site, wid: str) -> Cancelled:
    """Stop *wid*, as Ctrl-C would; nobody goes on with it afterwards, not even when its process dies meanwhile.

    Raises:
        UnknownWorkflowError: there is no such workflow.
        OptionError: its controller is on another machine.
        KadeployError: this process may not end the controller.
    """
    found = controllers.of(site, wid)
    if found is None:
        raise UnknownWorkflowError(f"No workflow is called {wid!r}. `kanodes3 -y` shows those that run.")
    who, ended = found
    if ended:
        return "ended"
    if not is_here(who):
        raise OptionError(f"Workflow {wid} runs on {who.host}: stop it there.")
    record.stop(run_folder(site, wid))
    return "stopping" if _terminated(who, wid) else "dead"


def _terminated(who: Controller, wid: str) -> bool:
    """Send SIGTERM to the controller itself, never to a later process of its number; False: it is dead."""
    try:
        descriptor = os.pidfd_open(who.pid)
    except OSError:
        return False
    try:
        if not is_alive(who):  # asked once the number cannot change hands any more
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise KadeployError(
            f"Workflow {wid} belongs to another account (process {who.pid}): stop it as root."
        ) from error
    finally:
        os.close(descriptor)
    return True


@dataclass
class _Announcer:
    """A listener that answers who has started the process, once; from then on errors go to a file of the run."""

    descriptor: int | None
    site: Site | None = None
    wid: str = ""
    """Of a workflow that goes on."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Began):
            self._begun(event.wid)
        elif isinstance(event, Note) and event.resumed:
            self._begun(self.wid)
        elif isinstance(event, Ended):  # nobody took part
            nobody = KadeployError("\n".join(f"{name}: {why}" for name, why in event.report.ko.items()))
            self.answer(_Answer(refusal=Refusal.of(nobody)))

    def _begun(self, wid: str) -> None:
        if self.site:
            _keep_errors(run_folder(self.site, wid))
        self.answer(_Answer(wid=wid))

    def answer(self, answer: _Answer) -> bool:
        """False when there was an answer already."""
        if self.descriptor is None:
            return False
        with suppress(OSError):  # nobody waits any more
            os.write(self.descriptor, msgspec.json.encode(answer))
        os.close(self.descriptor)
        self.descriptor = None
        return True


_LATER = 5
"""How much lower its priority is than that of who answers questions meanwhile (nice(2))."""


def main() -> int:
    """What the process does; started by `start` alone."""
    os.nice(_LATER)
    order: _Order = record.decode(sys.stdin.buffer.read(), _Order)
    announcer = _Announcer(os.dup(1))
    _leave_standard_streams()
    try:
        configuration = load_configuration(Path(order.config_dir))
        announcer.site = configuration.site
        report = _carry_out(order, configuration, announcer, _stop())
    except Exception as error:  # whatever it is: who waits is told; later nobody does, and it is kept
        refusal = _refusal(error)
        if not announcer.answer(_Answer(refusal=refusal)):
            print(traceback.format_exc()[-ERRORS_BYTES:], refusal.message[:ERRORS_BYTES], sep="\n", file=sys.stderr)
        return 1
    return 3 if report.ko else 0


def _carry_out(order: _Order, configuration: Configuration, announcer: _Announcer, stop: threading.Event) -> Report:
    if isinstance(order, _Begin):
        return carry_out(order.request, configuration, order.account, announcer, stop)
    announcer.wid = order.wid
    return go_on(order.wid, configuration, announcer, stop)


def _refusal(error: Exception) -> Refusal:
    return Refusal.of(error if isinstance(error, KadeployError) else KadeployError(f"{type(error).__name__}: {error}"))


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
