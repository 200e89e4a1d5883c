"""Post-installs by Ansible: roles and playbooks of the cluster file, run behind the image and behind the first boot."""

from __future__ import annotations

import os
import pwd
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml

from kadeploy.caller import Account, as_user
from kadeploy.config.folder import collection
from kadeploy.config.installs import PostInstall
from kadeploy.errors import ConfigError
from kadeploy.runner import hooks, post_installs
from kadeploy.runner.request import Assignment
from kadeploy.workflow import Verdict
from tests.unit import build
from tests.unit.plays import write_role
from tests.unit.runner.test_hooks import MARK, marks
from tests.unit.runner.test_player import stage

if TYPE_CHECKING:
    from tests.unit.runner.test_player import Stage

__all__ = ["stage"]

NAME = "BootNewEnvOwn"
PLAY = """\
  run_once: true
  roles:
    - {role: wait_reboot, tags: wait_reboot}
    - {role: last, tags: last}
    - {role: finish, tags: finish}
"""


def given(stage: Stage, *installs: PostInstall) -> Stage:
    """The same, where the cluster has *installs*."""
    assignment = stage.player.assignment
    cluster = msgspec.structs.replace(assignment.cluster, post_installs=installs)
    return replace(stage, player=replace(stage.player, assignment=msgspec.structs.replace(assignment, cluster=cluster)))


def write_playbook(config: Path, text: str) -> None:
    path = config / "postinstall" / "users.yml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


@pytest.mark.versions
def test_a_role_and_a_playbook_set_up_each_node_that_has_booted(stage: Stage, tmp_path: Path) -> None:
    """As they are for any Ansible: with facts, handlers, what is tagged ``always``, and files beside the playbook."""
    down = "- {ansible.builtin.fail: {msg: it is down}, when: inventory_hostname == 'n-3', run_once: false}\n"
    write_role(stage.config, "wait_reboot", down, "post_installs: booted")
    write_role(stage.config, "last", "- outcomes: {nodes: {n-1: {verdict: ok}}}\n")
    fail = "- name: Count the disks\n  ansible.builtin.fail: {msg: none}\n  when: inventory_hostname == 'n-2'\n"
    text = "{{ motd }} {{ ansible_facts.system }} {{ found }}"
    greet = f"""
- ansible.builtin.set_fact: {{found: me}}
  tags: always
- name: Greet
  ansible.builtin.copy: {{content: "{text}", dest: '{tmp_path}/{{{{ inventory_hostname }}}}.motd', mode: '0600'}}
  notify: tell
"""
    write_role(stage.config, "motd", fail + greet)
    handlers = stage.config / "roles" / "motd" / "handlers"
    handlers.mkdir()
    told = MARK.format(folder=tmp_path, name="told").replace("- ", "- name: tell\n  ", 1)
    (handlers / "main.yml").write_text(told)
    write_playbook(
        stage.config,
        f"""
- hosts: all
  gather_facts: false
  vars: {{where: nowhere}}
  tasks:
    - ansible.builtin.template: {{src: users.j2, dest: '{tmp_path}/users', mode: '0600'}}
      run_once: true
- hosts: kadeploy_nodes
  gather_facts: false
  tasks:
    {MARK.format(folder=tmp_path, name="second")}""",
    )
    (stage.config / "postinstall" / "users.j2").write_text("{{ where }} {{ ansible_play_hosts | join(' ') }}")
    installs = [
        PostInstall(role="motd", where="booted", vars={"motd": "{{ kadeploy_env.KADEPLOY_CLUSTER }}"}),
        PostInstall(playbook="postinstall/users.yml", where="booted", vars={"where": "here"}),
        PostInstall(role="motd"),  # there is nothing that could be mounted
    ]
    mine = given(stage, *installs)
    outcomes = mine.play(PLAY, name=NAME)
    names = {f"post-install {each.name}" for each in installs}
    assert [step for step, _ in mine.ear.started if step in names | {"wait_reboot", "last"}] == [
        "wait_reboot",
        "post-install motd",
        "post-install postinstall/users.yml",
        "last",
    ]
    others = ["n-1", "n-4"]
    assert marks(tmp_path) == {"motd": others, "told": others, "second": others}
    assert (tmp_path / "n-4.motd").read_text() == "n Linux me"
    assert (tmp_path / "users").read_text() == "here n-1 n-4"
    assert {node for node, outcome in outcomes.items() if outcome.verdict is Verdict.OK} == {*others}
    assert outcomes["n-3"].message == f"{NAME}-wait_reboot: it is down"
    assert outcomes["n-2"].message == f"{NAME}-post-install motd: Count the disks: none"

    folder = mine.workflow / f"01-{NAME}" / post_installs.FOLDER / "1"
    assert {path.name for path in folder.iterdir()} == {"users.yml", "users.j2"}


def played(assignment: Assignment, config: Path, implementation: str = "BroadcastEnvChain") -> list[dict[str, Any]]:
    """The plays of an attempt, in which no archive of the administrator is unpacked."""
    playbook = collection() / "playbooks" / f"{implementation}.yml"
    run_dir = config / "run"
    run_dir.mkdir(exist_ok=True)
    installs = post_installs.of(playbook, assignment)
    written = hooks.write(run_dir, playbook, installs, frozenset({"manage_admin_post_install"}))
    plays: list[dict[str, Any]] = yaml.safe_load(written.read_text())
    return plays


def assigned(config: Path, *installs: PostInstall, **changes: Any) -> Assignment:
    return build.assignment(config, cluster=build.cluster(post_installs=installs), **changes)


