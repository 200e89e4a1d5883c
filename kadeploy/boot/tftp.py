"""A read-only TFTP server: loaders and their profiles, for machines whose firmware speaks nothing else.

RFC 1350 with the options of RFC 2348 (block size), 2349 (time-out, size) and 7440 (window). Lost packets are sent again
after a time that follows the round trip, as RFC 1123 wants it. tftpy knows the packets; its server would send one
block per round trip, wait five seconds for each one lost, and end with more than 1,024 open files.

One thread and one `select` serve all clients. When as many transfers run as may, requests wait in the order in which
they came, for as long as their clients do; a transfer whose client has fallen silent makes room.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tftpy.TftpPacketFactory import TftpPacketFactory
from tftpy.TftpPacketTypes import TftpPacketDAT, TftpPacketERR, TftpPacketOACK, TftpPacketRRQ, TftpPacketWRQ

from kadeploy.boot.root import open_below

Log = Callable[[str], None]
Client = tuple[str, int]
"""Address and UDP port."""

TRANSFERS = 2000
"""How many may run at a time."""
WAITING = 10_000
"""Clients that may wait for one to end."""
WAITS = 10.0
"""Seconds after which a client that waits and has not asked again has given up."""
BLOCK_SIZE = 512
MOST_BLOCK_SIZE = 1468
"""What an Ethernet packet holds: firmware does not put fragments together again."""
MOST_WINDOW = 64
"""Blocks on their way at a time."""
FIRST_PATIENCE = 1.0
"""Seconds to wait for an answer before the round trip is known."""
LEAST_PATIENCE = 0.2
MOST_PATIENCE = 4.0
SILENCE = 20.0
"""Seconds without progress after which a transfer ends."""
SHORT_SILENCE = 3.0
"""The same, when others wait for its place."""
_TICK = 0.05
_REQUESTS = 64
"""How many are read between two looks at the transfers."""
_LONGEST_REQUEST = 2048
"""Bytes. RFC 2347 wants 512; longer ones are dropped."""
_QUEUE = 4 << 20
"""Bytes of requests that the kernel may keep for us: a thousand machines that are switched on ask within a second."""
_SO_RCVBUFFORCE = 33  # socket(7): beyond the limit of net.core.rmem_max, for whoever may
_ACK, _ERROR = 4, 5
_NOT_FOUND, _ACCESS_VIOLATION, _ILLEGAL = 1, 2, 4

logging.getLogger("tftpy").setLevel(logging.CRITICAL)  # it reports every packet that is malformed


@dataclass
class _Terms:
    """What client and server agree on."""

    block_size: int = BLOCK_SIZE
    window: int = 1
    patience: float | None = None
    """Seconds that the client wants us to wait before we send again; None leaves it to us."""
    agreed: dict[str, str] = field(default_factory=dict)
    """Options of the client that we take, as we answer them."""

    @classmethod
    def of(cls, asked: dict[str, str], size: int) -> _Terms:
        """What we make of the options that the client *asked* for, with a file of *size* bytes."""
        terms = cls()
        for name, text in asked.items():
            if text.isascii() and text.isdecimal() and len(text) < 10:
                terms._take(name.lower(), int(text), size)
        return terms

    def _take(self, name: str, value: int, size: int) -> None:
        if name == "blksize" and value >= 8:
            self.block_size = value = min(value, MOST_BLOCK_SIZE)
        elif name == "windowsize" and value >= 1:
            self.window = value = min(value, MOST_WINDOW)
        elif name == "timeout" and 1 <= value <= 255:
            self.patience = value
        elif name == "tsize":
            value = size
        else:
            return
        self.agreed[name] = str(value)


class _Transfer:
    """One file on its way to one client. Block 0 is the answer to its options, where it has any."""

    def __init__(self, request: bytes, stream: BinaryIO, terms: _Terms, link: socket.socket) -> None:
        self.request = request
        self.link = link
        self.moved_at = time.monotonic()
        """When the client acknowledged something that it had not before."""
        self.acknowledged = -1 if terms.agreed else 0
        self._stream = stream
        self._terms = terms
        self._last = os.fstat(stream.fileno()).st_size // terms.block_size + 1
        self._sent = self.acknowledged
        self._sent_at = 0.0
        self._again = 0
        self._round_trip: float | None = None

    @property
    def is_over(self) -> bool:
        """The client has acknowledged the last block."""
        return self.acknowledged == self._last

    @property
    def bytes_acknowledged(self) -> int:
        """How much of the file the client has, at least."""
        return max(0, self.acknowledged) * self._terms.block_size

    def send(self) -> None:
        """Send what may be on its way now: a window of blocks after the last one acknowledged."""
        first = self.acknowledged + 1
        self._sent = 0 if first == 0 else min(self.acknowledged + self._terms.window, self._last)
        self._sent_at = time.monotonic()
        for number in range(first, self._sent + 1):
            with suppress(BlockingIOError):  # as good as lost
                self.link.send(self._packet(number))

    def send_again_if_due(self, now: float) -> None:
        """Send the same once more, when its answer is overdue; every time the wait is doubled."""
        if now - self._sent_at > min(self._patience() * 2**self._again, max(MOST_PATIENCE, self._patience())):
            self._again += 1
            self.send()

    def hear(self, packet: bytes) -> bool:
        """Take what the client says; False when it wants no more."""
        if len(packet) < 4:
            return True
        operation, number = struct.unpack("!HH", packet[:4])
        if operation == _ACK:
            self._hear_acknowledgement(number)
        return bool(operation != _ERROR)

    def close(self) -> None:
        """Let go of the file and the port."""
        self._stream.close()
        self.link.close()

    def _hear_acknowledgement(self, number: int) -> None:
        now = time.monotonic()
        news = (number - self.acknowledged) & 0xFFFF
        if news > self._sent - self.acknowledged or (news == 0 and not self._tells_of_a_gap(now)):
            return  # an old one that was under way for long
        if self.acknowledged + news == self._sent and not self._again:
            self._learn(now - self._sent_at)
        self.acknowledged += news
        if news:
            self.moved_at = now
        self._again = 0
        if not self.is_over:
            self.send()

    def _tells_of_a_gap(self, now: float) -> bool:
        """Whether a repeated acknowledgement is to be believed (RFC 7440); never in lock-step (RFC 1123, 4.2.3.1)."""
        return self._terms.window > 1 and now - self._sent_at > (self._round_trip or FIRST_PATIENCE)

    def _learn(self, seconds: float) -> None:
        old = self._round_trip
        self._round_trip = seconds if old is None else old + (seconds - old) / 8

    def _patience(self) -> float:
        if self._terms.patience is not None:
            return self._terms.patience
        if self._round_trip is None:
            return FIRST_PATIENCE
        return min(max(2 * self._round_trip, LEAST_PATIENCE), MOST_PATIENCE)

    def _packet(self, number: int) -> bytes:
        if number == 0:
            packet = TftpPacketOACK()
            packet.options = self._terms.agreed
        else:
            packet = TftpPacketDAT()
            packet.blocknumber = number & 0xFFFF
            packet.data = os.pread(self._stream.fileno(), self._terms.block_size, (number - 1) * self._terms.block_size)
        return packet.encode().buffer  # type: ignore[no-any-return]


@dataclass
class _Waiting:
    """A request for which there is no place yet."""

    request: bytes
    asked_at: float
    """When it came last."""


class TftpServer:
    """A TFTP server for the files below *root*, at most *limit* at a time while others wait; uploads are refused."""

    def __init__(self, root: Path, log: Log = print, limit: int = TRANSFERS) -> None:
        self._root = root
        self._log = log
        self._limit = limit
        self._parser = TftpPacketFactory()
        self._transfers: dict[Client, _Transfer] = {}
        """The one that has moved on least lately comes first."""
        self._waiting: dict[Client, _Waiting] = {}
        """Whoever came first comes first."""
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._socket: socket.socket | None = None

    @property
    def port(self) -> int | None:
        """UDP port, once it listens."""
        return None if self._socket is None else self._socket.getsockname()[1]

    def serve(self, address: str, port: int = 69) -> None:
        """Answer until `stop`; raises OSError when the port cannot be had."""
        listening = _bound(address, port)
        _let_many_wait(listening)
        self._selector.register(listening, selectors.EVENT_READ, None)
        self._socket = listening
        looked = 0.0
        while not self._stop.is_set():
            for key, _ in self._selector.select(_TICK if self._transfers else 10 * _TICK):
                self._receive(listening, key.data)
            now = time.monotonic()
            self._let_in(listening, now)
            if now - looked >= _TICK:
                self._look_after_all(now)
                looked = now
        for client in list(self._transfers):
            self._end(client)
        self._socket = None
        listening.close()

    def stop(self) -> None:
        """End `serve` within a second."""
        self._stop.set()

    def _receive(self, listening: socket.socket, client: Client | None) -> None:
        """Read requests, or what *client* says of its transfer."""
        if client is None:
            with suppress(BlockingIOError):
                for _ in range(_REQUESTS):
                    self._queue(*listening.recvfrom(_LONGEST_REQUEST + 1))
        elif client in self._transfers:
            self._go_on(client)

    # --- requests ---------------------------------------------------------------------------------------------------

    def _queue(self, request: bytes, client: Client) -> None:
        """Let a request wait for its place, behind all that wait already."""
        if len(request) > _LONGEST_REQUEST or self._is_served(request, client):
            return
        known = self._waiting.get(client)
        if known is not None:
            known.request, known.asked_at = request, time.monotonic()
        elif len(self._waiting) < WAITING:
            self._waiting[client] = _Waiting(request, time.monotonic())

    def _is_served(self, request: bytes, client: Client) -> bool:
        """Whether this is what the client is being sent.

        It asks again when our first answer took long or was lost, and a request may be under way for longer than that
        answer: to begin again would end what it has begun to take. Whoever hears nothing for long has begun anew.
        """
        known = self._transfers.get(client)
        return known is not None and known.request == request and time.monotonic() - known.moved_at < SHORT_SILENCE

    def _let_in(self, listening: socket.socket, now: float) -> None:
        """Answer those who wait, as far as there is room."""
        while self._waiting and self._has_room(now):
            client, waiting = next(iter(self._waiting.items()))
            del self._waiting[client]
            if now - waiting.asked_at < WAITS:
                self._end(client)  # what it had asked for before, from the same port
                self._answer(listening, waiting.request, client)

    def _has_room(self, now: float) -> bool:
        if len(self._transfers) < self._limit:
            return True
        longest, transfer = next(iter(self._transfers.items()))
        if now - transfer.moved_at < SHORT_SILENCE:
            return False
        self._end(longest)
        return True

    def _answer(self, listening: socket.socket, request: bytes, client: Client) -> None:
        try:
            packet = self._parser.parse(request)
        except Exception:
            return
        if isinstance(packet, TftpPacketWRQ):
            self._log(f"tftp: {client[0]} {packet.filename!r} upload refused")
            self._refuse(listening, client, _ACCESS_VIOLATION)
        elif not isinstance(packet, TftpPacketRRQ) or packet.mode != "octet":
            self._refuse(listening, client, _ILLEGAL)
        elif (stream := open_below(self._root, packet.filename)) is None:
            self._log(f"tftp: {client[0]} {packet.filename!r} absent")
            self._refuse(listening, client, _NOT_FOUND)
        else:
            self._log(f"tftp: {client[0]} {packet.filename!r} sent")
            self._start(listening, request, client, stream, packet.options)

    def _start(
        self, listening: socket.socket, request: bytes, client: Client, stream: BinaryIO, options: dict[str, str]
    ) -> None:
        try:
            link = _bound(listening.getsockname()[0], 0)
            link.connect(client)  # the kernel then drops what others send to this port
        except OSError as error:
            stream.close()
            self._log(f"tftp: {client[0]} cannot be answered: {error}")
            return
        terms = _Terms.of(options, os.fstat(stream.fileno()).st_size)
        self._transfers[client] = _Transfer(request, stream, terms, link)
        self._selector.register(link, selectors.EVENT_READ, client)
        self._attempt(client, self._transfers[client].send)

    def _refuse(self, listening: socket.socket, client: Client, code: int) -> None:
        packet = TftpPacketERR()
        packet.errorcode = code
        with suppress(OSError):
            listening.sendto(packet.encode().buffer, client)

    # --- transfers --------------------------------------------------------------------------------------------------

    def _go_on(self, client: Client) -> None:
        transfer = self._transfers[client]
        moved_at = transfer.moved_at
        self._attempt(client, lambda: self._hear(client, transfer))
        if transfer.moved_at != moved_at and client in self._transfers:
            self._transfers[client] = self._transfers.pop(client)

    def _hear(self, client: Client, transfer: _Transfer) -> None:
        if not transfer.hear(transfer.link.recv(65536)) or transfer.is_over:
            self._end(client)

    def _look_after_all(self, now: float) -> None:
        for client, transfer in list(self._transfers.items()):
            if now - transfer.moved_at > SILENCE:
                self._log(f"tftp: {client[0]} is silent after {transfer.bytes_acknowledged} bytes: given up")
                self._end(client)
            else:
                self._attempt(client, lambda: transfer.send_again_if_due(now))  # noqa: B023 - called at once

    def _attempt(self, client: Client, step: Callable[[], None]) -> None:
        """Do *step* of a transfer; a client that is gone, or a file that cannot be read any more, ends it."""
        try:
            step()
        except BlockingIOError:
            pass
        except OSError:
            self._end(client)

    def _end(self, client: Client) -> None:
        transfer = self._transfers.pop(client, None)
        if transfer is not None:
            self._selector.unregister(transfer.link)
            transfer.close()


def _bound(address: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.setblocking(False)
    try:
        bound.bind((address, port))
    except OSError:
        bound.close()
        raise
    return bound


def _let_many_wait(listening: socket.socket) -> None:
    """Have the kernel keep more requests than one that reads a file now and then would need."""
    for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE):
        with suppress(PermissionError):
            listening.setsockopt(socket.SOL_SOCKET, option, _QUEUE)
