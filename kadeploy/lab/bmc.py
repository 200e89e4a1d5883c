"""The BMC of a machine: one ``ipmi_sim`` (OpenIPMI) per machine. Its chassis asks the supervisor."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from pathlib import Path

from kadeploy.lab import chassis
from kadeploy.lab.lab import Lab, LabNode
from kadeploy.lab.service import Service

USER = "kadeploy"
PORT = 623

_CONFIGURATION = """\
name "{name}"
set_working_mc 0x20
startlan 1
  addr {address} {port}
  priv_limit admin
  allowed_auths_callback md5
  allowed_auths_user md5
  allowed_auths_operator md5
  allowed_auths_admin md5
  guid {guid}
endlan
chassis_control "{chassis}"
user 2 true "{user}" "{password}" admin 10 md5
"""

COMMANDS = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""


def configuration(lab: Lab, node: LabNode, password: str) -> str:
    """Text of a BMC's ``lan.conf`` (ipmi_lan(5))."""
    program = [sys.executable, "-I", "-S", str(Path(chassis.__file__)), str(lab.control), node.name]
    return _CONFIGURATION.format(
        name=node.name,
        address=node.bmc,
        port=PORT,
        guid=uuid.uuid5(uuid.NAMESPACE_DNS, f"{node.name}.{lab.name}").hex,
        chassis=shlex.join(program),
        user=USER,
        password=password,
    )


def services(lab: Lab) -> list[Service]:
    """One BMC per node, but for the dead ones; writes their configuration, which holds the password."""
    password = lab.bmc_password.read_text().strip()
    return [_service(lab, node, password) for node in lab.members.values() if node.fault != "dead"]


def _service(lab: Lab, node: LabNode, password: str) -> Service:
    folder = lab.run / f"{node.name}.bmc"
    folder.mkdir(exist_ok=True, mode=0o700)
    config, commands = folder / "lan.conf", folder / "commands"
    _write_private(config, configuration(lab, node, password))
    commands.write_text(COMMANDS)
    command = ["ipmi_sim", "-n", "-c", str(config), "-f", str(commands), "-s", str(folder)]
    return Service(f"bmc {node.name}", command, (("udp", node.bmc, PORT),))


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
