"""Whole broadcasts between real relays, local processes on 127.x addresses, with everything that can go wrong."""

import asyncio
import hashlib
import itertools
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from kadeploy import checksums
from kadeploy.broadcast import chain, relay
from kadeploy.workflow import Verdict

RING = 4 << 20  # the smallest
LAST = "$OUT/$NODE"
TAKE_ALL = f'cat > "{LAST}"'
# Takes half a MiB, waits for the test, takes the rest: with an image larger than all buffers, all are in the middle.
TAKE_IN_TWO = f'head -c 524288 > "{LAST}.part"; mv "{LAST}.part" "{LAST}"; ' + (
    f'until [ -e "$OUT/gate" ]; do sleep 0.05; done; cat >> "{LAST}"'
)
broadcasts = itertools.count()


class Scene:
    """Members on addresses of their own, an image, and the processes of a broadcast."""

    def __init__(self, folder: Path, count: int, size: int) -> None:
        self.folder = folder
        self.image = folder / "image"
        self.image.write_bytes(os.urandom(size))
        run = next(broadcasts)
        net = f"127.{100 + os.getpid() % 100}.{run % 250}"
        self.members = [chain.Member(f"node-{i}", f"{net}.{i}", 25310) for i in range(1, count + 1)]
        self.processes: dict[str, chain.LocalRelay] = {}
        self.progress: list[tuple[int, int]] = []
        self.heads = 0

    async def start(self, member: chain.Member, program: bytes) -> chain.LocalRelay:
        process = await chain.start_local(member, program, "env", f"NODE={member.name}", f"OUT={self.folder}")
        self.processes[member.name] = process
        return process

    async def start_head(self, member: chain.Member, program: bytes) -> chain.LocalRelay:
        self.heads += 1
        return await chain.start_local(member, program)

    def describe(self, sink: str = TAKE_ALL, **settings) -> chain.Broadcast:
        return chain.describe(self.image, sink, **{"ring": RING, "silence": 8.0, "patience": 8.0, **settings})

    def send(self, broadcast: chain.Broadcast, during=None) -> dict[str, chain.Reception]:
        async def both() -> dict[str, chain.Reception]:
            task = asyncio.create_task(chain.send(broadcast, self.members, self.start, self.hear, self.start_head))
            if during:
                await during()
                (self.folder / "gate").touch()
            return await task

        return asyncio.run(both())

    def hear(self, sent: int, acknowledged: int) -> None:
        self.progress.append((sent, acknowledged))

    async def at_rest(self, first: int) -> None:
        """Wait until the first node has received so many bytes, and nobody gets any further."""
        while len(self.progress) < 2 or self.progress[-2] != self.progress[-1] or self.progress[-1][1] < first:
            await asyncio.sleep(0.05)

    async def in_the_middle(self) -> None:
        """Wait until every node has received a part and is waiting for the gate."""
        while not all((self.folder / m.name).exists() for m in self.members):
            await asyncio.sleep(0.05)

    def strike(self, sig: signal.Signals, *numbers: int):
        async def during() -> None:
            await self.in_the_middle()
            for number in numbers:
                os.kill(self.processes[f"node-{number}"].process.pid, sig)

        return during

    def identical(self, *numbers: int) -> bool:
        image = self.image.read_bytes()
        return all((self.folder / f"node-{number}").read_bytes() == image for number in numbers)


def ok_nodes(outcomes: dict[str, chain.Reception]) -> list[int]:
    return [int(name.removeprefix("node-")) for name, o in outcomes.items() if o.verdict is Verdict.OK]


@pytest.mark.parametrize("size", [0, 1, relay.BITE - 1, relay.CHUNK, RING - 1, RING, RING + 1, 2 * RING + 4097])
def test_every_node_gets_the_same_bytes(tmp_path, size):
    """Whatever the size of the image is to the size of the buffers."""
    scene = Scene(tmp_path, 3, size)
    outcomes = scene.send(scene.describe())
    assert ok_nodes(outcomes) == [1, 2, 3]
    assert scene.identical(1, 2, 3)
    digest = hashlib.sha256(scene.image.read_bytes()).hexdigest()
    assert {(o.bytes, o.sha256) for o in outcomes.values()} == {(size, digest)}


