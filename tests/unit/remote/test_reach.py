"""Waiting for rebooted nodes, on real sockets: who counts as there, and what is said of who does not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kadeploy.remote.connections import Connections
from kadeploy.remote.fanout import Target
from kadeploy.remote.reach import PROBE_LIMIT, Port, booted_after, first_process_age, probe, shows, wait
from kadeploy.workflow import Outcome, Verdict

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

NEVER = 1000.0
"""A settling time that no test lasts."""


@contextmanager
def closed(address: str = "127.0.0.1") -> Iterator[int]:
    """A port that refuses: it is bound, so that nobody else gets it, and nobody listens."""
    with socket.socket() as bound:
        bound.bind((address, 0))
        yield bound.getsockname()[1]


@asynccontextmanager
async def listening(port: int = 0, address: str = "127.0.0.1") -> AsyncIterator[int]:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), address, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@contextmanager
def full(address: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A port that does not answer: its queue is full, so that the kernel drops what comes, until ``listen(64)``."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen(0)
        callers = [socket.socket() for _ in range(4)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        try:
            yield listener
        finally:
            for caller in callers:
                caller.close()


@contextmanager
def silent(address: str = "127.0.0.1") -> Iterator[int]:
    """The number of a port that does not answer."""
    with full(address) as listener:
        yield listener.getsockname()[1]


def node(name: str = "node-1", address: str = "127.0.0.1") -> Target:
    return Target(name, address)


def only(outcomes: dict[str, Outcome]) -> Outcome:
    (outcome,) = outcomes.values()
    return outcome


async def within(awaitable: Awaitable[dict[str, Outcome]]) -> dict[str, Outcome]:
    return await asyncio.wait_for(awaitable, 60)


# --- probes -----------------------------------------------------------------------------------------------------


def test_a_probe_tells_open_refused_and_silent_apart() -> None:
    async def main() -> list[Port]:
        async with listening() as opened:
            with closed() as refusing, silent() as quiet:
                return [await probe("127.0.0.1", port, 0.5) for port in (opened, refusing, quiet)]

    assert asyncio.run(main()) == [Port.OPEN, Port.REFUSED, Port.SILENT]


def test_a_name_that_nobody_knows_is_silent() -> None:
    assert asyncio.run(probe("no-such-node.invalid", 22)) is Port.SILENT


# --- there ------------------------------------------------------------------------------------------------------


def test_a_node_whose_ports_are_as_they_should_be_is_there_at_once_when_nothing_may_be_doubted() -> None:
    async def main() -> Outcome:
        async with listening() as ssh:
            with closed() as marker:
                return only(await within(wait([node()], [ssh], [marker], timeout=30, window=5, settle=0)))

    assert asyncio.run(main()).verdict is Verdict.OK


@pytest.mark.parametrize("there", [2, 3])
def test_nobody_waits_for_a_few_when_most_are_there(there: int) -> None:
    """Three of four are most of them, two are not: those wait for the others as long as it takes."""

    async def main() -> dict[str, Outcome]:
        async with listening() as ssh, listening(ssh, "127.0.0.2"):
            nodes = [node(f"node-{number}", "127.0.0.1") for number in range(1, there + 1)]
            nodes += [node(f"node-{number}", "127.0.0.3") for number in range(there + 1, 5)]
            return await within(wait(nodes, [ssh], [], timeout=4, window=5, poll=0.1, settle=0, leave_late=True))

    outcomes = asyncio.run(main())
    verdicts = [outcome.verdict for outcome in outcomes.values()]
    others = Verdict.LATE if there == 3 else Verdict.KO
    assert verdicts == [Verdict.OK] * there + [others] * (4 - there)
    assert list(outcomes) == ["node-1", "node-2", "node-3", "node-4"]
    assert (outcomes["node-4"].seconds < 4) == (there == 3)


def test_a_node_that_refused_before_counts_at_once_when_it_accepts() -> None:
    """It has changed since the wait began: no settling time is needed."""

    async def main() -> Outcome:
        with closed() as ssh:
            task = asyncio.create_task(
                wait([node()], [ssh], [], timeout=60, window=5, poll=0.05, settle=NEVER),
            )
            await asyncio.sleep(0.3)
        async with listening(ssh):
            return only(await within(task))

    assert asyncio.run(main()).verdict is Verdict.OK


def test_a_node_in_the_deployment_system_counts_once_its_marker_port_is_closed() -> None:
    async def main() -> Outcome:
        async with listening() as ssh:
            async with listening() as marker:
                task = asyncio.create_task(
                    wait([node()], [ssh], [marker], timeout=60, window=5, poll=0.05, settle=NEVER)
                )
                await asyncio.sleep(0.3)
                assert not task.done()
            return only(await within(task))

    assert asyncio.run(main()).verdict is Verdict.OK


def test_who_never_changed_counts_after_the_settling_time() -> None:
    """A user's system that was told to reboot answers for some seconds; one that was back before the wait stays."""

    async def main() -> Outcome:
        async with listening() as ssh:
            return only(await within(wait([node()], [ssh], [], timeout=60, window=5, poll=0.05, settle=0.4)))

    outcome = asyncio.run(main())
    assert outcome.verdict is Verdict.OK
    assert outcome.seconds >= 0.4


