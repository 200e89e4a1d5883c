"""The collection's modules in somebody's play, run by an ordinary account: what they ask the site is what tools ask."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.accounts import Installation
from tests.vm.conftest import Cluster, started

NAME = "kadeploy-modules"
DEAD = "node-4"
"""Its BMC does not answer."""
HOSTS = "workers:\n  hosts:\n    node-[1:4]:\nfrontend:\n  hosts:\n    localhost:\n      ansible_connection: local\n"


@pytest.fixture(scope="module")
def cluster(installation: Installation) -> Iterator[Cluster]:
    """Four simulated nodes, and a service; alice may use them."""
    options = ("--kind", "sim", "--nodes", "4", "--boot-delay", "3", "--dead", DEAD)
    with started(installation, NAME, *options) as found:
        yield found


@pytest.fixture
def estate(cluster: Cluster) -> Iterator[Path]:
    """A folder of alice's with an inventory, and nothing that configures Ansible."""
    folder = Path(tempfile.mkdtemp(dir=cluster.user.home))
    (folder / "hosts.yml").write_text(HOSTS)
    os.chown(folder, cluster.user.uid, cluster.user.gid)
    yield folder
    subprocess.run(["rm", "-r", folder], check=True)


def command(estate: Path, tasks: list[dict[str, Any]], *words: str, hosts: str = "frontend") -> list[str]:
    """Words for ``ansible-playbook``, with *tasks* as a play on *hosts*."""
    play = {"hosts": hosts, "gather_facts": False, "tasks": tasks}
    (estate / "play.yml").write_text(json.dumps([play]))
    return ["-i", str(estate / "hosts.yml"), str(estate / "play.yml"), *words]


def answers(cluster: Cluster, estate: Path, tasks: list[dict[str, Any]], *words: str) -> list[dict[str, Any]]:
    """What *tasks* answer, each its own module's; the play has to reach its end."""
    ends: list[dict[str, Any]] = []
    for number, task in enumerate(tasks):
        ends += [
            task | {"register": f"answer_{number}", "failed_when": False, "check_mode": task.get("check_mode", False)},
            {"copy": {"content": f"{{{{ answer_{number} | to_json }}}}", "dest": str(estate / f"{number}.json")}},
        ]
    done = play(cluster, *command(estate, ends, *words))
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((estate / f"{number}.json").read_text()) for number in range(len(tasks))]