@pytest.mark.parametrize(("arity", "fanout"), [(3, 1), (1, 2), (2, 3)], ids=["chains", "tree", "trees"])
def test_other_shapes_reach_everybody(tmp_path, arity, fanout):
    """Several chains side by side, and trees, are the same program."""
    scene = Scene(tmp_path, 7, RING + 12345)
    outcomes = scene.send(scene.describe(arity=arity, fanout=fanout))
    assert ok_nodes(outcomes) == [1, 2, 3, 4, 5, 6, 7]
    assert scene.identical(1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize("dead", [(1,), (3,), (5,), (2, 3), (4, 5), (1, 2)], ids=str)
def test_killed_nodes_are_skipped_and_nobody_else_loses_a_byte(tmp_path, dead):
    """First, middle, last, or two neighbours: the successor goes on from the byte it had."""
    scene = Scene(tmp_path, 5, 6 * RING + 77)
    outcomes = scene.send(scene.describe(TAKE_IN_TWO), scene.strike(signal.SIGKILL, *dead))
    alive = [n for n in range(1, 6) if n not in dead]
    assert ok_nodes(outcomes) == alive
    assert scene.identical(*alive)
    for number in dead:
        witness = f"node-{number - 1}" if number > 1 and number - 1 not in dead else None
        message = outcomes[f"node-{number}"].message
        assert "skipped by" in message
        assert witness is None or f"skipped by {witness}" in message


def test_two_dead_neighbours_lose_nothing_although_they_were_far_ahead_of_the_next(tmp_path):
    """The last of four is slow. What it has not received is kept by all in front of it, not by its neighbour alone."""
    scene = Scene(tmp_path, 4, 6 * RING)

    async def kill_both() -> None:
        await scene.at_rest(2 * RING)  # a ring ahead of the last one, whose ring is full
        for number in (2, 3):
            os.kill(scene.processes[f"node-{number}"].process.pid, signal.SIGKILL)

    sink = f"if [ $NODE = node-4 ]; then {TAKE_IN_TWO}; else {TAKE_ALL}; fi"
    outcomes = scene.send(scene.describe(sink, pace_period=60.0), kill_both)
    assert ok_nodes(outcomes) == [1, 4]
    assert scene.identical(1, 4)
    assert scene.heads == 1, "it got the rest from its neighbours"


@pytest.mark.parametrize("frozen", [(2,), (2, 3)], ids=str)
def test_frozen_nodes_are_skipped(tmp_path, frozen):
    """A stopped process keeps its connections and its listening port; only its silence gives it away.

    Last words are not waited for from those that were found dead, which the head itself cannot reach.
    """
    scene = Scene(tmp_path, 4, 6 * RING)
    broadcast = scene.describe(TAKE_IN_TWO, silence=1.5, patience=2.5, grace=10_000.0)
    outcomes = scene.send(broadcast, scene.strike(signal.SIGSTOP, *frozen))
    alive = [n for n in range(1, 5) if n not in frozen]
    assert ok_nodes(outcomes) == alive
    assert scene.identical(*alive)
    assert "no answer" in outcomes["node-2"].message


def test_a_dead_inner_node_of_a_tree_leaves_its_children_to_its_parent(tmp_path):
    """The head of a half of the tree dies: both quarters below it are served by its parent."""
    scene = Scene(tmp_path, 7, 6 * RING)
    outcomes = scene.send(scene.describe(TAKE_IN_TWO, fanout=2), scene.strike(signal.SIGKILL, 2))
    assert ok_nodes(outcomes) == [1, 3, 4, 5, 6, 7]
    assert scene.identical(1, 3, 4, 5, 6, 7)


def test_a_busy_sink_is_not_taken_for_a_dead_node(tmp_path):
    """Sinks that rest for longer than the silence that betrays a dead node hold everybody back; nobody is skipped."""
    scene = Scene(tmp_path, 3, 6 * RING)

    async def rest() -> None:
        await scene.in_the_middle()
        await asyncio.sleep(2.5)

    outcomes = scene.send(scene.describe(TAKE_IN_TWO, silence=1.0), rest)
    assert ok_nodes(outcomes) == [1, 2, 3]
    assert scene.identical(1, 2, 3)


def test_a_stuck_sink_is_given_up_and_the_rest_goes_on(tmp_path):
    """After the slow limit its node is KO, relays all the same, and the command is ended."""
    scene = Scene(tmp_path, 3, 6 * RING)
    sink = f'[ $NODE = node-2 ] && {{ echo $$ > "$OUT/stuck"; exec sleep 600; }}; {TAKE_ALL}'
    outcomes = scene.send(scene.describe(sink, slow_limit=3.0))
    assert ok_nodes(outcomes) == [1, 3]
    assert scene.identical(1, 3)
    assert "took nothing for 3 s" in outcomes["node-2"].message
    assert not Path(f"/proc/{(tmp_path / 'stuck').read_text().strip()}/fd").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("echo 'No space left on device' >&2; exit 2", "status 2 after .*: No space left on device"),
        ("head -c 1000 >/dev/null", "status 0 after .* of"),
        ("exec 0<&-; sleep 0.3; exit 7", "status 7"),
        ("cat >/dev/null; exit 3", "status 3: no message"),
        ("true | false | cat >/dev/null", "status 1"),
    ],
    ids=["early", "early with status 0", "deaf", "late", "inside a pipeline"],
)
def test_a_failing_sink_is_the_failure_of_its_node_alone(tmp_path, fault, message):
    """The node in the middle is KO for the reason its command gave, those behind it get everything through it."""
    scene = Scene(tmp_path, 3, 3 * RING)
    outcomes = scene.send(scene.describe(f"if [ $NODE = node-2 ]; then {fault}; else {TAKE_ALL}; fi"))
    assert ok_nodes(outcomes) == [1, 3]
    assert scene.identical(1, 3)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(outcomes["node-2"].message)


