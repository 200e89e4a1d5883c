"""Redfish: sushy's one home, in a process of its own (``python -m kadeploy.power.redfish``, see `bmc`).

A BMC is a base URL, ``https://10.0.2.1``. The node is its first system, unless the URL has the path of another one,
``https://10.0.2.1/redfish/v1/Systems/437XR``.
"""

from __future__ import annotations

import time
import warnings
from typing import Any
from urllib.parse import urlsplit

from kadeploy.power.bmc import Credentials, Job, State, serve

PAUSE = 1.0
"""Seconds between two looks at a machine that is being switched."""


def act(credentials: Credentials, job: Job) -> State:
    """Carry out an order; raises when the BMC does not answer, refuses, or the machine does not follow."""
    try:
        import sushy  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise RuntimeError("sushy is not installed on this machine: pip install 'kadeploy[redfish]'") from error
    try:
        system = _system(sushy, credentials, job)
        state = _state(sushy, system)
        if job.order == "status" or state == _WANTED.get(job.order):
            return state
        system.reset_system(_reset(sushy, job, state))
        return "on" if job.order == "reset" else _wait(sushy, system, _WANTED[job.order])
    except sushy.exceptions.AccessError as error:
        raise RuntimeError(f"the BMC at {job.address} refuses the user name or the password: {error}") from error
    except sushy.exceptions.SushyError as error:
        raise RuntimeError(f"the BMC at {job.address} says: {error}") from error


_WANTED: dict[str, State] = {"on": "on", "off": "off", "shutdown": "off"}


def _system(sushy: Any, credentials: Credentials, job: Job) -> Any:
    parts = urlsplit(job.address)
    root = sushy.Sushy(
        f"{parts.scheme}://{parts.netloc}",
        credentials.user or None,
        credentials.password or None,
        verify=credentials.verify_tls,
    )
    if "/Systems/" in parts.path:
        return root.get_system(parts.path.rstrip("/"))
    return root.get_system()


def _reset(sushy: Any, job: Job, state: State) -> Any:
    if job.order == "reset":
        return sushy.ResetType.FORCE_RESTART if state == "on" else sushy.ResetType.ON
    return {
        "on": sushy.ResetType.ON,
        "off": sushy.ResetType.FORCE_OFF,
        "shutdown": sushy.ResetType.GRACEFUL_SHUTDOWN,
    }[job.order]


def _state(sushy: Any, system: Any) -> State:
    """A machine that is being switched is still what it was."""
    states = sushy.PowerState
    return "on" if system.power_state in (states.ON, states.POWERING_OFF) else "off"


def _wait(sushy: Any, system: Any, wanted: State) -> State:
    """Look until the machine is as wanted; the limit of the job ends it."""
    while _state(sushy, system) != wanted:
        time.sleep(PAUSE)
        system.refresh(force=True)
    return wanted


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # verify_tls: false is the site's own decision
    serve(act)