def play(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    return cluster.run("ansible-playbook", *words)


def deploy(cluster: Cluster, nodes: Any, **more: Any) -> dict[str, Any]:
    described = str(cluster.environment("sim"))
    return {"kadeploy.core.kadeploy_deploy": {"nodes": nodes, "environment_file": described, **more}}


def test_a_play_deploys_its_hosts_and_goes_on_with_those_that_are_well(cluster: Cluster, estate: Path) -> None:
    steps = "SetDeploymentEnv|SetDeploymentEnvUntrusted:0:60&BroadcastEnv|BroadcastEnvChain:0:300&"
    steps += "BootNewEnv|BootNewEnvClassical:0:60"
    one = deploy(cluster, "{{ ansible_play_hosts }}", force_steps=steps, fail_on_ko=False)
    tasks = [
        one | {"delegate_to": "localhost", "run_once": True, "register": "deployed"},
        {
            "assert": {
                "that": "deployed.nodes[inventory_hostname].status == 'ok'",
                "fail_msg": "{{ deployed.nodes[inventory_hostname].message | default() }}",
            }
        },
        {"debug": {"msg": "{{ inventory_hostname }} goes on"}},
    ]
    done = play(cluster, *command(estate, tasks, hosts="workers"))
    assert done.returncode == 2, done.stdout + done.stderr
    for node in ("node-1", "node-2", "node-3"):
        assert f"{node} goes on" in done.stdout
    assert f"{DEAD} goes on" not in done.stdout
    assert "SetDeploymentEnvUntrusted-reboot" in done.stdout
    assert f"{DEAD},aborted" in (shown := cluster.run("kanodes3", "-d").stdout) or f"{DEAD},deploy_failed" in shown
    assert shown.count(",deployed,alice") == 3 or shown.count(f",deployed,{cluster.user.name}") == 3


def test_a_node_that_is_ko_fails_the_task_with_its_reason_and_each_result_is_there(
    cluster: Cluster, estate: Path
) -> None:
    power = {"nodes": ["node-1", DEAD], "state": "on"}
    (told,) = answers(cluster, estate, [{"kadeploy.core.kadeploy_power": power}])
    assert told["msg"].startswith(f"1 of 1 nodes are KO: {DEAD}: ")
    assert (told["nodes"]["node-1"]["status"], told["nodes"][DEAD]["status"]) == ("ok", "ko")
    assert told["ok"] == ["node-1"]


def test_power_changes_what_is_not_so_already_and_check_mode_nothing(cluster: Cluster, estate: Path) -> None:
    off = {"kadeploy.core.kadeploy_power": {"nodes": "node-[1-2]", "state": "off"}}
    status = {"kadeploy.core.kadeploy_power": {"nodes": "node-[1-2]", "state": "status", "fail_on_ko": False}}
    rehearsed, before, first, again, after = answers(
        cluster, estate, [off | {"check_mode": True}, status, off, off, status]
    )
    assert rehearsed["changed"]
    assert "cluster lab: node-1, node-2" in rehearsed["plan"]
    assert before["ok"] == ["node-1", "node-2"]
    assert (first["changed"], again["changed"], after["changed"]) == (True, False, False)
    assert after["ok"] == []
    assert {each["answer"] for each in after["nodes"].values()} == {"off"}


def test_an_environment_is_recorded_once_and_another_under_its_name_is_refused(cluster: Cluster, estate: Path) -> None:
    image = estate / "image.tgz"
    subprocess.run(["tar", "-czf", image, "-C", estate, "hosts.yml"], check=True)
    described = {
        "name": "team",
        "version": 3,
        "os": "linux",
        "image": {"file": str(image), "kind": "tar", "compression": "gzip"},
        "boot": {"kernel": "/vmlinuz"},
        "filesystem": "ext4",
    }
    module = "kadeploy.core.kadeploy_environment"
    other = described | {"filesystem": "xfs"}
    first, again, shared, refused, seen, gone, nothing = answers(
        cluster,
        estate,
        [
            {module: {"description": described}},
            {module: {"description": described}},
            {module: {"description": described, "visibility": "shared"}},
            {module: {"description": other}},
            {"kadeploy.core.kadeploy_environment_info": {"name": "team"}},
            {module: {"state": "absent", "name": "team"}},
            {module: {"state": "absent", "name": "team"}},
        ],
    )
    changed = [each.get("changed", False) for each in (first, again, shared, gone, nothing)]
    assert changed == [True, False, True, True, False], (first, again, shared, gone)
    assert refused["msg"].startswith("team version 3 is recorded with another filesystem: ")
    (found,) = seen["environments"]
    assert (found["filesystem"], found["visibility"], found["user"]) == ("ext4", "shared", cluster.user.name)
    assert len(found["image"]["sha256"]) == 64
    assert "team" not in cluster.run("kaenv3", "-l").stdout


def test_what_the_site_refuses_a_tool_it_refuses_a_module_in_the_same_words(cluster: Cluster, estate: Path) -> None:
    right = {"user": cluster.user.name, "nodes": "node-1", "partitions": "*", "state": "absent"}
    rights, unknown, empty = answers(
        cluster,
        estate,
        [
            {"kadeploy.core.kadeploy_rights": right},
            {"kadeploy.core.kadeploy_reboot": {"nodes": "gdx-1"}},
            {"kadeploy.core.kadeploy_deploy": {"nodes": "node-1", "environment": "nowhere"}},
        ],
    )
    tool = cluster.run("karights3", "-d", "-u", cluster.user.name, "-m", "node-1", "-p", "*").stderr
    assert rights["msg"] in tool
    assert "Unknown node: gdx-1." in unknown["msg"]
    assert "nowhere" in empty["msg"]
    assert cluster.user.name in cluster.admin("karights3", "-s", "-u", cluster.user.name)


def test_rights_are_given_once_and_taken_back_once(cluster: Cluster, estate: Path) -> None:
    """By an administrator, who is root on this site."""
    module = "kadeploy.core.kadeploy_rights"
    right = {"user": "carol", "nodes": "node-[1-2]", "partitions": ["/dev/sda3"], "until": "2099-12-31"}
    steps = [right, right, right | {"until": "2098-12-31"}, right | {"state": "absent"}, right | {"state": "absent"}]
    registered = [
        {module: each, "register": f"answer_{number}", "failed_when": False} for number, each in enumerate(steps)
    ]
    told = [
        {"debug": {"msg": f"<{{{{ [answer_{n}.changed, answer_{n}.msg | default()] | to_json }}}}>"}} for n in range(5)
    ]
    shown = cluster.admin("ansible-playbook", *command(estate, registered + told, "-e", "ansible_remote_tmp=/tmp"))
    found = [
        json.loads(line.split("<")[1].split(">")[0].replace('\\"', '"')) for line in shown.splitlines() if "<[" in line
    ]
    assert [changed for changed, _ in found] == [True, False, False, True, False]
    assert "with another end" in found[2][1]


def test_an_interrupted_task_ends_its_operation_and_frees_the_nodes(cluster: Cluster, estate: Path) -> None:
    words = command(estate, [deploy(cluster, ["node-3"])])
    environment = cluster.variables
    with cluster.installation.start("ansible-playbook", *words, account=cluster.user, env=environment) as running:
        deadline = time.monotonic() + 120
        while "processing: 1" not in cluster.run("kanodes3", "-y").stdout and time.monotonic() < deadline:
            time.sleep(0.5)
        os.killpg(running.pid, signal.SIGINT)
        running.communicate(timeout=120)
    deadline = time.monotonic() + 60
    while "node-3,deploying" in (shown := cluster.run("kanodes3", "-d", "-m", "node-3").stdout):
        assert time.monotonic() < deadline, shown
        time.sleep(0.5)
    assert shown.startswith("node-3,aborted,")
