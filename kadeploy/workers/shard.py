"""One shard on a worker, in a process of its own: fetched, carried out, told, forgotten.

The process is told on its standard input what to do. It ends with whoever told it; and it ends itself, and all that it
has started, when its controller has not answered for `lease.FENCED` seconds: by then another worker may have the nodes.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec

from kadeploy.boot import secret
from kadeploy.client.address import Address
from kadeploy.config import secret_files
from kadeploy.config.cluster import address
from kadeploy.errors import KadeployError, OptionError
from kadeploy.events import Event, Progress, StepResult, StepStarted
from kadeploy.remote import errands as asked
from kadeploy.remote.brokers import Brokers
from kadeploy.remote.fanout import Credentials
from kadeploy.runner import request as requests
from kadeploy.runner.player import Player, end_processes, folder_name
from kadeploy.runner.request import Assignment, Request
from kadeploy.workers import errands, lease, parcel, settings
from kadeploy.workers.charge import Charge
from kadeploy.workers.connection import Controller
from kadeploy.workers.jobs import Job
from kadeploy.workers.lease import Report
from kadeploy.workers.settings import Worker
from kadeploy.workflow import Attempt, Outcome

SOON = 0.3
"""Seconds for which events are collected before they are reported."""

_LAST = 1 << 40
"""Number of a report that nothing follows."""


class Order(msgspec.Struct, frozen=True):
    """What the process is to do."""

    settings: str
    """Path of ``worker.yml``."""
    job: Job
    folder: str
    """An empty folder for this shard alone; whoever gave it removes it."""
    images: str
    """A folder with images by their SHA-256, which shards share."""
    secrets: str
    """An empty folder in memory, removed as well."""


class Shard:
    """A shard that this process carries out."""

    def __init__(self, order: Order, worker: Worker, service: Address) -> None:
        self.order = order
        self.worker = worker
        self.connected = partial(Controller, service, order.job)
        self.folder = Path(order.folder)
        self.stop = threading.Event()
        self.taken: dict[str, str] = {}
        self.run_folder: Path | None = None
        """Of the playbook, once it is known."""
        self.keeper: Brokers | None = None
        """Of the connections, once there are any."""
        self.is_handed_back = False
        """What becomes of the nodes here does not count any more."""

    def carry_out(self) -> None:
        """All of it."""
        with closing(self.connected()) as controller:
            self._bring(controller.claim(), controller)

    def _bring(self, charge: Charge, controller: Controller) -> None:
        came = time.monotonic()
        with Reporter(self, charge) as reporter:
            try:
                request = self._fetched(charge, controller)
                attempt = _here(request.attempt, charge, came)
                run_folder = self.run_folder = Path(request.workflow_dir) / folder_name(attempt)
                outcomes = self._played(request, attempt, charge.nodes, reporter)
            except (KadeployError, OSError) as error:
                reporter.end(fault=str(error))
                return
            with suppress(KadeployError, OSError):  # they are for people who look closely
                controller.results(run_folder)
            reporter.end(outcomes=outcomes)

    def _fetched(self, charge: Charge, controller: Controller) -> Request:
        """The request, with the paths that things have on this machine."""
        came = self.folder / "came"
        came.mkdir(mode=0o700)
        controller.fetch(came)
        for name, content in charge.secrets.items():
            _write(Path(self.order.secrets) / Path(name).name, content)
        for sha256, size in charge.images.items():
            self._image(sha256, size, came, controller)
        read = requests.read(came / requests.FILE_NAME)
        workflow_dir = self.folder / read.wid
        for name in ("state", "config", read.wid):
            (self.folder / name).mkdir(mode=0o700)
        if (came / parcel.KEY).exists():
            secret.keep(workflow_dir, read.attempt, (came / parcel.KEY).read_bytes())
        site = msgspec.structs.replace(
            read.site,
            state_dir=str(self.folder / "state"),
            network_namespace="",
            server_address=self.worker.server_address or _own_address(read),
        )
        config_dir = str(self.folder / "config")
        return msgspec.structs.replace(read, site=site, workflow_dir=str(workflow_dir), config_dir=config_dir)

    def _image(self, sha256: str, size: int, came: Path, controller: Controller) -> None:
        """Have an image among the files that came; one that another shard of this worker has is not fetched again."""
        here, kept = came / requests.FILES / sha256, Path(self.order.images) / sha256
        here.parent.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            os.link(kept, here)
            return
        controller.image(sha256, size, here)
        with suppress(FileExistsError):  # another shard was as quick
            os.link(here, kept)

    def _played(
        self, request: Request, attempt: Attempt, nodes: tuple[str, ...], reporter: Reporter
    ) -> Mapping[str, Outcome]:
        common = {name: getattr(request, name) for name in Assignment.__struct_fields__}
        members = {node.name: node for node in request.nodes}
        workflow_dir = Path(request.workflow_dir)
        with ExitStack() as stack:
            os.environ[asked.VARIABLE] = str(stack.enter_context(errands.running(workflow_dir, self.connected)))
            keeper = Brokers(workflow_dir, Credentials.of(request.site))
            keeper.start()
            stack.callback(keeper.stop)
            self.keeper = keeper
            player = Player(Assignment(**common), members, reporter.tell, self.stop, self.taken)
            return player.perform_part(attempt, nodes, request.of)

    def hand_back(self, reason: str) -> NoReturn:
        """End everything, and tell the controller that others may have the nodes."""
        self.is_handed_back = True
        self.stop.set()
        end_processes(self.folder)
        if self.keeper:
            closing_connections = threading.Thread(target=self.keeper.stop, daemon=True)
            closing_connections.start()
            closing_connections.join(SOON * 10)
        with suppress(KadeployError, OSError), closing(self.connected()) as controller:
            controller.report(Report(number=_LAST, worker=self.worker.called, fault=reason))
        self.fence()

    def fence(self) -> NoReturn:
        """End everything at once: the nodes may be others' by now."""
        end_processes(self.folder)
        os._exit(1)


