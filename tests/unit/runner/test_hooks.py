"""Hooks: tasks of the site around micro-steps, put into the playbook of an attempt and run by Ansible."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

from kadeploy.caller import Account, as_user
from kadeploy.config import folder
from kadeploy.errors import ConfigError
from kadeploy.runner import hooks
from kadeploy.workflow import Attempt, GoesOn, Verdict
from tests.unit.plays import write_role
from tests.unit.runner.test_player import NAMES, stage

if TYPE_CHECKING:
    from tests.unit.runner.test_player import Stage

__all__ = ["stage"]

NAME = "SetDeploymentEnvOwn"
PLAY = """\
  run_once: true
  roles:
    - {role: first, tags: first}
    - {role: vlan, tags: vlan, when: kadeploy_wants.set_vlan}
    - {role: second, tags: second}
    - {role: finish, tags: finish}
"""
MARK = "- ansible.builtin.copy: {{content: '', dest: '{folder}/{{{{ inventory_hostname }}}}.{name}', mode: '0600'}}\n"


def write(config: Path, place: str, text: str) -> None:
    """A file of tasks: *place* is ``MACRO/MICRO.WHEN.d/NAME``."""
    path = config / "hooks" / f"{place}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def two(stage: Stage) -> Stage:
    """An implementation of two micro-steps and one that is not wanted."""
    for name in ("first", "vlan", "second"):
        write_role(stage.config, name, "- outcomes: {nodes: {n-1: {verdict: ok}}}\n")
    return stage


def marks(folder: Path) -> dict[str, list[str]]:
    """Nodes on which each task of `MARK` ran, by its name."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("n-*")):
        found.setdefault(path.name.partition(".")[2], []).append(path.name.partition(".")[0])
    return found


@pytest.mark.versions
def test_tasks_run_before_behind_and_in_place_of_a_micro_step_on_each_node_that_goes_on(
    two: Stage, tmp_path: Path
) -> None:
    places = {
        "before": "SetDeploymentEnv/first.pre.d/10",
        "behind": f"{NAME}/first.post.d/10",
        "instead": f"{NAME}/second.instead.d/10",
        "unwanted": "SetDeploymentEnv/vlan.post.d/10",
    }
    for name, place in places.items():
        write(two.config, place, MARK.format(folder=tmp_path, name=name))
    fails = "- ansible.builtin.fail: {msg: no licence}\n  when: inventory_hostname == 'n-3'\n"
    write(two.config, f"{NAME}/first.post.d/20", fails)
    write(two.config, f"{NAME}/first.post.d/30", MARK.format(folder=tmp_path, name="later"))
    outcomes = two.play(PLAY, name=NAME)
    others = ["n-1", "n-2", "n-4"]
    assert marks(tmp_path) == {"before": [*NAMES], "behind": [*NAMES], "later": others, "instead": others}
    assert [step for step, _ in two.ear.started] == ["first.pre", "first", "first.post", "second"]
    assert {node for node, outcome in outcomes.items() if outcome.verdict is Verdict.OK} == set(others)
    assert outcomes["n-3"].message == f"{NAME}-first.post: no licence"


@pytest.mark.versions
def test_a_task_that_fails_in_place_of_a_micro_step_has_the_name_of_that_and_its_own(two: Stage) -> None:
    tasks = """
- name: Ask for a licence
  ansible.builtin.command: "{{ {'n-1': 'false', 'n-2': 'cat /nowhere'}[inventory_hostname] | default('true') }}"
- name: Look at it
  ansible.builtin.assert: {that: inventory_hostname != 'n-3'}
- name: See that it is enough
  ansible.builtin.command: "true"
  failed_when: inventory_hostname == 'n-4'
"""
    write(two.config, f"{NAME}/second.instead.d/10", tasks)
    messages = {node: outcome.message for node, outcome in two.play(PLAY, name=NAME).items()}
    enough = messages.pop("n-4")  # an exit status of 0 is no reason; core 2.21 has words of its own
    assert enough.startswith(f"{NAME}-second: See that it is enough: ")
    assert ("failed" in enough, "exit status" in enough) == (True, False)
    assert messages == {
        "n-1": f"{NAME}-second: Ask for a licence: exit status 1",
        "n-2": f"{NAME}-second: Ask for a licence: cat: /nowhere: No such file or directory",
        "n-3": f"{NAME}-second: Look at it: Assertion failed",
    }


