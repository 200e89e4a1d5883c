"""One micro-step on all its nodes: what is the same for every engine, without Ansible.

`play` is the order of things: operations asked for after the previous micro-step, the breakpoint, operations before
(or instead of) this one, and the engine itself with its time-out and the cluster's retries. Whatever an engine does,
each member gets an outcome.
"""

from __future__ import annotations

import asyncio
import functools
import shlex
import string
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kadeploy.config.cluster import address
from kadeploy.errors import KadeployError
from kadeploy.microsteps.memory import Begun, Memory
from kadeploy.remote.fanout import Remote, Target, on_all
from kadeploy.runner import roles
from kadeploy.runner.request import CustomOperation, Request
from kadeploy.workflow import Outcome, Verdict


@dataclass(frozen=True)
class MicroStep:
    """What an engine works on."""

    request: Request
    begun: Begun
    """Its name, and the implementation that it belongs to."""
    members: tuple[str, ...]
    remote: Remote
    env: Mapping[str, str] = field(default_factory=dict)
    """KADEPLOY_* variables of scripts."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the task, checked."""
    together: int = 0
    """How many nodes go through the play at the same time, which time-outs depend on; 0: the members."""
    report: Callable[[str, Outcome], None] = lambda _node, _outcome: None
    """Called by an engine for each node that has ended: what a time-out leaves to the others."""

    @property
    def name(self) -> str:
        """The micro-step's name."""
        return self.begun.step

    @property
    def limit(self) -> int | None:
        """Seconds after which members still busy are KO, None for no limit: the cluster's, else the role's own."""
        own = roles.find(self.name, Path(self.request.config_dir)).timeout
        return self.request.cluster.micro_timeouts.get(self.name, own) or None

    def targets(self, pinned: bool = True) -> list[Target]:
        """The members' ssh servers."""
        port = self.request.site.ssh.port
        known = {node.name: node for node in self.request.nodes}
        return [Target(name, address(self.request.site, known[name]), port, pinned) for name in self.members]

    def only(self, members: tuple[str, ...]) -> MicroStep:
        """The same for fewer nodes."""
        return replace(self, members=members)


Engine = Callable[[MicroStep], Awaitable[Mapping[str, Outcome]]]


async def play(step: MicroStep, engine: Engine, memory: Memory) -> dict[str, Outcome]:
    """Do a task of a micro-step; the outcome of every member.

    The nodes that end KO or at a breakpoint are noted in *memory*.
    """
    begun = memory.begun(step.members)
    outcomes = await in_turn(step, _stages(step, engine, begun))
    if step.begun.key not in {before.key for before in begun}:
        memory.begin(step.begun, step.members)
    memory.note(step.begun, outcomes)
    return {node: outcomes.get(node, Outcome(Verdict.OK)) for node in step.members}


Stage = Callable[[MicroStep], Awaitable[Mapping[str, Outcome]]]


async def in_turn(step: MicroStep, stages: Iterable[Stage]) -> dict[str, Outcome]:
    """Do *stages* one after the other; a node that fails takes no further part."""
    outcomes: dict[str, Outcome] = {}
    for stage in stages:
        survivors = tuple(node for node in step.members if _goes_on(outcomes.get(node)))
        if not survivors:
            break
        _add(outcomes, await stage(step.only(survivors)))
    return outcomes


def _stages(step: MicroStep, engine: Engine, begun: list[Begun]) -> list[Stage]:
    """What happens, in order; only a micro-step's first task has something in front of it."""
    stages: list[Stage] = []
    goes_on = step.request.attempt.goes_on
    resumed = not begun and goes_on is not None and goes_on.micro_step == step.name  # what comes first has been done
    if step.begun.key not in {before.key for before in begun} and not resumed:
        if begun:
            stages.append(_Operations(begun[-1], "post"))
        if at_breakpoint(step.request.options.breakpoint, step.begun):
            return [*stages, _stop]
        stages += [_Operations(step.begun, "pre"), _Operations(step.begun, "substitute")]
    if not operations(step.request, step.begun, "substitute"):
        stages.append(_Perform(engine))
    return stages


def would(request: Request, begun: Begun, what: str) -> list[str]:
    """What would happen in a micro-step whose task does *what*, in order, for people who try it."""
    if at_breakpoint(request.options.breakpoint, begun):
        return [f"stop at the breakpoint before {begun.implementation}:{begun.step}"]
    instead = operations(request, begun, "substitute")
    done = [f"run the custom operation {_title(each)}" for each in (*operations(request, begun, "pre"), *instead)]
    return done if instead or not what else [*done, what]


def _goes_on(outcome: Outcome | None) -> bool:
    return outcome is None or outcome.verdict is Verdict.OK


