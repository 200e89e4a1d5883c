"""Which implementations a deployment goes through: the cluster's lists, changed where the request needs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from kadeploy.config.cluster import AUTO, Cluster, Implementation
from kadeploy.environments.environment import Environment
from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean
from kadeploy.runner import playbooks
from kadeploy.runner.playbooks import MACRO_STEPS, Register
from kadeploy.workflow import Plan

Ways = tuple[Implementation, ...]
Steps = Mapping[str, Ways]
"""Implementations by macro-step, as configuration files and ``--force-steps`` have them."""

CUSTOM_PRE_INSTALL = "SetDeploymentEnvUntrustedCustomPreInstall"
CUSTOM_BROADCAST = "BroadcastEnvCustom"
"""Its command is told of one image."""
FIRMWARE = 300
"""Seconds that a reboot through the firmware may take longer than kexec."""


def deployment(
    cluster: Cluster, environment: Environment, no_kexec: bool = False, forced: Steps | None = None
) -> tuple[Steps, list[str]]:
    """The steps for deploying *environment* on *cluster*, and what was changed, for people (reference §5.4).

    A pre-install of the environment replaces all ways of preparing the disk, unless the user forced the steps. What
    cannot be started by kexec is rebooted. What is left to `choice` is still left to it.

    Raises:
        OptionError: the environment has more images than one of the ways can send.
    """
    steps = {name: (cluster.macro_steps if forced is None else forced)[name] for name in MACRO_STEPS}
    notes: list[str] = []
    if forced is None and environment.preinstall is not None:
        first = next(way for way in steps["SetDeploymentEnv"] if way.name != AUTO)
        steps["SetDeploymentEnv"] = (renamed(first, CUSTOM_PRE_INSTALL),)
        notes.append(f"the environment has a pre-install: {CUSTOM_PRE_INSTALL} prepares the disk")
    no_kexec = no_kexec or not environment.kexec
    if reason := why_no_kexec(cluster, environment, no_kexec):
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
    if len(environment.images) > 1 and any(way.name == CUSTOM_BROADCAST for way in steps["BroadcastEnv"]):
        raise OptionError(
            f"{CUSTOM_BROADCAST} knows of one image, and {environment.name} has {len(environment.images)}: choose "
            "another way with --force-steps."
        )
    return steps, notes


def lines(plan: Plan) -> list[str]:
    """Macro-steps with their implementations in order of preference, for people."""
    told = []
    for macro_step, ways in plan:
        words = []
        for way in ways:
            limit = f"{way.timeout} s each" if way.timeout else "no time limit"
            words.append(f"{way.name} ({1 + way.retries} {'try' if not way.retries else 'tries'}, {limit})")
        told.append(f"{macro_step}: {', then '.join(words)}")
    return told


def why_no_kexec(cluster: Cluster, environment: Environment, asked: bool) -> str:
    """Why kexec is out of the question; empty when it is not."""
    if not environment.kexec:
        return "the environment's options say kexec: false"
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
    if any(way.name == substitute for way in ways):
        return tuple(way for way in ways if way.name != unwanted)
    return tuple(_slower(way, substitute) if way.name == unwanted else way for way in ways)


def _slower(way: Implementation, name: str) -> Implementation:
    timeout = way.timeout + FIRMWARE if way.timeout else 0
    return msgspec.structs.replace(way, name=name, timeout=timeout)


def renamed(way: Implementation, name: str) -> Implementation:
    """*way* under another name, with as many tries and as much time."""
    return msgspec.structs.replace(way, name=name)


# --- --force-steps ------------------------------------------------------------------------------------------------

_FORCED = re.compile(r"(\w+):(\d{1,4}):(\d{1,6})\Z")


def parse_force_steps(text: str, known: Register) -> dict[str, tuple[Implementation, ...]]:
    """Read ``SetDeploymentEnv|Impl:retries:timeout,…&BroadcastEnv|…&BootNewEnv|…`` (use case 9 of kadeploy3).

    Blanks and line ends around the delimiters are tolerated; so is a backslash before ``&``.

    Raises:
        OptionError: says what is wrong; all three macro-steps are mandatory, in this order.
    """
    parts = [part.strip() for part in text.replace("\\&", "&").split("&")]
    found: dict[str, tuple[Implementation, ...]] = {}
    for part in parts:
        step, bar, ways = part.partition("|")
        if not bar or not ways.strip():
            raise OptionError(f"--force-steps: {part!r} is not of the form MacroStep|Implementation:retries:timeout.")
        if step.strip() not in MACRO_STEPS:
            hint = did_you_mean(step.strip(), MACRO_STEPS)
            raise OptionError(f"--force-steps: {step.strip()!r} is none of {', '.join(MACRO_STEPS)}.{hint}")
        found[step.strip()] = tuple(_forced(way.strip(), step.strip(), known) for way in ways.split(","))
    if tuple(found) != MACRO_STEPS or len(parts) != len(MACRO_STEPS):
        raise OptionError(f"--force-steps: expected all of {', '.join(MACRO_STEPS)}, once each and in this order.")
    return found


def checked(forced: Steps, known: Register) -> dict[str, Ways]:
    """*forced* steps that no option was read into, checked as if one had been: somebody has sent them as they are.

    Raises:
        OptionError: as `parse_force_steps`.
    """
    ordered = {step: forced[step] for step in MACRO_STEPS if step in forced} | dict(forced)
    ways = {step: ",".join(f"{way.name}:{way.retries}:{way.timeout}" for way in each) for step, each in ordered.items()}
    return parse_force_steps("&".join(f"{step}|{each}" for step, each in ways.items()), known)


def _forced(way: str, step: str, known: Register) -> Implementation:
    match = _FORCED.match(way)
    if not match:
        raise OptionError(f"--force-steps: {way!r} is not of the form Implementation:retries:timeout.")
    name = playbooks.named_today(match[1])
    playbooks.require_known(name, known)
    if playbooks.generic(name) != step:
        raise OptionError(f"--force-steps: {name} is not an implementation of {step}.")
    return Implementation(name=name, retries=int(match[2]), timeout=int(match[3]))


# --- --breakpoint -------------------------------------------------------------------------------------------------


def check_breakpoint(text: str, plan: Mapping[str, Sequence[Implementation]], config_dir: Path) -> None:
    """Check ``Macro`` or ``Macro:micro`` against the implementations that this deployment may use.

    Raises:
        OptionError: no such macro-step or micro-step, or none that this deployment goes through.
    """
    macro, colon, micro = text.partition(":")
    known = playbooks.implementations(config_dir)
    if macro not in known and macro not in MACRO_STEPS:
        playbooks.require_implementation(macro, config_dir, MACRO_STEPS)
    used = [way.name for step, ways in plan.items() for way in ways if macro in (step, way.name)]
    if not used:
        ways = [way.name for ways in plan.values() for way in ways]
        raise OptionError(f"--breakpoint: {macro} is not used by this deployment, which uses {', '.join(ways)}.")
    paths = [known[way] for way in used if way in known]
    steps = dict.fromkeys(name for path in paths for name in playbooks.micro_steps(path, config_dir))
    if (colon or micro) and micro not in steps:
        hint = did_you_mean(micro, steps)
        raise OptionError(f"--breakpoint: {macro} has no micro-step {micro!r}; it has {', '.join(steps)}.{hint}")
