"""Run a script on all nodes, or send them a file."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kadeploy.boot.secret import make
from kadeploy.microsteps.microstep import MicroStep
from kadeploy.remote.fanout import Target, on_all
from kadeploy.remote.window import window
from kadeploy.runner.request import Request
from kadeploy.workflow import Outcome, Verdict

ARGUMENTS = {
    "script": {"type": "str"},
    "look": {"type": "str"},
    "env": {"type": "dict", "default": {}},
    "stdin_file": {"type": "str"},
    "send": {
        "type": "dict",
        "options": {
            "src": {"type": "str", "required": True},
            "dest": {"type": "str", "required": True},
            "mode": {"type": "str", "default": "0644"},
        },
    },
    "window": {"type": "str", "choices": ["reboot", "check", "ssh"]},
    "timeout": {"type": "float", "default": 0},
    "disconnect_ok": {"type": "bool", "default": False},
    "pinned": {"type": "bool", "default": True},
    "breakpoint": {"type": "bool", "default": False},
    "secret": {"type": "bool", "default": False},
}
"""As an Ansible argument specification."""


_SHORT = 60
"""Characters of a variable's value that check mode shows."""


def what(args: Mapping[str, Any], _request: Request) -> str:
    """``run format_partition.sh (KADEPLOY_FORMAT_PART=/dev/sda3)``, or ``send FILE to FILE``."""
    if send := args["send"]:
        return f"send {send['src']} to {send['dest']}"
    variables = " ".join(f"{name}={_short(str(value))}" for name, value in args["env"].items())
    source = f" on {args['stdin_file']}" if args["stdin_file"] else ""
    return f"run {args['script']}{source}" + (f" ({variables})" if variables else "")


def _short(value: str) -> str:
    line = " ".join(value.split())
    return shlex.quote(line if len(line) <= _SHORT else f"{line[:_SHORT]}…")


async def run(step: MicroStep) -> Mapping[str, Outcome]:
    """Do it on every member, as many at a time as the site allows.

    Arguments: ``text`` (the script's bytes) with ``env``, ``stdin_file``, ``timeout`` and ``disconnect_ok``; or
    ``send``. ``window`` is a bound shared with all workflows of this machine. ``pinned: false`` accepts another host
    key than the deployment system's. ``breakpoint`` stops the nodes once they are done. ``secret`` tells each node
    the kernel parameter by which it will be known, in ``KADEPLOY_SECRET``.
    """
    enter = _shared_window(step)

    async def job(target: Target) -> Outcome:
        async with enter():
            return await _one(step, target)

    targets = step.targets(step.args["pinned"])
    outcomes = await on_all(targets, job, step.request.site.windows.ssh, step.report)
    if step.args["disconnect_ok"]:
        await step.remote.forget(targets)
    return {node: _stopped(outcome) for node, outcome in outcomes.items()} if step.args["breakpoint"] else outcomes


async def _one(step: MicroStep, target: Target) -> Outcome:
    args = step.args
    if send := args["send"]:
        return await step.remote.send(target, Path(send["src"]), send["dest"], int(send["mode"], 8), args["timeout"])
    return await step.remote.run(
        target,
        args["text"],
        {**step.env, **{str(name): str(value) for name, value in args["env"].items()}, **_secret(step, target)},
        args["timeout"],
        stdin_file=Path(args["stdin_file"]) if args["stdin_file"] else None,
        disconnect_ok=args["disconnect_ok"],
    )


def _secret(step: MicroStep, target: Target) -> Mapping[str, str]:
    request = step.request
    if not (step.args["secret"] and request.cluster.loader.show_secret):
        return {}
    return {"KADEPLOY_SECRET": make(Path(request.workflow_dir), request.attempt).parameter(target.name)}


def _shared_window(step: MicroStep) -> Callable[[], AbstractAsyncContextManager[None]]:
    name = step.args["window"]
    if not name:
        return contextlib.nullcontext
    site = step.request.site
    return lambda: window(site.state / "windows" / name, getattr(site.windows, name))


def _stopped(outcome: Outcome) -> Outcome:
    if outcome.verdict is not Verdict.OK:
        return outcome
    return replace(outcome, verdict=Verdict.BRK, message="Stopped at the breakpoint of the archive's script.")