def test_roles_of_the_site_and_files_beside_the_tasks_are_found(two: Stage, tmp_path: Path) -> None:
    write_role(two.config, "team", f"- ansible.builtin.copy: {{content: x, dest: {tmp_path}/team, mode: '0600'}}\n")
    tasks = f"""
- ansible.builtin.import_role: {{name: team}}
- ansible.builtin.template: {{src: motd.j2, dest: '{tmp_path}/motd', mode: '0600'}}
"""
    write(two.config, f"{NAME}/first.pre.d/10", tasks)
    (two.config / "hooks" / NAME / "first.pre.d" / "motd.j2").write_text("{{ kadeploy_env.KADEPLOY_CLUSTER }}")
    assert two.play(PLAY, name=NAME)["n-1"].verdict is Verdict.OK
    assert (tmp_path / "motd").read_text() == "n"
    assert (tmp_path / "team").read_text() == "x"


SHOUT = """
class FilterModule:
    def filters(self):
        return {"shout": lambda text: text.upper() + "!"}
"""


def vaulted(text: str, label: str, password: str) -> str:
    """*text*, as ``ansible-vault encrypt`` has it."""
    lib = VaultLib([(label, VaultSecret(password.encode()))])
    return str(lib.encrypt(text, vault_id=label).decode())


def test_collections_plugins_and_vaults_of_the_estate_are_there_for_tasks_and_their_passwords_stay_where_they_are(
    two: Stage, tmp_path: Path
) -> None:
    """Vaulted are variables, a text in tasks, and tasks; one password is in a file, the other is printed."""
    settings = f"""
[defaults]
collections_path = ../collections
filter_plugins = filters
vault_identity_list = team@{NAME}/first.pre.d/password, other@other
strategy = free
stdout_callback = json
"""
    inline = textwrap.indent(vaulted("inline", "other", "b"), " " * 6)
    tasks = f"""
- name: Set up
  vars:
    word: !vault |
{inline}
  block:
    - ansible.builtin.include_vars: secrets.yml
    - ansible.builtin.import_role: {{name: est.base.motd}}
"""
    write(two.config, f"{NAME}/first.pre.d/10", tasks)
    folder = two.config / "hooks"
    write(two.config, f"{NAME}/first.pre.d/20", vaulted("- ansible.builtin.meta: noop\n", "team", "a"))
    (folder / "ansible.cfg").write_text(settings)
    (folder / "filters").mkdir()
    (folder / "filters" / "shout.py").write_text(SHOUT)
    (folder / "other").write_text("#!/bin/sh\necho b\n")
    (folder / "other").chmod(0o700)
    beside = folder / NAME / "first.pre.d"
    (beside / "password").write_text("a")
    (beside / "vars").mkdir()
    (beside / "vars" / "secrets.yml").write_text(vaulted("secret: hidden\n", "team", "a"))
    role = "- ansible.builtin.copy: {content: \"{{ secret | shout }} {{ word }}\", dest: '%s/said', mode: '0600'}\n"
    write_role(two.config / "collections" / "ansible_collections" / "est" / "base", "motd", role % tmp_path)

    assert {outcome.message for outcome in two.play(PLAY, name=NAME).values()} == {""}
    assert (tmp_path / "said").read_text() == "HIDDEN! inline"
    run_dir = two.workflow / f"01-{NAME}"
    assert {path.name for path in (run_dir / "hooks" / NAME / "first.pre.d").iterdir()} == {"10.yml", "20.yml", "vars"}
    assert not list(hooks.mistakes(two.config))


