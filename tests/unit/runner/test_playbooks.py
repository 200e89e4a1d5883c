"""Macro-steps, forced plans, breakpoints and time-out expressions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.config.cluster import Implementation
from kadeploy.config.timeouts import evaluate_timeout
from kadeploy.errors import ConfigError, OptionError
from kadeploy.runner import playbooks
from kadeploy.runner.playbooks import parse_force_steps

NOWHERE = Path("/nonexistent")
WIKI = """SetDeploymentEnv|SetDeploymentEnvProd:2:100&
BroadcastEnv|BroadcastEnvKastafior:2:300&
BootNewEnv|BootNewEnvKexec:1:150"""
PLAN = parse_force_steps(WIKI, NOWHERE)
OURS = playbooks.collection()


# --- implementations ----------------------------------------------------------------------------------------------


def test_every_playbook_of_ours_that_is_named_after_a_macro_step_is_an_implementation() -> None:
    known = playbooks.implementations(NOWHERE)
    assert {playbooks.generic(name) for name in known} == set(playbooks.MACRO_STEPS)
    assert "SetDeploymentEnvUntrusted" in known
    assert "PowerOn" not in known
    assert all(path.is_file() for path in known.values())


def test_a_file_in_the_sites_folder_registers_an_implementation_and_takes_precedence(tmp_path: Path) -> None:
    folder = tmp_path / "playbooks"
    folder.mkdir()
    for name in ("SetDeploymentEnvBurnIn", "BootNewEnvKexec"):
        (folder / f"{name}.yml").write_text("- {hosts: kadeploy_nodes, roles: [burn_in]}\n")
    known = playbooks.implementations(tmp_path)
    assert known["SetDeploymentEnvBurnIn"] == folder / "SetDeploymentEnvBurnIn.yml"
    assert known["BootNewEnvKexec"] == folder / "BootNewEnvKexec.yml"
    assert known["BootNewEnvClassical"].parent != folder


def test_micro_steps_are_the_roles_of_the_playbook_in_order() -> None:
    found = playbooks.micro_steps(playbooks.implementations(NOWHERE)["BootNewEnvClassical"])
    assert found == ("switch_pxe", "umount_deploy_part", "reboot_from_deploy_env", "set_vlan", "wait_reboot")


def test_roles_may_be_words_mappings_or_names_of_a_collection(tmp_path: Path) -> None:
    playbook = tmp_path / "p.yml"
    playbook.write_text(
        "- hosts: a\n  roles: [one, {role: kadeploy.core.two}, {name: three}, one, finish]\n- {hosts: b, roles: }\n"
    )
    assert playbooks.micro_steps(playbook) == ("one", "two", "three")


@pytest.mark.parametrize("text", ["{roles: [a]}", "just words", "- [a]", "- {"])
def test_a_file_that_is_no_playbook_is_refused_by_name(tmp_path: Path, text: str) -> None:
    playbook = tmp_path / "SetDeploymentEnvBroken.yml"
    playbook.write_text(text)
    with pytest.raises(ConfigError, match=r"SetDeploymentEnvBroken\.yml"):
        playbooks.micro_steps(playbook)


def test_micro_steps_whose_condition_does_not_hold_are_left_out() -> None:
    playbook = playbooks.implementations(NOWHERE)["BroadcastEnvChain"]
    wants = {"mount_after_broadcast": False, "mount_deploy_part": True, "send_key": False, "check_kernel_files": True}
    assert playbooks.left_out(playbook, wants) == {"mount_deploy_part", "send_key"}
    untrusted = playbooks.implementations(NOWHERE)["SetDeploymentEnvUntrusted"]
    assert "mount_deploy_part" not in playbooks.left_out(untrusted, wants)


def test_a_playbook_tells_what_its_boot_profiles_boot() -> None:
    ours = playbooks.implementations(NOWHERE)
    assert playbooks.boots(ours["SetDeploymentEnvNfsroot"]) == ("nfsroot",)
    assert playbooks.boots(ours["BootNewEnvKexec"]) == ("deployed",)
    assert playbooks.boots(ours["SetDeploymentEnvProd"]) == ()


@pytest.mark.parametrize("path", [*OURS.glob("playbooks/*.yml"), *OURS.glob("roles/*/*/*.yml")], ids=str)
def test_no_playbook_and_no_role_needs_more_than_one_screen(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_our_playbooks_are_found_in_a_checkout_and_roles_lie_beside_them() -> None:
    assert (playbooks.collection() / "playbooks" / "deploy.yml").is_file()
    assert (playbooks.collection() / "roles" / "switch_pxe").is_dir()


# --- --force-steps ------------------------------------------------------------------------------------------------


def test_the_wiki_pages_forced_plan_is_accepted_with_its_line_ends() -> None:
    assert {
        "SetDeploymentEnv": (Implementation(name="SetDeploymentEnvProd", retries=2, timeout=100),),
        "BroadcastEnv": (Implementation(name="BroadcastEnvKastafior", retries=2, timeout=300),),
        "BootNewEnv": (Implementation(name="BootNewEnvKexec", retries=1, timeout=150),),
    } == PLAN


def test_blanks_and_backslashes_around_delimiters_change_nothing() -> None:
    assert parse_force_steps(WIKI.replace("&\n", " \\& ").replace("|", " | "), NOWHERE) == PLAN


def test_a_macro_step_may_have_several_ways() -> None:
    text = WIKI.replace("BootNewEnvKexec:1:150", "BootNewEnvKexec:1:150, BootNewEnvClassical:0:0")
    ways = parse_force_steps(text, NOWHERE)["BootNewEnv"]
    assert [way.name for way in ways] == ["BootNewEnvKexec", "BootNewEnvClassical"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not of the form"),
        (WIKI.rsplit("&", 1)[0], "BootNewEnv"),
        ("&".join(reversed(WIKI.split("&"))), "in this order"),
        (WIKI + "&" + WIKI.rsplit("&", 1)[1], "once each"),
        (WIKI.replace("Kexec:1:150", "Kexec:1"), "retries:timeout"),
        (WIKI.replace("Kexec:1:150", "Kexec:-1:150"), "retries:timeout"),
        (WIKI.replace("Kexec:1:150", "Kexec:1:1e9"), "retries:timeout"),
        (WIKI.replace("Kexec:1:150", "Kexec:1:150,"), "retries:timeout"),
        (WIKI.replace("BootNewEnvKexec", "BootNewEnvMagic"), "BootNewEnvClassical"),
        (WIKI.replace("BootNewEnvKexec", "BroadcastEnvChain"), "not an implementation of BootNewEnv"),
        (WIKI.replace("BootNewEnvKexec", "BootNewEnvPivotRoot"), "never been implemented"),
        (WIKI.replace("BootNewEnv|", "BootNew|"), "BootNew"),
    ],
)
def test_a_malformed_plan_is_refused_with_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(OptionError) as refusal:
        parse_force_steps(text, NOWHERE)
    assert said in str(refusal.value)


@given(st.text(alphabet="SetDeploymntEvBrwKxc|&:,0123 \n\\", max_size=80))
def test_no_forced_plan_ends_in_anything_but_a_plan_or_a_refusal(text: str) -> None:
    try:
        plan = parse_force_steps(text, NOWHERE)
    except OptionError:
        return
    assert tuple(plan) == playbooks.MACRO_STEPS


# --- --breakpoint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "SetDeploymentEnv",
        "SetDeploymentEnvProd",
        "BroadcastEnvKastafior:manage_user_post_install",
        "BroadcastEnv:manage_user_post_install",
        "BootNewEnv:kexec",
    ],
)
def test_a_breakpoint_names_a_step_of_the_plan_by_implementation_or_macro_step(text: str) -> None:
    playbooks.check_breakpoint(text, PLAN, NOWHERE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SetDeploymentEnvUntrusted:reboot", "SetDeploymentEnvProd"),
        ("BootNewEnv:format_tmp_part", "kexec"),
        ("BootNewEnv:", "kexec"),
        ("BootNewEnvMagic", "BootNewEnvClassical"),
        ("Nonsense:reboot", "SetDeploymentEnvUntrusted"),
        ("BootNewEnv:finish", "wait_reboot"),
    ],
)
def test_a_breakpoint_that_would_never_be_met_is_refused_and_what_exists_is_listed(text: str, said: str) -> None:
    with pytest.raises(OptionError) as refusal:
        playbooks.check_breakpoint(text, PLAN, NOWHERE)
    assert said in str(refusal.value)


# --- time-outs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "seconds"),
    [
        ("120", 120),
        (" 200+150*log(n) ", 891),
        ("max(60, n // 2) + min(3, 4)", 63),
        ("ceil(1.5) * floor(2.9) ** 3", 16),
        ("(10 + 20) / 4", 8),
        ("sqrt(n) + log2(8) + log10(1000) + 7 % 4", 19),
        ("-(-5) - +3", 2),
    ],
)
def test_a_timeout_is_seconds_or_arithmetic_of_the_number_of_nodes(expression: str, seconds: int) -> None:
    assert evaluate_timeout(expression, 100) == seconds


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "soon",
        "m + 1",
        "0",
        "-5",
        "1/0",
        "log(0)",
        "sqrt(0-1)",
        "(0-1)**0.5",
        "9**9**9**9",
        "1e308*10",
        "10**7",
        "True",
        "'a'*5",
        "[1]",
        "n if n else 1",
        "lambda: 1",
        "__import__('os').system('true')",
        "n.real",
        "max(*[1])",
        "log(x=2)",
        "min()",
        "max",
        "exp(2)",
        "1;2",
        "(" * 300,
        "1" * 5000,
        "\x00",
    ],
)
def test_anything_else_is_no_timeout(expression: str) -> None:
    with pytest.raises(OptionError):
        evaluate_timeout(expression, 10)


@given(st.text(alphabet="n0123456789.+-*/%() ,logsqrtminmaxceilfloor_'[]\x00", max_size=60), st.integers(1, 5000))
def test_every_text_is_seconds_within_a_week_or_a_refusal(expression: str, n: int) -> None:
    try:
        seconds = evaluate_timeout(expression, n)
    except OptionError:
        return
    assert 0 < seconds <= playbooks.MAX_SECONDS


@given(st.integers(1, 1000), st.integers(0, 500), st.integers(1, 5000))
def test_the_documented_expression_grows_with_the_logarithm(base: int, factor: int, n: int) -> None:
    assert evaluate_timeout(f"{base}+{factor}*log(n)", n) == math.ceil(base + factor * math.log(n))
