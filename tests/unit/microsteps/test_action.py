"""Batch actions under the real ansible-playbook, on a real sshd: verdicts per node, whatever happens to a node."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from kadeploy.microsteps.action import folded
from kadeploy.microsteps.memory import latest
from kadeploy.process import read_stat, this, told
from kadeploy.remote.broker import Broker
from kadeploy.runner.request import CustomOperation
from kadeploy.workflow import Outcome, Verdict
from tests.unit.playbook_lab import Lab

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]


@pytest.fixture
def lab(tmp_path: Path, nodes: Nodes) -> Iterator[Lab]:
    return Lab(tmp_path, nodes)


@pytest.mark.versions
def test_each_node_gets_its_own_verdict_and_the_next_step_leaves_failed_ones_alone(lab: Lab, nodes: Nodes) -> None:
    """One node refuses ssh, one says nothing, one fails, three are well; by hand the command ends with a failure."""
    good = [nodes.target(f"node-{number}") for number in (1, 2, 3)]
    lab.members(*good, nodes.target("node-4"), nodes.refusing("node-5"), nodes.silent("node-6"))
    touched = lab.folder / "touched"
    lab.role("format", 'case $SSH_CONNECTION in *127.9.0.4*) echo "mkfs.ext4: no space" >&2; exit 3;; esac')
    lab.role("mount", f'echo "${{SSH_CONNECTION#* * }}" >>{touched}')
    status, output = lab.run()
    assert status != 0
    assert "node-[1-3]: ok" in output
    assert "node-4: mkfs.ext4: no space" in output
    assert '"msg": "SetDeploymentEnvTest-format: mkfs.ext4: no space"' in output
    first = lab.answer("format")
    assert {node for node, row in first.items() if row["verdict"] == "ok"} == {"node-1", "node-2", "node-3"}
    assert (first["node-4"]["rc"], first["node-4"]["stderr"]) == (3, "mkfs.ext4: no space\n")
    assert "connection refused" in first["node-5"]["msg"]
    assert "no answer within 2 s" in first["node-6"]["msg"]
    assert lab.verdicts("mount") == {"node-1": "ok", "node-2": "ok", "node-3": "ok"}
    assert sorted(line.split()[0] for line in touched.read_text().splitlines()) == [
        "127.9.0.1",
        "127.9.0.2",
        "127.9.0.3",
    ]


def test_when_all_is_well_the_command_by_hand_ends_well(lab: Lab) -> None:
    lab.role("sync", "true")
    status, output = lab.run()
    assert status == 0, output
    assert "node-[1-3]: ok" in output


def test_scripts_see_the_requests_variables(lab: Lab) -> None:
    lab.options(debug=True, authorized_keys='it\'s $(touch x) "quoted"\nand more')
    lab.role("show", 'printf "%s|%s" "$KADEPLOY_CLUSTER" "$KADEPLOY_AUTHORIZED_KEYS"', env={"KADEPLOY_MINE": 1})
    status, output = lab.run()
    assert status == 0, output
    assert lab.answer("show")["node-1"]["stdout"] == 'gdx|it\'s $(touch x) "quoted"\nand more'


def test_output_of_nodes_that_are_well_is_kept_in_debug_mode_only(lab: Lab) -> None:
    lab.role("talk", "echo out; echo err >&2")
    _, output = lab.run()
    assert (lab.answer("talk")["node-1"]["stdout"], lab.answer("talk")["node-1"]["stderr"]) == ("", "")
    assert "    out" not in output
    lab.options(debug=True)
    _, output = lab.run()
    assert (lab.answer("talk")["node-1"]["stdout"], lab.answer("talk")["node-1"]["stderr"]) == ("out\n", "err\n")
    assert "node-[1-3]: ok\n    out\n    err" in output


@pytest.mark.versions
def test_a_breakpoint_stops_before_its_step_and_is_no_failure(lab: Lab) -> None:
    lab.options(breakpoint="SetDeploymentEnv:second")
    for name in ("first", "second", "third"):
        lab.role(name, f"touch {lab.folder}/{name}-was-here")
    status, _ = lab.run()
    assert status == 0
    assert lab.verdicts("first") == dict.fromkeys(("node-1", "node-2", "node-3"), "ok")
    assert lab.verdicts("second") == dict.fromkeys(("node-1", "node-2", "node-3"), "brk")
    assert lab.verdicts("third") == {}
    assert not (lab.folder / "second-was-here").exists()


def test_a_breakpoint_of_an_archive_stops_after_its_script(lab: Lab) -> None:
    lab.role("install", f"touch {lab.folder}/unpacked", breakpoint=True)
    lab.role("later", "true")
    lab.run()
    assert (lab.folder / "unpacked").exists()
    assert set(lab.verdicts("install").values()) == {"brk"}
    assert lab.verdicts("later") == {}


@pytest.mark.versions
def test_custom_operations_run_before_after_and_instead_of_steps(lab: Lab) -> None:
    """In the order of the file, on the nodes that are still in, and once although a step has two tasks."""
    log = lab.folder / "log"
    sent = lab.folder / "sent.sh"
    sent.write_text(f'echo "run $1 $2" >>{log}\n')

    def operation(when: str, step: str, action: str, **more: str) -> CustomOperation:
        values = {"when": when, "micro_step": step, "action": action, "implementation": "SetDeploymentEnv", **more}
        return msgspec.convert(values, CustomOperation)

    lab.members(lab.nodes.target("node-1"))
    lab.options(
        custom_operations=(
            operation("pre", "one", "exec", command=f"echo pre >>{log}"),
            operation("pre", "one", "send", file=str(sent), destination=f"{lab.folder}/$KADEPLOY_CLUSTER/x.sh"),
            operation("pre", "one", "exec", command=f"bash {lab.folder}/gdx/x.sh sent file"),
            operation("post", "one", "exec", command=f"echo post >>{log}"),
            operation("substitute", "two", "run", file=str(sent), params="'a b' c"),
            operation("post", "three", "exec", command=f"echo last >>{log}"),
        )
    )
    lab.role("one", f"echo one.0 >>{log}", f"echo one.1 >>{log}")
    lab.role("two", f"echo two.0 >>{log}", f"echo two.1 >>{log}")
    lab.role("three", f"echo three >>{log}")
    status, output = lab.run()
    assert status == 0, output
    assert lab.answer("two")["node-1"]["verdict"] == "ok"
    expected = ["pre", "run sent file", "one.0", "one.1", "post", "run a b c", "three", "last"]
    assert log.read_text().splitlines() == expected


@pytest.mark.versions
def test_with_a_broker_the_steps_share_one_connection_per_node(lab: Lab, nodes: Nodes) -> None:
    """sshd logs the connections it accepts: three nodes, two steps; six without the broker, three with it."""
    lab.role("one", "true")
    lab.role("two", "true")
    for broker, connections in ((None, 6), (Broker(lab.folder, nodes.credentials), 3)):
        before = nodes.log.read_text().count("Accepted publickey")
        if broker:
            broker.start()
        try:
            status, output = lab.run()
        finally:
            if broker:
                broker.stop()
        assert status == 0, output
        assert nodes.log.read_text().count("Accepted publickey") - before == connections


def test_nodes_that_were_told_to_reboot_are_entered_anew(lab: Lab, nodes: Nodes) -> None:
    """The broker keeps no connection to a system that is about to go, even if the command ended before it went."""
    lab.role("reboot", "true", disconnect_ok=True)
    lab.role("next", "true")
    before = nodes.log.read_text().count("Accepted publickey")
    broker = Broker(lab.folder, nodes.credentials)
    broker.start()
    try:
        status, output = lab.run()
    finally:
        broker.stop()
    assert status == 0, output
    assert nodes.log.read_text().count("Accepted publickey") - before == 6


def test_a_micro_steps_time_out_spares_the_nodes_that_are_done_and_ends_the_others_commands(lab: Lab) -> None:
    mark = f"3333.{os.getpid()}"
    lab.cluster(micro_timeouts={"slow": 2})
    lab.role("slow", f"case $SSH_CONNECTION in *127.9.0.2*) sleep {mark};; esac")
    lab.run()
    assert lab.verdicts("slow") == {"node-1": "ok", "node-2": "ko", "node-3": "ok"}
    assert lab.answer("slow")["node-2"]["msg"] == "Timeout in the slow step"
    _until(lambda: not _running(f"sleep {mark}"))


def test_the_memory_says_who_is_out_and_why(lab: Lab) -> None:
    lab.role("fail", "case $SSH_CONNECTION in *127.9.0.3*) exit 9;; esac")
    lab.run()
    memory = latest(lab.run_dir)
    assert memory
    out = memory.out()
    assert list(out) == ["node-3"]
    known = out["node-3"]
    assert (known.verdict, known.step, known.implementation) == (Verdict.KO, "fail", "SetDeploymentEnvTest")


def test_a_second_run_by_hand_starts_afresh(lab: Lab) -> None:
    flag = lab.folder / "flag"
    lab.role("flaky", f"test -e {flag}")
    assert lab.run()[0] != 0
    flag.touch()
    assert lab.run()[0] == 0


def test_a_fault_in_an_engine_is_every_nodes_failure_with_its_message(lab: Lab) -> None:
    """A file that is not there is no traceback: each node is KO and says which file."""
    lab.role("read", "cat", stdin_file="/nonexistent/archive.tgz")
    status, output = lab.run()
    assert status != 0
    assert set(lab.verdicts("read").values()) == {"ko"}
    assert "/nonexistent/archive.tgz: No such file or directory" in lab.answer("read")["node-1"]["msg"]
    assert "Traceback" not in output


@pytest.mark.versions
def test_nothing_survives_a_controller_that_is_killed(lab: Lab) -> None:
    """ansible-playbook, its worker and the command on the node end when the process that asked for them dies."""
    mark = f"4444.{os.getpid()}"
    controller = subprocess.Popen(["sleep", "1000"])
    lab.role("hang", f"sleep {mark}")
    process = lab.start(KADEPLOY_CONTROLLER=_named(controller.pid), KADEPLOY_RUN="1")
    _until(lambda: _running(f"sleep {mark}"))
    controller.send_signal(signal.SIGKILL)
    controller.wait()
    process.communicate(timeout=60)
    assert process.returncode != 0
    _until(lambda: not _running(f"sleep {mark}") and not _running(str(lab.folder / "SetDeploymentEnvTest.yml")))


def test_what_begins_after_its_controller_has_died_ends_at_once(lab: Lab) -> None:
    """Also where another process has its number by now."""
    lab.role("hang", "sleep 1000")
    controller = _named(os.getpid(), started=1)
    status, output = lab.run(KADEPLOY_CONTROLLER=controller)
    assert status != 0, output


@pytest.mark.parametrize("other", ["host", "boot_id"])
def test_a_controller_of_another_machine_or_another_boot_stops_nothing(lab: Lab, other: str) -> None:
    """Its number means nothing here: the run folder was carried to another machine."""
    lab.role("one", f"touch {lab.folder}/touched")
    status, output = lab.run(KADEPLOY_CONTROLLER=_named(os.getpid(), started=1, **{other: "elsewhere"}))
    assert status == 0, output
    assert (lab.folder / "touched").exists()


def _named(pid: int, started: int | None = None, **changes: str) -> str:
    """What a controller with the number *pid* hands on."""
    start = read_stat(pid).started if started is None else started
    return told(this()._replace(pid=pid, process_start=str(start), **changes))


@pytest.mark.versions
def test_the_worker_and_the_nodes_commands_end_with_ansible_playbook(lab: Lab) -> None:
    mark = f"5555.{os.getpid()}"
    lab.role("hang", f"sleep {mark}")
    process = lab.start()
    _until(lambda: _running(f"sleep {mark}"))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    _until(lambda: not _running(f"sleep {mark}") and not _running(str(lab.folder / "SetDeploymentEnvTest.yml")))


@pytest.mark.versions
def test_check_mode_touches_no_node(lab: Lab) -> None:
    lab.role("one", f"touch {lab.folder}/touched")
    status, output = lab.run("--check")
    assert status == 0, output
    assert not (lab.folder / "touched").exists()


def _running(words: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line:
            found.append(int(path.parent.name))
    return found


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_by_hand_a_step_that_asks_shows_the_answer() -> None:
    on, done = Outcome(Verdict.OK, answer="on"), Outcome(Verdict.OK)
    off = Outcome(Verdict.KO, "off", 1, answer="off")
    assert folded({"n-1": on, "n-2": on, "n-3": off, "n-4": done}) == ["n-[1-2]: on", "n-3: off", "n-4: ok"]
