"""IPMI over the network: pyghmi's one home, in a process of its own (``python -m kadeploy.power.ipmi``, see `bmc`).

pyghmi's own ``set_power`` sends nothing to a machine that its BMC calls as ordered already. BMCs may be mistaken: here
the order is always sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from pyghmi.exceptions import IpmiException, PyghmiException
from pyghmi.ipmi.command import Command

from kadeploy.errors import NotEnteredError
from kadeploy.power.bmc import Credentials, Job, State, advice, follow, seconds_left, serve

_CHASSIS, _CHASSIS_CONTROL = 0x00, 0x02
_CONTROLS: dict[Literal["off", "on", "reset", "shutdown"], int] = {"off": 0, "on": 1, "reset": 3, "shutdown": 5}
"""Chassis Control's argument (IPMI 2.0, table 28-4)."""
_SET_BOOT_OPTIONS = 0x08
_KEPT = (0x03, 0x08)
"""Boot flags stay valid though no chassis command follows within a minute (IPMI 2.0, table 28-14, parameter 3)."""
_FLAGS, _ONCE, _UEFI, _NETWORK = 0x05, 0x80, 0x20, 0x04
"""Parameter 5, boot flags: valid for the next start alone, of a UEFI, from the network."""
_NOT_IN_THIS_STATE = 0xD5
"""Completion code of BMCs that take no "on" for a machine that they call on."""
_SPARE = 1.0
"""Seconds before the end of a job's time within which there is still time to say why."""


def act(credentials: Credentials, job: Job) -> State | None:
    """Carry out an order; raises when the BMC does not answer, refuses, or the machine does not follow."""
    bmc = _enter(credentials, job)
    try:
        return _carry_out(bmc, job)
    except PyghmiException as error:
        said = str(error)
        raise RuntimeError(f"the BMC at {job.address} says: {said}{advice(said, credentials.user)}") from error
    finally:
        with suppress(PyghmiException):
            bmc.ipmi_session.logout()


def _carry_out(bmc: Command, job: Job) -> State | None:
    if job.order == "status":
        return _state(bmc)
    if job.order == "reset":
        return _reset(bmc)
    if job.order == "network":
        _boot_from_network(bmc, job.uefi)
        return None
    try:
        _control(bmc, job.order)
    except IpmiException as error:
        if error.ipmicode != _NOT_IN_THIS_STATE:
            raise
    return follow(job, lambda: _state(bmc))


def _reset(bmc: Command) -> State:
    """Reset the machine; one that its BMC calls off is switched on as well, and may have been on all the time."""
    claimed = _state(bmc)
    try:
        _control(bmc, "reset")
    except IpmiException:
        if claimed == "on":
            raise
    if claimed == "off":
        _control(bmc, "on")
    return "on"


def _boot_from_network(bmc: Command, uefi: bool) -> None:
    bmc.raw_command(netfn=_CHASSIS, command=_SET_BOOT_OPTIONS, data=_KEPT)  # many BMCs do without
    flags = (_FLAGS, _ONCE | (_UEFI if uefi else 0), _NETWORK, 0, 0, 0)
    _require(bmc.raw_command(netfn=_CHASSIS, command=_SET_BOOT_OPTIONS, data=flags))


def _state(bmc: Command) -> State:
    state: State = bmc.get_power()["powerstate"]
    return state


def _control(bmc: Command, order: Literal["off", "on", "reset", "shutdown"]) -> None:
    _require(bmc.raw_command(netfn=_CHASSIS, command=_CHASSIS_CONTROL, data=[_CONTROLS[order]]))


def _require(answer: Mapping[str, Any]) -> None:
    """Raise IpmiException where a BMC has refused."""
    if "error" in answer:
        raise IpmiException(answer["error"], answer.get("code", 0))


# --- logging in -------------------------------------------------------------------------------------------------


def _enter(credentials: Credentials, job: Job) -> Command:
    """Log in; raises NotEnteredError with the BMC's own words, if it has any."""
    told: dict[str, Any] = {}
    heard = False
    try:
        bmc = Command(
            job.address,
            credentials.user,
            credentials.password,
            port=job.port,
            keepalive=False,
            onlogon=lambda response, _: told.update(response),
        )
        session = bmc.ipmi_session
        while not told and not session.broken and seconds_left() > _SPARE:
            session.wait_for_rsp(timeout=_SPARE / 2)
            heard = heard or session.sockaddr is not None
    except (PyghmiException, OSError) as error:
        raise NotEnteredError(f"the BMC at {job.address} cannot be reached: {error}") from error
    if "error" not in told and told:
        return bmc
    raise NotEnteredError(_why_not_entered(job, credentials.user, str(told.get("error", "timeout")), heard))


def _why_not_entered(job: Job, user: str, said: str, heard: bool) -> str:
    where = f"{job.address} port {job.port}"
    if said == "timeout" and not heard:
        return (
            f"nobody answers at {where}: check that the BMC has power and network, and its address in the cluster file"
        )
    if said == "timeout":
        return (
            f"the BMC at {where} answers, but stays silent when {user or 'nobody'} logs in: check power.user and the "
            "password in the cluster file"
        )
    return f"the BMC at {where} lets nobody in: {said}{advice(said, user)}"


if __name__ == "__main__":
    serve(act)
