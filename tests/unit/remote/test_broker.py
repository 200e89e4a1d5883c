"""The broker on a real OpenSSH server: the same answers as direct connections, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from kadeploy.errors import UnreachableError
from kadeploy.remote.broker import SOCKET, Broker, BrokerClient, connect
from kadeploy.remote.connections import KILLED, LISTEN_LIMIT, Connections
from kadeploy.remote.fanout import Remote
from kadeploy.workflow import Outcome, Verdict

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

T = TypeVar("T")


@pytest.fixture
def broker(tmp_path: Path, nodes: Nodes) -> Iterator[Broker]:
    broker = Broker(tmp_path, nodes.credentials)
    broker.start()
    yield broker
    broker.stop()


def use(folder: Path, nodes: Nodes, work: Callable[[Remote], Awaitable[T]]) -> T:
    async def main() -> T:
        remote = await connect(folder, nodes.credentials)
        try:
            return await asyncio.wait_for(work(remote), 60)
        finally:
            await remote.close()

    return asyncio.run(main())


def test_a_client_gets_the_broker_when_it_answers_and_connections_of_its_own_otherwise(
    tmp_path: Path, nodes: Nodes
) -> None:
    """Also when a killed broker has left its socket behind."""

    async def kind(remote: Remote) -> type:
        return type(remote)

    assert use(tmp_path, nodes, kind) is Connections
    broker = Broker(tmp_path, nodes.credentials)
    broker.start()
    assert use(tmp_path, nodes, kind) is BrokerClient
    broker.stop()
    assert not (tmp_path / SOCKET).exists()
    (tmp_path / SOCKET).touch()
    assert use(tmp_path, nodes, kind) is Connections
    second = Broker(tmp_path, nodes.credentials)
    second.start()
    assert use(tmp_path, nodes, kind) is BrokerClient
    second.stop()


def test_the_socket_is_for_its_owner_alone(tmp_path: Path, broker: Broker) -> None:
    mode = (tmp_path / SOCKET).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_folder_with_a_long_name_will_do(tmp_path: Path, nodes: Nodes) -> None:
    """A unix socket's address holds 107 bytes only."""
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    broker = Broker(folder, nodes.credentials)
    broker.start()
    outcome = use(folder, nodes, lambda remote: remote.run(nodes.target(), b"true"))
    broker.stop()
    assert outcome.verdict is Verdict.OK


def test_a_folder_that_is_missing_is_told_to_who_starts_the_broker(tmp_path: Path, nodes: Nodes) -> None:
    with pytest.raises(FileNotFoundError):
        Broker(tmp_path / "missing", nodes.credentials).start()


def test_commands_files_and_variables_go_through_unchanged(tmp_path: Path, nodes: Nodes, broker: Broker) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(bytes(range(256)) * 5000)
    sent = tmp_path / "sent"

    async def work(remote: Remote) -> list[Outcome]:
        value = {"KADEPLOY_X": "é'$(false)\n"}
        return [
            await remote.run(nodes.target(), b'printf %s "$KADEPLOY_X"; cat', value, stdin=b"in"),
            await remote.run(nodes.target(), b"sha256sum", stdin_file=archive),
            await remote.run(nodes.target(), b"echo no >&2; exit 4"),
            await remote.send(nodes.target(), archive, str(sent), 0o600),
            await remote.run(nodes.refusing(), b"true"),
            await remote.run(nodes.target(), b"kill -KILL $PPID; sleep 5", disconnect_ok=True),
        ]

    through = use(tmp_path, nodes, work)
    broker.stop()
    direct = use(tmp_path, nodes, work)
    keys = [(o.verdict, o.message, o.rc, o.stdout, o.stderr) for o in through]
    assert keys == [(o.verdict, o.message, o.rc, o.stdout, o.stderr) for o in direct]
    assert through[0].stdout == "é'$(false)\nin"
    assert sent.read_bytes() == archive.read_bytes()


def test_connections_outlive_their_clients(tmp_path: Path, nodes: Nodes, broker: Broker) -> None:
    def sshd_process(remote: Remote) -> Awaitable[Outcome]:
        return remote.run(nodes.target(), b"echo $PPID")

    first = use(tmp_path, nodes, sshd_process)
    assert use(tmp_path, nodes, sshd_process).stdout == first.stdout

    async def forget(remote: Remote) -> None:
        await remote.forget([nodes.target()])

    use(tmp_path, nodes, forget)
    assert use(tmp_path, nodes, sshd_process).stdout != first.stdout


