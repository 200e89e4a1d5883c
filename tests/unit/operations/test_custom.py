"""Custom operations: the wiki page's lines and the later YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kadeploy.caller import caller
from kadeploy.errors import FileError, OptionError
from kadeploy.operations import custom
from kadeploy.runner import playbooks
from kadeploy.runner.request import CustomOperation

WHO = caller()
NOWHERE = Path("/nonexistent")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.sh"
    path.write_text("echo hello\n")
    return path


def parse(text: str, source: str = "/home/john/custom_ops") -> tuple[CustomOperation, ...]:
    return custom.parse(text, source=source, who=WHO, known=playbooks.register(NOWHERE))


def refusal(text: str) -> str:
    with pytest.raises(OptionError) as refused:
        parse(text)
    message = str(refused.value)
    assert message.startswith("/home/john/custom_ops")
    return message


# --- lines --------------------------------------------------------------------------------------------------------


def test_both_examples_of_the_wiki_page_are_accepted(script: Path) -> None:
    found = parse(
        f"SetDeploymentEnvUntrusted,format_tmp_part@send%{script}%/dest,exec%/dest/script.sh%\n"
        'BootNewEnvKexec,reboot@exec%echo "s" > /proc/sysrq-trigger%\n'
    )
    where = {"implementation": "SetDeploymentEnvUntrusted", "micro_step": "format_tmp_part"}
    assert found == (
        CustomOperation(**where, action="send", file=str(script), destination="/dest"),
        CustomOperation(**where, action="exec", command="/dest/script.sh"),
        CustomOperation(
            implementation="BootNewEnvKexec",
            micro_step="kexec",
            action="exec",
            command='echo "s" > /proc/sysrq-trigger',
        ),
    )


def test_commands_may_hold_commas_and_percent_signs() -> None:
    (one, two) = parse("BootNewEnv,wait_reboot@exec%date +%s,%N | tr , ;%, exec%true%")
    assert (one.command, two.command) == ("date +%s,%N | tr , ;", "true")


def test_comments_and_blank_lines_are_passed_over_and_order_is_kept() -> None:
    text = "# mine\n\nBroadcastEnv,sync@exec%b%\n  # more\nBroadcastEnv,sync@exec%a%\n"
    assert [each.command for each in parse(text)] == ["b", "a"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("SetDeploymentEnvMagic,reboot@exec%true%", "SetDeploymentEnvUntrusted"),
        ("BootNewEnvPivotRoot,reboot@exec%true%", "never been implemented"),
        ("SetDeploymentEnvUntrusted,format@exec%true%", "format_tmp_part"),
        ("SetDeploymentEnvUntrusted,reboot@", "expected Macro,micro@"),
        ("SetDeploymentEnvUntrusted,reboot@exec%true", "exec%command%"),
        ("SetDeploymentEnvUntrusted,reboot@exec%true%/dest", "percent sign"),
        ("SetDeploymentEnvUntrusted,reboot@exec%%", "a command"),
        ("SetDeploymentEnvUntrusted,reboot@drop%a%b", "send%file%folder"),
        ("SetDeploymentEnvUntrusted,reboot@send%/etc/passwd%", "destination"),
        ("SetDeploymentEnvUntrusted,reboot@send%/nonexistent%/dest", "/nonexistent"),
        ("SetDeploymentEnvUntrusted,reboot@send%http://host/a%/dest", "fetch it first"),
        ("nonsense", "expected Macro,micro@"),
    ],
)
def test_a_mistake_is_refused_with_file_and_line(line: str, said: str) -> None:
    message = refusal(f"BroadcastEnv,sync@exec%true%\n\n{line}\n")
    assert "line 3" in message
    assert said in message


# --- YAML ---------------------------------------------------------------------------------------------------------

YAML = """\
# what the later versions read
SetDeploymentEnvUntrusted:
  format_deploy_part:
    pre-ops:
      - {action: send, name: copy, file: script.sh, destination: $KADEPLOY_TMP_DIR, scattering: chain}
    substitute:
      - action: run
        file: script.sh
        params: -a "b c"
        timeout: 10
        retries: 2
    post-ops:
      - {action: exec, command: "true"}
    override: true
