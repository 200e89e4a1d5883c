"""Steps by hand: nodes that are KO are failed hosts whatever was asked for, and nobody's node is touched unasked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.errors import NodeHeldError
from kadeploy.microsteps import by_hand, write_profiles
from kadeploy.microsteps.by_hand import Left
from kadeploy.runner.request import NextBoot, Request
from kadeploy.state import database, nodes
from kadeploy.state.nodes import NO_ENVIRONMENT, Recorded
from kadeploy.workflow import Outcome, Verdict
from tests.unit import build
from tests.unit.conftest import SITE
from tests.unit.playbook_lab import ROOT, Lab

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

ALL = ("node-1", "node-2", "node-3")
NODE_2_FAILS = 'case $SSH_CONNECTION in *127.9.0.2*) echo "no space" >&2; exit 3;; esac'
REASON = "SetDeploymentEnvTest-format: no space"
JSON_CALLBACK = '''
import json
from ansible.plugins.callback import CallbackBase

class CallbackModule(CallbackBase):
    """Says one JSON document at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "document"

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.results = []

    def keep(self, result, **named):
        self.results.append([result.host.name, result.task.name, json.loads(self._dump_results(result.result))])

    v2_runner_on_ok = v2_runner_on_failed = keep

    def v2_playbook_on_stats(self, stats):
        hosts = {host: stats.summarize(host) for host in stats.processed}
        self._display.display(json.dumps({"results": self.results, "stats": hosts}))