def test_the_old_system_that_goes_down_within_the_settling_time_does_not_count() -> None:
    async def main() -> tuple[bool, Outcome]:
        async with listening() as ssh:
            task = asyncio.create_task(wait([node()], [ssh], [], timeout=60, window=5, poll=0.05, settle=NEVER))
            await asyncio.sleep(0.3)
            early = task.done()
        await asyncio.sleep(0.3)
        async with listening(ssh):
            return early, only(await within(task))

    early, outcome = asyncio.run(main())
    assert not early
    assert outcome.verdict is Verdict.OK


# --- confirmed --------------------------------------------------------------------------------------------------


def test_a_node_that_did_not_change_is_asked_until_it_confirms() -> None:
    answers = ["it still runs the old system", "it still runs the old system", ""]

    async def confirm(_target: Target) -> str:
        return answers.pop(0)

    async def main() -> Outcome:
        async with listening() as ssh:
            return only(
                await within(wait([node()], [ssh], [], timeout=60, window=5, poll=0.05, settle=NEVER, confirm=confirm))
            )

    assert asyncio.run(main()).verdict is Verdict.OK
    assert answers == []


@pytest.mark.parametrize("silence", [0.5, 2 * PROBE_LIMIT + 1])
def test_a_silence_proves_no_reboot_of_a_node_that_can_be_asked(silence: float) -> None:
    """Be it one lost packet or a network that was away: the node itself knows better."""
    answers = ["it still runs the old system", "it still runs the old system", ""]

    async def confirm(_target: Target) -> str:
        return answers.pop(0)

    async def main() -> Outcome:
        with full() as listener:
            port = listener.getsockname()[1]
            target = Target("node-1", "127.0.0.1", port)
            task = asyncio.create_task(
                wait([target], [port], [], timeout=30, window=5, poll=0.05, confirm=confirm),
            )
            await asyncio.sleep(silence)
            listener.listen(64)
            return only(await within(task))

    assert asyncio.run(main()).verdict is Verdict.OK
    assert answers == []


async def lets_nobody_in(_target: Target) -> None:
    """A user's system."""


def test_a_node_that_lets_nobody_in_and_was_away_has_been_rebooted() -> None:
    async def main() -> Outcome:
        with full() as listener:
            port = listener.getsockname()[1]
            target = Target("node-1", "127.0.0.1", port)
            task = asyncio.create_task(
                wait([target], [port], [], timeout=60, window=5, poll=0.05, confirm=lets_nobody_in),
            )
            await asyncio.sleep(2 * PROBE_LIMIT + 1)
            listener.listen(64)
            return only(await within(task))

    assert asyncio.run(main()).verdict is Verdict.OK


def test_a_node_that_lets_nobody_in_and_was_never_away_is_ko_and_bothered_three_times_only() -> None:
    asked = 0

    async def confirm(_target: Target) -> None:
        nonlocal asked
        asked += 1

    async def main() -> Outcome:
        async with listening() as ssh:
            target = Target("node-1", "127.0.0.1", ssh)
            return only(await within(wait([target], [ssh], [], timeout=2, window=5, poll=0.05, confirm=confirm)))

    outcome = asyncio.run(main())
    assert outcome.verdict is Verdict.KO
    assert outcome.message.startswith("Not rebooted: it answers, was never seen to be away, and does not let us in")
    assert asked == 3


def test_a_silence_that_lasts_is_a_reboot() -> None:
    """The node counts at once when it answers again: nobody has to be asked."""

    async def main() -> Outcome:
        with full() as listener:
            port = listener.getsockname()[1]
            task = asyncio.create_task(
                wait([node()], [port], [], timeout=60, window=5, poll=0.05, settle=NEVER),
            )
            await asyncio.sleep(2 * PROBE_LIMIT + 1)
            listener.listen(64)
            return only(await within(task))

    assert asyncio.run(main()).verdict is Verdict.OK


def test_a_node_that_never_confirms_is_ko_and_the_message_says_why() -> None:
    async def confirm(_target: Target) -> str:
        return "it still runs the system from before the reboot"

    async def main() -> Outcome:
        async with listening() as ssh:
            return only(await within(wait([node()], [ssh], [], timeout=0.3, window=5, poll=0.05, confirm=confirm)))

    outcome = asyncio.run(main())
    assert outcome.verdict is Verdict.KO
    assert outcome.message.startswith("Not rebooted: it still runs the system from before the reboot after ")


