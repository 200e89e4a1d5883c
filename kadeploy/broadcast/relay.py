"""One member of a broadcast: receive the image, keep its last bytes, pass them on, write them into a command.

This file is a whole program. The controller sends it to every node (`python3 -`), with `CONFIG = {...}` written above
it, and runs it itself as the head, which reads a file instead of a predecessor. It needs Linux and what Debian's
`python3-minimal` (3.11) holds: no json, no hmac, no ctypes; mmap only if it is there.

    predecessor ──bytes──► ring ──► sha256 of a block is right ──► successor(s)
        ▲                                     │            └─────► sink (tar, dd)
        └────────── acknowledgements ─────────┘

**Order.** Members are numbered; 0 is the head. A node is told which range is below it and splits that range into
`fanout` parts, each fed through its first member: 1 is a chain, k a tree. When the first member of a part is dead, the
rest of the part is split and fed in its stead: this is all there is to skipping. A member of a chain is told of some
of those behind it alone; when all of them are dead it says so, and the head itself goes on with the others.

**Replay.** Acknowledgements carry what a member, its successors and their successors have received. A byte leaves the
ring when three generations below have it, so that two dead neighbours in a row lose nothing.

**Death.** Acknowledgements come four times a second whatever happens to the sink: a member that is silent for
`silence` seconds, or whose connection breaks, is asked again over a new connection, together with the next ones; it is
skipped when it does not answer within `patience` seconds. A member obeys a new predecessor that is nearer to the head
than the one it has.

**Blocks.** A member is told what the SHA-256 of the image's beginning is at the end of each block, half of it. Bytes
are neither passed on nor written, nor acknowledged, before their block is right. Who gave a wrong one is not asked
again: the member tells the controller that it is stranded, and the head itself feeds it, from its last good byte on.

**Pace.** While its predecessor alone sets the pace, or a successor, a member tells the controller how fast it gets on.
When the head can do far better, the controller has it feed the member, or that successor in its stead: see `pace.py`.

**Secret.** Both ends prove with HMAC-SHA256 over two nonces that they know the broadcast's secret. The head proves that
it knows a key that only it and that member have: nobody else can feed in its name.

**Reports.** What a member has to say of itself and of those it skipped also goes up the chain, in case its connection
to the controller is lost. Each line is signed with a key that this member and the controller alone know: those that
pass it on cannot change it. Nobody is told all of the digest that the image ought to have.

What happens is told on standard output, one JSON object a line: listening, hungry, held, stranded, beyond, skipped,
progress, verdict, report, end.
"""

import fcntl
import hashlib
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from _operator import _compare_digest as same_digest  # what hmac.compare_digest is
from binascii import a2b_base64
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

try:
    import mmap
except ImportError:  # python3-minimal
    mmap = None  # type: ignore[assignment]
TYPE_CHECKING = False
if TYPE_CHECKING:  # each import costs every node a part of its start
    from typing import Any

MAGIC = b"kadeploy broadcast 1\n"
PING, FEED, RELEASE = b"P", b"F", b"L"
ACCEPTED, REFUSED = b"Y", b"N"
ACK, DONE, REPLACED = b"A", b"D", b"R"
COMMAND = struct.Struct("!cIII")  # what, who asks, who is asked, end of the range below (or whom to release)
OFFSET = struct.Struct("!Q")
ACK_BODY = struct.Struct("!QQQ")  # received by the member, by all its successors, by all of theirs
LENGTH = struct.Struct("!I")
NOBODY = 2**64 - 1  # received by a generation that does not exist

CHUNK = 1 << 20  # bytes handed to the kernel at once
BITE = 1 << 17  # bytes received and hashed at once, while the processor's cache holds them
MOUTHFUL = 1 << 18  # bytes that have to be there before a relay wakes: each waking costs as much as many packets
PIPE_SIZE = 1 << 20
F_SETPIPE_SZ = 1031
BEAT = 0.25  # seconds between signs of life
TICK = 0.1
PACE_SHARE = 1 / 8  # of the time that has passed: over it a pace is measured, so that there are not too many words
IDLE_TICK = 1.0  # before a node is fed
PROBES = 8  # members asked at once for a sign of life
PROOF_SIZE = 16  # bytes of a SHA-256 that tell whether a block is right
STDERR_TAIL = 2000  # bytes kept of what a sink says
REPORT_LIMIT = 1 << 15  # bytes of what a member may report, on the average of those in its range
LOSSES = 10  # how often the connection to a member may break before it is skipped
WORDS = 3  # lines of it that are told
EPILOGUES = ("tar: Exiting with failure status", "tar: Error is not recoverable", "tar: Child ")


# -- what is told to the controller -----------------------------------------------------------------------------------


