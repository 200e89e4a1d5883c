"""Which nodes boot by kexec where ``macro_steps`` says ``auto``: where it has proved itself, see ADR 19."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from kadeploy.boot import served
from kadeploy.config.cluster import AUTO, KEXEC
from kadeploy.config.site import Site
from kadeploy.errors import DatabaseError
from kadeploy.nodeset import fold
from kadeploy.operations import plan
from kadeploy.operations.plan import Steps, Ways
from kadeploy.runner import inventory
from kadeploy.runner.request import Assignment
from kadeploy.state import nodes, tries
from kadeploy.state.history import Image
from kadeploy.state.tries import NEVER, Tries

LEAST = 3
"""Tries without which nothing is said of kexec: until then one node of a deployment tries it."""
SHARE = 0.9
"""Of the tries so many have to go well."""
_COLUMNS = {"SetDeploymentEnv": 1, "BootNewEnv": 3}
"""The columns of the log that tell of a macro-step."""
_OURS = frozenset({"deploy_env"})
_LINUX = _OURS | {"prod_env", "recorded_env", "deployed"}
"""States of nodes that run a system which may let us in."""


class Chosen(NamedTuple):
    """A plan in which nothing is left to choose."""

    steps: Steps
    passing: Mapping[str, tuple[str, ...]] = {}
    """Nodes that leave out an implementation of it, by its name."""
    told: tuple[str, ...] = ()
    """What was chosen for which nodes, and why, for people."""


class Reasons(NamedTuple):
    """Why nodes boot by kexec, and why others do not: nodes by reason."""

    kexec: Mapping[str, tuple[str, ...]] = {}
    firmware: Mapping[str, tuple[str, ...]] = {}


def made(site: Site, assignment: Assignment, steps: Steps) -> Chosen:
    """*steps* with kexec in the places that are left to us, or without it where no node boots by it.

    *site* has the database.
    """
    chosen = dict(steps)
    passing: dict[str, tuple[str, ...]] = {}
    told: list[str] = []
    for macro_step, ways in steps.items():
        if ways[0].name != AUTO:
            continue
        kexec, others = KEXEC[macro_step], ways[1:]
        found = _reasons(site, assignment, macro_step, others)
        takers = tuple(name for names in found.kexec.values() for name in names)
        chosen[macro_step] = (plan.renamed(ways[0], kexec), *others) if takers else others
        if takers and found.firmware:
            passing[kexec] = tuple(name for names in found.firmware.values() for name in names)
        for way, reasons in ((kexec, found.kexec), (others[0].name, found.firmware)):
            told += [f"{macro_step}: {way} for {fold(names)}: {reason}" for reason, names in reasons.items()]
    return Chosen(chosen, passing, tuple(told))


def _reasons(site: Site, assignment: Assignment, macro_step: str, others: Ways) -> Reasons:
    names = tuple(node.name for node in assignment.nodes)
    if reason := _out_of_question(assignment, macro_step, others):
        return Reasons(firmware={reason: names})
    try:
        fit, unfit = _fit(site, assignment, macro_step)
        if not fit:
            return Reasons(firmware=unfit)
        found = judged(fit, _tries(site, assignment, macro_step, others))
    except DatabaseError:
        return Reasons(firmware={"the log of what went before cannot be read": names})
    return Reasons(found.kexec, {**found.firmware, **unfit})


# --- without a look at the log --------------------------------------------------------------------------------------

_Question = Callable[[Assignment], str]


def _out_of_question(assignment: Assignment, macro_step: str, others: Ways) -> str:
    """Why no node may boot by kexec, whatever the log says; empty when some may."""
    asked = (ask(assignment) for ask in (*_ALWAYS, *_OF_STEP[macro_step]))
    return next(filter(None, asked), "") or _named(assignment, others)


def _ruled_out(assignment: Assignment) -> str:
    environment = assignment.environment
    if environment is not None and not environment.kexec:
        return "the environment's options say kexec: false"
    return "--no-kexec" if assignment.options.no_kexec else ""


def _secure_boot(assignment: Assignment) -> str:
    return "Secure Boot, under which a kernel may refuse the next one" if assignment.cluster.loader.secure_boot else ""


def _classical_timeout(assignment: Assignment) -> str:
    options = assignment.options
    asked = options.reboot_timeout and not options.kexec_timeout
    return "--reboot-classical-timeout says how long they reboot" if asked else ""


def _hard_first(assignment: Assignment) -> str:
    level = assignment.site.first_reboot
    return "" if level == "soft" else f"first_reboot of this site is {level}"


def _own_profile(assignment: Assignment) -> str:
    return "-w: they boot by the user's profile" if assignment.options.pxe_profile else ""


def _no_kernel(assignment: Assignment) -> str:
    environment = assignment.environment
    if environment is None or not environment.kernel:
        return "the environment names no kernel"
    if reason := plan.why_no_kexec(assignment.cluster, environment, asked=False):
        return reason
    return "" if inventory.is_mountable(assignment) else "the deployment system cannot mount the new system"


_ALWAYS: Sequence[_Question] = (_ruled_out, _secure_boot, _classical_timeout)
_OF_STEP: Mapping[str, Sequence[_Question]] = {
    "SetDeploymentEnv": (_hard_first,),
    "BootNewEnv": (_own_profile, _no_kernel),
}


def _named(assignment: Assignment, others: Ways) -> str:
    """The user has said what is to happen in one of the *others*: then they go through it."""
    options = assignment.options
    named = {options.breakpoint.partition(":")[0], *(each.implementation for each in options.custom_operations)}
    name = next((way.name for way in others if way.name in named), "")
    return f"the request has a breakpoint or an operation in {name}" if name else ""


# --- nodes and the log ----------------------------------------------------------------------------------------------


def _fit(site: Site, assignment: Assignment, macro_step: str) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Nodes that run a system which can start the next one, and the others by why they do not."""
    names = tuple(node.name for node in assignment.nodes)
    if macro_step != "SetDeploymentEnv":
        return names, {}
    wanted = _OURS if site.ssh.host_key else _LINUX
    states = {row.hostname: row.state for row in nodes.states(site, names)}
    fit = tuple(name for name in names if states.get(name) in wanted)
    unfit: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name not in fit:
            state = states.get(name, "")
            reason = f"in the state {state}, and kexec starts from {' or '.join(sorted(wanted))}" if state else _UNKNOWN
            unfit[reason] = (*unfit.get(reason, ()), name)
    return fit, unfit