def test_in_the_new_system_they_run_where_archives_would_behind_them_and_whether_there_are_some(
    tmp_path: Path,
) -> None:
    write_role(tmp_path, "motd", "- ansible.builtin.debug:\n")
    write_playbook(
        tmp_path, "- {hosts: all, tags: mine, vars: {x: !vault text}, pre_tasks: [ansible.builtin.debug: ]}\n"
    )
    installs = (
        PostInstall(file="/x.tgz"),
        PostInstall(role="motd", vars={"text": "hello"}),
        PostInstall(playbook="postinstall/users.yml"),
        PostInstall(role="motd", where="booted"),
    )
    begin, role, playbook, end = played(assigned(tmp_path, *installs, environment=build.environment()), tmp_path)
    assert begin["roles"][-1]["role"] == "manage_admin_post_install"
    assert end["roles"][0]["role"] == "manage_user_post_install"
    tags = ["manage_admin_post_install.post", "manage_admin_post_install"]
    assert role.items() >= {"connection": "new_root", "tags": tags, "hosts": "kadeploy_nodes"}.items()
    assert role["roles"] == [{"role": "motd", "vars": {"text": "hello"}}]
    (own,) = hooks.read(tmp_path / "run" / playbook["import_playbook"])
    assert own["vars"] == {"x": hooks.Tagged("!vault", "text")}
    assert own["tags"] == ["mine", *tags]
    assert [*own["pre_tasks"][-1]] == ["ansible.builtin.debug"]

    whole = assigned(tmp_path, *installs, environment=build.environment(filesystem="ntfs"))
    assert len(played(whole, tmp_path)) == 1, "its system cannot be mounted"
    assert not post_installs.of(
        collection() / "playbooks" / "BroadcastEnvChain.yml", assigned(tmp_path, *installs, operation="reboot")
    )


def test_a_booted_node_is_looked_for_in_its_vlan(tmp_path: Path) -> None:
    write_role(tmp_path, "motd", "- ansible.builtin.debug:\n")
    known = assigned(tmp_path, PostInstall(role="motd", where="booted"))
    nodes = tuple(msgspec.structs.replace(node, vlan_address="10.9.0.1") for node in known.nodes)
    moved = msgspec.structs.replace(known, nodes=nodes)
    _, play, _ = played(moved, tmp_path, "BootNewEnvClassical")
    assert play["vars"]["ansible_host"].startswith("{{ {'node-1': '10.9.0.1', 'node-2': ")
    _, play, _ = played(known, tmp_path, "BootNewEnvClassical")
    assert play["vars"] == {}


@pytest.mark.parametrize(
    ("install", "playbook", "said"),
    [
        (
            PostInstall(role="mtod"),
            "",
            "no role mtod; expected one in {config}/roles, or of a collection. Did you",
        ),
        (PostInstall(role="site.basics.motd"), "", "there is no role site.basics.motd"),
        (
            PostInstall(playbook="postinstall/user.yml"),
            "- hosts: all",
            "no file {config}/postinstall/user.yml; expected",
        ),
        (PostInstall(playbook="postinstall/users.yml"), "- {", "users.yml: it cannot be read: "),
        (PostInstall(playbook="postinstall/users.yml"), "", "users.yml has no plays."),
        (PostInstall(playbook="postinstall/users.yml"), "a: b", "expected a playbook, which is a list of plays."),
        (PostInstall(playbook="postinstall/users.yml"), "- hosts: localhost", "hosts is localhost; expected plays for"),
        (PostInstall(playbook="postinstall/users.yml"), "- import_playbook: x.yml", "an entry has no hosts; expected"),
    ],
)
def test_what_cannot_be_run_is_told_by_file_line_and_key(
    tmp_path: Path, install: PostInstall, playbook: str, said: str
) -> None:
    write_role(tmp_path, "motd", "- ansible.builtin.debug:\n")
    write_playbook(tmp_path, playbook)
    known = assigned(tmp_path, PostInstall(role="motd"), install)
    path = tmp_path / known.cluster.file
    path.parent.mkdir()
    key = "role" if install.role else "playbook"
    path.write_text(f"disk:\npost_installs:\n- role: motd\n- where: booted\n  {key}: {install.name}\n")
    with pytest.raises(ConfigError) as refused:
        post_installs.of(collection() / "playbooks" / "BroadcastEnvDummy.yml", known)
    assert str(refused.value).startswith(f"{path}:5: post_installs[1].{key}: ")
    assert said.format(config=tmp_path) in str(refused.value)
    assert list(post_installs.mistakes(known.cluster, tmp_path)) == [str(refused.value)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("closed", ["roles/motd/tasks/main.yml", "roles/motd/tasks", "postinstall/secret.j2"])
def test_what_this_account_cannot_read_is_a_mistake(open_folder: Path, closed: str) -> None:
    write_role(open_folder, "motd", "- ansible.builtin.debug:\n")
    write_playbook(open_folder, "- hosts: all\n")
    (open_folder / "postinstall" / "secret.j2").touch()
    (open_folder / closed).chmod(0o700)
    known = assigned(open_folder, PostInstall(role="motd"), PostInstall(playbook="postinstall/users.yml"))
    entry = pwd.getpwnam("nobody")
    with as_user(Account("nobody", entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))):
        (said,) = post_installs.mistakes(known.cluster, open_folder)
    assert f"{open_folder / closed} cannot be read: let the account read it" in said


def test_an_implementation_without_a_place_for_one_is_known(tmp_path: Path) -> None:
    steps = {**build.DUMMIES, "BootNewEnv": build.cluster().macro_steps["BootNewEnv"]}
    installs = (PostInstall(role="motd"), PostInstall(role="last", where="booted"))
    cluster = build.cluster(post_installs=installs, macro_steps=steps)
    assert list(post_installs.homeless(cluster, tmp_path)) == [("BroadcastEnvDummy", "motd")]