@pytest.mark.parametrize("changed", [0, 3 * checksums.SMALLEST + 7])
def test_an_image_that_is_not_the_recorded_one_is_written_nowhere_from_the_first_wrong_block_on(tmp_path, changed):
    """It has been changed in place since: every node is KO, and says where the image is another one."""
    scene = Scene(tmp_path, 3, 4 * checksums.SMALLEST)
    good = scene.describe()
    image = scene.image.read_bytes()
    scene.image.write_bytes(image[:changed] + bytes([image[changed] ^ 1]) + image[changed + 1 :])
    outcomes = scene.send(good)
    first = changed - changed % checksums.SMALLEST
    message = f"the image on the server is not the recorded one, from byte {first} on: record the environment again"
    assert {outcome.message for outcome in outcomes.values()} == {message}
    for number in (1, 2, 3):
        assert image[:first].startswith((tmp_path / f"node-{number}").read_bytes())


def test_an_image_of_another_size_is_not_sent(tmp_path):
    """A truncated image on the server is noticed before any node is touched."""
    scene = Scene(tmp_path, 2, 1000)
    broadcast = scene.describe()
    scene.image.write_bytes(b"short")
    outcomes = scene.send(broadcast)
    assert ok_nodes(outcomes) == []
    assert "has 5 bytes, not 1000" in outcomes["node-1"].message
    assert scene.processes == {}


def test_a_relay_that_does_not_start_is_skipped(tmp_path):
    """A node without python3 is KO with what its shell said, its neighbours are served."""
    scene = Scene(tmp_path, 3, 100_000)
    start = scene.start

    async def start_all_but_one(member: chain.Member, program: bytes) -> chain.LocalRelay:
        return await start(member, b"raise SystemExit('python3: not found')" if member.name == "node-2" else program)

    scene.start = start_all_but_one
    outcomes = scene.send(scene.describe())
    assert ok_nodes(outcomes) == [1, 3]
    assert "skipped by node-1" in outcomes["node-2"].message
    assert "python3: not found" in outcomes["node-2"].message