_UNKNOWN = "nobody knows what they run"


def _tries(site: Site, assignment: Assignment, macro_step: str, others: Ways) -> dict[str, Tries]:
    """Of all nodes of the cluster: they are alike."""
    environment = assignment.environment if macro_step == "BootNewEnv" else None
    image = Image(f"{environment.name}:{environment.version}", environment.image.md5) if environment else None
    ways = tuple(way.name for way in others)
    members = list(dict.fromkeys([*assignment.cluster.members, *(node.name for node in assignment.nodes)]))
    since = 0 if image else _deployment_system_since(assignment)
    return tries.of(site, members, _COLUMNS[macro_step], KEXEC[macro_step], ways, image, since)


def _deployment_system_since(assignment: Assignment) -> int:
    """Unix second from which on there is the deployment system's kernel; 0 where it is on another machine."""
    path = served.path(assignment.site, assignment.cluster.loader, assignment.cluster.loader.kernel)
    with suppress(OSError):
        return int(path.stat().st_mtime) if path else 0
    return 0


def judged(names: Sequence[str], known: Mapping[str, Tries]) -> Reasons:
    """Which of *names* boot by kexec by what is *known* of the nodes of the cluster.

    It has proved itself after `LEAST` tries, of which `SHARE` went well, unless the other ways were as fast. Then all
    boot by it but those on which the last try failed. As long as there are fewer tries and none failed, one node tries.
    """
    everyone = tuple(names)
    total = tries.together(known.values())
    went = f"{total.worked} of {total.tried} tries within {tries.DAYS} days went well"
    if total.tried < LEAST and not total.failed:
        return _explored(everyone, total)
    if total.worked < SHARE * max(total.tried, LEAST):
        return Reasons(firmware={f"kexec has not proved itself: {went}": everyone})
    if slow := _slow(total):
        return Reasons(firmware={slow: everyone})
    failed = tuple(name for name in names if known.get(name, NEVER).failed_last)
    takers = tuple(name for name in names if name not in failed)
    reasons = {f"{went}{_times(total)}": takers} if takers else {}
    return Reasons(reasons, {"the last try by kexec failed there": failed} if failed else {})


def _explored(names: tuple[str, ...], total: Tries) -> Reasons:
    first, rest = names[:1], names[1:]
    so_far = f"{total.tried} of the {LEAST} tries that show whether it works"
    waiting = {f"kexec is tried on {first[0]} first": rest} if rest else {}
    return Reasons({f"a try, with the firmware behind it; so far {so_far}": first}, waiting)


def _slow(total: Tries) -> str:
    """Why kexec is not worth it; empty when it is, or nobody knows."""
    if not (total.seconds and total.other_seconds) or total.seconds < total.other_seconds:
        return ""
    return f"kexec is not faster: {total.seconds} s, and {total.other_seconds} s through the firmware"


def _times(total: Tries) -> str:
    known = total.seconds and total.other_seconds
    return f", {total.seconds} s in place of {total.other_seconds} s" if known else ""
