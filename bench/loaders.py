"""Boot loaders by the thousand in one thread: nodes that fetch their files by TFTP or HTTP, each as patient as it is.

``python -m bench.loaders tftp|http ADDRESS PORT WISH`` does so in a process of its own and prints what came of it;
*WISH* is a `TftpWish` or an `HttpWish` as JSON.
"""

from __future__ import annotations

import heapq
import json
import re
import resource
import selectors
import socket
import struct
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

Server = tuple[str, int]
_REQUEST, _DATA, _ACK, _ERROR, _OACK = 1, 3, 4, 5, 6
_NOT_FOUND = 1
_BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE
_SPARE = memoryview(bytearray(1 << 21))
"""Where the kernel would put what it throws away in place of it."""


@dataclass(frozen=True)
class Rom:
    """How a kind of loader speaks TFTP."""

    options: Mapping[str, int]
    patience: Sequence[float]
    """Seconds for which it waits for an answer, at each try; then it gives up."""
    asks_size_first: bool = False
    """It ends a transfer after the first answer, which tells the size, and asks once more."""


ROMS = {
    "BIOS": Rom({"tsize": 0, "blksize": 1456}, (1, 2, 4, 8)),
    "UEFI": Rom({"tsize": 0, "blksize": 1468, "windowsize": 4}, (4,) * 6, asks_size_first=True),
    "iPXE": Rom({"blksize": 1432, "tsize": 0}, (0.25, 0.5, 1, 2, 4, 8)),
    "GRUB": Rom({"blksize": 1024, "tsize": 0}, (1, 2, 4, 8)),
    "bare": Rom({}, (2, 4, 8, 16)),
}
"""What iPXE, edk2 and GRUB do by their sources; *BIOS* stands for the ROMs of cards, *bare* for RFC 1350 alone."""


@dataclass(frozen=True)
class TftpWish:
    """What nodes fetch, one file after the other."""

    nodes: int
    files: Sequence[str]
    """Names; ``{node}`` stands for the number of the node."""
    roms: Sequence[str] = tuple(ROMS)
    """In turn."""
    absent: Sequence[str] = ()
    """Of these files it is no failure that they are absent, but that they are there."""
    deaf: float = 0.0
    """Share of the packets that nodes do not hear."""


@dataclass(frozen=True)
class HttpWish:
    """What nodes fetch, one file after the other."""

    nodes: int
    files: Sequence[str]
    keep_alive: bool = True
    """On one connection; else on one for each file."""


@dataclass
class Fetched:
    """What came of it."""

    seconds: float = 0.0
    bytes: int = 0
    failures: list[str] = field(default_factory=list)
    again: int = 0
    """How often nodes had to say something once more."""
    done: list[float] = field(default_factory=list)
    """Seconds after which each node had everything."""

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.bytes / self.seconds / 1e6

    def share(self, part: float) -> float:
        """Seconds within which this *part* of the nodes had everything."""
        ordered = sorted(self.done)
        return ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


class _Node(ABC):
    """One that fetches its files."""

    def __init__(self, rank: int, server: Server, names: Sequence[str]) -> None:
        self.rank = rank
        self.address = f"127.8.{rank // 250}.{rank % 250 + 1}"
        self.server = server
        self.names = [name.format(node=rank) for name in names]
        self.socket = socket.socket()
        self.events = selectors.EVENT_READ
        self.over = False
        self.failure = ""
        self.bytes = 0
        self.again = 0

    @abstractmethod
    def begin(self) -> None:
        """Ask for the file that is next."""

    @abstractmethod
    def go_on(self) -> None:
        """Take what has come."""

    def renew(self, kind: socket.SocketKind) -> None:
        """Take a port of its own for another transfer."""
        self.socket.close()
        self.socket = socket.socket(socket.AF_INET, kind)
        self.socket.setblocking(False)
        self.socket.bind((self.address, 0))

    def have(self) -> None:
        """The file is there: go on with the next one."""
        self.names.pop(0)
        if self.names:
            self.begin()
        else:
            self.end()

    def fail(self, why: str) -> None:
        """Give up."""
        self.failure = f"node {self.rank}: {self.names[0]}: {why}"
        self.end()

    def end(self) -> None:
        """All is said."""
        self.over = True
        self.socket.close()


# --- TFTP -------------------------------------------------------------------------------------------------------------