def without(scene: Scene, *dead: int) -> Scene:
    """Relays that do not start."""
    start, names = scene.start, {f"node-{number}" for number in dead}

    async def start_others(member: chain.Member, program: bytes) -> chain.LocalRelay:
        return await start(member, b"raise SystemExit('no python3')" if member.name in names else program)

    scene.start = start_others
    return scene


@pytest.mark.parametrize("arity", [1, 2])
def test_behind_so_many_dead_that_no_node_knows_further_the_head_goes_on(tmp_path, monkeypatch, arity):
    """Node 2 is told of 3 and 4 alone; the head finds that 5 is dead, too, and feeds the rest of the chain."""
    monkeypatch.setattr(chain, "KNOWN", 2)
    scene = without(Scene(tmp_path, 14, RING + 1), 3, 4, 5)
    outcomes = scene.send(scene.describe(arity=arity))
    alive = [1, 2, *range(6, 15)]
    assert ok_nodes(outcomes) == alive
    assert scene.identical(*alive)
    assert scene.heads == 2
    assert "skipped by server" in outcomes["node-5"].message


def test_those_behind_many_that_die_in_the_middle_lose_no_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "KNOWN", 2)
    scene = Scene(tmp_path, 6, 6 * RING + 77)
    outcomes = scene.send(scene.describe(TAKE_IN_TWO), scene.strike(signal.SIGKILL, 2, 3))
    assert ok_nodes(outcomes) == [1, 4, 5, 6]
    assert scene.identical(1, 4, 5, 6)


def test_the_last_nodes_of_a_chain_have_nobody_behind_them_though_all_that_they_know_are_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "KNOWN", 2)
    scene = without(Scene(tmp_path, 4, 100_000), 3, 4)
    outcomes = scene.send(scene.describe())
    assert (ok_nodes(outcomes), scene.heads) == ([1, 2], 1)


def test_what_a_node_is_told_does_not_grow_with_the_number_of_nodes(tmp_path):
    scene = Scene(tmp_path, 1, 1)
    broadcast, many = scene.describe(), [chain.Member(f"node-{n:05}", "10.0.0.1") for n in range(10_000)]
    sizes = {len(chain.payload(broadcast, many[:count], 1, b"s" * 32, b"k" * 32)) for count in (1000, 5000, 9000)}
    assert len(sizes) == 1


def test_cancelling_ends_every_process(tmp_path):
    """A time-out of the macro-step leaves no relay and no sink behind."""
    scene = Scene(tmp_path, 2, 6 * RING)
    sink = f'echo $$ > "{LAST}.pid"; {TAKE_IN_TWO}'

    async def cancelled() -> None:
        task = asyncio.create_task(chain.send(scene.describe(sink), scene.members, scene.start))
        await scene.in_the_middle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.gather(*(process.wait() for process in scene.processes.values()))

    asyncio.run(cancelled())
    (tmp_path / "gate").touch()  # a sink whose relay was killed sees the end of its input
    pids = [(tmp_path / f"node-{n}.pid").read_text().strip() for n in (1, 2)]
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/fd").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/fd").exists() for pid in pids)


def test_progress_ends_with_all_bytes(tmp_path):
    """A progress bar gets bytes sent and acknowledged, never decreasing, up to the size."""
    scene = Scene(tmp_path, 2, 3 * RING)
    scene.send(scene.describe())
    assert scene.progress[-1] == (3 * RING, 3 * RING)
    assert scene.progress == sorted(scene.progress)


class HandFed:
    """One relay, and the test in the place of its predecessor."""

    def __init__(self, scene: Scene, **settings) -> None:
        self.secret = os.urandom(32)
        self.member = scene.members[0]
        self.key = os.urandom(32)
        self.program = chain.payload(scene.describe(**settings), scene.members, 1, self.secret, self.key)
        self.scene = scene

    async def start(self) -> chain.LocalRelay:
        process = await self.scene.start(self.member, self.program)
        self.lines = process.lines()
        assert '"listening"' in await anext(self.lines)
        return process

    def feed(self, who: int = 0, secret: bytes | None = None) -> socket.socket:
        command = relay.COMMAND.pack(relay.FEED, who, 1, 2)
        address = (self.member.address, self.member.port)
        return relay.dial(address, secret or self.secret, command, 10, b"" if who else self.key)

    @staticmethod
    def offset(sock: socket.socket) -> int:
        deadline = time.monotonic() + 10
        assert relay.receive_exactly(sock, 1, deadline) == relay.ACCEPTED
        return relay.OFFSET.unpack(relay.receive_exactly(sock, 8, deadline))[0]

    async def verdict(self) -> str:
        return "".join([line async for line in self.lines])


