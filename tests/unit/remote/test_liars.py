"""Nodes that lie, talk nonsense or never stop, and what those beside them notice of it: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import asyncssh
import hypothesis
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from kadeploy.remote.connections import Connections
from kadeploy.remote.fanout import Target
from kadeploy.remote.reach import booted_after, shows, wait
from kadeploy.workflow import Outcome, Verdict

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

BOOT = 2.0
"""Seconds after which the honest nodes are there."""


class Liar(NamedTuple):
    """A node that lets everybody in, or does not even speak ssh, and what it says."""

    ssh: bool
    said: bytes
    endless: bool
    status: int


liars = st.builds(
    Liar,
    st.booleans(),
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from(
            [
                b"1.00 0.00\n1 (init) S 0 1 1",
                b"1e999 nan\n1 (x) S " + b"9" * 5000,
                b"-1.0 0\n1 (init) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 0 0 1 0 -5 0 0",
                b"\xff\x1b]0;owned\x07\r\n" * 10,
                b"SSH-2.0-x\r\n" + bytes(200),
            ]
        ),
    ),
    st.booleans(),
    st.sampled_from([0, 1, 255]),
)


@asynccontextmanager
async def serve(liar: Liar, nodes: Nodes, name: str, address: str) -> AsyncIterator[Target]:
    """It, until the block ends."""

    async def speak(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(liar.said)
            while liar.endless:
                writer.write(b"x" * 65536)
                await writer.drain()
        writer.close()

    async def answer(process: asyncssh.SSHServerProcess[bytes]) -> None:
        with contextlib.suppress(OSError, asyncssh.Error):
            process.stderr.write(b"\x1e4194304\n")
            process.stdout.write(liar.said)
            while liar.endless:
                process.stdout.write(b"x" * 65536)
                await process.stdout.drain()
        process.exit(liar.status)

    if liar.ssh:
        server = await asyncssh.listen(
            address,
            nodes.port,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=str(nodes.credentials.private_key) + ".pub",
            process_factory=answer,
            encoding=None,
        )
    else:
        server = await asyncio.start_server(lambda _reader, writer: speak(writer), address, nodes.port)
    try:
        yield Target(name, address, nodes.port, pinned=False)
    finally:
        server.close()


async def wait_beside(found: list[Liar], nodes: Nodes) -> dict[str, Outcome]:
    """Wait for two honest nodes and for these; the liars that are not there after twice the time are KO."""
    connections = Connections(replace(nodes.credentials, connect_timeout=1))
    begun = time.monotonic()
    old = booted_after(connections, begun - 10**9)

    async def confirm(target: Target) -> str:
        return await old(target) or ("" if time.monotonic() - begun >= BOOT else "it is not there yet")

    prove = shows(connections, lambda name: "" if name.startswith("node") else "a secret")
    async with AsyncExitStack() as stack:
        honest = [nodes.target("node-1"), nodes.target("node-2")]
        lying = [
            await stack.enter_async_context(serve(liar, nodes, f"liar-{rank}", f"127.9.3.{rank}"))
            for rank, liar in enumerate(found, 1)
        ]
        stack.push_async_callback(connections.close)

        async def proof(target: Target) -> str:
            return "" if target in honest else await prove(target)

        return await wait(
            [*lying, *honest], [nodes.port], [], timeout=2 * BOOT, window=50, poll=0.2, confirm=confirm, prove=proof
        )


few = hypothesis.settings(
    max_examples=6,
    deadline=None,
    phases=[hypothesis.Phase.generate],  # each example takes seconds: too long to look for the shortest lie
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@few
@given(st.lists(liars, min_size=1, max_size=4))
def test_whatever_nodes_say_when_they_are_waited_for_the_others_are_there_as_soon(
    nodes: Nodes, found: list[Liar]
) -> None:
    outcomes = asyncio.run(wait_beside(found, nodes))
    for name in ("node-1", "node-2"):
        assert outcomes[name].verdict is Verdict.OK
        assert outcomes[name].seconds < 1.5 * (BOOT + 0.2)
    for rank in range(1, len(found) + 1):
        assert outcomes[f"liar-{rank}"].verdict is Verdict.KO
        assert "\x1b" not in outcomes[f"liar-{rank}"].message


@few
@given(st.lists(liars, min_size=1, max_size=4))
def test_whatever_nodes_say_to_a_script_the_others_end_as_well_and_as_soon(nodes: Nodes, found: list[Liar]) -> None:
    """The script takes two seconds on an honest node."""

    async def main() -> tuple[list[Outcome], list[Outcome]]:
        connections = Connections(replace(nodes.credentials, connect_timeout=1))
        async with AsyncExitStack() as stack:
            lying = [
                await stack.enter_async_context(serve(liar, nodes, f"liar-{rank}", f"127.9.3.{rank}"))
                for rank, liar in enumerate(found, 1)
            ]
            stack.push_async_callback(connections.close)
            lies = asyncio.gather(*(connections.run(target, b"true", timeout=4) for target in lying))
            honest = [nodes.target(f"node-{number}") for number in (1, 2)]
            good = await asyncio.gather(*(connections.run(target, b"sleep 2; echo well") for target in honest))
            return good, await lies

    good, lies = asyncio.run(main())
    for outcome in good:
        assert (outcome.verdict, outcome.stdout) == (Verdict.OK, "well\n")
        assert outcome.seconds < 1.5 * 2
    for liar, outcome in zip(found, lies, strict=True):
        assert outcome.verdict is Verdict.KO or (liar.ssh and not liar.endless and liar.status == 0)
        assert not outcome.message.startswith("None")
