"""An operation of the site that runs beside who has begun it, in a thread of its own, and that ends with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kadeploy.events import Event, Report
from kadeploy.operations.requests import Wish
from kadeploy.operations.service import Service


@dataclass
class Operating:
    """How far it is."""

    stop: threading.Event = field(default_factory=threading.Event)
    report: Report | None = None
    error: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def give_up(self) -> None:
        """Have it end within seconds."""
        self.stop.set()


@contextmanager
def operating(service: Service, wish: Wish, hear: Callable[[Event], None]) -> Iterator[Operating]:
    """Have *wish* carried out meanwhile; *hear* is told of it in its thread.

    At the end of the block it is waited for; it is stopped before where the block is left by an error or Ctrl-C.
    """
    found = Operating()

    def run() -> None:
        try:
            found.report = service.carry_out(wish, hear, found.stop, lambda _: None)
        except BaseException as error:
            found.error = error
        found.ended.set()

    thread = threading.Thread(target=run, name="operation")
    try:
        thread.start()  # inside: Ctrl-C may come as soon as it runs
        yield found
    except BaseException:
        found.stop.set()
        raise
    finally:
        if thread.ident:
            thread.join()


def carried_out(service: Service, wish: Wish) -> Report:
    """How *wish* ended.

    Raises:
        KadeployError: it is refused, or broke off.
    """
    with operating(service, wish, lambda _: None) as found:
        while not found.ended.wait(1):  # in pieces, so that Ctrl-C is heard
            pass
    if found.error:
        raise found.error
    assert found.report is not None  # noqa: S101 - it has ended without an error
    return found.report
