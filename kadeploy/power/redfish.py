"""Redfish: sushy's one home, in a process of its own (``python -m kadeploy.power.redfish``, see `bmc`).

A BMC is a base URL, ``https://10.0.2.1``. The node is its first system, unless the URL has the path of another one,
``https://10.0.2.1/redfish/v1/Systems/437XR``.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from kadeploy.errors import NotEnteredError
from kadeploy.power import silence
from kadeploy.power.bmc import WANTED, Credentials, Identity, Job, State, advice, follow, serve, words

_RETRIES, _RETRY_PAUSE = 3, 2.0
"""How often, and after how many seconds, sushy connects again to who does not answer."""
_ALREADY_SO = {400, 409}
"""HTTP statuses of BMCs that take no "on" for a machine that they call on."""
_FORBIDDEN = 403
_CARDS = 16
"""Of a machine that are told."""


def act(credentials: Credentials, job: Job) -> State | Identity | None:
    """Carry out an order; raises when the BMC does not answer, refuses, or the machine does not follow."""
    try:
        import sushy  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise RuntimeError("sushy is not installed on this machine: pip install 'kadeploy[redfish]'") from error
    try:
        return _carry_out(sushy, _system(sushy, credentials, job), job)
    except sushy.exceptions.AccessError as error:
        raise NotEnteredError(_why_refused(error, credentials.user, job)) from error
    except sushy.exceptions.ConnectionError as error:
        raise NotEnteredError(_why_not_connected(str(error), job)) from error
    except sushy.exceptions.SushyError as error:
        said = _words(error)
        raise RuntimeError(f"the BMC at {job.address} says: {said}{advice(said, credentials.user)}") from error


def _system(sushy: Any, credentials: Credentials, job: Job) -> Any:
    parts = urlsplit(job.address)
    connector = sushy.connector.Connector(
        f"{parts.scheme}://{parts.netloc}",
        verify=credentials.verify_tls,
        connect_timeout=max(1.0, job.limit / (_RETRIES + 1) - _RETRY_PAUSE),
    )
    root = sushy.Sushy(
        f"{parts.scheme}://{parts.netloc}",
        credentials.user or None,
        credentials.password or None,
        connector=connector,
    )
    if "/Systems/" in parts.path:
        return root.get_system(parts.path.rstrip("/"))
    return root.get_system()


def _carry_out(sushy: Any, system: Any, job: Job) -> State | Identity | None:
    if job.order == "identify":
        return _identity(sushy, system)
    if job.order == "network":
        system.set_system_boot_options(sushy.BootSource.PXE, sushy.BootSourceOverrideEnabled.ONCE)
        return None
    claimed = _state(sushy, system)
    if job.order == "status":
        return claimed
    kinds = sushy.ResetType
    if job.order == "reset":
        return _reset(sushy, system, claimed)
    kind = {"on": kinds.ON, "off": kinds.FORCE_OFF, "shutdown": kinds.GRACEFUL_SHUTDOWN}[job.order]
    try:
        system.reset_system(kind)
    except sushy.exceptions.HTTPError as error:
        if claimed != WANTED[job.order] or error.status_code not in _ALREADY_SO:
            raise

    def look() -> State:
        system.refresh(force=True)
        return _state(sushy, system)

    return follow(job, look)


def _identity(sushy: Any, system: Any) -> Identity:
    cards: tuple[str, ...] = ()
    with suppress(sushy.exceptions.SushyError):  # some have no such list
        cards = tuple(words(mac).lower() for mac in system.ethernet_interfaces.summary)[:_CARDS]
    return Identity(
        vendor=words(system.manufacturer), product=words(system.model), serial=words(system.serial_number), cards=cards
    )


def _reset(sushy: Any, system: Any, claimed: State) -> State:
    """Reset the machine; one that its BMC calls off is switched on as well, and may have been on all the time."""
    try:
        system.reset_system(sushy.ResetType.FORCE_RESTART)
    except sushy.exceptions.SushyError:
        if claimed == "on":
            raise
    if claimed == "off":
        system.reset_system(sushy.ResetType.ON)
    return "on"


def _state(sushy: Any, system: Any) -> State:
    """A machine that is being switched is still what it was."""
    states = sushy.PowerState
    return "on" if system.power_state in (states.ON, states.POWERING_OFF) else "off"


# --- what went wrong --------------------------------------------------------------------------------------------


def _words(error: Any) -> str:
    """What the BMC said itself, where sushy has kept it."""
    return str(getattr(error, "detail", None) or error)


def _why_refused(error: Any, user: str, job: Job) -> str:
    """A user who is known, and may not (403), is not one whose password is wrong."""
    if error.status_code == _FORBIDDEN:
        return f"the BMC at {job.address} forbids it: {_words(error)}{advice('privilege', user)}"
    return f"the BMC at {job.address} refuses the user name or the password: {_words(error)}{advice('password', user)}"


def _why_not_connected(said: str, job: Job) -> str:
    if "certificate" in said.lower():
        return (
            f"the BMC at {job.address} shows a certificate that this machine does not trust: have it signed by an "
            "authority that it trusts, or set power.verify_tls: false in the cluster file"
        )
    return silence.unreached(job.address)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # verify_tls: false is the site's own decision
    serve(act)