class Reporter:
    """Reports to the controller what the player tells, and passes on what the controller answers."""

    def __init__(self, shard: Shard, charge: Charge) -> None:
        self._shard = shard
        self._charge = charge
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._let_go: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._last: Report | None = None
        self._number = 0
        self._heard = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> Reporter:
        self._thread = threading.Thread(target=self._run, name="reporter")
        self._thread.start()
        threading.Thread(target=self._watch, name="fence", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._events.put(None)
        self._thread.join()
        self._over.set()

    def tell(self, event: Event) -> None:
        """From any thread: tell the controller of *event*."""
        self._events.put(event)

    def end(self, outcomes: Mapping[str, Outcome] | None = None, fault: str = "") -> None:
        """Tell the controller, once all else is told, how it ended."""
        self._last = self._report((), outcomes=outcomes, fault=fault)

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            if time.monotonic() - self._heard > lease.FENCED:
                self._shard.fence()

    def _run(self) -> None:
        with closing(self._shard.connected()) as controller:
            while not self._over.is_set():
                events, ended = self._collected()
                self._send(controller, self._report(events))
                if ended:
                    break
            if self._last and not self._shard.is_handed_back:
                self._send(controller, msgspec.structs.replace(self._last, number=self._next()))

    def _collected(self) -> tuple[tuple[lease.Told, ...], bool]:
        """What is to be told by now; whether that is all."""
        found: list[lease.Told] = []
        until = time.monotonic() + lease.REPORT_EVERY
        while (left := until - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left)
            except queue.Empty:
                break
            if event is None:
                return tuple(found), True
            if isinstance(event, StepStarted | StepResult | Progress):
                found.append(event)
            until = min(until, time.monotonic() + SOON)
        return tuple(found), False

    def _report(
        self, events: Iterable[lease.Told], outcomes: Mapping[str, Outcome] | None = None, fault: str = ""
    ) -> Report:
        let_go = []
        with suppress(queue.Empty):
            while True:
                let_go.append(self._let_go.get_nowait())
        return Report(
            number=self._next(),
            worker=self._shard.worker.called,
            events=tuple(events),
            let_go=tuple(let_go),
            outcomes=outcomes,
            fault=fault,
        )

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _send(self, controller: Controller, report: Report) -> None:
        """Until it has arrived; meanwhile the fence falls."""
        report = self._placed(report)
        while True:
            try:
                answer = controller.report(report)
            except OptionError:  # it is another's by now
                self._shard.fence()
            except KadeployError:
                controller.close()
                time.sleep(SOON)
            else:
                self._heard = time.monotonic()
                self._heed(answer.taken, answer.stop)
                return

    def _placed(self, report: Report) -> Report:
        """*report* with the names that files of the run will have on the controller."""
        here, there = str(self._shard.run_folder).encode(), self._charge.run_dir.encode()
        text = msgspec.json.encode(report)
        return msgspec.json.decode(text.replace(here, there), type=Report) if here in text else report

    def _heed(self, taken: Mapping[str, str], stop: bool) -> None:
        if stop:
            self._shard.stop.set()
        new = {node: why for node, why in taken.items() if node not in self._shard.taken}
        if not new:
            return
        self._shard.taken |= new
        if self._shard.keeper is None:
            self._gone(tuple(new), None)
        else:
            self._shard.keeper.take(new).add_done_callback(partial(self._gone, tuple(new)))

    def _gone(self, names: Iterable[str], _done: Future[None] | None) -> None:
        for name in names:
            self._let_go.put(name)


def _here(attempt: Attempt, charge: Charge, came: float) -> Attempt:
    """*attempt* by this machine's clock, which said *came* when the charge did."""
    if not attempt.goes_on:
        return attempt
    begun = came - (charge.now - attempt.goes_on.begun)
    return replace(attempt, goes_on=replace(attempt.goes_on, begun=begun))


def _own_address(request: Request) -> str:
    """The address by which this machine reaches the first node; no packet is sent."""
    where = address(request.site, request.nodes[0])
    [(family, kind, *_, target)] = socket.getaddrinfo(where, request.site.ssh.port, type=socket.SOCK_DGRAM)[:1]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def main() -> None:
    """Do what the first line of standard input says, unless it ends meanwhile."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    os.environ[secret_files.VARIABLE] = order.secrets
    worker = settings.read(Path(order.settings))
    shard = Shard(order, worker, settings.address_of(worker, Path(order.settings)))

    def end_with_the_worker() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        shard.hand_back("it was ended")

    threading.Thread(target=end_with_the_worker, name="worker", daemon=True).start()
    try:
        shard.carry_out()
    except KadeployError as error:
        sys.exit(str(error))
    finally:
        end_processes(shard.folder)


if __name__ == "__main__":
    main()
