"""A TFTP client with windows (RFC 7440), which tftpy's has not, and a network that loses packets and takes its time."""

from __future__ import annotations

import heapq
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

Address = tuple[str, int]


def request(name: str, **options: int) -> bytes:
    """A read request."""
    words = [name, "octet", *(str(word) for pair in options.items() for word in pair)]
    return struct.pack("!H", 1) + b"".join(word.encode() + b"\0" for word in words)


def half_open(server: Address, name: str, source: str = "") -> socket.socket:
    """A client, with the address *source*, that asks and never says another word."""
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.bind((source, 0))
    client.sendto(request(name), server)
    return client


def fetch(server: Address, name: str, patience: float = 0.5, seconds: float = 60, **options: int) -> bytes:
    """A file, the way a boot loader fetches it: what is silent for *patience* seconds is asked again."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(patience)
        said, peer = request(name, **options), server
        size, window = 512, 1
        content, last, in_window = b"", 0, 0
        deadline = time.monotonic() + seconds
        client.sendto(said, peer)
        while time.monotonic() < deadline:
            try:
                packet, peer = client.recvfrom(65536)
            except TimeoutError:
                client.sendto(said, peer)
                continue
            operation, number = struct.unpack("!HH", packet[:4])
            if operation == 5:
                raise OSError(packet[4:].decode())
            if operation == 6:
                words = packet[2:].rstrip(b"\0").split(b"\0")
                agreed = dict(zip(words[::2], map(int, words[1::2]), strict=True))
                size, window = agreed.get(b"blksize", 512), agreed.get(b"windowsize", 1)
            elif number == (last + 1) & 0xFFFF:
                content, last, in_window = content + packet[4:], last + 1, in_window + 1
                if in_window < window and len(packet) == 4 + size:
                    continue
            in_window = 0
            said = struct.pack("!HH", 4, last & 0xFFFF)
            client.sendto(said, peer)
            if operation == 3 and len(packet) < 4 + size and number == last & 0xFFFF:
                return content
        raise TimeoutError(f"{len(content)} bytes after {seconds:g} s")


@contextmanager
def lossy_network(server: Address, loss: float, delay: float) -> Iterator[Address]:
    """An address behind which *server* is, for one transfer: with lost packets, and *delay* seconds each way."""
    front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    front.bind(("127.0.0.1", 0))
    back.bind(("127.0.0.1", 0))
    over = threading.Event()
    thread = threading.Thread(target=_carry, args=(front, back, server, loss, delay, over))
    thread.start()
    try:
        yield front.getsockname()
    finally:
        over.set()
        thread.join()
        front.close()
        back.close()


def _carry(
    front: socket.socket, back: socket.socket, server: Address, loss: float, delay: float, over: threading.Event
) -> None:
    chance = random.Random(7)
    client, peer = ("127.0.0.1", 9), server
    under_way: list[tuple[float, int, socket.socket, bytes, Address]] = []
    count = 0
    while not over.is_set():
        wait = max(0.0, min(0.05, under_way[0][0] - time.monotonic())) if under_way else 0.05
        for each in select.select([front, back], [], [], wait)[0]:
            packet, sender = each.recvfrom(65536)
            if each is front:
                client, way, target = sender, back, peer
            else:
                peer, way, target = sender, front, client
            if chance.random() >= loss:
                count += 1
                heapq.heappush(under_way, (time.monotonic() + delay, count, way, packet, target))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, way, packet, target = heapq.heappop(under_way)
            way.sendto(packet, target)