def json_text(value: object) -> str:
    """JSON of texts, numbers, booleans, None, lists and dictionaries (python3-minimal has no json)."""
    if isinstance(value, str):
        data = value.encode("utf-16-le", "replace")
        units = struct.unpack(f"<{len(data) // 2}H", data)
        return '"' + "".join(chr(u) if 31 < u < 127 and u not in (34, 92) else f"\\u{u:04x}" for u in units) + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json_text(str(k))}: {json_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(json_text(v) for v in value) + "]"
    return {"True": "true", "False": "false", "None": "null"}.get(repr(value), repr(value))


def tell(event: str, **facts: object) -> None:
    """Print one line for the controller."""
    sys.stdout.write(json_text({"event": event, **facts}) + "\n")
    sys.stdout.flush()


# -- how two members meet ---------------------------------------------------------------------------------------------


def proof(secret: bytes, *facts: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104) of the facts."""
    key = secret.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + b"".join(facts)).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).digest()


def receive_exactly(sock: socket.socket, count: int, deadline: float) -> bytes:
    """Exactly `count` bytes, or OSError (TimeoutError after the deadline, ConnectionError at the end of the stream)."""
    data = b""
    while len(data) < count:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionResetError("it closed the connection")
        data += more
    return data


def dial(address: tuple[str, int], secret: bytes, command: bytes, patience: float, key: bytes = b"") -> socket.socket:
    """Connect to a member, prove both ends, give the command; its answer is still to be read. Raises OSError.

    The *key* is the head's and that member's.
    """
    deadline = time.monotonic() + patience
    sock = socket.create_connection(address, timeout=patience)
    try:
        nonce = os.urandom(32)
        sock.sendall(MAGIC + nonce)
        theirs = receive_exactly(sock, 32, deadline)
        if not same_digest(receive_exactly(sock, 32, deadline), proof(secret, b"listener", nonce, theirs)):
            raise PermissionError("it does not know the secret of this broadcast")
        sock.sendall(command + proof(key or secret, b"dialler", nonce, theirs, command))
    except OSError:
        sock.close()
        raise
    return sock


def welcome(sock: socket.socket, secret: bytes, key: bytes, patience: float) -> bytes:
    """The listener's side of `dial`: the command of somebody who knows the secret, or of the head. Raises OSError."""
    deadline = time.monotonic() + patience
    hello = receive_exactly(sock, len(MAGIC) + 32, deadline)
    if not hello.startswith(MAGIC):
        raise PermissionError("not a member of a broadcast")
    nonce, mine = hello[len(MAGIC) :], os.urandom(32)
    sock.sendall(mine + proof(secret, b"listener", nonce, mine))
    command = receive_exactly(sock, COMMAND.size, deadline)
    known = secret if COMMAND.unpack(command)[1] else key
    if not same_digest(receive_exactly(sock, 32, deadline), proof(known, b"dialler", nonce, mine, command)):
        raise PermissionError("somebody who does not know the secret")
    return command


def signature(secret: bytes, name: str) -> bytes:
    """A member's own key; *secret* is known to the controller and the head alone."""
    return proof(secret, b"signature", name.encode())


def split(first: int, end: int, parts: int) -> Iterator[tuple[int, int]]:
    """Cut the members [first, end) into at most `parts` contiguous ranges, the longest first."""
    while first < end:
        size = -(-(end - first) // parts)
        yield first, first + size
        first, parts = first + size, parts - 1


# -- where the bytes are ----------------------------------------------------------------------------------------------


class Ring:
    """The last `size` bytes received, in a memory file from which the kernel can send without copying."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.head = 0  # bytes received
        self.ready = 0  # of them, those that are known to be the image's
        self.keep = 0  # the first one that somebody still needs
        self.fd = os.memfd_create("kadeploy-replay")
        os.ftruncate(self.fd, size)
        self.memory = memoryview(mmap.mmap(self.fd, size)) if mmap else None

    @property
    def oldest(self) -> int:
        """The first byte of the image that is still here."""
        return max(0, self.head - self.size)

    def room(self) -> int:
        """How many bytes may come in before one that somebody needs is written over."""
        return self.size - (self.head - self.keep)

    def locate(self, offset: int, end: int) -> tuple[int, int]:
        """Place in the memory file of a byte of the image, and how many follow it there before `end`."""
        place = offset % self.size
        return place, min(end - offset, self.size - place, CHUNK)

    def receive(self, sock: socket.socket, limit: int) -> int:
        """Take what the socket has, `limit` bytes at most; 0 is the end of the stream."""
        place = self.head % self.size
        count = min(limit, self.size - place)
        if self.memory:
            got = sock.recv_into(self.memory[place : place + count])
        else:
            got = os.pwrite(self.fd, sock.recv(count), place)
        self.head += got
        return got

    def read(self, offset: int, end: int) -> memoryview | bytes:
        """Bytes from an offset on, as many as lie together before `end`."""
        place, count = self.locate(offset, end)
        return self.memory[place : place + count] if self.memory else os.pread(self.fd, count, place)

    def send(self, sock: socket.socket, offset: int) -> int:
        """Give a socket what it takes from an offset on."""
        if self.memory:
            return sock.send(self.read(offset, self.ready))  # measured: a copy costs less than lending page after page
        place, count = self.locate(offset, self.ready)
        return os.sendfile(sock.fileno(), self.fd, place, count)


class ImageFile:
    """The head's image: all of it is there from the beginning and for ever."""

    oldest = 0

    def __init__(self, image: "str | int", size: int) -> None:
        self.fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC) if isinstance(image, str) else image
        self.ready = size
        self.given = 0

    def send(self, sock: socket.socket, offset: int) -> int:
        """As `Ring.send`; ends the program when the file has become shorter than announced."""
        sent = os.sendfile(sock.fileno(), self.fd, offset, min(self.ready - offset, CHUNK))
        if not sent and offset < self.ready:
            sys.exit(f"the image ends after {offset} of {self.ready} bytes: it was changed while it was sent")
        self.given += sent
        return sent


# -- who takes them ---------------------------------------------------------------------------------------------------


class Blocks:
    """The ends of the image's blocks, and the first half of the SHA-256 of all that lies before each."""

    IN_FLIGHT = 8  # blocks that a ring has to hold: one that comes in, and those on their way below

    def __init__(self, step: int, size: int, proofs: bytes) -> None:
        self.step = step
        self.size = size
        self.proofs = proofs

    def end(self, offset: int) -> int:
        """Where the block of a byte ends."""
        return min(self.size, offset - offset % self.step + self.step)

    def right(self, end: int, sha256: bytes) -> bool:
        """Whether a digest is the image's up to the end of a block."""
        place = (end - 1) // self.step * PROOF_SIZE
        return same_digest(self.proofs[place : place + PROOF_SIZE], sha256[:PROOF_SIZE])


class Digest:
    """SHA-256 of what has come in, which tells block by block whether it is the image.

    A thread beside the loop computes it: hashlib lets both run at the same time.
    """

    def __init__(self, ring: Ring, blocks: Blocks, wake: "Callable[[], object]") -> None:
        self.done = 0  # bytes hashed
        self.wrong = False  # the last block is not the image's: nothing goes on before `rewind`
        self.sha256 = hashlib.sha256()
        self.good = self.sha256.copy()  # of what is ready
        self.ring = ring
        self.blocks = blocks
        self.wake = wake  # the loop, at the end of each block
        self.lock = threading.Lock()
        self.more = threading.Event()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        """Catch up with the ring, again and again."""
        while True:
            self.more.wait()
            self.more.clear()
            while self.advance():
                pass

    def advance(self) -> bool:
        """Hash what is there of a block; whether there was anything."""
        with self.lock:
            if self.wrong or self.done == self.ring.head:
                return False
            end = self.blocks.end(self.done)
            data = self.ring.read(self.done, min(self.ring.head, end))
            self.sha256.update(data)
            self.done += len(data)
            if self.done == end:
                self.judge(end)
            return True

    def judge(self, end: int) -> None:
        """Let go of a block that is right."""
        if self.blocks.right(end, self.sha256.digest()):
            self.good = self.sha256.copy()
            self.ring.ready = end
        else:
            self.wrong = True
        self.wake()

    def rewind(self) -> None:
        """Forget what came after the last block that was right."""
        with self.lock:
            self.ring.head = self.done = self.ring.ready
            self.sha256 = self.good.copy()
            self.wrong = False


class Sink:
    """The command that unpacks the image as it arrives."""

    # The pipe is lent pages of the ring. They may be written over when the command has read them, and the one behind
    # it in a pipeline too, in case it passes pages on.
    LAG = 2 * PIPE_SIZE

    def __init__(self, command: str, environment: dict[str, str]) -> None:
        self.written = 0
        self.failure: str | None = None
        self.finished = False
        self.deaf = False  # it has closed its standard input
        self.moved = time.monotonic()
        self.tail = b""
        taken, self.stdin = os.pipe()
        self.stderr, said = os.pipe()
        self.pid = os.posix_spawn(
            "/bin/bash",
            ["bash", "-c", "set -o pipefail\n" + command],
            {**os.environ, **environment},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, taken, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, said, 2),
            ],
            setsid=True,
        )
        os.close(taken)
        os.close(said)
        self.death = os.pidfd_open(self.pid)
        os.set_blocking(self.stdin, False)
        os.set_blocking(self.stderr, False)
        with suppress(OSError):  # the default of 64 KiB works too, slower
            fcntl.fcntl(self.stdin, F_SETPIPE_SZ, PIPE_SIZE)

    @property
    def open(self) -> bool:
        """Whether the command may still be given bytes."""
        return not (self.failure or self.deaf or self.finished or self.stdin < 0)

    @property
    def hold(self) -> int:
        """The first byte that must stay in the ring."""
        return max(0, self.written - self.LAG) if self.open else NOBODY

    def write(self, ring: Ring) -> None:
        """Give what the pipe takes without waiting."""
        place, count = ring.locate(self.written, ring.ready)
        try:
            moved = os.splice(ring.fd, self.stdin, count, offset_src=place, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.deaf = True  # its exit status will tell why
            return
        self.written += moved
        self.moved = time.monotonic()

    def end_of_image(self) -> None:
        """Tell the command that this was all."""
        os.close(self.stdin)
        self.stdin = -1

    def hear(self) -> None:
        """Keep the last words of the command."""
        with suppress(BlockingIOError):
            self.tail = (self.tail + os.read(self.stderr, 65536))[-STDERR_TAIL:]

    def ended(self, size: int) -> None:
        """Judge the command by its exit status and by what it has taken."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.hear()
        self.finished = True
        said = last_words(self.tail) or "no message"
        where = "" if self.written == size else f" after {self.written} of {size} bytes"
        if self.failure is None and (status or where):
            self.failure = f"the command that unpacks the image ended with status {status}{where}: {said}"

    def kill(self, reason: str) -> None:
        """End the command and everything it started."""
        self.failure = self.failure or reason
        if not self.finished:
            os.killpg(self.pid, signal.SIGKILL)


def last_words(tail: bytes) -> str:
    """The last lines of a command's complaints, up to `WORDS` of them; one that was cut at its beginning is left out.

    tar and its kin say last that there was an error: that is left out, too, where there is something better.
    """
    lines = tail.decode(errors="replace").splitlines()[len(tail) >= STDERR_TAIL :]
    lines = [line.strip() for line in lines if line.strip()] or [tail.decode(errors="replace").strip()]
    better = [line for line in lines if not line.startswith(EPILOGUES)]
    return "; ".join(dict.fromkeys((better or lines)[-WORDS:]))


class Branch:
    """A range of members below us that is fed through one of them."""

    def __init__(self, first: int, end: int, *, in_doubt: bool = False) -> None:
        self.first = first
        self.end = end
        self.in_doubt = in_doubt  # a member was found dead here: its neighbours may be, too
        self.sock: socket.socket | None = None
        self.sent = 0
        self.acks = (0, 0, 0)  # as in ACK_BODY
        self.heard = 0.0
        self.inbox = b""
        self.losses = 0

    @property
    def hold(self) -> int:
        """The first byte that somebody within three generations has not received."""
        return min(self.acks)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self.sock:
            self.sock.close()
        self.sock = None


# -- the relay --------------------------------------------------------------------------------------------------------


class Relay:
    """What all members do: feed those below, in one loop that never waits for anybody."""

    store: Ring | ImageFile

    def __init__(self, config: "dict[str, Any]") -> None:
        self.index: int = config["index"]
        self.members: list[str] = config["members"].split("\n")  # from ourselves on: name, address, port
        self.known = self.index + len(self.members)  # the first member of whom we are not told
        self.end: int = config["end"]  # the first number that no member has
        self.fanout: int = config["fanout"]
        self.size: int = config["size"]
        self.secret = bytes.fromhex(config["secret"])
        self.signature = bytes.fromhex(config["signature"])
        self.silence: float = config["silence"]
        self.patience: float = config["patience"]
        self.started = time.monotonic()
        self.name = self.look_up(self.index)[0]
        self.posts: deque[Callable[[], None]] = deque()  # what other threads want done by the loop
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.branches: list[Branch] = []
        self.reports: list[str] = []
        self.leaving = False
        self.poll = select.poll()
        self.handlers: dict[int, Callable[[int], None]] = {}

    def run(self) -> None:
        """Serve until everything below us is served."""
        while not self.leaving:
            self.poll = select.poll()
            self.handlers.clear()
            self.watch_all()
            for fd, events in self.poll.poll(1000 * (TICK if self.busy else IDLE_TICK)):
                self.handlers[fd](events)
            while self.posts:
                self.posts.popleft()()
            now = time.monotonic()
            for branch in [b for b in self.branches if b.sock and now - b.heard > self.silence]:
                self.lost(branch)
            self.look_at_the_clock(now)
            self.settle()

    def look_up(self, member: int) -> tuple[str, str, int]:
        """Name, address and port of ourselves or of a known member behind us."""
        name, address, port = self.members[member - self.index].split()
        return name, address, int(port)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for a sign of life from us, or we for one of theirs."""
        return bool(self.branches)

    def watch(self, fd: int, mask: int, handler: Callable[[int], None]) -> None:
        """Have a handler called at the next round when something happens to a file descriptor."""
        self.handlers[fd] = handler
        self.poll.register(fd, mask)

    def watch_all(self) -> None:
        """Name everybody who can give or take something now."""
        self.watch(self.bell, select.POLLIN, self.on_bell)
        self.watch(sys.stdout.fileno(), 0, self.on_controller_gone)
        for branch in self.branches:
            if branch.sock:
                mask = select.POLLIN | (select.POLLOUT if branch.sent < self.store.ready else 0)
                self.watch(branch.sock.fileno(), mask, partial(self.on_branch, branch))

    def look_at_the_clock(self, now: float) -> None:
        """Do what is due."""

    def settle(self) -> None:
        """Notice what is complete."""

    def post(self, job: Callable[[], None]) -> None:
        """Have the loop do something; for other threads."""
        self.posts.append(job)
        os.eventfd_write(self.bell, 1)

    def on_bell(self, _: int) -> None:
        """Somebody posted something; the loop looks at the posts anyway."""
        os.eventfd_read(self.bell)

    def on_controller_gone(self, _: int) -> None:
        """Nobody reads our lines any more: end."""
        self.leaving = True

    # -- finding somebody to feed, beside the loop

    def take_range(self, end: int) -> None:
        """Serve the members behind us up to `end`."""
        for first, stop in split(self.index + 1, end, self.fanout):
            self.grow(Branch(first, stop))

    def grow(self, branch: Branch) -> None:
        """Find somebody to feed in a branch."""
        if branch not in self.branches:
            self.branches.append(branch)
        threading.Thread(target=self.seek, args=(branch,), daemon=True).start()

    def seek(self, branch: Branch) -> None:
        """Feed the first member of a branch; in doubt the first that gives a sign of life, several being asked at once.

        In a tree one is asked at a time, since those behind a dead one are split among us.
        """
        count = PROBES if branch.in_doubt and self.fanout == 1 else 1
        asked = range(branch.first, min(branch.end, branch.first + count, self.known))
        answers = self.ask_all(asked) if count > 1 else {branch.first: ""}
        dead: dict[int, str] = {}
        for member in asked:
            try:
                if answers[member]:
                    raise ConnectionError(answers[member])
                sock, offset = self.feed(member, branch.end)
            except OSError as error:
                dead[member] = self.reason(error)
                continue
            if sock:
                self.post(partial(self.attach, branch, dead, member, sock, offset))
            else:
                self.post(partial(self.forget, branch))
            return
        self.post(partial(self.skip, branch, dead))

    def ask_all(self, members: range) -> dict[int, str]:
        """Ask members for a sign of life; the reason for each that gives none, an empty text for the others."""
        answers = dict.fromkeys(members, self.reason(TimeoutError()))

        def ask(member: int) -> None:
            try:
                with self.dial(PING, member) as sock:
                    answer = receive_exactly(sock, 1, time.monotonic() + self.patience)
                answers[member] = "" if answer == ACCEPTED else "another member of the broadcast answered"
            except OSError as error:
                answers[member] = self.reason(error)

        threads = [threading.Thread(target=ask, args=(member,), daemon=True) for member in members]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + self.patience
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return dict(answers)

    def reason(self, error: OSError) -> str:
        """Why a member is dead."""
        if isinstance(error, TimeoutError):
            return f"no answer within {self.patience:g} s"
        return error.strerror or str(error)

    def dial(self, what: bytes, member: int, end: int = 0) -> socket.socket:
        """Connect to a member and give it a command."""
        _, address, port = self.look_up(member)
        command = COMMAND.pack(what, self.index, member, end)
        return dial((address, port), self.secret, command, self.patience, self.key_of(member))

    def key_of(self, member: int) -> bytes:
        """The head's key for a member; others have none."""
        return signature(self.signature, self.look_up(member)[0]) if self.index == 0 else b""

    def feed(self, member: int, end: int) -> tuple[socket.socket | None, int]:
        """Become the predecessor of a member: the connection and the first byte it wants; None when it refuses us."""
        sock = self.dial(FEED, member, end)
        try:
            deadline = time.monotonic() + self.patience
            if receive_exactly(sock, 1, deadline) == ACCEPTED:
                return sock, OFFSET.unpack(receive_exactly(sock, OFFSET.size, deadline))[0]
        except OSError:
            sock.close()
            raise
        sock.close()
        return None, 0

    # -- what was found, in the loop

    def attach(self, branch: Branch, dead: dict[int, str], member: int, sock: socket.socket, offset: int) -> None:
        """Feed a branch through this member, from the byte it asks for."""
        if offset < self.store.oldest:
            sock.close()
            reason = f"it needs byte {offset}, the replay buffer begins at {self.store.oldest}: use a larger one"
            self.skip(branch, {**dead, member: reason})
            return
        if offset > self.size:
            sock.close()
            self.skip(branch, {**dead, member: f"it asks for byte {offset} of {self.size}"})
            return
        self.bury(dead)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if member != branch.first:
            branch.losses = 0
        branch.first, branch.sock, branch.sent, branch.inbox = member, sock, offset, b""
        branch.heard = time.monotonic()

    def skip(self, branch: Branch, dead: dict[int, str]) -> None:
        """Go on with those behind the dead ones."""
        self.bury(dead)
        self.branches.remove(branch)
        if max(dead) + 1 == self.known < branch.end:
            tell("beyond")
            return
        for first, end in split(max(dead) + 1, branch.end, self.fanout):
            heir = Branch(first, end, in_doubt=True)
            heir.acks = branch.acks
            self.grow(heir)

    def bury(self, dead: dict[int, str]) -> None:
        """Tell who is skipped and why."""
        for member, reason in dead.items():
            facts = {"node": self.look_up(member)[0], "reason": reason}
            tell("skipped", **facts)
            self.report("skipped", facts)

    def report(self, event: str, facts: "dict[str, Any]") -> None:
        """Sign what goes up the chain as our word."""
        line = json_text({"event": event, **facts})
        self.reports.append(f"{self.name} {proof(self.signature, line.encode()).hex()} {line}")

    def forget(self, branch: Branch) -> None:
        """A branch is served, or somebody nearer to the head feeds it."""
        branch.close()
        self.branches.remove(branch)

    def lost(self, branch: Branch) -> None:
        """The member through which a branch is fed does not answer: ask it again, and those behind it."""
        branch.close()
        branch.in_doubt = True
        branch.losses += 1
        if branch.losses > LOSSES:
            self.reject(branch, f"its connection broke {branch.losses} times")
        else:
            self.grow(branch)

    def reject(self, branch: Branch, reason: str) -> None:
        """The member through which a branch is fed does not do as it should: feed those behind it."""
        branch.close()
        self.skip(branch, {branch.first: reason})

    # -- feeding

    def on_branch(self, branch: Branch, events: int) -> None:
        """Take acknowledgements, give bytes of the image."""
        try:
            if branch.sock and events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self.hear(branch, branch.sock)
            if branch.sock and events & select.POLLOUT:
                branch.sent += self.store.send(branch.sock, branch.sent)
        except BlockingIOError:
            pass
        except OSError:
            self.lost(branch)

    def hear(self, branch: Branch, sock: socket.socket) -> None:
        """Read acknowledgements and the final report of a branch."""
        data = sock.recv(65536)
        if not data:
            self.lost(branch)
            return
        branch.heard = time.monotonic()
        branch.inbox += data
        while branch.inbox:
            kind = branch.inbox[:1]
            if kind == ACK and len(branch.inbox) > ACK_BODY.size:
                acks = ACK_BODY.unpack_from(branch.inbox, 1)
                if acks[0] > branch.sent:
                    self.reject(branch, f"it acknowledges {acks[0]} bytes of {branch.sent}")
                    return
                branch.acks, branch.inbox = acks, branch.inbox[1 + ACK_BODY.size :]
            elif kind == REPLACED:
                self.forget(branch)
                return
            elif kind == DONE and len(branch.inbox) > LENGTH.size:
                self.hear_reports(branch, *LENGTH.unpack_from(branch.inbox, 1))
                return
            elif kind not in (ACK, DONE):
                self.reject(branch, "it does not speak as a member of a broadcast does")
                return
            else:
                return  # the rest is still on its way

    def hear_reports(self, branch: Branch, length: int) -> None:
        """Take the reports of a branch that is served, once all of them are here."""
        if length > REPORT_LIMIT * (branch.end - branch.first):
            self.reject(branch, f"it wants to report {length} bytes")
        elif len(branch.inbox) >= 1 + LENGTH.size + length:
            body = branch.inbox[1 + LENGTH.size :][:length]
            self.reports += body.decode(errors="replace").split("\n")
            self.forget(branch)


class Head(Relay):
    """The member beside the controller, who has the image."""

    def __init__(self, config: "dict[str, Any]") -> None:
        super().__init__(config)
        self.told = 0.0
        self.store = self.image = ImageFile(config["image"], self.size)
        if config["directly"]:
            for first, end in config["directly"]:
                self.grow(Branch(first, end, in_doubt=end > first + 1))
        else:
            self.take_range(self.end)
        for member, successor in config["releases"]:
            threading.Thread(target=self.release, args=(member, successor), daemon=True).start()

    def release(self, member: int, successor: int) -> None:
        """Have a member feed this successor no more."""
        with suppress(OSError), self.dial(RELEASE, member, successor) as sock:
            receive_exactly(sock, 1, time.monotonic() + self.patience)

    def look_at_the_clock(self, now: float) -> None:
        """Tell how far we are, twice a second."""
        if now - self.told >= 0.5:
            self.told = now
            self.tell_progress()

    def tell_progress(self) -> None:
        """Bytes given away, and bytes that have arrived at the first members."""
        sent = min((branch.sent for branch in self.branches), default=self.size)
        acknowledged = min((branch.acks[0] for branch in self.branches), default=self.size)
        tell("progress", sent=sent, acknowledged=acknowledged, given=self.image.given)

    def settle(self) -> None:
        """Pass on what came back along the chains, once they are all served."""
        if not self.branches:
            self.tell_progress()
            for line in self.reports:
                tell("report", line=line[:REPORT_LIMIT])
            tell("end")
            self.leaving = True


class Node(Relay):
    """A member who gets the image from its predecessor."""

    def __init__(self, config: "dict[str, Any]") -> None:
        super().__init__(config)
        self.slow_limit: float = config["slow_limit"]
        self.orphan_limit: float = config["orphan_limit"]
        self.verdict: str | None = None
        self.predecessor: socket.socket | None = None
        self.predecessor_index = NOBODY
        self.mouthful = 1
        self.pace_period: float = config["pace_period"]
        self.hungry = (0.0, 0)  # since when, and from which byte on, nothing has held us up but our predecessor
        self.held = (0.0, 0)  # the same for a successor, and that it has
        self.fed = False  # whether there has been a predecessor
        self.fed_since = 0.0
        self.orphaned = self.started + config["first_limit"] - self.orphan_limit
        self.outbox = b""
        self.beat = 0.0
        self.acked = (0, 0)
        self.step: int = config["ring"] // 32
        self.listener = self.listen()
        self.store = self.ring = Ring(config["ring"])
        blocks = Blocks(config["block"], self.size, a2b_base64(config["proofs"]))
        self.digest = Digest(self.ring, blocks, partial(os.eventfd_write, self.bell, 1))
        self.sink = Sink(config["sink"], config["environment"])

    def run(self) -> None:
        """As for all; the sink does not outlive us."""
        try:
            super().run()
        finally:
            self.sink.kill("the relay was ended")

    @property
    def busy(self) -> bool:
        """As for all; before it is fed a node has nothing to say."""
        return self.fed

    def watch_all(self) -> None:
        """As for all, and the predecessor, the sink and visitors."""
        super().watch_all()
        self.watch(self.listener.fileno(), select.POLLIN, self.on_visitor)
        self.ring.keep = min(self.ring.ready, self.sink.hold, *(branch.hold for branch in self.branches))
        if not self.holders():
            self.held = (time.monotonic(), self.ring.keep)
        if self.predecessor:
            left = self.digest.blocks.end(self.ring.head) - self.ring.head
            if self.mouthful != max(1, min(MOUTHFUL, left)):
                self.wake_at(self.predecessor, left)
            room = left > 0 and self.ring.room() > 0 and not self.digest.wrong
            if not room:
                self.hungry = (time.monotonic(), self.ring.head)
            mask = (select.POLLIN if room else 0) | (select.POLLOUT if self.outbox else 0)
            self.watch(self.predecessor.fileno(), mask, self.on_predecessor)
        if not self.sink.finished:
            self.watch(self.sink.death, select.POLLIN, self.on_sink_ended)
            self.watch(self.sink.stderr, select.POLLIN, self.on_sink_words)
            if self.sink.open and self.sink.written < self.ring.ready:
                self.watch(self.sink.stdin, select.POLLOUT, self.on_sink_hungry)

    def holders(self) -> list[Branch]:
        """The branches for which alone the ring is filling up, although they are alive."""
        if self.ring.room() > self.ring.size // 2 or self.sink.hold == self.ring.keep:
            return []
        lately = time.monotonic() - 2 * BEAT
        return [b for b in self.branches if b.hold == self.ring.keep and b.sock and b.heard > lately]

    def look_at_the_clock(self, now: float) -> None:
        """Give a sign of life; judge a sink that is stuck, and a wait for a predecessor that is too long."""
        if now - self.beat >= BEAT:
            self.on_predecessor(select.POLLIN)  # less than a mouthful, if there is anything
        vector = (self.ring.ready, self.received_by_all(0), self.received_by_all(1))
        moved = max(vector[0] - self.acked[0], vector[1] - self.acked[1])
        if moved >= self.step or now - self.beat >= BEAT:
            self.acknowledge(vector, now)
        if self.sink.written == self.ring.ready:
            self.sink.moved = now
        if self.sink.open and now - self.sink.moved > self.slow_limit:
            self.sink.kill(f"the command that unpacks the image took nothing for {self.slow_limit:g} s")
        for branch in self.holders()[:1]:
            self.held = self.tell_pace("held", branch.first, self.held, self.ring.keep, now)
        if self.predecessor and self.predecessor_index and (self.ring.head > self.hungry[1] or self.forgotten(now)):
            self.hungry = self.tell_pace("hungry", self.predecessor_index, self.hungry, self.ring.head, now)
        if self.fed and not self.predecessor and self.predecessor_index and self.forgotten(now):
            self.ask_the_head("is gone, and nobody has come in its place")
        if not self.predecessor and now - self.orphaned > self.orphan_limit:
            self.give_up(f"no predecessor for {self.orphan_limit:g} s, {self.ring.head} of {self.size} bytes received")

    def forgotten(self, now: float) -> bool:
        """Whether we have got nothing for so long that a dead member in front of us would have been skipped."""
        return now - self.hungry[0] > self.silence + 3 * self.patience

    def tell_pace(self, what: str, by: int, start: tuple[float, int], offset: int, now: float) -> tuple[float, int]:
        """Tell how fast we get on, if one neighbour alone has set the pace for long enough; since when it is now."""
        since, before = start
        if now - since < max(self.pace_period, (now - self.fed_since) * PACE_SHARE):
            return start
        tell(what, by=by, bytes=offset, pace=max(0, int((offset - before) / (now - since))))
        return now, offset

    def settle(self) -> None:
        """Notice what is complete: the image, our verdict, everything below us."""
        if not self.fed:
            return
        if self.sink.open and self.sink.written == self.size:
            self.sink.end_of_image()
        if self.verdict is None and self.sink.finished and self.ring.ready == self.size:
            self.judge()
        if self.verdict and not self.branches and self.predecessor:
            self.hand_in(self.predecessor)

    # -- our own verdict

    def on_sink_ended(self, _: int) -> None:
        """The command has exited."""
        self.sink.ended(self.size)

    def on_sink_words(self, _: int) -> None:
        """The command complains."""
        self.sink.hear()

    def on_sink_hungry(self, _: int) -> None:
        """The command takes more."""
        self.sink.write(self.ring)

    def judge(self, truncated: str = "") -> None:
        """Our verdict, from the length and the sink; the controller compares the digest."""
        message = truncated or self.sink.failure or ""
        self.verdict = "ko" if message else "ok"
        facts = {
            "verdict": self.verdict,
            "message": message,
            "bytes": self.ring.head,
            "sha256": self.digest.sha256.hexdigest(),
            "seconds": round(time.monotonic() - self.fed_since, 3) if self.fed else 0.0,
        }
        tell("verdict", **facts)
        self.report("verdict", facts)

    def give_up(self, reason: str) -> None:
        """Nobody feeds us and nobody will."""
        if self.verdict is None:
            self.sink.kill("the image was cut short")
            self.judge(reason)
        self.leaving = True

    # -- towards the head

    def on_bell(self, _: int) -> None:
        """As for all; a block has been hashed."""
        super().on_bell(_)
        if self.digest.wrong:
            self.turn_away()
        self.pass_on()

    def turn_away(self) -> None:
        """Our predecessor gives bytes that are not the image's."""
        where = f"from byte {self.ring.ready} on"
        self.digest.rewind()
        self.drop_predecessor(REPLACED)
        if self.predecessor_index:
            self.ask_the_head(f"passed on bytes that are not the image's, {where}")
        else:
            self.give_up(f"the image on the server is not the recorded one, {where}: record the environment again")

    def ask_the_head(self, reason: str) -> None:
        """Have the controller know that we are stranded; nobody but the head may feed us from now on."""
        tell("stranded", by=self.predecessor_index, reason=reason)
        self.predecessor_index = 0

    def listen(self) -> socket.socket:
        """Listen at our own address, or everywhere when this machine does not know that address (NAT)."""
        _, address, port = self.look_up(self.index)
        family, kind, proto, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(where)
        except OSError as error:
            if error.errno != 99:  # EADDRNOTAVAIL; the errno module is not worth an import
                raise
            listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))  # noqa: S104
        listener.listen(64)
        return listener

    def on_visitor(self, _: int) -> None:
        """Somebody connects; a thread beside the loop finds out who."""
        sock, _where = self.listener.accept()
        threading.Thread(target=self.meet, args=(sock,), daemon=True).start()

    def meet(self, sock: socket.socket) -> None:
        """Answer a ping, or bring the loop a new predecessor."""
        with suppress(OSError):  # a stranger, or a member that went away
            what, who, asked, end = COMMAND.unpack(welcome(sock, self.secret, self.signature, self.patience))
            if what == FEED and asked == self.index:
                self.post(partial(self.adopt, sock, who, end))
                return
            if what == RELEASE and who == 0 and asked == self.index:
                self.post(partial(self.let_go, end))
            sock.sendall(ACCEPTED if asked == self.index else REFUSED)
        sock.close()

    def adopt(self, sock: socket.socket, who: int, end: int) -> None:
        """Take the bytes from this predecessor from now on, unless ours is nearer to the head."""
        sock.setblocking(False)
        if who > self.predecessor_index:
            with suppress(OSError):
                sock.send(REFUSED)
            sock.close()
            return
        self.drop_predecessor(REPLACED)
        self.digest.rewind()  # one predecessor answers for a whole block
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.predecessor, self.predecessor_index = sock, who
        self.wake_at(sock, MOUTHFUL)
        self.hungry = (time.monotonic(), self.ring.head)
        self.outbox = ACCEPTED + OFFSET.pack(self.ring.head)
        if not self.fed:
            self.fed, self.fed_since = True, time.monotonic()
            self.take_range(min(end, self.end))
        self.flush()

    def let_go(self, successor: int) -> None:
        """The head feeds this one, who has held us up."""
        for branch in [b for b in self.branches if b.sock and b.first == successor]:
            self.forget(branch)

    def wake_at(self, predecessor: socket.socket, count: int) -> None:
        """Have poll(2) tell of the predecessor's bytes when there are so many (or it has closed)."""
        self.mouthful = max(1, min(MOUTHFUL, count))
        predecessor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self.mouthful)

    def drop_predecessor(self, farewell: bytes = b"") -> None:
        """Close the connection to the predecessor and wait for another."""
        if self.predecessor:
            with suppress(OSError):  # it may be gone already
                self.predecessor.send(farewell)
            self.predecessor.close()
            self.orphaned = time.monotonic()
        self.predecessor = None
        self.outbox = b""

    def on_predecessor(self, events: int) -> None:
        """Take bytes of the image, give acknowledgements."""
        if not self.predecessor:
            return
        try:
            if events & select.POLLIN:
                self.take(self.predecessor)
            elif events & (select.POLLERR | select.POLLHUP):
                self.drop_predecessor()
        except BlockingIOError:
            pass
        except OSError:
            self.drop_predecessor()
        self.flush()

    def take(self, sock: socket.socket) -> None:
        """Receive bite by bite, and have it hashed."""
        for _ in range(CHUNK // BITE):
            wanted = min(BITE, self.size - self.ring.head, self.ring.room())
            if not wanted:
                return
            if not self.ring.receive(sock, wanted):
                raise ConnectionResetError("it closed the connection")
            self.digest.more.set()

    def pass_on(self) -> None:
        """Give at once what has just been found right to all who can take it."""
        for branch in self.branches:
            if branch.sock and branch.sent < self.ring.ready:
                self.on_branch(branch, select.POLLOUT)
        if self.sink.open and self.sink.written < self.ring.ready:
            self.sink.write(self.ring)

    def received_by_all(self, generation: int) -> int:
        """What all members of a generation below have received, at least; 0 is our successors."""
        return min((branch.acks[generation] for branch in self.branches), default=NOBODY if self.fed else 0)

    def acknowledge(self, vector: tuple[int, int, int], now: float) -> None:
        """Tell the predecessor how far we and two generations below us are; this is our sign of life, too."""
        self.beat = now
        self.acked = vector[:2]
        if self.predecessor and not self.outbox:
            self.outbox = ACK + ACK_BODY.pack(*vector)
            self.flush()

    def flush(self) -> None:
        """Send what waits for the predecessor."""
        if self.predecessor and self.outbox:
            try:
                self.outbox = self.outbox[self.predecessor.send(self.outbox) :]
            except BlockingIOError:
                pass
            except OSError:
                self.drop_predecessor()

    def hand_in(self, predecessor: socket.socket) -> None:
        """Everything below is served: send all verdicts up, and leave."""
        body = "\n".join(self.reports).encode()
        try:
            predecessor.settimeout(self.patience)
            predecessor.sendall(self.outbox + DONE + LENGTH.pack(len(body)) + body)
        except OSError:
            self.drop_predecessor()  # another one may come for it
            return
        predecessor.close()
        self.leaving = True


def main(config: "dict[str, Any]") -> int:
    """Run one member; the status is 0 when its own verdict is ok."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if config["index"] == 0:
        Head(config).run()
        return 0
    node = Node(config)
    tell("listening", pid=os.getpid())
    node.run()
    return 0 if node.verdict == "ok" else 1


if __name__ == "__main__":
    sys.exit(main(globals()["CONFIG"]))
