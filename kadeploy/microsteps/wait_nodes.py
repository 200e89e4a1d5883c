"""Wait until rebooted nodes have come up in the deployment system, or in the deployed one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from kadeploy import process
from kadeploy.boot.secret import find
from kadeploy.config.timeouts import evaluate_timeout
from kadeploy.microsteps.microstep import MicroStep
from kadeploy.remote import reach
from kadeploy.workflow import Outcome

ARGUMENTS = {
    "target": {"type": "str", "default": "user", "choices": ["deploy", "user"]},
    "kind": {"type": "str", "default": "classical", "choices": ["classical", "kexec"]},
}
"""As an Ansible argument specification."""


SETTLE_AFTER_DEPLOYMENT = 2.0
"""Seconds for which a deployed system must answer: the one before it had the marker port open, and both close at once.

Any longer, and nodes that boot faster than we look would wait for nothing (see `reach` for the others).
"""


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Wait for the ssh port, and for the marker port to be open (deployment system) or closed (user system).

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
    timeout = evaluate_timeout(expression, len(step.members))
    goes_on = request.attempt.goes_on
    begun = goes_on.begun if goes_on else process.began(os.getppid())
    left = round(timeout - goes_on.waited) if goes_on else timeout
    targets = step.targets()
    wait = partial(reach.wait, timeout=left, window=site.windows.check, on_outcome=step.report)
    if step.args["target"] == "deploy":
        confirm = reach.booted_after(step.remote, begun)
        leave_late = os.environ.get("KADEPLOY_RUN") == "1" and request.operation == "deploy" and not goes_on
        secret = find(Path(request.workflow_dir), request.attempt)
        prove = reach.shows(step.remote, secret.parameter) if secret else None
        ports = [site.marker_port, site.ssh.port]
        return await wait(targets, ports, [], confirm=confirm, prove=prove, leave_late=leave_late)
    vlan = {node.name: node.vlan_address for node in request.nodes}
    targets = [replace(target, address=vlan[target.name] or target.address) for target in targets]
    settle = SETTLE_AFTER_DEPLOYMENT if request.operation == "deploy" else reach.SETTLE
    return await wait(targets, [site.ssh.port], [site.marker_port], settle=settle)
