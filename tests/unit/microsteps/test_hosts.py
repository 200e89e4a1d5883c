"""An action works on exactly the hosts for which Ansible runs its task, or refuses with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kadeploy.runner.request import CustomOperation
from tests.unit.playbook_lab import Lab

if TYPE_CHECKING:
    from tests.unit.sshd import Nodes

pytest_plugins = ["tests.unit.sshd"]

ALL = ["node-1", "node-2", "node-3", "node-4"]
SCRIPT = "{{ playbook_dir }}/roles/wipe/files/0.sh"
WIPE = {"name": "Wipe", "import_role": {"name": "wipe"}}


class Disks:
    """Four nodes, and the role ``wipe``, which notes the node that it has wiped."""

    def __init__(self, lab: Lab, nodes: Nodes) -> None:
        self.lab = lab
        self.log = lab.folder / "wiped"
        self.log.touch()
        lab.members(*map(nodes.target, ALL))
        lab.role("wipe", f'set -- $SSH_CONNECTION\necho "node-${{3##*.}}" >>{self.log}')
        tasks = lab.folder / "roles" / "wipe" / "tasks" / "main.yml"
        tasks.write_text("- {name: Wipe the disk, on_nodes: {script: 0.sh}}\n")

    def play(self, *arguments: str, **play: Any) -> tuple[int, str]:
        """Run a play that says this; exit status and output."""
        self.lab.play = {"roles": ["wipe"], **play}
        return self.lab.run(*arguments)

    @property
    def wiped(self) -> list[str]:
        """Nodes in order of their names, each as often as it was wiped."""
        return sorted(self.log.read_text().split())


@pytest.fixture
def disks(tmp_path: Path, nodes: Nodes) -> Iterator[Disks]:
    return Disks(Lab(tmp_path, nodes), nodes)


def roles(*roles: object) -> dict[str, Any]:
    return {"roles": list(roles)}


def tasks(*tasks: object) -> dict[str, Any]:
    return {"roles": [], "tasks": list(tasks)}


ONE_BY_ONE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a play that says nothing": (roles("wipe"), ALL),
    "a host's condition": (tasks({**WIPE, "when": "inventory_hostname == 'node-2'"}), ["node-2"]),
    "a host's condition at the role": (roles({"role": "wipe", "when": "inventory_hostname != 'node-1'"}), ALL[1:]),
    "a role included for a host": (
        tasks({"include_role": {"name": "wipe"}, "when": "inventory_hostname == 'node-3'"}),
        ["node-3"],
    ),
    "batches": ({"serial": 2, **roles("wipe")}, ALL),
    "each host at its own speed": ({"strategy": "free", **roles("wipe")}, ALL),
    "hosts pinned to workers": ({"strategy": "host_pinned", **roles("wipe")}, ALL),
    "a rescue": (
        tasks(
            {
                "block": [{"ansible.builtin.fail": {"msg": "no"}, "when": "inventory_hostname == 'node-4'"}],
                "rescue": [WIPE],
            }
        ),
        ["node-4"],
    ),
    "a handler": (
        {
            **tasks(
                {
                    "ansible.builtin.debug": {"msg": "new"},
                    "changed_when": "inventory_hostname == 'node-2'",
                    "notify": "Wipe",
                }
            ),
            "handlers": [{"name": "Wipe", "on_nodes": {"script": SCRIPT}}],
        },
        ["node-2"],
    ),
    "a host that has left the play": (
        tasks({"ansible.builtin.meta": "end_host", "when": "inventory_hostname == 'node-1'"}, WIPE),
        ALL[1:],
    ),
}


@pytest.mark.parametrize("case", ONE_BY_ONE)
def test_without_run_once_each_host_is_treated_once_if_ansible_comes_to_it(disks: Disks, case: str) -> None:
    play, expected = ONE_BY_ONE[case]
    status, output = disks.play(**play)
    assert (disks.wiped, status) == (expected, 0), output


AT_ONCE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the play": ({"run_once": True, **roles("wipe")}, ALL),
    "the role": (roles({"role": "wipe", "run_once": True}), ALL),
    "batches": ({"serial": 3, "run_once": True, **roles("wipe")}, ALL),
    "a condition of the request": (roles({"role": "wipe", "run_once": True, "when": "kadeploy_wants.send_key"}), []),
    "a host that has left the play": (
        tasks(
            {"ansible.builtin.meta": "end_host", "when": "inventory_hostname == 'node-1'"}, {**WIPE, "run_once": True}
        ),
        ALL[1:],
    ),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_with_run_once_all_hosts_of_a_batch_are_treated_at_once(disks: Disks, case: str) -> None:
    play, expected = AT_ONCE[case]
    status, output = disks.play(**play)
    assert (disks.wiped, status) == (expected, 0), output


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a host's condition": (
        roles({"role": "wipe", "run_once": True, "when": "inventory_hostname == 'node-1'"}),
        "when: inventory_hostname == 'node-1'",
    ),
    "each host at its own speed": ({"strategy": "free", "run_once": True, **roles("wipe")}, "strategy is free"),
    "an include": (
        tasks(
            {"include_role": {"name": "wipe", "apply": {"run_once": True}}, "when": "inventory_hostname == 'node-1'"}
        ),
        "were included",
    ),
    "a handler": (
        {
            **tasks({"ansible.builtin.debug": {"msg": "new"}, "changed_when": True, "notify": "Wipe"}),
            "handlers": [{"name": "Wipe", "on_nodes": {"script": SCRIPT}, "run_once": True}],
        },
        "it is a handler",
    ),
    "a rescue": (
        tasks(
            {
                "block": [{"ansible.builtin.fail": {"msg": "no"}, "when": "inventory_hostname == 'node-4'"}],
                "rescue": [{**WIPE, "run_once": True}],
            }
        ),
        "rescue section",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_run_once_is_refused_where_hosts_may_part(disks: Disks, case: str) -> None:
    play, reason = REFUSED[case]
    status, output = disks.play(**play)
    assert status != 0
    assert reason in output.replace("\n", " ")
    assert "leave run_once out" in output
    assert disks.wiped == []


def test_a_limit_is_kept(disks: Disks) -> None:
    disks.play("--limit", "node-2,node-3", run_once=True)
    assert disks.wiped == ["node-2", "node-3"]


def test_hosts_that_the_request_does_not_name_are_refused(disks: Disks) -> None:
    asked = {"kadeploy_request_file": str(disks.lab.run_dir / "inventory.kadeploy.yml")}
    status, output = disks.play(hosts="localhost", connection="local", vars=asked)
    assert status != 0
    assert "Not in the request" in output
    assert "localhost. Nothing was done." in output
    assert disks.wiped == []


def test_operations_of_the_user_run_once_on_each_host_that_comes_alone(disks: Disks) -> None:
    """Batches, and hosts one by one: what comes before a micro-step is not left out for the later ones."""
    before = disks.lab.folder / "before"
    operation = CustomOperation(
        implementation="SetDeploymentEnvTest",
        micro_step="wipe",
        when="pre",
        action="exec",
        command=f"set -- $SSH_CONNECTION; echo node-${{3##*.}} >>{before}",
    )
    disks.lab.options(custom_operations=(operation,))
    status, output = disks.play(serial=2)
    assert status == 0, output
    assert sorted(before.read_text().split()) == ALL == disks.wiped


def test_a_node_that_is_ko_is_left_out_of_what_follows_host_by_host(disks: Disks) -> None:
    disks.lab.role("later", "case $SSH_CONNECTION in *127.9.0.2*) echo torn >&2; exit 1;; esac")
    status, output = disks.play(roles=["later", "wipe", "finish"], serial=2)
    assert status != 0
    assert "SetDeploymentEnvTest-later: torn" in output
    assert disks.wiped == ["node-1", "node-3", "node-4"]
