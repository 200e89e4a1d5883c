"""The network card that a machine boots from, heard as its firmware asks for an address.

Who knows only the BMC of a machine learns so what DHCP has to know. Nothing is answered, and the machine boots nothing:
it is enough that it is switched on, its boot order begins with the network, and this machine hears its broadcasts.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager

from kadeploy.admin.dhcp import packet, wire
from kadeploy.admin.dhcp.packet import Question
from kadeploy.errors import KadeployError

_TICK = 0.25
_MORE = 3.0
"""Seconds after the first card in which another one shows that two machines boot at once."""

Listen = Callable[[Callable[[], bool]], Question | None]
"""Wait for a card that asks, as long as that is true; None if there was none."""


@contextmanager
def listening(interface: str, known: Container[str]) -> Iterator[Listen]:
    """Cards behind *interface* that ask for an address as their machine boots, but for the *known* ones.

    One that asks before there is a reason for it belongs to another machine, and does not count afterwards.

    Raises:
        OptionError: there is no such interface, or this user may not listen.
    """
    with wire.listening(interface, packet.SERVER_PORT) as ear:
        strangers: set[str] = set()

        def listen(goes_on: Callable[[], bool]) -> Question | None:
            strangers.update(each.mac for each in _asking(ear, 0.0))
            found = _first(_asking(ear, math.inf, goes_on), known, strangers)
            if found:
                strangers.add(found.mac)
                _alone(found, _first(_asking(ear, _MORE), known, strangers))
            return found

        yield listen


def _first(asking: Iterator[Question], known: Container[str], strangers: Container[str]) -> Question | None:
    return next((each for each in asking if each.mac not in known and each.mac not in strangers), None)


def _alone(found: Question, other: Question | None) -> None:
    if other:
        raise KadeployError(
            f"Two cards that no cluster file names ask for an address, {found.mac} and {other.mac}: another machine "
            "boots at the same time. Try again when it is up, or write the MAC address into the cluster file."
        )


def _asking(ear: socket.socket, seconds: float, goes_on: Callable[[], bool] = lambda: True) -> Iterator[Question]:
    """What is asked within that time; without any, what has been asked already."""
    until = time.monotonic() + seconds
    while goes_on():
        left = max(0.0, until - time.monotonic())
        if select.select([ear], [], [], min(_TICK, left))[0]:
            content, _ = wire.heard(ear)
            found = packet.question(content)
            if found:
                yield found
        elif not left:
            return
