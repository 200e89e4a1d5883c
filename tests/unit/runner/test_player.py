"""The player, with ansible-runner and ansible-playbook for real on small playbooks of a site's own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from kadeploy import process
from kadeploy.config.cluster import NodeRange
from kadeploy.config.folder import collection
from kadeploy.config.site import Ssh
from kadeploy.events import Event, StepResult, StepStarted
from kadeploy.runner import player
from kadeploy.runner.player import Player, end_processes, folder_name
from kadeploy.workflow import Attempt, GoesOn, Outcome, Verdict
from tests.unit import build
from tests.unit.plays import OUTCOMES, batch, write_play, write_role

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

NAMES = ("n-1", "n-2", "n-3", "n-4")


@dataclass
class Ear:
    """A listener that remembers."""

    started: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    results: list[tuple[str, Mapping[str, Outcome]]] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        match event:
            case StepStarted():
                self.started.append((event.micro_step, event.nodes))
            case StepResult():
                self.results.append((event.micro_step, event.outcomes))


@dataclass
class Stage:
    """A configuration folder with playbooks of its own, and a player that works on four nodes."""

    config: Path
    player: Player
    ear: Ear
    workflow: Path

    def play(
        self, text: str, timeout: int = 0, name: str = "Small", nodes: tuple[str, ...] = NAMES
    ) -> dict[str, Outcome]:
        write_play(self.config, name, text)
        return self.player.perform(Attempt("Macro", name, 0, timeout, 1), nodes)

    @property
    def folder(self) -> Path:
        return self.workflow / "01-Small"

    def role(self, name: str, tasks: str) -> None:
        folder = self.config / "roles" / name / "tasks"
        folder.mkdir(parents=True)
        (folder / "main.yml").write_text(tasks, encoding="utf-8")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    config = tmp_path / "config"
    config.mkdir()
    write_play(config, "Small", "")
    workflow = tmp_path / "runs" / "D-1"
    cluster = build.cluster(name="n", nodes=(NodeRange(name="n-[1-4]"),))
    assignment = build.assignment(tmp_path, config_dir=str(config), workflow_dir=str(workflow), cluster=cluster)
    ear = Ear()
    nodes = {node.name: node for node in assignment.nodes}
    return Stage(config, Player(assignment, nodes, ear, threading.Event()), ear, workflow)


@pytest.mark.versions
def test_ansible_looks_fifty_times_a_second_whether_a_task_has_ended_as_in_a_checkout(stage: Stage) -> None:
    """In a run, and in a run by hand."""
    stage.play(f"  tasks:\n{batch('sync', n_1='ok')}")
    for settings in (stage.folder / "ansible.cfg", collection() / "ansible.cfg"):
        program = Path(sys.executable).with_name("ansible-config")
        env = {**os.environ, "ANSIBLE_CONFIG": str(settings)}
        told = subprocess.run([program, "dump"], env=env, capture_output=True, text=True, check=True).stdout
        assert f"INTERNAL_POLL_INTERVAL({settings}) = 0.02" in told


def test_late_nodes_go_on_at_their_micro_step_and_what_came_before_is_not_done_again(stage: Stage) -> None:
    for name in ("reboot", "wait"):
        stage.role(
            name, f"- run_once: true\n  outcomes: {{step: {name}, nodes: {{n-2: {{verdict: late, seconds: 3}}}}}}\n"
        )
    text = "  roles: [{role: reboot, tags: reboot}, {role: wait, tags: wait}]\n"
    first = stage.play(text)
    assert first["n-2"] == Outcome(Verdict.LATE, seconds=3.0, micro_step="reboot")
    assert first["n-1"].verdict is Verdict.OK
    stage.ear.started.clear()

    goes_on = GoesOn("wait", time.monotonic() - 100, 3.0)
    late = stage.player.perform(Attempt("Macro", "Small", 1, 200, 2, goes_on), ("n-2",))
    assert late["n-2"].micro_step == "wait"
    assert [step for step, _ in stage.ear.started] == ["wait"]
    assert "--skip-tags always,reboot" in (stage.workflow / "02-Small-retry1-late" / "command").read_text()


# --- how a node is tried again --------------------------------------------------------------------------------------


def on_nodes(stage: Stage, nodes: Nodes, folder: Path) -> Stage:
    """The same, where node 3 has no system that answers, and the others answer like this machine."""
    there = (
        *(nodes.target(f"node-{number}").address for number in (1, 2)),
        "127.9.1.1",
        nodes.target("node-4").address,
    )
    site = build.site(
        folder,
        ssh=Ssh(
            private_key=str(nodes.credentials.private_key), host_key=nodes.known_key, port=nodes.port, connect_timeout=5
        ),
    )
    members = {
        name: msgspec.structs.replace(stage.player.nodes[name], address=address)
        for name, address in zip(NAMES, there, strict=True)
    }
    assignment = msgspec.structs.replace(stage.player.assignment, site=site)
    return replace(stage, player=replace(stage.player, assignment=assignment, nodes=members))


def test_a_node_that_is_down_begins_again_with_the_macro_step_before(
    stage: Stage, nodes: Nodes, tmp_path: Path
) -> None:
    """A node that still runs its deployment system does not: its disk is as it was."""
    outcomes = on_nodes(stage, nodes, tmp_path).play("  tasks:\n" + batch("send", n_1="ok", n_2="ko", n_3="ko"))
    assert [outcomes[name].again for name in NAMES] == ["", "", "before", ""]


def test_a_node_that_was_booted_meanwhile_has_lost_its_deployment_system(
    stage: Stage, nodes: Nodes, tmp_path: Path
) -> None:
    stage = on_nodes(stage, nodes, tmp_path)
    write_play(stage.config, "Small", "  tasks:\n" + batch("send", n_2="ko"))
    long_ago = GoesOn("", time.monotonic() - 10**9, 0)
    outcomes = stage.player.perform(Attempt("Macro", "Small", 0, 0, 1, long_ago), NAMES)
    assert outcomes["n-2"].again == "before"


def test_a_playbook_that_boots_its_nodes_brings_them_back_itself(stage: Stage, nodes: Nodes, tmp_path: Path) -> None:
    write_role(stage.config, "start", "- ansible.builtin.meta: noop\n", "reboots: true\n")
    text = "  roles: [start]\n  tasks:\n" + batch("send", n_3="ko")
    assert on_nodes(stage, nodes, tmp_path).play(text)["n-3"].again == ""


def test_only_nodes_that_did_not_come_back_are_rebooted_again(stage: Stage) -> None:
    write_role(stage.config, "come_back", "- ansible.builtin.meta: noop\n", "booted: true\n")
    assignment = msgspec.structs.replace(stage.player.assignment, operation="reboot")
    stage = replace(stage, player=replace(stage.player, assignment=assignment))
    outcomes = stage.play("  tasks:\n" + batch("order", n_1="ko") + batch("come_back", n_2="ko"))
    assert [outcomes[name].again for name in NAMES[:2]] == ["never", ""]


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_outcomes_of_batch_tasks_become_verdicts_with_step_and_reason(stage: Stage) -> None:
    outcomes = stage.play(
        """\
  tasks:
    - run_once: true
      outcomes:
        step: format_deploy_part
        nodes:
          n-1: {verdict: ok, rc: 0, stdout: fine, seconds: 1.5}
          n-2: {verdict: ko, rc: 32, stderr: "reading\\nmkfs: no such device"}
          n-3: {verdict: brk, msg: stopped}
          n-4: {verdict: ko, msg: the BMC does not answer}