def test_many_requests_of_one_client_are_under_way_at_once(tmp_path: Path, nodes: Nodes, broker: Broker) -> None:
    """The first request waits for a file that the last one makes."""
    flag = tmp_path / "flag"

    async def work(remote: Remote) -> list[Outcome]:
        scripts = [f"until test -e {flag}; do sleep 0.02; done", "true", f"touch {flag}"]
        return await asyncio.gather(*(remote.run(nodes.target(), script.encode()) for script in scripts))

    assert [outcome.verdict for outcome in use(tmp_path, nodes, work)] == [Verdict.OK] * 3


def test_a_started_command_is_heard_through_the_broker(tmp_path: Path, nodes: Nodes, broker: Broker) -> None:
    async def work(remote: Remote) -> tuple[list[str], int, str]:
        process = await remote.start(nodes.target(), b"echo one; cat; echo err >&2; exit 3", b"two\nthree")
        return [line async for line in process.lines()], await process.wait(), process.stderr()

    assert use(tmp_path, nodes, work) == (["one", "two", "three"], 3, "err")


def test_a_started_command_is_ended_by_its_client(tmp_path: Path, nodes: Nodes, broker: Broker) -> None:
    async def work(remote: Remote) -> int:
        process = await remote.start(nodes.target(), b"echo $$; sleep 1000; true")
        async for line in process.lines():
            pid = int(line)
            break
        process.kill()
        await _gone(pid)
        return pid

    assert use(tmp_path, nodes, work) > 0


def test_starting_on_a_node_that_refuses_raises_as_direct_connections_do(
    tmp_path: Path, nodes: Nodes, broker: Broker
) -> None:
    with pytest.raises(UnreachableError, match="connection refused"):
        use(tmp_path, nodes, lambda remote: remote.start(nodes.refusing(), b"true"))


@pytest.mark.parametrize("how", ["cancelled", "closed", "stopped"])
def test_what_nobody_waits_for_is_ended_on_the_node(tmp_path: Path, nodes: Nodes, broker: Broker, how: str) -> None:
    """The request is cancelled, the client leaves, or the broker is stopped."""
    pids = tmp_path / "pids"

    async def work(remote: Remote) -> None:
        running = asyncio.create_task(remote.run(nodes.target(), f"echo $$ >{pids}; sleep 1000; true".encode()))
        while not (pids.exists() and pids.read_text().strip()):
            await asyncio.sleep(0.02)
        if how == "cancelled":
            running.cancel()
        elif how == "closed":
            await remote.close()
        else:
            await asyncio.to_thread(broker.stop)
            assert "kept the ssh connections is gone" in (await running).message
        await _gone(int(pids.read_text()))

    use(tmp_path, nodes, work)


ENDLESS = {
    "one line": b"tr '\\0' x </dev/zero",
    "empty lines": b"yes ''",
    "short lines": b"yes ok",
    "complaints": b"exec tr '\\0' x </dev/zero >&2",
}


@pytest.mark.parametrize("said", ENDLESS.values(), ids=ENDLESS)
def test_a_started_command_that_never_stops_talking_is_ended_with_the_reason(
    tmp_path: Path, nodes: Nodes, broker: Broker, said: bytes
) -> None:
    async def work(remote: Remote) -> tuple[int, int, str]:
        process = await remote.start(nodes.target(), b"echo first; " + said)
        heard = sum([len(line) async for line in process.lines()])
        return heard, await process.wait(), process.stderr()

    heard, status, stderr = use(tmp_path, nodes, work)
    assert heard <= LISTEN_LIMIT
    assert (status, stderr[-len("the command was ended") :]) == (KILLED, "the command was ended")


@pytest.mark.parametrize("said", ENDLESS.values(), ids=ENDLESS)
def test_a_script_that_never_stops_talking_is_ko_with_the_reason_and_its_node_stays_of_use(
    tmp_path: Path, nodes: Nodes, broker: Broker, said: bytes
) -> None:
    async def work(remote: Remote) -> tuple[Outcome, Outcome]:
        return await remote.run(nodes.target(), said), await remote.run(nodes.target(), b"echo well")

    endless, after = use(tmp_path, nodes, work)
    assert (endless.verdict, endless.rc) == (Verdict.KO, KILLED)
    assert endless.message == "its output is too long: the command was ended"
    assert after.stdout == "well\n"


