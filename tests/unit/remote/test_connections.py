"""Kept connections to a real OpenSSH server: scripts, files, processes, and nodes that do not play along."""

from __future__ import annotations

import asyncio
import os
import signal
import string
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.commands import OUTPUT_LIMIT
from kadeploy.errors import UnreachableError
from kadeploy.remote import connections
from kadeploy.remote.connections import Connections
from kadeploy.remote.fanout import LOST, TIMED_OUT, Credentials
from kadeploy.remote.script import program
from kadeploy.workflow import Outcome, Verdict

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

T = TypeVar("T")


def use(credentials: Credentials, work: Callable[[Connections], Awaitable[T]]) -> T:
    """Do *work* with connections that are closed afterwards."""

    async def main() -> T:
        connections = Connections(credentials)
        try:
            return await asyncio.wait_for(work(connections), 60)
        finally:
            await connections.close()

    return asyncio.run(main())


def run(nodes: Nodes, script: str, **more: object) -> Outcome:
    return use(nodes.credentials, lambda c: c.run(nodes.target(), script.encode(), **more))  # type: ignore[arg-type]


# --- scripts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "fish", "busybox sh"])
def test_whatever_the_login_shell_is_a_script_is_run_by_bash_and_leaves_its_input_alone(shell: str) -> None:
    text = program(b'echo "$KADEPLOY_A ${BASH_VERSION:+bash}"; cat', {"KADEPLOY_A": "it's"})
    command = [*shell.split(), "-c", connections._START.format(len(text))]
    done = subprocess.run(command, input=text + b"its own", capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"it's bash\nits own")
    assert connections._STARTED.fullmatch(done.stderr)


def test_a_script_that_ends_well_is_ok_with_its_output(nodes: Nodes) -> None:
    outcome = run(nodes, "echo out; echo err >&2")
    assert (outcome.verdict, outcome.rc, outcome.stdout, outcome.stderr) == (Verdict.OK, 0, "out\n", "err\n")


def test_a_script_that_fails_is_ko_with_its_last_words(nodes: Nodes) -> None:
    outcome = run(nodes, "echo first >&2; echo 'mkfs: no such device' >&2; exit 5")
    assert (outcome.verdict, outcome.rc, outcome.message) == (Verdict.KO, 5, "mkfs: no such device")


def test_a_failure_inside_a_pipeline_counts(nodes: Nodes) -> None:
    assert run(nodes, "false | cat").verdict is Verdict.KO


def test_values_arrive_as_they_are_and_are_never_evaluated(nodes: Nodes, tmp_path: Path) -> None:
    value = f"'\"`touch {tmp_path}/a`$(touch {tmp_path}/b)\\ \n{{{{ x }}}} é ; exit 9"
    outcome = run(nodes, 'printf %s "$KADEPLOY_X"', env={"KADEPLOY_X": value})
    assert outcome.stdout == value
    assert list(tmp_path.iterdir()) == []


def test_neither_script_nor_values_show_in_the_nodes_process_list(nodes: Nodes) -> None:
    outcome = run(nodes, 'tr "\\0" " " </proc/$$/cmdline', env={"KADEPLOY_SECRET": "s3cret"})
    assert "kadeploy" in outcome.stdout
    assert "s3cret" not in outcome.stdout
    assert "cmdline" not in outcome.stdout


@pytest.mark.parametrize("name", ["", "1X", "A-B", "A B", "A=B", "A\n"])
def test_a_name_that_is_no_variable_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        program(b"true", {name: "x"})


def test_a_nul_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        program(b"true", {"X": "a\0b"})


@given(st.dictionaries(st.text(string.ascii_letters, min_size=1), st.text().filter(lambda text: "\0" not in text)))
def test_bash_reads_back_any_value(env: dict[str, str]) -> None:
    """Property: what `program` quotes is what bash exports (names are prefixed: HOME or PATH are no fair game)."""
    wanted = {f"READ_BACK_{name}": value for name, value in env.items()}
    wanted = {name: value.encode("utf-8", "replace").decode() for name, value in wanted.items()}
    shown = subprocess.run(["bash"], input=program(b"env -0", wanted), capture_output=True, check=True).stdout.decode()
    seen = dict(line.split("=", 1) for line in shown.split("\0") if line.startswith("READ_BACK_"))
    assert seen == wanted


