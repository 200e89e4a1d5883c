"""The brokers of a workflow on many nodes: each has some of them, in a process and on a processor of its own.

The first is a thread of this process and lends the user's files. The others are told on their standard input what to
do, and end where that ends: they do not outlive this process, however it ends.
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, cast

import msgspec

from kadeploy.remote import broker
from kadeploy.remote.broker import Broker
from kadeploy.remote.fanout import Credentials

PATIENCE = 10.0
"""Seconds that a broker has to close its connections."""


class Charge(msgspec.Struct, frozen=True):
    """What another process is to keep."""

    folder: str
    """The workflow's."""
    number: int
    """Which of the brokers it is."""
    credentials: dict[str, str | float | None]


class Order(msgspec.Struct, frozen=True):
    """Nodes are to be taken from the workflow, and why; answered by the number, on a line, once that is done."""

    number: int
    reasons: dict[str, str]


class Brokers:
    """*count* brokers; see `Broker`, whose methods these are."""

    def __init__(
        self, workflow_dir: Path, credentials: Credentials, lent: Mapping[str, int] | None = None, count: int = 1
    ) -> None:
        self._folder = workflow_dir
        self._first = Broker(workflow_dir, credentials, lent)
        self._others = [_Other(workflow_dir, credentials, number) for number in range(1, count)]

    def start(self) -> None:
        """Serve from now on.

        Raises:
            OSError: a socket or a process cannot be made.
        """
        with ExitStack() as started:
            for other in self._others:
                other.begin()
                started.callback(other.end)
            for other in self._others:
                other.wait()
            broker.note(self._folder, 1 + len(self._others))
            self._first.start()
            started.pop_all()

    def stop(self) -> None:
        """End what clients still do on nodes, close all connections, remove the sockets."""
        self._first.stop()
        for other in self._others:
            other.tell_end()
        for other in self._others:
            other.end()

    def take(self, reasons: Mapping[str, str]) -> Future[None]:
        """From any thread: take nodes from the workflow; done once nothing is done to them any more."""
        return together([self._first.take(reasons), *(other.take(reasons) for other in self._others)])

    @contextmanager
    def hold(self, names: Iterable[str]) -> Iterator[None]:
        """In any thread, while it lasts: these nodes may be acted on by ways that nobody can end."""
        with self._first.hold(names):  # who takes nodes waits for all brokers: it is enough that one says so
            yield


def together(parts: Sequence[Future[None]]) -> Future[None]:
    """Done once all of *parts* are, of which there is one at least."""
    return _All(parts).future


class _All:
    """Done when all are; a broker that could not do it is as good as gone, and with it its connections."""

    def __init__(self, parts: Sequence[Future[None]]) -> None:
        self.future: Future[None] = Future()
        self._lock = threading.Lock()
        self._left = len(parts)
        for part in parts:
            part.add_done_callback(self._one_less)

    def _one_less(self, _: Future[None]) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self.future.set_result(None)


class _Other:
    """A broker in another process."""

    def __init__(self, folder: Path, credentials: Credentials, number: int) -> None:
        self._charge = Charge(str(folder), number, _told(credentials))
        self._numbers = itertools.count(1)
        self._under_way: dict[int, Future[None]] = {}
        self._lock = threading.Lock()
        self._gone = False

    def begin(self) -> None:
        """Start the process; it leads a session of its own, so that Ctrl-C is for us alone.

        Whatever lies in the working directory, which may be anybody's, is not imported (``-P``).
        """
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kadeploy.remote.brokers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._say(self._charge)

    def wait(self) -> None:
        """Until it serves.

        Raises:
            OSError: it does not.
        """
        if not self._stdout.readline():
            raise OSError(f"a broker of connections did not start: exit status {self._process.wait()}")
        self._thread = threading.Thread(target=self._listen, name="broker-told", daemon=True)
        self._thread.start()

    def take(self, reasons: Mapping[str, str]) -> Future[None]:
        """As `Broker.take`."""
        done: Future[None] = Future()
        with self._lock:
            if self._gone:
                done.set_result(None)
                return done
            number = next(self._numbers)
            self._under_way[number] = done
        self._say(Order(number, dict(reasons)))
        return done

    def tell_end(self) -> None:
        """Tell it to end."""
        with suppress(OSError):
            self._stdin.close()

    def end(self) -> None:
        """Wait until it has ended."""
        self.tell_end()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()

    @property
    def _stdin(self) -> IO[bytes]:
        return cast("IO[bytes]", self._process.stdin)

    @property
    def _stdout(self) -> IO[bytes]:
        return cast("IO[bytes]", self._process.stdout)

    def _say(self, words: Charge | Order) -> None:
        with suppress(OSError):  # it is gone, which `_listen` and `wait` find out
            self._stdin.write(msgspec.json.encode(words) + b"\n")
            self._stdin.flush()

    def _listen(self) -> None:
        with suppress(ValueError):  # closed
            for line in self._stdout:
                self._done(int(line))
        with self._lock:
            self._gone = True
            left = list(self._under_way.values())
            self._under_way.clear()
        for future in left:
            future.set_result(None)

    def _done(self, number: int) -> None:
        with self._lock:
            future = self._under_way.pop(number, None)
        if future:
            future.set_result(None)


def _told(credentials: Credentials) -> dict[str, str | float | None]:
    plain = dataclasses.asdict(credentials)
    return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


def _understood(told: Mapping[str, str | float | None]) -> Credentials:
    paths = {name: Path(str(told[name])) for name in ("private_key", "known_hosts") if told[name] is not None}
    return Credentials(**{**told, **paths})  # type: ignore[arg-type]


def main() -> None:
    """Keep connections until standard input ends."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    charge = msgspec.json.decode(stdin.readline(), type=Charge)
    keeper = Broker(Path(charge.folder), _understood(charge.credentials), number=charge.number)
    keeper.start()
    lock = threading.Lock()

    def say(text: str) -> None:
        with lock, suppress(OSError):
            stdout.write(f"{text}\n".encode())
            stdout.flush()

    def answering(order: Order) -> Callable[[Future[None]], None]:
        return lambda _: say(str(order.number))

    say("0")
    for line in stdin:
        order = msgspec.json.decode(line, type=Order)
        keeper.take(order.reasons).add_done_callback(answering(order))
    keeper.stop()


if __name__ == "__main__":
    main()
