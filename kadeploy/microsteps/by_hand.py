"""A micro-step by hand: it asks whose the nodes are, holds them while it works, and records what it leaves them in.

A workflow does all that for its steps. Who calls ``ansible-playbook`` has none: here each task claims its nodes under a
name of its own, and frees them at its end. A task that is killed leaves its claim, and the next operation finds its
nodes aborted, as those of any dead controller.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kadeploy.caller import caller
from kadeploy.config.folder import load_site
from kadeploy.config.site import Site
from kadeploy.errors import ConfigError, DatabaseError, NodeHeldError
from kadeploy.nodeset import fold
from kadeploy.runner.player import end_processes
from kadeploy.runner.request import Request
from kadeploy.state import database, nodes
from kadeploy.state.nodes import NO_ENVIRONMENT, Recorded, State
from kadeploy.workflow import Operation, Outcome, Verdict

FORCE = "kadeploy_force"
"""Extra variable: nodes are treated whoever has them, and where nobody can be asked."""
PATIENCE = 5.0
"""Seconds that a workflow gets to let go of nodes that are taken from it by force."""
_IN_FLIGHT: Mapping[Operation, State] = {"deploy": "deploying", "reboot": "rebooting", "power": "powering"}
_FAILED: Mapping[Operation, State] = {"deploy": "deploy_failed", "reboot": "reboot_failed", "power": "power_failed"}

Work = Callable[[tuple[str, ...]], Mapping[str, Outcome]]


@dataclass(frozen=True)
class Left:
    """What a task leaves of the nodes that are OK."""

    state: State
    environment: Recorded | None = None
    """None: what is recorded."""


def only_looks(action: str, args: Mapping[str, Any], request: Request) -> bool:
    """Whether a task asks nodes something, or nothing, so that others may hold them meanwhile."""
    if action == "finish_step":
        return not request.options.custom_operations
    return action == "power_nodes" and args["operation"] == "status"


def left(action: str, args: Mapping[str, Any], request: Request) -> Left | None:
    """What a task of *action* leaves of the nodes that are OK; None: their state is as it was.

    A node of a deployment that lets a script in has shown the deployment system's host key.
    """
    match action:
        case "on_nodes" if args["disconnect_ok"]:
            return Left("rebooted")
        case "on_nodes" | "send_image" if request.operation == "deploy":
            return Left("deploy_env", NO_ENVIRONMENT)
        case "power_nodes":
            return Left("rebooted" if args["operation"] == "reboot" else "powered")
        case "wait_nodes":
            return _booted(args["target"], request)
    return None


def _booted(target: str, request: Request) -> Left:
    if target == "deploy":
        return Left("deploy_env", NO_ENVIRONMENT)
    if request.operation == "deploy":
        return Left("deployed", _recorded(request))
    if request.boot.kind == "deployed":
        on_production = request.partition == request.cluster.disk.number("prod")
        return Left("prod_env" if on_production else "recorded_env", _recorded(request))
    return Left("rebooted")


def _recorded(request: Request) -> Recorded:
    """The request's environment, if it is a recorded one: those have an owner."""
    environment = request.environment
    return Recorded.of(environment) if environment and environment.user else NO_ENVIRONMENT


def do(
    request: Request,
    members: Sequence[str],
    after: Left | None,
    work: Work,
    warn: Callable[[str], object],
    *,
    force: bool,
) -> dict[str, Outcome]:
    """Do *work* on those of *members* that nobody else has, or with *force* on all; the others are KO and say whose.

    Where the request's site is not configured on this machine, nobody can be asked: it warns, and goes on.

    Raises:
        NodeHeldError: this account cannot ask the site, or record what becomes of the nodes; nothing was done.
    """
    try:
        site = _site(request)
    except (ConfigError, DatabaseError, OSError) as error:
        if not force:
            raise NodeHeldError(
                f"Whose nodes these are cannot be asked, and what becomes of them not be recorded: {error} Nothing was "
                f"done: be root, or the account that keeps the state. -e {FORCE}=true goes on all the same."
            ) from error
        warn(f"Nothing is recorded of {fold(members)}: {error}")
        return dict(work(tuple(members)))
    if site is None:
        warn(f"Nobody was asked whose nodes these are: there is no site in {request.config_dir} on this machine.")
        return dict(work(tuple(members)))
    return _Hand(request, site, after).do(members, work, force=force)


def _site(request: Request) -> Site | None:
    """The site that knows whose the nodes are, its database open; None where there is none on this machine."""
    folder = Path(request.config_dir)
    if not (folder / "site.yml").exists():
        return None
    site = load_site(folder)
    database.connect(site)
    return site


@dataclass(frozen=True)
class _Hand:
    """One task's hold on its nodes."""

    request: Request
    site: Site
    after: Left | None

    @property
    def wid(self) -> str:
        """The name under which it holds them; its process is their controller."""
        return f"hand-{os.getpid()}-{socket.gethostname()}"[:64]

    def do(self, members: Sequence[str], work: Work, *, force: bool) -> dict[str, Outcome]:
        mine, refused = self._claim(members, force)
        outcomes: dict[str, Outcome] = {}
        try:
            if mine:
                self._set(mine, _IN_FLIGHT[self.request.operation], self._attempted)
                outcomes |= work(tuple(mine))
        finally:
            self._record(mine, outcomes)
            nodes.release(self.wid)
        return outcomes | {node: Outcome(Verdict.KO, reason, 1) for node, reason in refused.items()}

    def _claim(self, members: Sequence[str], force: bool) -> tuple[list[str], dict[str, str]]:
        for wid in nodes.reap(self.site):
            end_processes(self.site.run_folders / wid)
        taken = force and bool(nodes.holders(self.site, members))
        parts = dict.fromkeys(members, self.request.deploy_part)
        mine, refused = nodes.claim(self.site, members, self.wid, caller().name, force, parts)
        if taken:
            time.sleep(PATIENCE)
        return mine, {node: f"{reason}; -e {FORCE}=true takes it" for node, reason in refused.items()}

    def _record(self, mine: Sequence[str], outcomes: Mapping[str, Outcome]) -> None:
        groups: dict[Verdict | None, list[str]] = {}
        for node in mine:
            groups.setdefault(outcomes[node].verdict if node in outcomes else None, []).append(node)
        for verdict, names in groups.items():
            self._set(names, *self._end(verdict))

    def _end(self, verdict: Verdict | None) -> tuple[State, Recorded | None]:
        """The state of nodes with *verdict*; None: they came to no end."""
        match verdict:
            case Verdict.OK if self.after:
                return self.after.state, self.after.environment
            case Verdict.BRK:
                return "deploy_env", NO_ENVIRONMENT
            case Verdict.KO:
                return _FAILED[self.request.operation], self._attempted
        return "aborted", NO_ENVIRONMENT if self.request.operation == "deploy" else None

    @property
    def _attempted(self) -> Recorded | None:
        """The environment of nodes in flight, or KO."""
        return _recorded(self.request) if self.request.operation == "deploy" else None

    def _set(self, names: Sequence[str], state: State, environment: Recorded | None) -> None:
        if self.after:
            user = self.request.user if self.request.operation == "deploy" else None
            nodes.set_state(names, state, environment, user, held_by=self.wid)
