"""``--force-steps`` and ``--breakpoint``: what is accepted, and what a refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.config.cluster import Implementation
from kadeploy.errors import OptionError
from kadeploy.operations.plan import check_breakpoint, parse_force_steps
from kadeploy.runner import playbooks
from kadeploy.runner.playbooks import MACRO_STEPS

NOWHERE = Path("/nonexistent")
WIKI = """SetDeploymentEnv|SetDeploymentEnvProd:2:100&
BroadcastEnv|BroadcastEnvKastafior:2:300&
BootNewEnv|BootNewEnvKexec:1:150"""
PLAN = parse_force_steps(WIKI, playbooks.register(NOWHERE))


# --- --force-steps ------------------------------------------------------------------------------------------------


def test_the_wiki_pages_forced_plan_is_accepted_with_its_line_ends() -> None:
    assert {
        "SetDeploymentEnv": (Implementation(name="SetDeploymentEnvProd", retries=2, timeout=100),),
        "BroadcastEnv": (Implementation(name="BroadcastEnvKastafior", retries=2, timeout=300),),
        "BootNewEnv": (Implementation(name="BootNewEnvKexec", retries=1, timeout=150),),
    } == PLAN


def test_blanks_and_backslashes_around_delimiters_change_nothing() -> None:
    assert parse_force_steps(WIKI.replace("&\n", " \\& ").replace("|", " | "), playbooks.register(NOWHERE)) == PLAN


def test_a_macro_step_may_have_several_ways() -> None:
    text = WIKI.replace("BootNewEnvKexec:1:150", "BootNewEnvKexec:1:150, BootNewEnvClassical:0:0")
    ways = parse_force_steps(text, playbooks.register(NOWHERE))["BootNewEnv"]
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
        parse_force_steps(text, playbooks.register(NOWHERE))
    assert said in str(refusal.value)


@given(st.text(alphabet="SetDeploymntEvBrwKxc|&:,0123 \n\\", max_size=80))
def test_no_forced_plan_ends_in_anything_but_a_plan_or_a_refusal(text: str) -> None:
    try:
        plan = parse_force_steps(text, playbooks.register(NOWHERE))
    except OptionError:
        return
    assert tuple(plan) == MACRO_STEPS


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
    check_breakpoint(text, PLAN, NOWHERE)


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
        check_breakpoint(text, PLAN, NOWHERE)
    assert said in str(refusal.value)
