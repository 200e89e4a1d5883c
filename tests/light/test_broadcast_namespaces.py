"""Broadcasts between network namespaces: what only a network can do to a node (root)."""

import asyncio
import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest

from kadeploy.broadcast import chain
from kadeploy.workflow import Verdict

networks = itertools.count()


class Network:
    """A hub with a bridge, and nodes plugged into it, each in a namespace of its own; nothing else is reachable."""

    def __init__(self, count: int) -> None:
        self.name = f"kab{os.getpid()}x{next(networks)}"
        self.count = count
        self.members = [chain.Member(f"node-{i}", f"10.99.0.{i}") for i in range(1, count + 1)]

    def space(self, number: int) -> str:
        return f"{self.name}-{number}"

    def ip(self, *arguments: str, within: int | None = None) -> None:
        where = [] if within is None else ["-n", self.space(within)]
        subprocess.run(["ip", *where, *arguments], check=True)

    def build(self) -> None:
        for number in range(self.count + 1):
            self.ip("netns", "add", self.space(number))
            self.ip("link", "set", "lo", "up", within=number)
        self.ip("link", "add", "bridge", "type", "bridge", within=0)
        self.ip("addr", "add", "10.99.0.254/24", "dev", "bridge", within=0)
        self.ip("link", "set", "bridge", "up", within=0)
        for number in range(1, self.count + 1):
            veth = ("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", self.space(number))
            self.ip(*veth, within=0)
            self.ip("link", "set", f"port{number}", "master", "bridge", "up", within=0)
            self.ip("addr", "add", f"10.99.0.{number}/24", "dev", "eth0", within=number)
            self.ip("link", "set", "eth0", "up", within=number)

    def remove(self) -> None:
        for number in range(self.count + 1):
            subprocess.run(["ip", "netns", "del", self.space(number)], check=False)

    def unplug(self, number: int) -> None:
        """The bridge forwards nothing to or from this node any more; both ends still believe in their link."""
        self.ip("link", "set", f"port{number}", "nomaster", within=0)


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network(5)
    with contextlib.ExitStack() as stack:
        stack.callback(made.remove)
        made.build()
        yield made


@pytest.mark.parametrize("lost", [(3,), (2, 3), (1,), (5,)], ids=str)
def test_a_node_whose_packets_vanish_is_skipped(tmp_path, network, lost):
    """No reset, no refusal, only silence: the nodes behind it get every byte all the same."""
    image = tmp_path / "image"
    image.write_bytes(os.urandom(24 << 20))
    sink = 'head -c 524288 > "$OUT/$NODE"; mv "$OUT/$NODE" "$OUT/$NODE.part"; ' + (
        'until [ -e "$OUT/gate" ]; do sleep 0.05; done; cat >> "$OUT/$NODE.part"'
    )
    broadcast = chain.describe(image, sink, ring=4 << 20, silence=2.0, patience=3.0)

    async def start(number: int, member: chain.Member, program: bytes) -> chain.LocalRelay:
        variables = ("env", f"NODE={member.name}", f"OUT={tmp_path}")
        return await chain.start_local(member, program, "ip", "netns", "exec", network.space(number), *variables)

    async def start_node(member: chain.Member, program: bytes) -> chain.LocalRelay:
        return await start(network.members.index(member) + 1, member, program)

    async def play() -> dict[str, chain.Reception]:
        task = asyncio.create_task(
            chain.send(broadcast, network.members, start_node, start_head=partial(start, 0)),
        )
        while not all((tmp_path / f"{member.name}.part").exists() for member in network.members):
            await asyncio.sleep(0.05)
        for number in lost:
            network.unplug(number)
        (tmp_path / "gate").touch()
        return await task

    outcomes = asyncio.run(play())
    alive = [f"node-{number}" for number in range(1, 6) if number not in lost]
    assert [name for name, outcome in outcomes.items() if outcome.verdict is Verdict.OK] == alive
    assert all((tmp_path / f"{name}.part").read_bytes() == image.read_bytes() for name in alive)
    for number in lost:
        assert "skipped by" in outcomes[f"node-{number}"].message
