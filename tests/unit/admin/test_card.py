"""Which card a machine boots from, heard on the wire: real packets on the loopback device, as root."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.admin import card
from kadeploy.admin.dhcp import packet
from kadeploy.errors import KadeployError

OLD, NEW, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone hears all packets")


def send(content: bytes, port: int = packet.SERVER_PORT) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
        mouth.sendto(content, ("127.0.0.1", port))


def ask(mac: str, architecture: int = packet.BIOS) -> None:
    send(packet.discover(7, mac, architecture))


@pytest.fixture
def later() -> Iterator[list[threading.Timer]]:
    """Timers that have ended with the test."""
    timers: list[threading.Timer] = []
    yield timers
    for timer in timers:
        timer.cancel()
        timer.join()


def for_seconds(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until


@needs_root
def test_the_card_that_asks_while_it_is_waited_for_is_the_machines(
    later: list[threading.Timer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "_MORE", 0.5)
    with card.listening("lo", {OLD}) as listen:
        ask(OTHER)  # before anything was switched on
        for seconds, mac in ((0.2, OLD), (0.3, OTHER), (0.4, NEW), (0.6, NEW)):
            later.append(threading.Timer(seconds, ask, [mac, packet.UEFI]))
            later[-1].start()
        found = listen(for_seconds(20))
    assert found is not None
    assert (found.mac, found.firmware) == (NEW, "uefi")


@needs_root
def test_two_machines_that_boot_at_once_are_told_and_none_is_taken(later: list[threading.Timer]) -> None:
    with card.listening("lo", set()) as listen:
        for seconds, mac in ((0.1, NEW), (0.4, OTHER)):
            later.append(threading.Timer(seconds, ask, [mac]))
            later[-1].start()
        with pytest.raises(KadeployError, match=f"{NEW} and {OTHER}: another machine boots at the same time"):
            listen(for_seconds(20))


@needs_root
def test_a_system_that_runs_is_no_card_that_boots_and_silence_ends() -> None:
    with card.listening("lo", set()) as listen:
        send(packet.discover(7, NEW, packet.BIOS).replace(b"PXEClient", b"dhcpcd-10"))
        send(packet.discover(7, NEW, packet.BIOS), packet.PROXY_PORT)
        send(b"")
        assert listen(for_seconds(0.5)) is None


@given(st.binary(max_size=600), st.integers(0, 400))
def test_no_packet_upsets_the_ear(noise: bytes, cut: int) -> None:
    packet.question(noise)
    whole = packet.discover(7, NEW, packet.BIOS)
    packet.question(whole[:cut])
    packet.question(whole[:240] + noise)
