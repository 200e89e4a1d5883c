"""IPMI over the network: pyghmi's one home, in a process of its own (``python -m kadeploy.power.ipmi``, see `bmc`)."""

from __future__ import annotations

from contextlib import suppress

from pyghmi.exceptions import PyghmiException
from pyghmi.ipmi.command import Command

from kadeploy.power.bmc import Credentials, Job, State, serve

_WANTED: dict[str, State] = {"on": "on", "off": "off", "shutdown": "off"}


def act(credentials: Credentials, job: Job) -> State:
    """Carry out an order; raises when the BMC does not answer, refuses, or the machine does not follow."""
    try:
        bmc = Command(job.address, credentials.user, credentials.password, port=job.port, keepalive=False)
    except (PyghmiException, OSError) as error:
        raise RuntimeError(_why_not_entered(job, str(error))) from error
    try:
        return _carry_out(bmc, job)
    except PyghmiException as error:
        raise RuntimeError(f"the BMC at {job.address} says: {error}") from error
    finally:
        with suppress(PyghmiException):
            bmc.ipmi_session.logout()


def _carry_out(bmc: Command, job: Job) -> State:
    state: State = bmc.get_power()["powerstate"]
    if job.order == "status" or state == _WANTED.get(job.order):
        return state
    if job.order == "reset":
        bmc.set_power("boot")  # pyghmi's word: reset a machine that is on, switch on one that is off
        return "on"
    bmc.set_power(job.order, wait=max(1, int(job.limit)))
    return _WANTED[job.order]


def _why_not_entered(job: Job, said: str) -> str:
    """A BMC that is given a wrong password often does not answer at all."""
    if "timeout" in said.lower() or "time out" in said.lower():
        return (
            f"no answer from the BMC at {job.address} port {job.port}: it is off or out of reach, or the user name or "
            "the password is wrong (BMCs stay silent then): check power.* in the cluster file"
        )
    return f"the BMC at {job.address} cannot be entered: {said}: check power.user and the password in the cluster file"


if __name__ == "__main__":
    serve(act)