'''


@pytest.fixture
def lab(tmp_path: Path, nodes: Nodes) -> Iterator[Lab]:
    return Lab(tmp_path, nodes)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The site of a lab's request, which knows whose the nodes are."""
    values = {"folder": tmp_path, "database": f"sqlite://{tmp_path}/kadeploy.db", "almighty": "[root]"}
    (tmp_path / "site.yml").write_text(SITE.format(**values))
    loaded = load_site(tmp_path)
    database.connect(loaded)
    yield loaded
    database.disconnect()


def recap(output: str) -> dict[str, int]:
    """Failures by node, as Ansible's last recap has them."""
    return {node: int(failed) for node, failed in re.findall(r"^(node-\d) +:.* failed=(\d)", output, re.MULTILINE)}


def states(site: Site) -> dict[str, str]:
    return {row.hostname: row.state for row in nodes.states(site)}


# --- failed hosts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("injected", ["True", "False"])
def test_with_tags_a_node_that_is_ko_is_a_failed_host_with_its_reason(lab: Lab, injected: str) -> None:
    """The recap has all nodes; the others go on; facts need not be variables."""
    lab.role("format", NODE_2_FAILS)
    lab.role("mount", f'echo "${{SSH_CONNECTION#* * }}" >>{lab.folder}/mounted')
    lab.play = {"run_once": True, "roles": [{"role": name, "tags": name} for name in ("format", "mount", "finish")]}
    tags = ("--tags", "format,mount", "--skip-tags", "always")
    status, output = lab.run(*tags, ANSIBLE_INJECT_FACT_VARS=injected)
    assert (status, recap(output)) == (2, {"node-1": 0, "node-2": 1, "node-3": 0}), output
    assert f'"msg": "{REASON}"' in output
    assert len((lab.folder / "mounted").read_text().splitlines()) == 2


def test_a_callback_owns_standard_output(lab: Lab) -> None:
    """A document of JSON stays one; what people read is on standard error, and the callback is given it as well."""
    (lab.folder / "callbacks").mkdir()
    (lab.folder / "callbacks" / "document.py").write_text(JSON_CALLBACK)
    lab.role("format", NODE_2_FAILS)
    settings = {"ANSIBLE_CALLBACK_PLUGINS": str(lab.folder / "callbacks"), "ANSIBLE_STDOUT_CALLBACK": "document"}
    process = lab.start(apart=True, **settings)
    output, errors = process.communicate(timeout=280)
    document: dict[str, Any] = json.loads(output)
    assert "node-[1,3]: ok\nnode-2: no space" in errors
    assert {node: row["failures"] for node, row in document["stats"].items()} == {"node-1": 0, "node-2": 1, "node-3": 0}
    told = {(node, task): result.get("msg") for node, task, result in document["results"]}
    assert told["node-2", "Fail on the nodes that are KO"] == REASON
    assert told["node-1", "Do format 0"] == "node-[1,3]: ok\nnode-2: no space"


def test_results_may_be_yaml(lab: Lab) -> None:
    lab.role("format", NODE_2_FAILS)
    status, output = lab.run("-v", ANSIBLE_CALLBACK_RESULT_FORMAT="yaml")
    assert status == 2
    assert f"msg: '{REASON}'" in output


def test_of_many_nodes_only_those_that_are_ko_are_told_one_by_one(lab: Lab) -> None:
    lab.role("format", NODE_2_FAILS)
    lab.play = {"run_once": True, "roles": ["format", "finish"]}
    lab.behind = [ROOT / "playbooks" / "failed_nodes.yml"]
    status, output = lab.run("-e", "kadeploy_brief=true")
    assert (status, recap(output)["node-2"]) == (2, 1), output
    assert f'fatal: [node-2]: FAILED! => {{"changed": false, "msg": "{REASON}"}}' in output
    assert "[node-3]" not in output


def test_a_part_of_a_play_is_run_by_ansibles_own_options(lab: Lab) -> None:
    """--limit and --start-at-task; with --step each task is asked for, `finish` too."""
    for name in ("one", "two"):
        lab.role(name, f'echo "${{SSH_CONNECTION#* * }}" >>{lab.folder}/{name}')
    lab.play = {"run_once": True, "roles": ["one", "two", "finish"]}
    status, output = lab.run("--limit", "node-2,node-3", "--start-at-task", "two : Do two 0")
    assert (status, recap(output)) == (0, {"node-2": 0, "node-3": 0}), output
    assert len((lab.folder / "two").read_text().splitlines()) == 2
    assert not (lab.folder / "one").exists()

    (lab.folder / "two").unlink()
    process = lab.start("--step", "--skip-tags", "always")
    output, _ = process.communicate("y\n" + "n\n" * 3 + "c\n", timeout=280)
    assert process.returncode == 0, output
    assert len((lab.folder / "one").read_text().splitlines()) == 3
    assert not (lab.folder / "two").exists()


def test_check_mode_says_what_each_step_would_do_and_does_nothing(lab: Lab, site: Site) -> None:
    lab.role("format", f"touch {lab.folder}/touched", env={"KADEPLOY_PART": "/dev/sda 3"})
    status, output = lab.run("--check")
    assert status == 0, output
    assert "node-[1-3]: would run 0.sh (KADEPLOY_PART='/dev/sda 3')" in output
    assert "changed: [node-1]" in output
    assert not (lab.folder / "touched").exists()
    assert states(site) == {}


def test_differences_show_each_boot_profile_before_and_after(tmp_path: Path) -> None:
    request = build.request(tmp_path)
    [difference] = write_profiles.differences({"boot": "deployed"}, request, ["node-2"])
    assert difference["before"] == ""
    assert "chain.c32" in difference["after"]
    assert difference["after_header"] == f"{tmp_path}/tftp/pxelinux.cfg/7F090002"
    assert not (tmp_path / "tftp").exists()


# --- whose the nodes are ----------------------------------------------------------------------------------------------


def test_a_node_of_somebody_elses_workflow_is_refused_by_name_and_taken_by_force(lab: Lab, site: Site) -> None:
    """The others are treated, and what became of them is recorded."""
    nodes.claim(site, ["node-3"], "D-other", "bob")
    lab.role("format", f'echo "${{SSH_CONNECTION#* * }}" >>{lab.folder}/touched')
    status, output = lab.run()
    assert (status, recap(output)) == (2, {"node-1": 0, "node-2": 0, "node-3": 1}), output
    assert re.search("node-3: already used by bob since .*workflow D-other .*-e kadeploy_force=true", output)
    touched = (lab.folder / "touched").read_text()
    assert ("127.9.0.1" in touched, "127.9.0.3" in touched) == (True, False)
    assert states(site) == {"node-1": "deploy_env", "node-2": "deploy_env"}
    assert [claim.wid for claim in nodes.claims(site)] == ["D-other"]

    status, output = lab.run("-e", "kadeploy_force=true")
    assert status == 0, output
    assert "127.9.0.3" in (lab.folder / "touched").read_text()
    assert states(site)["node-3"] == "deploy_env"
    assert nodes.claims(site) == []


def ok(members: tuple[str, ...]) -> dict[str, Outcome]:
    return dict.fromkeys(members, Outcome(Verdict.OK))


def refuse(text: str) -> None:
    pytest.fail(text)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return build.request(tmp_path)


def test_a_node_that_fails_is_recorded_as_failed(request_: Request, site: Site) -> None:
    def work(members: tuple[str, ...]) -> dict[str, Outcome]:
        assert states(site) == dict.fromkeys(ALL, "deploying")
        return {**ok(members), "node-2": Outcome(Verdict.KO, "no space")}

    by_hand.do(request_, ALL, Left("deploy_env", NO_ENVIRONMENT), work, refuse, force=False)
    assert states(site) == {"node-1": "deploy_env", "node-2": "deploy_failed", "node-3": "deploy_env"}


def test_a_task_that_is_killed_leaves_its_nodes_aborted(request_: Request, site: Site) -> None:
    database.disconnect()
    child = os.fork()
    if child == 0:
        by_hand.do(request_, ALL, Left("deploy_env"), lambda _: os._exit(9), refuse, force=False)
    os.waitpid(child, 0)
    assert set(states(site).values()) == {"aborted"}
    by_hand.do(request_, ALL, Left("deploy_env"), ok, refuse, force=False)
    assert set(states(site).values()) == {"deploy_env"}


def test_without_a_site_on_this_machine_it_says_that_nobody_was_asked(request_: Request) -> None:
    said: list[str] = []
    assert by_hand.do(request_, ALL, None, ok, said.append, force=False) == ok(ALL)
    assert said == [
        f"Nobody was asked whose nodes these are: there is no site in {request_.config_dir} on this machine."
    ]


def test_who_cannot_ask_touches_nothing_but_by_force(request_: Request, site: Site) -> None:
    database.disconnect()
    path = Path(request_.config_dir) / "site.yml"
    path.write_text(path.read_text().replace(f"sqlite://{path.parent}/", "sqlite:///proc/none/"))
    with pytest.raises(NodeHeldError, match="Nothing was done: be root, or the account that keeps the state"):
        by_hand.do(request_, ALL, None, lambda _: pytest.fail("touched"), refuse, force=False)
    said: list[str] = []
    assert by_hand.do(request_, ALL, None, ok, said.append, force=True) == ok(ALL)
    assert said[0].startswith("Nothing is recorded of node-[1-3]: ")


QUIET = {"disconnect_ok": False}
ENVIRONMENT = Recorded("tiny", 1, "bob", "")
LEFT: dict[str, tuple[str, dict[str, Any], dict[str, Any], Left | None]] = {
    "a script": ("on_nodes", QUIET, {}, Left("deploy_env", NO_ENVIRONMENT)),
    "a script that leaves": ("on_nodes", {"disconnect_ok": True}, {}, Left("rebooted")),
    "a script behind a reboot": ("on_nodes", QUIET, {"operation": "reboot"}, None),
    "the image": ("send_image", {}, {}, Left("deploy_env", NO_ENVIRONMENT)),
    "a reset": ("power_nodes", {"operation": "reboot"}, {}, Left("rebooted")),
    "a switch": ("power_nodes", {"operation": "off"}, {"operation": "power"}, Left("powered")),
    "the deployment system's boot": ("wait_nodes", {"target": "deploy"}, {}, Left("deploy_env", NO_ENVIRONMENT)),
    "the deployed system's boot": ("wait_nodes", {"target": "user"}, {}, Left("deployed", ENVIRONMENT)),
    "a recorded system's boot": (
        "wait_nodes",
        {"target": "user"},
        {"operation": "reboot", "boot": NextBoot(kind="deployed")},
        Left("recorded_env", ENVIRONMENT),
    ),
    "a reboot's end": ("wait_nodes", {"target": "any"}, {"operation": "reboot"}, Left("rebooted")),
    "a boot profile": ("write_profiles", {"boot": "deploy"}, {}, None),
    "a VLAN": ("site_command", {}, {}, None),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_a_task_leaves_nodes_in(request_: Request, case: str) -> None:
    action, args, changes, expected = LEFT[case]
    mine = build.environment(user="bob", version=1)
    assert by_hand.left(action, args, msgspec.structs.replace(request_, environment=mine, **changes)) == expected


def test_who_only_looks_asks_nobody(request_: Request) -> None:
    assert by_hand.only_looks("power_nodes", {"operation": "status"}, request_)
    assert by_hand.only_looks("finish_step", {}, request_)
    assert not by_hand.only_looks("power_nodes", {"operation": "on"}, request_)
    assert not by_hand.only_looks("write_profiles", {}, request_)
