"""Talking to a running lab's supervisor."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kadeploy import process
from kadeploy.errors import KadeployError
from kadeploy.lab import chassis
from kadeploy.lab.lab import Lab

_SUPERVISOR = "supervisor"


def running(lab: Lab) -> process.Process | None:
    """The supervisor, if it is alive."""
    return process.read(lab.pid_file)


def ask(lab: Lab, operation: str, node: str = "") -> dict[str, Any]:
    """The supervisor's answer; raises KadeployError when there is none or it refuses."""
    try:
        answer = chassis.ask(str(lab.control), operation, node, by="kadeploy-lab")
    except PermissionError as error:
        raise KadeployError(f"The supervisor of {lab.name} answers root alone: kanodes3 shows the nodes.") from error
    except (OSError, ValueError) as error:
        raise KadeployError(
            f"The lab {lab.name} does not answer ({error}): `kadeploy-lab up` starts it again."
        ) from error
    if not answer["ok"]:
        raise KadeployError(str(answer["error"]))
    return answer


def wait_ready(lab: Lab, seconds: float = 30.0, alive: Callable[[], bool] = lambda: True) -> None:
    """Return once every service answers.

    Raises:
        KadeployError: names those that do not, and shows the end of their logs; at once when *alive* turns false.
    """
    limit = time.monotonic() + seconds
    waiting = [_SUPERVISOR]
    while time.monotonic() < limit and alive():
        waiting = _not_ready(lab)
        if not waiting:
            return
        time.sleep(0.1)
    ends = "\n".join(f"{name}: {_last_lines(lab.log(name))}" for name in waiting)
    raise KadeployError(f"Services that do not answer: {', '.join(waiting)}. The end of their logs:\n{ends}")


def _not_ready(lab: Lab) -> list[str]:
    """Services that do not answer yet; the supervisor alone while it does not, which is before it listens as well."""
    if not running(lab):
        return [_SUPERVISOR]
    try:
        services = ask(lab, "status")["services"]
    except KadeployError:
        return [_SUPERVISOR]
    return [name for name, state in services.items() if state != "ready"]


def _last_lines(path: Path, count: int = 8) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(lines[-count:]) or "nothing"