# --- standard input ---------------------------------------------------------------------------------------------


def test_a_script_has_its_own_standard_input_byte_for_byte(nodes: Nodes, tmp_path: Path) -> None:
    """Every byte value, at a size that spans many ssh packets, right behind the script on the same stream."""
    archive = tmp_path / "archive"
    archive.write_bytes(bytes(range(256)) * 8192 + b"end without newline")
    copy = tmp_path / "copy"
    outcome = run(nodes, f"cat >{copy}; # comment at the end, no newline", stdin_file=archive)
    assert outcome.verdict is Verdict.OK
    assert copy.read_bytes() == archive.read_bytes()


def test_a_script_may_hold_any_byte_but_nul(nodes: Nodes) -> None:
    strange = bytes(range(1, 256)).replace(b"\n", b"")
    outcome = use(
        nodes.credentials, lambda c: c.run(nodes.target(), b"cat <<'END' | od -An -v -tx1\n" + strange + b"\nEND\n")
    )
    assert bytes.fromhex(outcome.stdout.replace("\n", "")) == strange + b"\n"


def test_without_input_a_script_reads_nothing(nodes: Nodes) -> None:
    outcome = run(nodes, "wc -c")
    assert outcome.stdout.strip() == "0"


def test_a_script_that_does_not_read_its_input_ends_all_the_same(nodes: Nodes, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * (8 << 20))
    assert run(nodes, "exit 0", stdin_file=big).verdict is Verdict.OK


def test_a_file_that_cannot_be_read_is_ko_and_named(nodes: Nodes, tmp_path: Path) -> None:
    outcome = run(nodes, "cat", stdin_file=tmp_path / "missing")
    assert outcome.verdict is Verdict.KO
    assert outcome.message == f"{tmp_path}/missing: No such file or directory"


# --- output limits ----------------------------------------------------------------------------------------------


def test_head_and_tail_of_a_long_output_are_kept(nodes: Nodes) -> None:
    outcome = run(nodes, "seq 1 200000")
    assert len(outcome.stdout) < OUTPUT_LIMIT + 100
    assert outcome.stdout.startswith("1\n2\n")
    assert outcome.stdout.endswith("199999\n200000\n")
    assert "bytes left out" in outcome.stdout


# --- nodes that do not play along -------------------------------------------------------------------------------


def test_a_node_that_refuses_is_ko_and_says_what_to_look_at(nodes: Nodes) -> None:
    outcome = use(nodes.credentials, lambda c: c.run(nodes.refusing("node-9"), b"true"))
    assert (outcome.verdict, outcome.rc) == (Verdict.KO, LOST)
    expected = (
        f"ssh to node-9 (127.9.1.1:{nodes.port}): connection refused: is the deployment system up? See its console."
    )
    assert outcome.message == expected


def test_a_node_that_says_nothing_is_ko_when_the_time_is_up(nodes: Nodes) -> None:
    hasty = replace(nodes.credentials, connect_timeout=0.3)
    outcome = use(hasty, lambda c: c.run(nodes.silent(), b"true"))
    assert outcome.verdict is Verdict.KO
    assert "no answer within 0.3 s" in outcome.message


def test_another_host_key_is_refused_unless_the_caller_takes_any(nodes: Nodes) -> None:
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPx3YyDVdRWL6Ldt8bvyJnFmlxQZDVTIx8tZYuz0uDe8"
    wary = replace(nodes.credentials, host_key=other)
    refused = use(wary, lambda c: c.run(nodes.target(), b"true"))
    assert refused.verdict is Verdict.KO
    assert "host key is not the known one" in refused.message
    assert use(wary, lambda c: c.run(nodes.target(pinned=False), b"true")).verdict is Verdict.OK