class _TftpNode(_Node):
    def __init__(self, rank: int, server: Server, wish: TftpWish, sizes: Mapping[str, int]) -> None:
        super().__init__(rank, server, wish.files)
        self.due = 0.0
        """When it has waited for long enough."""
        self._rom = ROMS[wish.roms[rank % len(wish.roms)]]
        self._absent = {name.format(node=rank) for name in wish.absent}
        self._deaf = wish.deaf
        self._numb = rank * wish.deaf % 1
        self._sizes = sizes
        self.begin()

    def begin(self) -> None:
        self._only_size = self._rom.asks_size_first
        self._ask()

    def _ask(self) -> None:
        self.renew(socket.SOCK_DGRAM)
        self._peer = self.server
        self._size, self._window = 512, 1
        self._last, self._in_window, self._got = 0, 0, 0
        words = [self.names[0], "octet", *(str(word) for pair in self._rom.options.items() for word in pair)]
        self._say(struct.pack("!H", _REQUEST) + b"".join(word.encode() + b"\0" for word in words))

    def _say(self, packet: bytes) -> None:
        self._said, self._tries = packet, 0
        self._send()

    def _send(self) -> None:
        self.due = time.monotonic() + self._rom.patience[self._tries]
        self._tries += 1
        self.socket.sendto(self._said, self._peer)

    def say_again(self) -> None:
        """Nothing was heard for too long."""
        if self._tries == len(self._rom.patience):
            self.fail(f"nothing more came after {self._got} bytes")
        else:
            self.again += 1
            self._send()

    def go_on(self) -> None:
        packet, peer = self.socket.recvfrom(2048)
        if self._does_not_hear() or self._peer not in (peer, self.server):
            return  # of two answers the first one counts
        operation, number = struct.unpack_from("!HH", packet)
        if operation == _ERROR:
            self._refused(number, packet[4:])
            return
        self._peer = peer
        if operation == _OACK:
            self._take_options(packet)
        elif operation == _DATA:
            self._take(number, packet)

    def _does_not_hear(self) -> bool:
        self._numb += self._deaf
        if self._numb < 1:
            return False
        self._numb -= 1
        return True

    def _refused(self, code: int, why: bytes) -> None:
        if code == _NOT_FOUND and self.names[0] in self._absent:
            self.have()
        else:
            self.fail(why.rstrip(b"\0").decode(errors="replace"))

    def _take_options(self, packet: bytes) -> None:
        if self._only_size:
            self._only_size = False
            self.socket.sendto(struct.pack("!HH", _ERROR, 0) + b"User aborted the transfer\0", self._peer)
            self._ask()
            return
        words = packet[2:].rstrip(b"\0").split(b"\0")
        agreed = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        self._size, self._window = agreed.get(b"blksize", 512), agreed.get(b"windowsize", 1)
        self._say(struct.pack("!HH", _ACK, 0))

    def _take(self, number: int, packet: bytes) -> None:
        is_next = number == (self._last + 1) & 0xFFFF
        is_full = len(packet) == 4 + self._size
        if is_next:
            self._last, self._in_window, self._got = self._last + 1, self._in_window + 1, self._got + len(packet) - 4
            if is_full and self._in_window < self._window:
                return
        self._in_window = 0
        self._say(struct.pack("!HH", _ACK, self._last & 0xFFFF))
        if is_next and not is_full:
            self._check()

    def _check(self) -> None:
        expected = self._sizes.get(self.names[0], self._got)
        self.bytes += self._got
        if self.names[0] in self._absent:
            self.fail("it is there")
        elif self._got != expected:
            self.fail(f"{self._got} bytes in place of {expected}")
        else:
            self.have()


def by_tftp(server: Server, wish: TftpWish, sizes: Mapping[str, int] | None = None) -> Fetched:
    """All nodes at once, in this thread; a file that has another size than in *sizes* is a failure."""
    crowd = _Crowd()
    nodes = [_TftpNode(rank, server, wish, sizes or {}) for rank in range(wish.nodes)]
    alarms = [(node.due, node.rank) for node in nodes]
    heapq.heapify(alarms)
    crowd.take(nodes)
    while crowd.left:
        crowd.go_on(max(0.0, alarms[0][0] - time.monotonic()))
        now = time.monotonic()
        while alarms and alarms[0][0] <= now:
            node = nodes[heapq.heappop(alarms)[1]]
            if not node.over and node.due <= now:
                crowd.step(node, node.say_again)
            if not node.over:
                heapq.heappush(alarms, (node.due, node.rank))
    return crowd.end()


# --- HTTP -------------------------------------------------------------------------------------------------------------


