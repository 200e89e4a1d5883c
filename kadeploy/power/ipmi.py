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
from pyghmi.ipmi.fru import FRU

from kadeploy.errors import NotEnteredError
from kadeploy.power import silence
from kadeploy.power.bmc import (
    CHECK_LOGIN,
    Credentials,
    Identity,
    Job,
    State,
    advice,
    follow,
    seconds_left,
    serve,
    words,
)

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


def act(credentials: Credentials, job: Job) -> State | Identity | None:
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


def _carry_out(bmc: Command, job: Job) -> State | Identity | None:
    if job.order == "status":
        return _state(bmc)
    if job.order == "identify":
        return _identity(bmc)
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


# --- which machine ---

_APPLICATION, _GET_DEVICE_ID = 0x06, 0x01
_TRANSPORT, _GET_LAN_PARAMETER, _MAC_ADDRESS, _THIS_CHANNEL = 0x0C, 0x02, 5, 0x0E
"""IPMI 2.0, 20.1, 23.2 and table 23-4."""
_STORAGE, _GET_INVENTORY_SIZE, _READ_INVENTORY, _PIECE, _LONGEST_INVENTORY = 0x0A, 0x10, 0x11, 16, 1024
"""34.1 and 34.2; bytes at a time, and in all."""
_VENDORS = {
    2: "IBM", 11: "HP", 42: "Sun", 343: "Intel", 674: "Dell", 2011: "Huawei", 5771: "Cisco", 10368: "Fujitsu",
    10876: "Supermicro", 15370: "Gigabyte", 19046: "Lenovo", 20301: "IBM", 20974: "ASRock Rack", 40092: "Wiwynn",
    47196: "HPE", 47488: "Gooxi", 48482: "Quanta",
}  # fmt: skip
"""Enterprise numbers (IANA) of makers of servers."""


def _identity(bmc: Command) -> Identity:
    """Whatever it tells: each of the questions may be one that a BMC does not know."""
    board: Mapping[str, Any] = {}
    with suppress(Exception):  # it is read by offsets that firmware has filled in as it likes
        board = FRU(rawdata=bytearray(_inventory(bmc))).info or {}
    device = _asked(bmc, _APPLICATION, _GET_DEVICE_ID)
    number = int.from_bytes(device[6:9], "little")
    mac = _asked(bmc, _TRANSPORT, _GET_LAN_PARAMETER, _THIS_CHANNEL, _MAC_ADDRESS, 0, 0)[1:7]
    return Identity(
        vendor=words(board.get("Manufacturer") or board.get("Board manufacturer") or _VENDORS.get(number, "")),
        product=words(board.get("Product name") or board.get("Board product name")),
        serial=words(board.get("Serial Number") or board.get("Board serial number")),
        mac=mac.hex(":") if any(mac) else "",
    )


def _inventory(bmc: Command) -> bytes:
    """The BMC's own inventory, in pieces that every BMC can send: pyghmi begins with some that not all can."""
    size = int.from_bytes(_asked(bmc, _STORAGE, _GET_INVENTORY_SIZE, 0)[:2], "little")
    found = b""
    while len(found) < min(size, _LONGEST_INVENTORY):
        at = len(found).to_bytes(2, "little")
        piece = _asked(bmc, _STORAGE, _READ_INVENTORY, 0, *at, min(_PIECE, size - len(found)))[1:]
        if not piece:
            break
        found += piece
    return found


def _asked(bmc: Command, netfn: int, command: int, *data: int) -> bytes:
    """Data of the answer; empty where the BMC has none."""
    with suppress(PyghmiException):
        answer = bmc.raw_command(netfn=netfn, command=command, data=data)
        if "error" not in answer:
            return bytes(answer["data"])
    return b""


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
        return silence.unreached(where)
    if said == "timeout":
        return silence.at_login(where, user, CHECK_LOGIN)
    return f"the BMC at {where} lets nobody in: {said}{advice(said, user)}"


if __name__ == "__main__":
    serve(act)