def test_the_run_folder_says_what_has_run_and_repeats_it(two: Stage, tmp_path: Path) -> None:
    write(two.config, f"{NAME}/second.post.d/10", MARK.format(folder=tmp_path, name="again"))
    two.play(PLAY, name=NAME)
    folder = two.workflow / f"01-{NAME}"
    for path in tmp_path.glob("n-*"):
        path.unlink()
    (two.config / "hooks" / NAME / "second.post.d" / "10.yml").unlink()

    done = subprocess.run([folder / "command", "--tags", "second"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert marks(tmp_path) == {"again": list(NAMES)}


def test_late_nodes_have_been_through_what_is_in_front_of_their_micro_step(two: Stage, tmp_path: Path) -> None:
    for name in ("first.pre", "first.post", "second.pre", "second.post"):
        write(two.config, f"{NAME}/{name}.d/10", MARK.format(folder=tmp_path, name=name))
    two.play(PLAY, name=NAME)
    for path in tmp_path.glob("n-*"):
        path.unlink()
    late = Attempt("Macro", NAME, 0, 0, 2, goes_on=GoesOn("second", time.monotonic(), 0.0))
    two.player.perform(late, ("n-4",))
    assert marks(tmp_path) == {"second.post": ["n-4"]}


@pytest.mark.parametrize(
    ("place", "text", "said"),
    [
        (f"{NAME}/frist.pre.d/10", "[]", "has no micro-step 'frist'; it has first, vlan, second. Did you mean first?"),
        (f"{NAME}/first.before.d/10", "[]", "expected MICRO-STEP.pre.d, MICRO-STEP.instead.d or MICRO-STEP.post.d"),
        (f"{NAME}/first.pre/10", "[]", "expected MICRO-STEP.pre.d"),
        (f"{NAME}/first.pre.d/10", "a: b", "first.pre.d/10.yml: expected a list of Ansible tasks"),
        (f"{NAME}/first.pre.d/10", "- hosts: all", "first.pre.d/10.yml: expected tasks, not plays"),
        (f"{NAME}/first.pre.d/10", "- {", "first.pre.d/10.yml: it cannot be read"),
        ("SetDeploymentEnv/send_key.pre.d/10", "[]", "SetDeploymentEnv has no micro-step 'send_key'"),
    ],
)
def test_what_no_attempt_would_run_is_a_mistake_of_the_configuration(
    two: Stage, place: str, text: str, said: str
) -> None:
    (two.config / "playbooks" / f"{NAME}.yml").write_text(f"- hosts: kadeploy_nodes\n{PLAY}")
    write(two.config, place, text)
    with pytest.raises(ConfigError) as refused:
        hooks.of(two.config / "playbooks" / f"{NAME}.yml", two.config)
    assert said in str(refused.value)
    assert list(hooks.mistakes(two.config)) == [str(refused.value)]


def test_a_folder_of_no_macro_step_is_a_mistake_and_what_ansible_has_tags_for_is_none(two: Stage) -> None:
    write(two.config, "BroadcastEnv/sync.post.d/10", "- ansible.builtin.copy: {content: !vault x, dest: /x}\n")
    assert not list(hooks.mistakes(two.config))
    write(two.config, "BroadcastEnvChian/sync.post.d/10", "[]")
    (mistake,) = hooks.mistakes(two.config)
    assert "there is no macro-step and no playbook 'BroadcastEnvChian'. Did you mean BroadcastEnvChain?" in mistake


def test_what_an_editor_keeps_beside_the_tasks_is_no_hook(two: Stage, tmp_path: Path) -> None:
    write(two.config, f"{NAME}/first.pre.d/10", MARK.format(folder=tmp_path, name="mine"))
    folder = two.config / "hooks" / NAME / "first.pre.d"
    (folder / ".#10.yml").symlink_to("admin@controller.1234:1700000000")
    (folder / ".20.yml").write_text("half a li")
    (two.config / "hooks" / ".svn").mkdir()
    assert two.play(PLAY, name=NAME)["n-1"].verdict is Verdict.OK
    assert marks(tmp_path) == {"mine": list(NAMES)}
    assert not list(hooks.mistakes(two.config))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("closed", [f"hooks/{NAME}/first.pre.d", f"hooks/{NAME}", "hooks"])
def test_tasks_that_this_account_cannot_read_are_a_mistake_and_never_left_out_unnoticed(
    two: Stage, open_folder: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout of these tests may be root's alone: the account has a copy of ours."""
    config, ours = open_folder / "config", open_folder / "ours"
    for name in ("playbooks", "roles"):
        shutil.copytree(folder.collection() / name, ours / name)
    monkeypatch.setattr(folder, "collection", lambda: ours)
    shutil.copytree(two.config, config)
    (config / "playbooks" / f"{NAME}.yml").write_text(f"- hosts: kadeploy_nodes\n{PLAY}")
    write(config, f"{NAME}/first.pre.d/10", "[]")
    (config / closed).chmod(0o700)
    entry = pwd.getpwnam("nobody")
    with as_user(Account("nobody", entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))):
        with pytest.raises(ConfigError, match=rf"/{closed}\b.*: Permission denied: let the account read it"):
            hooks.of(config / "playbooks" / f"{NAME}.yml", config)
        assert list(hooks.mistakes(config))


def test_tasks_of_a_play_stay_at_its_ends_and_its_settings_are_those_of_hooks(two: Stage) -> None:
    write(two.config, f"{NAME}/first.instead.d/10", "[]")
    playbook = two.config / "playbooks" / f"{NAME}.yml"
    text = {"hosts": "kadeploy_nodes", "become": True, "pre_tasks": [1], "roles": ["first"], "tasks": [2]}
    playbook.write_text(yaml.safe_dump([text]))
    (two.config / "run").mkdir()
    written = hooks.write(two.config / "run", playbook, hooks.of(playbook, two.config), ())
    begin, hook, end = yaml.safe_load(written.read_text())
    common = {"hosts": "kadeploy_nodes", "become": True}
    assert begin == common | {"pre_tasks": [1], "roles": []}
    assert end == common | {"tasks": [2], "roles": []}
    assert hook.items() >= (common | {"name": f"{NAME}-first.instead"}).items()
