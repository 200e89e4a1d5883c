"""Several brokers of one workflow, on a real OpenSSH server: they look like one, and one that dies costs nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from kadeploy.errors import UnreachableError
from kadeploy.remote.broker import BrokerClient, connect, socket_name
from kadeploy.remote.brokers import Brokers
from kadeploy.remote.fanout import Remote
from kadeploy.remote.routed import Routed, share_of
from kadeploy.workflow import Outcome, Verdict

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

COUNT = 3
NAMES = [f"node-{number}" for number in range(1, 9)]
T = TypeVar("T")


@pytest.fixture
def brokers(tmp_path: Path, nodes: Nodes) -> Iterator[Brokers]:
    brokers = Brokers(tmp_path, nodes.credentials, count=COUNT)
    brokers.start()
    yield brokers
    brokers.stop()


def use(folder: Path, nodes: Nodes, work: Callable[[Remote], Awaitable[T]]) -> T:
    async def main() -> T:
        remote = await connect(folder, nodes.credentials)
        try:
            return await asyncio.wait_for(work(remote), 240)
        finally:
            await remote.close()

    return asyncio.run(main())


def children() -> dict[int, int]:
    """Processes that keep connections: by the number of the broker that each is, its own."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words, parent = path.read_bytes().split(b"\0"), int((path.parent / "stat").read_text().split()[3])
        except OSError:
            continue
        if b"kadeploy.remote.brokers" in words and parent == os.getpid():
            found[len(found) + 1] = int(path.parent.name)
    return found


def test_several_look_like_one(tmp_path: Path, nodes: Nodes, brokers: Brokers) -> None:
    """Each node is done by its own; a taken one is refused by whichever has it, and one that is held is waited for."""
    assert {share_of(name, COUNT) for name in NAMES} == set(range(COUNT)), "all of them have something to do"
    reason = "aborted: it is bob's now"

    async def work(remote: Remote) -> None:
        assert isinstance(remote, Routed)
        ran = await asyncio.gather(*(remote.run(nodes.target(name), f"echo {name}".encode()) for name in NAMES))
        assert [outcome.stdout for outcome in ran] == [f"{name}\n" for name in NAMES]
        busy = [asyncio.create_task(remote.run(nodes.target(name), b"sleep 1000")) for name in NAMES[:4]]
        async with remote.hold(NAMES[4:6]) as refused:
            assert dict(refused) == {}
            held = brokers.take({NAMES[4]: reason})
            await asyncio.wrap_future(brokers.take(dict.fromkeys(NAMES[:4], reason)))
            assert [(await task).message for task in busy] == [reason] * 4
            assert not held.done()
        await asyncio.wait_for(asyncio.wrap_future(held), 60)
        async with remote.hold(NAMES) as refused:
            assert dict(refused) == dict.fromkeys(NAMES[:5], reason)
        assert dict(remote.taken) == dict.fromkeys(NAMES[:5], reason)
        with pytest.raises(UnreachableError, match=reason):
            await remote.start(nodes.target(NAMES[0]), b"true")
        process = await remote.start(nodes.target(NAMES[6]), b"echo a; echo b")
        assert [line async for line in process.lines()] == ["a", "b"]
        assert await process.wait() == 0
        await remote.forget([nodes.target(name) for name in NAMES])
        assert (await remote.send(nodes.target(NAMES[7]), tmp_path / "brokers", str(tmp_path / "sent"))).rc == 0

    use(tmp_path, nodes, work)
    assert (tmp_path / "sent").read_text() == f"{COUNT}\n"


def test_what_a_dead_one_had_is_done_by_the_first(tmp_path: Path, nodes: Nodes, brokers: Brokers) -> None:
    """What was under way on its nodes is lost, and told; the next step finds them, and nodes can still be taken."""
    lost, begun = next(name for name in NAMES if share_of(name, COUNT)), tmp_path / "begun"

    async def work(remote: Remote) -> Outcome:
        running = asyncio.create_task(remote.run(nodes.target(lost), f"touch {begun}; sleep 1000".encode()))
        while not begun.exists():
            await asyncio.sleep(0.02)
        for pid in children().values():
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return await running

    outcome = use(tmp_path, nodes, work)
    assert outcome.verdict is Verdict.KO
    assert "connections is gone" in outcome.message

    async def again(remote: Remote) -> list[Outcome]:
        return [await remote.run(nodes.target(name), b"true") for name in NAMES]

    assert {outcome.verdict for outcome in use(tmp_path, nodes, again)} == {Verdict.OK}
    brokers.take({lost: "gone"}).result(timeout=60)


def test_they_end_with_their_workflow_however_it_ends(tmp_path: Path, nodes: Nodes) -> None:
    """One that was killed is followed by one process less, which new clients do not take for several any more."""
    script = (
        "import sys; from pathlib import Path; from kadeploy.remote.brokers import Brokers;"
        "from kadeploy.remote.fanout import Credentials;"
        f"Brokers(Path({str(tmp_path)!r}), Credentials(Path({str(nodes.credentials.private_key)!r})), count=2).start();"
        "print('up', flush=True); sys.stdin.read()"
    )
    controller = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert controller.stdout is not None
    assert controller.stdout.readline() == b"up\n"
    listed = Path(f"/proc/{controller.pid}/task").glob("*/children")
    child = int(" ".join(path.read_text() for path in listed).split()[0])
    controller.kill()
    controller.communicate()
    for _ in range(1000):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists()

    one = Brokers(tmp_path, nodes.credentials)
    one.start()

    async def kind(remote: Remote) -> type:
        return type(remote)

    assert use(tmp_path, nodes, kind) is BrokerClient
    one.stop()


def test_stopping_leaves_nothing(tmp_path: Path, nodes: Nodes, brokers: Brokers) -> None:
    assert len(children()) == COUNT - 1
    assert (tmp_path / socket_name(2)).exists()
    brokers.stop()
    assert not children()
    assert not list(tmp_path.glob("*.sock"))


def test_nothing_of_the_folder_is_run_in_which_somebody_calls(
    tmp_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may stand in a folder of a user's."""
    package = tmp_path / "theirs" / "kadeploy" / "remote"
    package.mkdir(parents=True)
    for path in (package.parent / "__init__.py", package / "__init__.py", package / "brokers.py"):
        path.write_text(f"open({str(tmp_path / 'was-run')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path / "theirs")
    brokers = Brokers(tmp_path, nodes.credentials, count=2)
    brokers.start()
    brokers.stop()
    assert not (tmp_path / "was-run").exists()


def test_one_that_does_not_start_stops_the_others(tmp_path: Path, nodes: Nodes) -> None:
    with pytest.raises(OSError, match="did not start"):
        Brokers(tmp_path / "missing", nodes.credentials, count=2).start()
    assert not children()