def test_a_key_that_the_node_does_not_know_is_told(nodes: Nodes, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "stranger"], check=True)
    outcome = use(
        replace(nodes.credentials, private_key=tmp_path / "stranger"), lambda c: c.run(nodes.target(), b"true")
    )
    assert outcome.verdict is Verdict.KO
    assert f"refuses the key {tmp_path}/stranger" in outcome.message


def test_a_private_key_that_is_missing_is_told_with_the_setting(nodes: Nodes, tmp_path: Path) -> None:
    lost = replace(nodes.credentials, private_key=tmp_path / "none")
    outcome = use(lost, lambda c: c.run(nodes.target(), b"true"))
    assert outcome.message == f"{tmp_path}/none: No such file or directory: check ssh.private_key in site.yml."


def test_a_time_out_ends_the_command_and_its_children_on_the_node(nodes: Nodes, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $$ $! >{pids}; (trap '' TERM; while :; do sleep 0.1; done)"
    outcome = run(nodes, f"echo before; {script}", timeout=1.5)
    assert (outcome.verdict, outcome.rc) == (Verdict.KO, TIMED_OUT)
    assert outcome.message == "Timed out after 1.5 s; it was ended."
    assert outcome.stdout == "before\n"
    _until(lambda: not any(_alive(int(pid)) for pid in pids.read_text().split()))


@pytest.mark.parametrize(("status", "verdict"), [(0, Verdict.OK), (7, Verdict.KO)])
def test_a_script_has_ended_though_something_it_started_holds_its_output(
    nodes: Nodes, status: int, verdict: Verdict
) -> None:
    began = time.monotonic()
    outcome = run(nodes, f"sleep 60 & echo $!; echo 'no such card' >&2; exit {status}", timeout=50)
    subprocess.run(["kill", outcome.stdout.strip()], check=True)  # it was left alone
    assert (outcome.verdict, outcome.rc) == (verdict, status)
    assert outcome.message == ("" if status == 0 else "no such card")
    assert "something that it started goes on" in outcome.stderr
    assert time.monotonic() - began < 20


def test_a_connection_stays_of_use_after_a_time_out(nodes: Nodes) -> None:
    async def work(connections: Connections) -> tuple[Outcome, Outcome]:
        first = await connections.run(nodes.target(), b"sleep 1000", timeout=0.3)
        return first, await connections.run(nodes.target(), b"true")

    before = _accepted(nodes)
    first, second = use(nodes.credentials, work)
    assert (first.verdict, second.verdict) == (Verdict.KO, Verdict.OK)
    assert _accepted(nodes) - before == 1


def test_a_node_that_vanishes_is_ko_unless_that_is_what_was_asked(nodes: Nodes) -> None:
    lost = run(nodes, "kill -KILL $PPID; sleep 5")
    assert (lost.verdict, lost.rc) == (Verdict.KO, LOST)
    assert "while it ran" in lost.message
    assert run(nodes, "kill -KILL $PPID; sleep 5", disconnect_ok=True).verdict is Verdict.OK


def test_a_kept_connection_that_is_dead_is_replaced(nodes: Nodes) -> None:
    async def work(connections: Connections) -> list[Verdict]:
        first = await connections.run(nodes.target(), b"echo $PPID")
        os.kill(int(first.stdout), signal.SIGKILL)
        second = await connections.run(nodes.target(), b"true")
        await connections.forget([nodes.target()])
        third = await connections.run(nodes.target(), b"true")
        return [first.verdict, second.verdict, third.verdict]

    before = _accepted(nodes)
    assert use(nodes.credentials, work) == [Verdict.OK] * 3
    assert _accepted(nodes) - before == 3


def test_users_of_one_node_at_a_time_share_its_connection(nodes: Nodes) -> None:
    async def work(connections: Connections) -> list[Outcome]:
        return await asyncio.gather(*(connections.run(nodes.target(), b"true") for _ in range(10)))

    before = _accepted(nodes)
    assert {outcome.verdict for outcome in use(nodes.credentials, work)} == {Verdict.OK}
    assert _accepted(nodes) - before == 1


# --- files ------------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_with_its_mode(nodes: Nodes, tmp_path: Path) -> None:
    source = tmp_path / "-odd name'$x"
    source.write_bytes(os.urandom(3 << 20))
    destination = tmp_path / "new folder" / "it's"
    outcome = use(nodes.credentials, lambda c: c.send(nodes.target(), source, str(destination), 0o640))
    assert outcome.verdict is Verdict.OK, outcome
    assert destination.read_bytes() == source.read_bytes()
    assert destination.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in destination.parent.iterdir()] == ["it's"]


