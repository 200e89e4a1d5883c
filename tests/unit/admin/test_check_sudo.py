"""What sudo lets accounts do: the real one, with rules of the test in place of the machine's."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kadeploy.admin.check import sudo, unit_files
from kadeploy.admin.findings import Finding
from tests.unit.admin.sound_site import SoundSite
from tests.unit.admin.test_check_accounts import install

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("sudo") is None, reason="needs sudo"),
]

GAMES = pwd.getpwnam("games")
RESET = "sudo -n /bin/echo reset HOSTNAME_SHORT"
Rules = Callable[[str], None]


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rules:
    """Have sudo go by these rules: in the test's own eyes they are at /etc/sudoers."""
    file, programs = tmp_path / "sudoers", tmp_path / "programs"
    programs.mkdir()
    for name in ("sudo", "cvtsudoers"):
        script = f'mount --bind {file} /etc/sudoers && exec {shutil.which(name)} "$@"'
        (programs / name).write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{script}' sh \"$@\"\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def write(text: str) -> None:
        file.unlink(missing_ok=True)
        file.write_text(f"{text}\n")
        file.chmod(0o440)

    return write


@pytest.fixture
def given(sound: SoundSite, units: Path, open_folder: Path) -> SoundSite:
    """The site, whose state is an account's, and whose nodes are switched by sudo; no unit is installed."""
    (open_folder / "state").mkdir(mode=0o700)
    os.chown(open_folder / "state", GAMES.pw_uid, GAMES.pw_gid)
    sound.change("site", state_dir=f"{open_folder}/state")
    sound.change("gdx", power={"driver": "command", "commands": {"hard_reboot": RESET}})
    assert list(units.iterdir()) == []
    return sound


def commands(site: SoundSite) -> Finding:
    """What is found of the one command that begins with sudo."""
    (found,) = [each for each in site.found(sudo.check) if each.name == "commands"]
    return found


@pytest.mark.parametrize(
    ("rule", "level", "said"),
    [
        ("root ALL=(ALL) ALL", "fail", "sudo does not let games run this as root"),
        ("games ALL=(root) /bin/echo reset gdx-*", "fail", "asks games for a password"),
        ("games ALL=(root) NOPASSWD: /bin/echo reset gdx-*", "ok", "without a password"),
        ("games ALL=(root) NOPASSWD: /bin/echo reset other-*", "fail", "does not let"),
        ("games ALL=(root) NOPASSWD: /usr/bin/echo", "ok", "without a password"),
        ("games ALL=(root) NOPASSWD: /bin/", "ok", "without a password"),
        ("games ALL=(root) NOPASSWD: ALL, PASSWD: /bin/echo", "fail", "asks games for a password"),
        ("games ALL=(daemon) NOPASSWD: ALL", "fail", "does not let"),
        ("%games ALL=(ALL) NOPASSWD: ALL", "ok", "without a password"),
        ("Defaults:games !authenticate\ngames ALL=ALL", "ok", "without a password"),
        ("Defaults !authenticate\nDefaults:games authenticate\ngames ALL=ALL", "fail", "password"),
        ("Cmnd_Alias RESET = /bin/echo reset *\nUser_Alias OPS = games\nOPS ALL = NOPASSWD: RESET", "ok", "without"),
        ("Defaults requiretty\ngames ALL=(root) NOPASSWD: ALL", "fail", "you must have a tty"),
        ("games ALL=(root) CWD=/tmp NOPASSWD: ALL", "warn", "is not known"),
        ("games elsewhere=(root) NOPASSWD: ALL", "fail", "does not let"),
    ],
)
def test_a_command_that_begins_with_sudo_needs_a_rule_without_a_password(
    given: SoundSite, rules: Rules, rule: str, level: str, said: str
) -> None:
    rules(rule)
    found = commands(given)
    assert (found.level, said in found.text) == (level, True), found
    assert found.text.startswith("clusters/gdx.yml: power.commands.hard_reboot: ")
    assert level == "ok" or found.advice


def test_as_whom_a_command_runs_is_what_its_options_say(given: SoundSite, rules: Rules) -> None:
    rules("games ALL=(daemon) NOPASSWD: /bin/echo")
    given.change("gdx", power__commands={"hard_reboot": "sudo -n --user=daemon A=b -- /bin/echo HOSTNAME_SHORT"})
    assert commands(given).level == "fail"
    given.change("gdx", power__commands={"hard_reboot": "sudo -n --user=daemon -- /bin/echo HOSTNAME_SHORT"})
    assert commands(given).text.endswith("games may run this as daemon without a password")
    given.change("gdx", power__commands={"hard_reboot": "sudo --nonsense /bin/echo"})
    assert "option --nonsense not recognized" in commands(given).text
    given.change("gdx", power__commands={"hard_reboot": "sudo -n"})
    assert "it has no command to run" in commands(given).text