def _add(outcomes: dict[str, Outcome], later: Mapping[str, Outcome]) -> None:
    """A node's last verdict counts; what was said before it is kept, and seconds add up."""
    for node, outcome in later.items():
        before = outcomes.get(node)
        outcomes[node] = (
            outcome
            if before is None
            else replace(
                outcome,
                stdout=before.stdout + outcome.stdout,
                stderr=before.stderr + outcome.stderr,
                seconds=round(before.seconds + outcome.seconds, 3),
            )
        )


def at_breakpoint(where: str, begun: Begun) -> bool:
    """Whether *where*, ``Macro:micro`` or ``Macro`` (implementation or generic name), stops before this micro-step."""
    macro, _, micro = where.partition(":")
    return macro in (begun.implementation, begun.macro_step) and micro in ("", begun.step)


async def _stop(step: MicroStep) -> dict[str, Outcome]:
    message = f"Stopped at the breakpoint before {step.begun.implementation}:{step.name}."
    return dict.fromkeys(step.members, Outcome(Verdict.BRK, message))


# --- the engine, with time-out and retries ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Perform:
    engine: Engine

    async def __call__(self, step: MicroStep) -> dict[str, Outcome]:
        return await perform(step, self.engine)


async def perform(step: MicroStep, engine: Engine) -> dict[str, Outcome]:
    """Run *engine* with the micro-step's time-out, and the retries that the cluster has for it.

    Retries are additional tries for the nodes that are KO. A time-out makes the nodes still busy KO, the others keep
    their outcome; so does an engine that raises.
    """
    outcomes: dict[str, Outcome] = {}
    left = step.members
    for _ in range(1 + step.request.cluster.micro_retries.get(step.name, 0)):
        if left:
            outcomes |= await _once(step.only(left), engine)
            left = tuple(node for node in left if outcomes[node].verdict is Verdict.KO)
    return {node: outcomes[node] for node in step.members}


async def on_held(step: MicroStep, engine: Engine) -> dict[str, Outcome]:
    """Run *engine* on the members that are still the workflow's, and stay so meanwhile; the others are KO."""
    async with step.remote.hold(step.members) as taken:
        kept = tuple(node for node in step.members if node not in taken)
        outcomes = await engine(step.only(kept)) if kept else {}
    return {**outcomes, **{node: Outcome(Verdict.KO, reason) for node, reason in taken.items()}}


async def _once(step: MicroStep, engine: Engine) -> dict[str, Outcome]:
    heard: dict[str, Outcome] = {}
    missing = "no verdict"
    limit = asyncio.timeout(step.limit)
    try:
        async with limit:
            heard |= await engine(replace(step, report=heard.__setitem__))
    except KadeployError as error:
        missing = str(error)
    except Exception as error:  # a fault of ours or of a library: these nodes are KO, the play goes on
        missing = f"Timeout in the {step.name} step" if limit.expired() else f"{type(error).__name__}: {error}"
    return {node: heard.get(node, Outcome(Verdict.KO, missing)) for node in step.members}


# --- custom operations ------------------------------------------------------------------------------------------------


def operations(request: Request, begun: Begun, when: str) -> list[CustomOperation]:
    """Custom operations of a micro-step, in the order of the user's file."""
    return [
        operation
        for operation in request.options.custom_operations
        if operation.when == when
        and operation.micro_step == begun.step
        and operation.implementation in (begun.implementation, begun.macro_step)
    ]


@dataclass(frozen=True)
class _Operations:
    """Custom operations of one kind, one after the other; a node that fails takes no further part."""

    begun: Begun
    when: str

    async def __call__(self, step: MicroStep) -> dict[str, Outcome]:
        mine = operations(step.request, self.begun, self.when)
        return await in_turn(step, [functools.partial(_operate, operation) for operation in mine])


async def _operate(operation: CustomOperation, step: MicroStep) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    left = step.members
    for _ in range(1 + operation.retries):
        if left:
            window = step.request.site.windows.ssh
            outcomes |= await on_all(step.only(left).targets(), _job(step, operation), window)
            left = tuple(node for node in left if outcomes[node].verdict is Verdict.KO)
    title = f"custom operation {_title(operation)}"
    return {
        node: replace(outcome, message=f"{title}: {outcome.message}") if outcome.verdict is Verdict.KO else outcome
        for node, outcome in outcomes.items()
    }


def _title(operation: CustomOperation) -> str:
    return operation.name or operation.action


def _job(step: MicroStep, operation: CustomOperation) -> Callable[[Target], Awaitable[Outcome]]:
    remote, env, timeout = step.remote, step.env, operation.timeout

    async def job(target: Target) -> Outcome:
        if operation.action == "send":
            destination = string.Template(operation.destination).safe_substitute(env)
            return await remote.send(target, Path(operation.file), destination, 0o755, timeout)
        return await remote.run(target, _script(operation), env, timeout)

    return job


def _script(operation: CustomOperation) -> bytes:
    if operation.action == "exec":
        return operation.command.encode()
    words = shlex.join(shlex.split(operation.params))
    return f"set -- {words}\n".encode() + Path(operation.file).read_bytes()