def test_probes_are_bounded_by_the_window() -> None:
    inside = most = 0

    async def confirm(_target: Target) -> str:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return ""

    async def main() -> dict[str, Outcome]:
        async with listening() as ssh:
            targets = [node(f"node-{number}") for number in range(9)]
            return await within(wait(targets, [ssh], [], timeout=60, window=2, confirm=confirm))

    assert len(asyncio.run(main())) == 9
    assert most == 2


def test_the_deployment_system_tells_by_its_first_process_whether_it_was_booted(nodes: Nodes) -> None:
    async def main() -> list[str | None]:
        connections = Connections(nodes.credentials)
        now = time.monotonic()
        try:
            return [
                await booted_after(connections, now - 10**9)(nodes.target()),
                await booted_after(connections, now)(nodes.target()),
                await booted_after(connections, now)(nodes.refusing()),
                await booted_after(connections, now, may_refuse=True)(nodes.refusing()),
            ]
        finally:
            await connections.close()

    booted, old, refusing, stranger = asyncio.run(main())
    assert booted == ""
    assert "still runs the system from before" in str(old)
    assert "refused" in str(refusing)
    assert stranger is None


def test_the_age_of_the_first_process_is_not_the_machines_uptime() -> None:
    """A node that is a container has a first process of its own; its name may hold blanks and brackets."""
    stat = "1 (my (odd) init) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 0 0 1 0 2000 0 0"
    assert first_process_age(f"120.50 99.00\n{stat}\n") == pytest.approx(100.5)


def test_the_deployment_system_shows_what_its_kernel_was_booted_with(nodes: Nodes) -> None:
    (mine, *_) = Path("/proc/cmdline").read_text().split()

    async def main() -> tuple[str, str, str, str]:
        connections = Connections(nodes.credentials)
        try:
            return (
                await shows(connections, lambda _: mine)(nodes.target()),
                await shows(connections, lambda _: mine[:-1])(nodes.target()),
                await shows(connections, lambda node: f"kadeploy.attempt={node}")(nodes.target()),
                await shows(connections, lambda _: mine)(nodes.refusing()),
            )
        finally:
            await connections.close()

    shown, part, other, refusing = asyncio.run(main())
    assert shown == ""
    assert "did not boot by the profile of this try" in part
    assert part == other
    assert "refused" in refusing


def test_proof_is_asked_also_of_a_node_that_was_seen_to_be_away() -> None:
    """It has rebooted, but into what?"""

    async def prove(_target: Target) -> str:
        return "it did not boot by the profile of this try"

    async def main() -> Outcome:
        with closed() as ssh:
            task = asyncio.create_task(within(wait([node()], [ssh], [], timeout=2, window=5, poll=0.05, prove=prove)))
            await asyncio.sleep(0.3)
        async with listening(ssh):
            return only(await task)

    outcome = asyncio.run(main())
    assert outcome.verdict is Verdict.KO
    assert "did not boot by the profile of this try after 2 s" in outcome.message


# --- not there --------------------------------------------------------------------------------------------------


def ko(up: list[int], down: list[int], address: str = "127.0.0.1") -> str:
    outcome = only(
        asyncio.run(within(wait([node(address=address)], up, down, timeout=1.5, window=5, poll=0.1, settle=NEVER)))
    )
    assert outcome.verdict is Verdict.KO
    assert outcome.message.startswith("Unreachable after the reboot: ")
    return outcome.message


def test_a_node_that_refuses_its_ssh_port_is_alive_but_not_there() -> None:
    with closed() as ssh:
        assert f"the node is alive and refuses port {ssh}" in ko([ssh], [])


def test_a_node_that_does_not_answer_is_named_silent() -> None:
    with silent() as ssh:
        assert "nothing answers at 127.0.0.1" in ko([ssh], [])


def test_a_node_that_stays_in_the_deployment_system_is_not_there() -> None:
    async def main() -> Outcome:
        async with listening() as ssh, listening() as marker:
            return only(await within(wait([node()], [ssh], [marker], timeout=0.3, window=5, poll=0.05, settle=0)))

    outcome = asyncio.run(main())
    assert outcome.verdict is Verdict.KO
    assert "still in the deployment system" in outcome.message


def test_a_time_that_is_over_at_once_allows_no_node() -> None:
    with closed() as ssh:
        outcome = only(asyncio.run(within(wait([node()], [ssh], [], timeout=0, window=5))))
    assert outcome.verdict is Verdict.KO


def test_each_node_is_told_as_soon_as_it_is_known() -> None:
    heard: list[tuple[str, Verdict]] = []

    async def main() -> None:
        async with listening() as ssh:
            with closed("127.0.0.2") as _held:
                targets = [node("late", "127.0.0.2"), node("early")]
                await within(
                    wait(
                        targets,
                        [ssh],
                        [],
                        timeout=0.5,
                        window=5,
                        poll=0.05,
                        settle=0,
                        on_outcome=lambda name, outcome: heard.append((name, outcome.verdict)),
                    )
                )

    asyncio.run(main())
    assert heard == [("early", Verdict.OK), ("late", Verdict.KO)]