def test_a_file_sent_to_a_folder_keeps_its_name(nodes: Nodes, tmp_path: Path) -> None:
    source = tmp_path / "kernel"
    source.write_bytes(b"k")
    (tmp_path / "folder").mkdir()
    use(nodes.credentials, lambda c: c.send(nodes.target(), source, f"{tmp_path}/folder/"))
    assert (tmp_path / "folder" / "kernel").read_bytes() == b"k"


def test_a_file_that_cannot_be_written_is_ko_and_leaves_nothing(nodes: Nodes, tmp_path: Path) -> None:
    source = tmp_path / "kernel"
    source.write_bytes(b"k")
    outcome = use(nodes.credentials, lambda c: c.send(nodes.target(), source, "/proc/nothing/kernel"))
    assert outcome.verdict is Verdict.KO
    assert "/proc/nothing" in outcome.message


# --- processes --------------------------------------------------------------------------------------------------


def test_a_started_command_is_heard_while_it_runs(nodes: Nodes) -> None:
    async def work(connections: Connections) -> tuple[list[str], int, str]:
        code = b"import sys\nprint('one', flush=True)\nsys.stderr.write('oops')\nprint('two', end='')\nsys.exit(3)"
        process = await connections.start(nodes.target(), b"exec python3 -", code)
        return [line async for line in process.lines()], await process.wait(), process.stderr()

    assert use(nodes.credentials, work) == (["one", "two"], 3, "oops")


def test_a_started_command_that_is_killed_is_gone_from_the_node(nodes: Nodes) -> None:
    async def work(connections: Connections) -> int:
        process = await connections.start(nodes.target(), b"echo $$; sleep 1000; true")
        async for line in process.lines():
            pid = int(line)
            process.kill()
        await process.wait()
        while _alive(pid):
            await asyncio.sleep(0.02)
        return pid

    assert use(nodes.credentials, work) > 0


def test_a_command_that_was_told_to_end_ends_although_the_connections_are_closed_at_once(nodes: Nodes) -> None:
    async def work(connections: Connections) -> int:
        process = await connections.start(nodes.target(), b"echo $$; sleep 1000; true")
        pid = int(await anext(process.lines()))
        process.kill()
        return pid

    pid = use(nodes.credentials, work)
    _until(lambda: not _alive(pid))


def test_a_command_that_is_cancelled_before_it_is_heard_of_ends_all_the_same(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the node says of its beginning is on its way meanwhile."""
    hear = connections._Session.data_received

    def hear_late(session: connections._Session, data: bytes, datatype: int | None) -> None:
        asyncio.get_running_loop().call_later(1, hear, session, data, datatype)

    async def work(connections: Connections) -> int:
        said = tmp_path / "pid"
        running = asyncio.create_task(connections.run(nodes.target(), f"echo $$ >{said}; sleep 1000; true".encode()))
        while not (said.exists() and said.read_text().endswith("\n")):
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])
        assert (await connections.run(nodes.target(), b"true")).verdict is Verdict.OK  # the connection has stayed
        return int(said.read_text())

    monkeypatch.setattr(connections._Session, "data_received", hear_late)
    before = _accepted(nodes)
    pid = use(nodes.credentials, work)
    _until(lambda: not _alive(pid))
    assert _accepted(nodes) - before == 1


def test_starting_on_a_node_that_refuses_raises(nodes: Nodes) -> None:
    with pytest.raises(UnreachableError, match="connection refused"):
        use(nodes.credentials, lambda c: c.start(nodes.refusing(), b"true"))


def _accepted(nodes: Nodes) -> int:
    return nodes.log.read_text().count("Accepted publickey")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(condition: Callable[[], object]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(wait(), 60))