def test_nodes_that_never_stop_talking_do_not_hold_back_the_others(
    tmp_path: Path, nodes: Nodes, broker: Broker
) -> None:
    """Four talk without end, each in a way of its own; the commands of another one take no longer than before."""

    async def work(remote: Remote) -> tuple[float, float]:
        quiet = nodes.target("node-8")

        async def twenty() -> float:
            begun = time.monotonic()
            for _ in range(20):
                assert (await remote.run(quiet, b"sleep 0.1; echo well")).stdout == "well\n"
            return time.monotonic() - begun

        alone = await twenty()
        talking = [nodes.target(f"node-{number}") for number in range(1, 5)]
        processes = await asyncio.gather(*map(remote.start, talking, ENDLESS.values()))
        scripts = asyncio.gather(*map(remote.run, talking, ENDLESS.values()))
        beside = await twenty()
        await scripts
        await asyncio.gather(*(process.wait() for process in processes))
        return alone, beside

    alone, beside = use(tmp_path, nodes, work)
    assert beside < 1.5 * alone


def test_a_stranger_who_speaks_nonsense_harms_nobody(tmp_path: Path, nodes: Nodes, broker: Broker) -> None:
    async def work(remote: Remote) -> Outcome:
        folder = os.open(tmp_path, os.O_RDONLY)
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{folder}/{SOCKET}")
        os.close(folder)
        writer.write(b"\0\0\0\4GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        return await remote.run(nodes.target(), b"true")

    assert use(tmp_path, nodes, work).verdict is Verdict.OK


def test_stopping_twice_and_stopping_a_broker_leaves_no_thread(tmp_path: Path, nodes: Nodes) -> None:
    broker = Broker(tmp_path, nodes.credentials)
    broker.start()
    broker.stop()
    broker.stop()
    assert "broker" not in [thread.name for thread in threading.enumerate()]


async def _gone(pid: int) -> None:
    while Path(f"/proc/{pid}").exists():
        await asyncio.sleep(0.02)


def test_what_runs_on_a_node_that_is_taken_is_ended_and_whatever_follows_is_refused(
    tmp_path: Path, nodes: Nodes, broker: Broker
) -> None:
    """Scripts and started commands of that node alone, for clients old and new."""
    pids, reason = tmp_path / "pids", "aborted: it is bob's now"
    lost, kept = nodes.target("node-1"), nodes.target("node-2")

    async def work(remote: Remote) -> None:
        script = f"echo $$ >>{pids}; sleep 1000; true".encode()
        running = asyncio.create_task(remote.run(lost, script))
        beside = asyncio.create_task(remote.run(kept, b"sleep 2; echo well"))
        started = await remote.start(lost, script)
        while not (pids.exists() and len(pids.read_text().split()) == 2):
            await asyncio.sleep(0.02)
        await asyncio.wrap_future(broker.take({"node-1": reason}))
        for pid in pids.read_text().split():
            await _gone(int(pid))
        assert [(await running).message, await started.wait(), started.stderr()] == [reason, 255, reason]
        assert (await remote.run(lost, script)).message == reason
        assert (await remote.send(lost, pids, "/nowhere")).message == reason
        with pytest.raises(UnreachableError, match=reason):
            await remote.start(lost, script)
        assert remote.taken == {"node-1": reason}
        assert (await beside).stdout == "well\n"

    async def late(remote: Remote) -> None:
        assert (await remote.run(lost, b"true")).message == reason
        assert remote.taken == {"node-1": reason}

    use(tmp_path, nodes, work)
    use(tmp_path, nodes, late)
    assert len(pids.read_text().split()) == 2, "nothing else was begun there"


def test_a_node_counts_as_let_go_only_when_nobody_holds_it_any_more(
    tmp_path: Path, nodes: Nodes, broker: Broker
) -> None:
    async def work(remote: Remote) -> None:
        async with remote.hold(["node-1", "node-2"]) as taken:
            assert taken == {}
            letting = broker.take({"node-1": "gone"})
            other = broker.take({"node-3": "gone"})
            await asyncio.wrap_future(other)
            assert not letting.done()
        await asyncio.wait_for(asyncio.wrap_future(letting), 10)
        async with remote.hold(["node-1", "node-2"]) as taken:
            assert taken == {"node-1": "gone"}

    use(tmp_path, nodes, work)


def test_a_client_that_dies_holds_nothing_and_a_thread_of_ours_holds_until_it_is_through(
    tmp_path: Path, nodes: Nodes, broker: Broker
) -> None:
    async def left(remote: Remote) -> None:
        await remote.hold(["node-1"]).__aenter__()

    use(tmp_path, nodes, left)
    broker.take({"node-1": "gone"}).result(timeout=10)
    with broker.hold(["node-2"]):
        letting = broker.take({"node-2": "gone"})
        time.sleep(0.2)
        assert not letting.done()
    letting.result(timeout=10)