def test_a_stranger_neither_feeds_nor_disturbs(tmp_path):
    """Without the secret nothing is accepted; the right predecessor then finds the node at byte 0."""
    scene = Scene(tmp_path, 1, 1000)

    async def play() -> str:
        fed = HandFed(scene)
        await fed.start()
        with pytest.raises(PermissionError):
            fed.feed(secret=b"x" * 32)
        sock = fed.feed()
        assert fed.offset(sock) == 0
        sock.sendall(scene.image.read_bytes())
        return await fed.verdict()

    assert '"verdict": "ok"' in asyncio.run(play())
    assert scene.identical(1)


def test_a_truncated_stream_is_noticed(tmp_path):
    """A predecessor that leaves in the middle and is not replaced: KO, with how much arrived, and the sink is ended."""
    scene = Scene(tmp_path, 1, 1000)

    async def play() -> tuple[str, int]:
        fed = HandFed(scene, orphan_limit=0.5)
        process = await fed.start()
        sock = fed.feed()
        fed.offset(sock)
        sock.sendall(scene.image.read_bytes()[:400])
        sock.close()
        return await fed.verdict(), await process.wait()

    verdict, status = asyncio.run(play())
    assert status == 1
    assert "400 of 1000 bytes received" in verdict


def test_a_node_obeys_the_predecessor_nearest_to_the_head(tmp_path):
    """A new predecessor goes on after the last whole block; the one it replaced is told, and cannot come back."""
    block = checksums.SMALLEST
    scene = Scene(tmp_path, 1, block + 1000)
    image = scene.image.read_bytes()

    async def play() -> str:
        fed = HandFed(scene)
        await fed.start()
        far = fed.feed(who=5)
        assert fed.offset(far) == 0
        far.sendall(image[: block + 400])
        while (acks := far.recv(4096)) and not acks.endswith(relay.ACK_BODY.pack(block, relay.NOBODY, relay.NOBODY)):
            pass
        near = fed.feed(who=3)
        assert fed.offset(near) == block
        rest = b""
        while data := far.recv(4096):
            rest += data
        assert rest.endswith(relay.REPLACED)
        again = fed.feed(who=5)
        assert relay.receive_exactly(again, 1, time.monotonic() + 10) == relay.REFUSED
        near.sendall(image[block:])
        return await fed.verdict()

    assert '"verdict": "ok"' in asyncio.run(play())
    assert scene.identical(1)


def test_a_node_without_controller_ends(tmp_path):
    """When nobody reads its lines any more (ssh is gone, the controller was killed) the relay and its sink end."""
    scene = Scene(tmp_path, 1, 1000)

    async def play() -> int:
        fed = HandFed(scene)
        process = await fed.start()
        process.process._transport.get_pipe_transport(1).close()
        return await process.wait()

    assert asyncio.run(play()) == 1


def test_ipv6(tmp_path):
    """Members with IPv6 addresses are served as well."""
    scene = Scene(tmp_path, 2, 100_000)
    scene.members = [chain.Member(m.name, "::1", 20000 + os.getpid() % 20000 + i) for i, m in enumerate(scene.members)]
    assert ok_nodes(scene.send(scene.describe())) == [1, 2]
    assert scene.identical(1, 2)


def test_plan_follows_the_names_of_the_nodes():
    """Neighbours by number follow each other, and chains are runs of neighbours."""
    members = [chain.Member(name, "") for name in ("n-10", "n-2", "n-1", "m-3", "n-9")]
    assert [[m.name for m in run] for run in chain.plan(members, 2)] == [["m-3", "n-1", "n-2"], ["n-9", "n-10"]]