"""
    )
    assert {node: outcome.verdict for node, outcome in outcomes.items()} == {
        "n-1": Verdict.OK,
        "n-2": Verdict.KO,
        "n-3": Verdict.BRK,
        "n-4": Verdict.KO,
    }
    assert outcomes["n-2"].message == "Small-format_deploy_part: mkfs: no such device"
    assert outcomes["n-2"].rc == 32
    assert outcomes["n-4"].message == "Small-format_deploy_part: the BMC does not answer"
    assert stage.ear.results[0][1]["n-1"] == Outcome(Verdict.OK, stdout="fine", seconds=1.5)


def test_the_first_bad_verdict_of_a_node_counts(stage: Stage) -> None:
    outcomes = stage.play(
        "  tasks:\n" + batch("one", n_1="ko", n_2="brk") + batch("two", n_1="brk", n_2="ko") + batch("three", n_1="ok")
    )
    assert outcomes["n-1"].message.startswith("Small-one: ")
    assert outcomes["n-2"].verdict is Verdict.BRK


@pytest.mark.versions
def test_a_node_that_fails_in_one_turn_of_a_loop_is_ko(stage: Stage) -> None:
    """Pre- and post-installs are such loops: one turn per archive."""
    outcomes = stage.play(
        """\
  tasks:
    - run_once: true
      outcomes: {step: manage_user_post_install, nodes: "{{ item }}"}
      loop:
        - {n-1: {verdict: ok}, n-2: {verdict: ko, msg: first}}
        - {n-1: {verdict: ok}, n-3: {verdict: brk}}