BootNewEnvKexec:
  reboot:
    pre-ops: [{action: exec, command: date}]
"""


def test_the_yaml_form_knows_before_instead_and_after(script: Path) -> None:
    found = parse(YAML, source=str(script.parent / "ops.yml"))
    assert [(each.micro_step, each.when, each.action) for each in found] == [
        ("format_deploy_part", "pre", "send"),
        ("format_deploy_part", "substitute", "run"),
        ("format_deploy_part", "post", "exec"),
        ("kexec", "pre", "exec"),
    ]
    assert found[0].file == found[1].file == str(script)
    assert (found[1].params, found[1].timeout, found[1].retries) == ('-a "b c"', 10, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: {reboot: {pre-ops: []}}", "line 1"),
        ("BootNewEnv:\n  sync:\n    pre-ops: []", "line 2: BootNewEnv has no micro-step 'sync'"),
        ("BootNewEnv: {kexec: {before: []}}", "before"),
        ("BootNewEnv: {kexec: {pre-ops: [{command: a}]}}", "action"),
        ("BootNewEnv: {kexec: {pre-ops: [{action: exec}]}}", "a command"),
        ("BootNewEnv: {kexec: {pre-ops: [{action: exec, command: a, file: b}]}}", "nothing else"),
        ("BootNewEnv: {kexec: {pre-ops: [{action: run, command: a}]}}", "a file"),
        ("BootNewEnv: {kexec: {pre-ops: [{action: run, file: /etc/passwd, destination: /a}]}}", "no destination"),
        ("BootNewEnv: {kexec: {pre-ops: [{action: run, file: /etc/passwd, params: '\"'}]}}", "params"),
        ("BootNewEnv: {kexec: {pre-ops: [{action: run, file: /nonexistent}]}}", "/nonexistent"),
        ("BootNewEnv: {kexec: {pre-ops: [{action: exec, command: a, timeout: -1}]}}", "timeout"),
        ("BootNewEnv: {kexec: {pre-ops: [{action: exec, command: a, retries: 1000}]}}", "retries"),
        ("", "custom operations"),
        ("[", "custom operations"),
        ("a: *b", "custom operations"),
    ],
)
def test_a_mistake_in_yaml_is_refused(text: str, said: str) -> None:
    assert said in refusal(text)


# --- files --------------------------------------------------------------------------------------------------------


def test_operations_are_read_from_a_file_and_relative_names_start_beside_it(script: Path) -> None:
    path = script.parent / "ops"
    path.write_text("BroadcastEnvChain,send_key@send%script.sh%/root\n")
    (found,) = custom.load(str(path), WHO, playbooks.register(NOWHERE))
    assert found.file == str(script)


def test_a_file_of_operations_that_is_not_there_is_refused() -> None:
    with pytest.raises(FileError, match="/nonexistent/ops"):
        custom.load("/nonexistent/ops", WHO, playbooks.register(NOWHERE))


def test_a_step_of_the_sites_own_playbook_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "SetDeploymentEnvBurnIn.yml").write_text("- {hosts: kadeploy_nodes, roles: [burn_in]}\n")
    text = "SetDeploymentEnvBurnIn,burn_in@exec%true%"
    (found,) = custom.parse(text, source="/s", who=WHO, known=playbooks.register(tmp_path))
    assert (found.implementation, found.micro_step) == ("SetDeploymentEnvBurnIn", "burn_in")


PIECES = [
    "BootNewEnvKexec",
    "SetDeploymentEnv",
    "reboot",
    ",",
    "@",
    "%",
    "exec",
    "send",
    "\n",
    "/etc/passwd",
    ": ",
    "- ",
]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=20).map("".join))
def test_every_text_is_operations_or_a_refusal(text: str) -> None:
    try:
        found = parse(text)
    except OptionError as error:
        message = str(error)
    else:
        message = "" if all(each.micro_step for each in found) else "\n"
    assert "\n" not in message
