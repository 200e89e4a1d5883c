"""Wait until rebooted nodes have come up in the deployment system, or in the deployed one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from kadeploy import commands, process
from kadeploy.boot import profile, traces
from kadeploy.boot.secret import find
from kadeploy.boot.traces import Log, Machines, Requests
from kadeploy.config.folder import load_configuration
from kadeploy.config.timeouts import evaluate_timeout
from kadeploy.errors import ConfigError
from kadeploy.microsteps.memory import memory_of_reboots
from kadeploy.microsteps.microstep import MicroStep
from kadeploy.remote import reach
from kadeploy.runner import known_hosts
from kadeploy.runner.request import Request
from kadeploy.workflow import Outcome, Verdict

ARGUMENTS = {
    "target": {"type": "str", "default": "user", "choices": ["deploy", "user", "any"]},
    "kind": {"type": "str", "default": "classical", "choices": ["classical", "kexec"]},
    "address": {"type": "str", "default": ""},
    "port": {"type": "int", "default": 22},
    "marker_port": {"type": "int", "default": 25300},
    "timeout": {"type": "int", "default": 600},
}
"""As an Ansible argument specification; from `address` on, what only a host without a request needs."""


SETTLE_AFTER_DEPLOYMENT = 2.0
"""Seconds for which a deployed system must answer: the one before it had the marker port open, and both close at once.

That it is another one than the deployment system proves that it has booted.
"""


_WORDS = {"deploy": "the deployment system", "user": "the user's system", "any": "whatever system is booted"}


def what(args: Mapping[str, Any], _request: Request | None = None) -> str:
    """``wait for the deployment system``."""
    return f"wait for {_WORDS[args['target']]}"


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Wait until they have come up, and have the run folder's `known_hosts` expect the system that they run."""
    outcomes = await _wait(step)
    up = {node for node, outcome in outcomes.items() if outcome.verdict is Verdict.OK}
    known_hosts.booted(step.request, up, step.args["target"] == "deploy")
    return outcomes


async def _wait(step: MicroStep) -> Mapping[str, Outcome]:
    """Wait for the ssh port, and for the marker port to be open (deployment system) or closed (user system, not any).

    In a deployment by kadeploy3 a few nodes that boot slowly, or not at all, are LATE: the others go on, and these are
    waited for in an attempt of their own.

    In a VLAN a node answers under another address once it has left the deployment system. The deployment system is
    asked whether it was booted after this ansible-playbook began, since it may have run already, and for the secret of
    this try, where it was booted with one.
    """
    request, site = step.request, step.request.site
    limits, options = request.cluster.timeouts, request.options
    if step.args["kind"] == "kexec":
        expression = options.kexec_timeout or limits.kexec
    else:
        expression = options.reboot_timeout or limits.reboot
    timeout = evaluate_timeout(expression, step.together or len(step.members))
    goes_on = request.attempt.goes_on
    begun = goes_on.begun if goes_on else process.began(os.getppid())
    left = round(timeout - goes_on.waited) if goes_on else timeout
    targets = step.targets()
    left_behind = _Traces.begin(step)
    wait = partial(reach.wait, timeout=left, window=site.windows.check, on_outcome=step.report, taken=step.remote.taken)
    if step.args["target"] == "deploy":
        confirm = reach.booted_after(step.remote, begun)
        leave_late = os.environ.get("KADEPLOY_RUN") == "1" and request.operation == "deploy" and not goes_on
        secret = find(Path(request.workflow_dir), request.attempt)
        prove = reach.shows(step.remote, secret.parameter) if secret else None
        ports = [site.marker_port, site.ssh.port]
        found = await wait(targets, ports, [], confirm=confirm, prove=prove, leave_late=leave_late)
        return left_behind.added(found)
    vlan = {node.name: node.vlan_address for node in request.nodes}
    targets = [replace(target, address=vlan[target.name] or target.address) for target in step.targets(pinned=False)]
    down = [] if step.args["target"] == "any" else [site.marker_port]
    if request.operation == "deploy":
        return left_behind.added(await wait(targets, [site.ssh.port], down, settle=SETTLE_AFTER_DEPLOYMENT))
    confirm = reach.booted_after(step.remote, begun, may_refuse=True)
    return left_behind.added(await wait(targets, [site.ssh.port], down, confirm=confirm))


@dataclass(frozen=True)
class _Traces:
    """What nodes that do not come back left behind, where the site keeps it."""

    step: MicroStep
    boot_log: Log | None
    consoles: Mapping[str, Log]

    @classmethod
    def begin(cls, step: MicroStep) -> _Traces:
        """Of the boot server since the nodes were rebooted; nodes that boot by kexec ask it for nothing."""
        log = step.request.site.boot.log
        boot_log = _since_the_reboot(step, Path(log)) if log and step.args["kind"] != "kexec" else None
        pattern = step.request.cluster.console_log
        consoles = {node: Log.now(commands.filled(pattern, node)) for node in step.members} if pattern else {}
        return cls(step, boot_log, consoles)

    def added(self, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """*outcomes*, in which nodes that are KO tell what they left behind, and where to look."""
        lines = self.boot_log.lines() if self.boot_log and _ko(outcomes) else None
        asked = Requests.read(lines, _machines(self.step.request)) if lines is not None else None
        return dict(outcomes) | {
            node: replace(outcome, message=self._told(node, outcome.message, asked))
            for node, outcome in _ko(outcomes).items()
        }

    def _told(self, node: str, message: str, asked: Requests | None) -> str:
        parts = [message]
        if asked is not None:
            parts.append(asked.of(node, _names(self.step.request, node)))
        if node in self.consoles and (said := self.consoles[node].lines()) is not None:
            parts.append(traces.said(said))
        command = " (kaconsole3)" if self.step.request.cluster.console else ""
        return f"{'; '.join(parts)}: see its console{command}."


def _since_the_reboot(step: MicroStep, path: Path) -> Log | None:
    """The boot server's log; from now on for nodes that reboot by themselves, None when they did so long ago."""
    request = step.request
    lengths = memory_of_reboots(Path(request.workflow_dir)).boot_log_lengths(request.attempt.macro_step)
    if lengths.keys() >= set(step.members):
        return Log(path, min(lengths[node] for node in step.members))
    return None if request.attempt.goes_on else Log.now(path)


def _names(request: Request, name: str) -> list[str]:
    """What a log may call a node: its address first, also that in its VLAN, and its name."""
    node = next(node for node in request.nodes if node.name == name)
    try:
        address = profile.address(node)
    except ConfigError:
        address = node.name
    return list(filter(None, [address, node.vlan_address, node.name]))


def _machines(request: Request) -> Machines:
    """The nodes of all clusters, or of this one when the configuration cannot be read any more."""
    try:
        clusters = list(load_configuration(Path(request.config_dir)).clusters.values())
    except ConfigError:
        clusters = [request.cluster]
    nodes = [node for cluster in clusters for node in cluster.members.values()]
    addresses = {node.address for node in nodes} if all(node.address for node in nodes) else set()
    if addresses:
        addresses |= {request.site.server_address, *(node.vlan_address for node in request.nodes)} - {""}
    return Machines(frozenset(addresses), {node.mac.lower().replace("-", ":"): node.name for node in nodes if node.mac})


def _ko(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    return {node: outcome for node, outcome in outcomes.items() if outcome.verdict is Verdict.KO}