"""
    )
    assert outcomes["n-2"].message == "Small-manage_user_post_install: first"
    assert [outcomes[node].verdict for node in NAMES] == [Verdict.OK, Verdict.KO, Verdict.BRK, Verdict.OK]


def test_nodes_that_nobody_mentions_are_ok_when_the_play_ends_normally(stage: Stage) -> None:
    outcomes = stage.play("  tasks:\n    - ansible.builtin.meta: noop\n")
    assert set(outcomes) == set(NAMES)
    assert all(outcome.verdict is Verdict.OK for outcome in outcomes.values())


@pytest.mark.versions
def test_a_failed_ordinary_task_is_that_nodes_ko(stage: Stage) -> None:
    outcomes = stage.play(
        """\
  tasks:
    - ansible.builtin.command: sh -c 'test {{ inventory_hostname }} != n-3 || { echo broken >&2; exit 4; }'
    - ansible.builtin.fail: {msg: not for n-4}
      when: inventory_hostname == "n-4"
      ignore_errors: true
    - when: inventory_hostname == "n-1"
      block:
        - ansible.builtin.fail: {msg: rescued}
      rescue:
        - ansible.builtin.meta: noop
"""
    )
    assert {node for node, outcome in outcomes.items() if outcome.verdict is Verdict.KO} == {"n-3"}
    assert outcomes["n-3"].message == "Small-ansible.builtin.command: broken"
    assert outcomes["n-3"].rc == 4


@pytest.mark.versions
def test_an_unreachable_host_is_ko(stage: Stage) -> None:
    outcomes = stage.play(
        """\
  tasks:
    - ansible.builtin.ping:
      vars: {ansible_connection: ssh, ansible_port: 1, ansible_host: 127.0.0.1}
      when: inventory_hostname == "n-2"
"""
    )
    assert [node for node, outcome in outcomes.items() if outcome.verdict is Verdict.KO] == ["n-2"]
    assert "refused" in outcomes["n-2"].message


@pytest.mark.versions
def test_a_failed_run_once_task_is_everybodys_ko(stage: Stage) -> None:
    outcomes = stage.play(
        """\
  tasks:
    - ansible.builtin.fail: {msg: no licence}
      run_once: true
    - ansible.builtin.meta: noop
    - ansible.builtin.command: "true"
