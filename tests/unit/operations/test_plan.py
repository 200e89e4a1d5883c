"""Which implementations a deployment goes through."""

from __future__ import annotations

from kadeploy.config.cluster import Cluster, Implementation
from kadeploy.environments.environment import Archive
from kadeploy.operations import plan
from tests.unit import build
from tests.unit.build import environment

KEXEC = Implementation(name="BootNewEnvKexec", retries=1, timeout=100)
CLASSICAL = Implementation(name="BootNewEnvClassical", retries=0, timeout=500)
HARD = Implementation(name="BootNewEnvHardReboot", retries=2, timeout=600)
SET = (
    Implementation(name="SetDeploymentEnvKexec", retries=3, timeout=50),
    Implementation(name="SetDeploymentEnvProd"),
)


def cluster(*boots: Implementation) -> Cluster:
    return build.cluster(
        macro_steps={
            "BootNewEnv": boots,
            "BroadcastEnv": (Implementation(name="BroadcastEnvChain"),),
            "SetDeploymentEnv": SET,
        }
    )


def names(steps: plan.Steps, step: str) -> list[str]:
    return [way.name for way in steps[step]]


def test_the_configured_steps_come_in_their_order_whatever_the_files() -> None:
    steps, notes = plan.deployment(cluster(KEXEC, HARD), environment())
    assert list(steps) == ["SetDeploymentEnv", "BroadcastEnv", "BootNewEnv"]
    assert (steps["BootNewEnv"], notes) == ((KEXEC, HARD), [])


def test_a_pre_install_replaces_all_ways_with_the_firsts_retries_and_time_out() -> None:
    archive = Archive(file="/pre.tgz", kind="tgz", script="go")
    steps, notes = plan.deployment(cluster(HARD), environment(preinstall=archive))
    assert steps["SetDeploymentEnv"] == (Implementation(name=plan.CUSTOM_PRE_INSTALL, retries=3, timeout=50),)
    assert len(notes) == 1


def test_forced_steps_are_kept_in_spite_of_a_pre_install() -> None:
    forced = {
        step: (way,)
        for step, way in zip(("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv"), (SET[1], HARD, HARD), strict=True)
    }
    archive = Archive(file="/pre.tgz", kind="tgz", script="go")
    steps, notes = plan.deployment(cluster(HARD), environment(preinstall=archive), forced=forced)
    assert (steps, notes) == (forced, [])


def test_what_kexec_cannot_start_is_rebooted_with_more_time() -> None:
    for other in (environment(environment_kind="xen"), environment(filesystem="zfs")):
        steps, notes = plan.deployment(cluster(KEXEC, HARD), other)
        assert steps["BootNewEnv"] == (
            Implementation(name="BootNewEnvClassical", retries=1, timeout=100 + plan.FIRMWARE),
            HARD,
        )
        assert len(notes) == 1


def test_kexec_is_left_out_where_a_classical_reboot_is_configured_anyway() -> None:
    steps, _ = plan.deployment(cluster(KEXEC, CLASSICAL), environment(environment_kind="xen"))
    assert steps["BootNewEnv"] == (CLASSICAL,)


def test_no_kexec_counts_for_both_reboots_and_keeps_no_limit_unlimited() -> None:
    unlimited = Implementation(name="BootNewEnvKexec", timeout=0)
    steps, _ = plan.deployment(cluster(unlimited), environment(), no_kexec=True)
    assert names(steps, "SetDeploymentEnv") == ["SetDeploymentEnvUntrusted", "SetDeploymentEnvProd"]
    assert steps["BootNewEnv"] == (Implementation(name="BootNewEnvClassical", timeout=0),)


def test_an_environment_that_rules_kexec_out_is_rebooted_as_with_no_kexec() -> None:
    asked, _ = plan.deployment(cluster(), environment(), no_kexec=True)
    steps, notes = plan.deployment(cluster(), environment(kexec=False))
    assert steps == asked
    assert notes == ["the environment's options say kexec: false: nodes are rebooted instead of using kexec"]


def test_the_automaton_gets_the_same_in_its_own_words() -> None:
    steps, _ = plan.deployment(cluster(KEXEC), environment())
    assert tuple(steps.items())[2] == ("BootNewEnv", (Implementation(name="BootNewEnvKexec", retries=1, timeout=100),))
