"""Which implementations a deployment goes through: the cluster's lists, changed where the request needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from kadeploy import workflow
from kadeploy.config import Cluster, Implementation
from kadeploy.environment import Environment
from kadeploy.steps import MACRO_STEPS

Ways = tuple[Implementation, ...]
Steps = Mapping[str, Ways]
"""Implementations by macro-step, as configuration files and ``--force-steps`` have them."""

CUSTOM_PRE_INSTALL = "SetDeploymentEnvUntrustedCustomPreInstall"
FIRMWARE = 300
"""Seconds that a reboot through the firmware may take longer than kexec."""


def deployment(
    cluster: Cluster, environment: Environment, no_kexec: bool = False, forced: Steps | None = None
) -> tuple[Steps, list[str]]:
    """The steps for deploying *environment* on *cluster*, and what was changed, for people (reference §5.4).

    A pre-install of the environment replaces all ways of preparing the disk, unless the user forced the steps. What
    cannot be started by kexec is rebooted.
    """
    steps = {name: (cluster.macro_steps if forced is None else forced)[name] for name in MACRO_STEPS}
    notes: list[str] = []
    if forced is None and environment.preinstall is not None:
        steps["SetDeploymentEnv"] = (_renamed(steps["SetDeploymentEnv"][0], CUSTOM_PRE_INSTALL),)
        notes.append(f"the environment has a pre-install: {CUSTOM_PRE_INSTALL} prepares the disk")
    if reason := _why_no_kexec(cluster, environment, no_kexec):
        changed = _with(steps, "BootNewEnv", lambda ways: _without(ways, "BootNewEnvKexec", "BootNewEnvClassical"))
        if no_kexec:
            changed = _with(
                changed,
                "SetDeploymentEnv",
                lambda ways: _without(ways, "SetDeploymentEnvKexec", "SetDeploymentEnvUntrusted"),
            )
        if changed != steps:
            notes.append(f"{reason}: nodes are rebooted instead of using kexec")
        steps = changed
    return steps, notes


def for_automaton(steps: Steps) -> workflow.Plan:
    """*steps* as the automaton takes them."""
    return tuple(
        (name, tuple(workflow.Implementation(way.implementation, way.retries, way.timeout) for way in ways))
        for name, ways in steps.items()
    )


def _why_no_kexec(cluster: Cluster, environment: Environment, asked: bool) -> str:
    """Why kexec is out of the question; empty when it is not."""
    if asked:
        return "--no-kexec"
    if environment.environment_kind != "linux":
        return f"a system of kind {environment.environment_kind} cannot be started by kexec"
    if environment.filesystem not in cluster.supported_filesystems:
        return f"the deployment system cannot read a kernel from {environment.filesystem or 'an unknown file system'}"
    return ""


def _with(steps: Mapping[str, Ways], name: str, change: Callable[[Ways], Ways]) -> dict[str, Ways]:
    return {step: change(ways) if step == name else ways for step, ways in steps.items()}


def _without(ways: Ways, unwanted: str, substitute: str) -> Ways:
    """*ways* with *substitute* where *unwanted* was, or simply without it when *substitute* is among them anyway."""
    if any(way.implementation == substitute for way in ways):
        return tuple(way for way in ways if way.implementation != unwanted)
    return tuple(_slower(way, substitute) if way.implementation == unwanted else way for way in ways)


def _slower(way: Implementation, name: str) -> Implementation:
    timeout = way.timeout + FIRMWARE if way.timeout else 0
    return msgspec.structs.replace(way, implementation=name, timeout=timeout)


def _renamed(way: Implementation, name: str) -> Implementation:
    return msgspec.structs.replace(way, implementation=name)