"""
    )
    assert {outcome.message for outcome in outcomes.values()} == {"Small-ansible.builtin.fail: no licence"}
    assert all(outcome.verdict is Verdict.KO for outcome in outcomes.values())


@pytest.mark.versions
def test_a_batch_action_that_breaks_in_the_last_task_is_everybodys_ko(stage: Stage) -> None:
    """Nothing follows it, so that Ansible itself counts one failed host and three good ones."""
    (stage.config / "action_plugins" / "wait_nodes.py").write_text(
        OUTCOMES.replace("return {", "raise RuntimeError('broken engine')\n        return {"), encoding="utf-8"
    )
    outcomes = stage.play("  tasks:\n    - wait_nodes: {nodes: {}}\n      run_once: true\n")
    assert all(outcome.verdict is Verdict.KO and "broken engine" in outcome.message for outcome in outcomes.values())


def test_a_play_for_other_hosts_deploys_nobody(stage: Stage) -> None:
    (stage.config / "playbooks" / "Other.yml").write_text("- hosts: somebody_else\n  gather_facts: false\n")
    outcomes = stage.player.perform(Attempt("Macro", "Other", 0, 0, 1), NAMES)
    assert all(outcome.verdict is Verdict.KO for outcome in outcomes.values())


@pytest.mark.versions
def test_a_missing_role_is_everybodys_ko_with_ansibles_words(stage: Stage) -> None:
    outcomes = stage.play("  roles: [nonesuch]\n")
    assert all("role 'nonesuch' was not found" in outcome.message for outcome in outcomes.values())
    assert str(stage.folder / "artifacts") in outcomes["n-1"].message


def test_an_implementation_without_playbook_is_everybodys_ko(stage: Stage) -> None:
    outcomes = stage.player.perform(Attempt("Macro", "Nonesuch", 0, 0, 1), NAMES)
    assert {outcome.message for outcome in outcomes.values()} == {"Nonesuch: there is no playbook Nonesuch.yml."}


def test_only_the_nodes_of_the_attempt_are_in_its_inventory(stage: Stage) -> None:
    outcomes = stage.play("  tasks:\n" + batch("one", n_1="ok", n_2="ko", n_3="ko"), nodes=("n-1", "n-3"))
    assert {node: outcome.verdict for node, outcome in outcomes.items()} == {"n-1": Verdict.OK, "n-3": Verdict.KO}


# --- micro-steps ----------------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_roles_are_announced_once_with_the_nodes_that_still_go_on(stage: Stage) -> None:
    stage.role(
        "first", "- ansible.builtin.meta: noop\n- outcomes: {nodes: {n-2: {verdict: ko}}}\n  run_once: true\n" * 2
    )
    stage.role("second", "- outcomes: {nodes: {n-1: {verdict: ok}}}\n  run_once: true\n")
    outcomes = stage.play("  roles: [first, second]\n")
    assert stage.ear.started == [("first", NAMES), ("second", ("n-1", "n-3", "n-4"))]
    assert outcomes["n-2"].message.startswith("Small-first")


def test_a_micro_step_that_the_request_does_not_want_is_not_announced(stage: Stage) -> None:
    stage.role("set_vlan", "- outcomes: {nodes: {n-1: {verdict: ok}}}\n  run_once: true\n")
    stage.play("  roles:\n    - {role: set_vlan, when: kadeploy_wants.set_vlan}\n")
    assert stage.ear.started == []


@pytest.mark.versions
def test_a_sites_own_role_hides_ours_of_the_same_name(stage: Stage) -> None:
    stage.role("sync", "- ansible.builtin.fail: {msg: our own sync}\n")
    outcomes = stage.play("  roles: [sync]\n")
    assert outcomes["n-1"].message == "Small-sync: our own sync"


@pytest.mark.versions
def test_our_roles_and_actions_are_found_from_a_playbook_of_the_site(stage: Stage) -> None:
    outcomes = stage.play("  roles: [dummy, finish]\n")
    assert all(outcome.verdict is Verdict.OK for outcome in outcomes.values())
    assert [step for step, _ in stage.ear.started] == ["dummy"]


# --- ends -----------------------------------------------------------------------------------------------------------

SLEEP = """\
  tasks:
    - run_once: true
      outcomes: {step: first, nodes: {n-1: {verdict: ko, msg: early}}}
    - ansible.builtin.command: sleep 1000