def test_hooks_and_consoles_are_looked_at_as_whom_they_run(given: SoundSite, rules: Rules) -> None:
    rules("games ALL=(root) NOPASSWD: ALL")
    given.change("site", hooks={"end_of_reboot": "sudo /bin/echo WORKFLOW_ID"})
    given.change("gdx", console="sudo /bin/echo HOSTNAME_FQDN")
    found = {each.text.split(": ")[1]: each for each in given.found(sudo.check) if each.name == "commands"}
    assert found["hooks.end_of_reboot"].level == "ok"
    assert found["console"].level == "warn"
    given.change("site", service__consoles_as_service=True)
    found = {each.text.split(": ")[1]: each for each in given.found(sudo.check) if each.name == "commands"}
    assert found["console"].level == "ok"


def test_our_units_let_no_command_use_sudo(given: SoundSite, rules: Rules, units: Path) -> None:
    rules("games ALL=(root) NOPASSWD: ALL")
    install(units, unit_files.SERVICE, "games")
    assert "kadeploy3d.service has NoNewPrivileges" in commands(given).text


def test_root_needs_no_rule(sound: SoundSite, rules: Rules, units: Path) -> None:
    rules("root ALL=(ALL) ALL")
    sound.change("gdx", power={"driver": "command", "commands": {"hard_reboot": RESET}})
    assert commands(sound).level == "ok"
    assert not list(units.iterdir())


def test_sudo_that_is_missing_is_told_where_commands_begin_with_it(
    given: SoundSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "sudo is not installed, and it begins clusters/gdx.yml: power.commands.hard_reboot" in commands(given).text
    given.change("gdx", power={"driver": "command", "commands": {"hard_reboot": "true"}})
    assert given.levels(sudo.check) == {"tools": "ok"}


# --- our tools ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "level", "said"),
    [
        ("%sudo ALL=(ALL:ALL) ALL", "ok", "no rule"),
        ("ada ALL=(root) /usr/bin/apt", "ok", "no rule"),
        ("root ALL=(root) /usr/bin/kadeploy3", "ok", "no rule"),
        ("games ALL=(ALL) !/usr/bin/kadeploy-site", "ok", "no rule"),
        ("%users ALL=(root) NOPASSWD: /usr/bin/kadeploy3, /usr/bin/kareboot3 -h", "warn", "their own rights count"),
        ("%users ALL=(root) NOPASSWD: /usr/bin/kadeploy3", "warn", "sudo lets %users run kadeploy3 as root"),
        ("Cmnd_Alias K = /opt/kadeploy/bin/kanodes3\nALL ALL = K", "warn", "sudo lets ALL run kanodes3 as root"),
        ("ada ALL=(root) /usr/bin/kadeploy-site check", "warn", "kadeploy-site so owns the site"),
        ("ada ALL=(root) NOPASSWD:SETENV: /usr/bin/kadeploy3", "fail", "variables of their own (SETENV)"),
        ('Defaults env_keep += "PYTHONPATH TZ"\nada ALL=(root) /usr/bin/kadeploy3', "fail", "(PYTHONPATH)"),
        ("Defaults !env_reset\nada ALL=(root) /usr/bin/kadeploy3", "fail", "(*)"),
        ("ada elsewhere=(root) /usr/bin/kadeploy3", "ok", "no rule"),
        ("that is no rule", "warn", "syntax error"),
    ],
)
def test_rules_that_let_people_run_the_tools_are_told_by_what_they_mean(
    sound: SoundSite, rules: Rules, rule: str, level: str, said: str
) -> None:
    rules(rule)
    (found,) = sound.found(sudo.check)
    assert (found.name, found.level) == ("tools", level), found
    assert said in found.text


@pytest.mark.parametrize("runs_as", ["games", "ALL"])
def test_whoever_may_be_the_account_of_the_service_has_its_files(given: SoundSite, rules: Rules, runs_as: str) -> None:
    rules(f"ada ALL=({runs_as}) /usr/bin/kadeploy3")
    assert "as games: whatever file they name is opened" in given.one(sudo.check, "tools", "fail").text


def test_administrators_may_run_the_tools_as_root(sound: SoundSite, rules: Rules) -> None:
    rules("ada, root ALL=(root) /usr/bin/kadeploy-site")
    assert sound.levels(sudo.check) == {"tools": "warn"}
    sound.change("site", almighty_users=["root", "ada"])
    assert sound.levels(sudo.check) == {"tools": "ok"}