class _HttpNode(_Node):
    """The bytes of its files are thrown away by the kernel: tcp(7), `MSG_TRUNC`."""

    def __init__(self, rank: int, server: Server, wish: HttpWish) -> None:
        super().__init__(rank, server, wish.files)
        self._keep_alive = wish.keep_alive
        self._connected = False
        self.begin()

    def begin(self) -> None:
        self._left = -1
        self._head = b""
        if self._connected and self._keep_alive:
            self._ask()
        else:
            self.renew(socket.SOCK_STREAM)
            self._connected = False
            self.events = _BOTH
            self.socket.connect_ex(self.server)

    def _ask(self) -> None:
        self._connected = True
        self.events = selectors.EVENT_READ
        end = "" if self._keep_alive else "Connection: close\r\n"
        self.socket.send(f"GET {self.names[0]} HTTP/1.1\r\nHost: boot\r\n{end}\r\n".encode())

    def go_on(self) -> None:
        if not self._connected:
            if error := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "no connection")
            self._ask()
        elif self._left < 0:
            self._read_head()
        elif got := self.socket.recv_into(_SPARE, min(self._left, len(_SPARE)), socket.MSG_TRUNC):
            self._count(got)
        else:
            self.fail(f"the server has left {self._left} bytes before the end")

    def _read_head(self) -> None:
        piece = self.socket.recv(4096)
        self._head += piece
        head, end, body = self._head.partition(b"\r\n\r\n")
        if not piece or (end and not head.startswith(b"HTTP/1.1 200")):
            self.fail(repr(head[:60]))
        elif end:
            self._left = int(re.findall(rb"(?i)content-length: *(\d+)", head)[0])
            self._count(len(body))

    def _count(self, got: int) -> None:
        self._left -= got
        self.bytes += got
        if self._left == 0:
            self.have()


def by_http(server: Server, wish: HttpWish) -> Fetched:
    """All nodes at once, in this thread."""
    crowd = _Crowd()
    crowd.take([_HttpNode(rank, server, wish) for rank in range(wish.nodes)])
    while crowd.left:
        crowd.go_on()
    return crowd.end()


# --- both -------------------------------------------------------------------------------------------------------------


class _Crowd:
    """Nodes that are waited for together."""

    def __init__(self) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.left = 0
        self._selector = selectors.DefaultSelector()
        self._told = Fetched()
        self._begun = time.monotonic()

    def take(self, nodes: Sequence[_Node]) -> None:
        """Begin to listen to them."""
        self.left = len(nodes)
        for node in nodes:
            self._selector.register(node.socket, node.events, node)

    def go_on(self, seconds: float | None = None) -> None:
        """Let those go on who have heard something within so many *seconds*."""
        for key, _ in self._selector.select(seconds):
            self.step(key.data, key.data.go_on)

    def step(self, node: _Node, step: Callable[[], None]) -> None:
        """Let a node do something; its socket may be another one afterwards."""
        before, events, descriptor = node.socket, node.events, node.socket.fileno()
        try:
            step()
        except BlockingIOError:
            return
        except OSError as error:
            node.fail(str(error))
        if node.over or node.socket is not before:
            with suppress(OSError):
                self._selector.unregister(descriptor)
        if node.over:
            self._count(node)
        elif node.socket is not before:
            self._selector.register(node.socket, node.events, node)
        elif node.events != events:
            self._selector.modify(node.socket, node.events, node)

    def end(self) -> Fetched:
        """What came of it."""
        self._told.seconds = time.monotonic() - self._begun
        self._selector.close()
        return self._told

    def _count(self, node: _Node) -> None:
        self.left -= 1
        self._told.bytes += node.bytes
        self._told.again += node.again
        if node.failure:
            self._told.failures.append(node.failure)
        else:
            self._told.done.append(time.monotonic() - self._begun)


def fetch(server: Server, wish: TftpWish | HttpWish) -> Fetched:
    """The same in a process of its own."""
    way = "tftp" if isinstance(wish, TftpWish) else "http"
    words = [sys.executable, "-m", "bench.loaders", way, server[0], str(server[1]), json.dumps(asdict(wish))]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    return Fetched(**json.loads(done.stdout))


def main(arguments: Sequence[str]) -> None:
    """Fetch, and print the figures."""
    way, address, port, wish = arguments
    server, asked = (address, int(port)), json.loads(wish)
    told = by_tftp(server, TftpWish(**asked)) if way == "tftp" else by_http(server, HttpWish(**asked))
    print(json.dumps(asdict(told)))


if __name__ == "__main__":
    main(sys.argv[1:])