"""


def processes(folder: Path) -> list[int]:
    return process.marked(player.MARK, str(folder).__eq__)


def asleep(folder: Path) -> bool:
    """Whether a module of the attempt is at its sleep."""
    for pid in processes(folder):
        try:
            if b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
        except OSError:  # has just ended
            continue
    return False


def test_the_limit_of_late_nodes_is_counted_from_the_beginning_of_their_try(stage: Stage) -> None:
    write_play(stage.config, "Small", "  tasks:\n    - ansible.builtin.command: sleep 1000\n")
    late = Attempt("Macro", "Small", 0, 50, 1, GoesOn("wait", time.monotonic() - 100, 3.0))
    assert stage.player.perform(late, NAMES)["n-2"].message == "Small: time-out of 50 s"


@pytest.mark.versions
def test_a_time_out_ends_every_process(stage: Stage) -> None:
    outcomes = stage.play("  tasks:\n    - ansible.builtin.command: sleep 1000\n", timeout=2)
    assert {outcome.message for outcome in outcomes.values()} == {"Small: time-out of 2 s"}
    assert processes(stage.folder) == []


def test_stop_ends_every_process_and_keeps_what_was_known(stage: Stage) -> None:
    def stop_when_asleep() -> None:
        while not asleep(stage.folder):
            time.sleep(0.02)
        stage.player.stop.set()

    thread = threading.Thread(target=stop_when_asleep)
    thread.start()
    outcomes = stage.play(SLEEP)
    thread.join()
    assert outcomes["n-1"].message == "Small-first: early"
    assert outcomes["n-2"].message == "Small: aborted"
    assert processes(stage.folder) == []


def test_no_thread_or_child_stays_behind(stage: Stage) -> None:
    before = threading.active_count(), children()
    stage.play("  tasks:\n    - ansible.builtin.meta: noop\n")
    assert (threading.active_count(), children()) == before


def children() -> set[int]:
    """Processes of ours; the test session has some for other tests."""
    lists = [task.read_text() for task in Path("/proc/self/task").glob("*/children")]
    return {int(pid) for pid in " ".join(lists).split()}


def test_processes_of_other_attempts_are_spared(tmp_path: Path) -> None:
    sleep = ["sleep", "1000"]
    ours = subprocess.Popen(sleep, env={player.MARK: str(tmp_path / "01-A")})
    other = subprocess.Popen(sleep, env={player.MARK: str(tmp_path / "01-AB")})
    try:
        end_processes(tmp_path / "01-A")
        assert ours.wait() == -9
        assert other.poll() is None
        end_processes(tmp_path)
        assert other.wait() == -9
    finally:
        other.kill()


# --- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.versions
@pytest.mark.parametrize("many", [len(NAMES), len(NAMES) - 1])
def test_an_attempts_folder_can_be_repeated_by_hand(stage: Stage, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same environment, from any folder; ansible-playbook tells a KO by its status, also of many nodes."""
    monkeypatch.setattr("kadeploy.runner.player.MANY", many)
    stage.role("picky", "- ansible.builtin.fail: {msg: no}\n  when: inventory_hostname == 'n-3'\n")
    stage.play("  roles: [picky, finish]\n")
    command = stage.folder / "command"
    assert command.stat().st_mode & 0o777 == 0o700
    done = subprocess.run([command], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "n-3" in done.stdout


def test_command_enters_the_sites_network_namespace(stage: Stage) -> None:
    assignment = stage.player.assignment
    site = msgspec.structs.replace(assignment.site, network_namespace="lab")
    player = Player(msgspec.structs.replace(assignment, site=site), stage.player.nodes, stage.ear, threading.Event())
    player.perform(Attempt("Macro", "Small", 0, 0, 1), NAMES)
    assert "exec ip netns exec lab ansible-playbook" in (stage.folder / "command").read_text(encoding="utf-8")


def test_nothing_in_the_folder_tells_a_secret_of_the_environment(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """BMC passwords may be in environment variables: playbooks get them, files do not."""
    monkeypatch.setenv("BMC_PASSWORD", "s3cret-of-the-bmc")
    stage.role(
        "asks", '- ansible.builtin.command: test -n \'{{ lookup("env", "BMC_PASSWORD") | ternary("x", "") }}\'\n'
    )
    outcomes = stage.play("  roles: [asks]\n")
    assert outcomes["n-1"].verdict is Verdict.OK
    for path in stage.workflow.rglob("*"):
        if path.is_file():
            assert b"s3cret-of-the-bmc" not in path.read_bytes(), path


def test_the_folder_is_the_owners_alone_and_no_file_per_event_is_kept(stage: Stage) -> None:
    stage.play("  tasks:\n    - ansible.builtin.command: 'true'\n")
    assert stat.S_IMODE(stage.folder.stat().st_mode) == 0o700
    assert not list((stage.folder / "artifacts").rglob("*.json"))


def test_folders_are_named_after_number_implementation_and_retry() -> None:
    assert folder_name(Attempt("BootNewEnv", "BootNewEnvKexec", 0, 0, 3)) == "03-BootNewEnvKexec"
    assert folder_name(Attempt("BootNewEnv", "BootNewEnvKexec", 2, 0, 12)) == "12-BootNewEnvKexec-retry2"
