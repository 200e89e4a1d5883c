"""Labs of simulated nodes: nothing but ssh answers, on an address of 127.0.0.0/8 each, up to 2,000 of them.

Two backends answer. ``openssh``: sshd and a real shell behind every connection, in a root of the node's own where
commands that touch disks are acted (`tree`). ``light``: one asyncssh server that acts the shell too, for thousands.
Boots follow the node's boot profile and take as long as is chosen; the power is switched by a simulated BMC; faults
are given to a share of the nodes. The nodes live on the loopback device of the lab's network namespace.
"""

from __future__ import annotations

import ctypes
import resource
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from kadeploy.errors import OptionError
from kadeploy.hints import did_you_mean
from kadeploy.lab.lab import Lab, LabNode
from kadeploy.lab.machine import Machine
from kadeploy.lab.service import Service
from kadeploy.lab.sim import bmc
from kadeploy.lab.sim.light import Light
from kadeploy.lab.sim.machine import Backend, SimMachine
from kadeploy.lab.sim.openssh import SSHD, OpenSsh
from kadeploy.lab.virtual import Payload, Say

BACKENDS: Mapping[str, Callable[[Lab, Callable[[LabNode], Path]], Backend]] = {"openssh": OpenSsh, "light": Light}

REQUIREMENTS = {
    SSHD: "openssh-server",
    "/usr/bin/python3": "python3",
    "setpriv": "util-linux",
    "ip": "iproute2",
    "ssh-keygen": "openssh-client",
}
"""Program → Debian package."""

_CAP_SYS_MODULE, _CAP_SYS_RAWIO, _CAP_SYS_BOOT = 16, 17, 22
_PR_CAPBSET_DROP = 24


def prepare(lab: Lab, cache: Path, say: Say) -> Payload:  # noqa: ARG001 - other kinds build images
    """Make the host keys and the folders.

    Raises:
        OptionError: there is no such backend.
    """
    if lab.backend not in BACKENDS:
        raise OptionError(
            f"--backend {lab.backend}: expected {' or '.join(BACKENDS)}.{did_you_mean(lab.backend, BACKENDS)}"
        )
    for folder in (lab.tftp, lab.http):
        folder.mkdir(exist_ok=True, mode=0o755)
    (lab.tftp / "pxelinux.cfg").mkdir(exist_ok=True, mode=0o755)
    payload = Payload(host_key=_host_key(lab, wrong=False), power="sim")
    for name in (payload.kernel, payload.initrd):
        (lab.http / name).write_text("simulated\n")
    _host_key(lab, wrong=True)
    say("host keys ready")
    return payload


def _host_key(lab: Lab, *, wrong: bool) -> str:
    """Public half of the deployment system's host key, or of another one; made if it is not there."""
    path = _host_key_file(lab, wrong=wrong)
    if not path.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "simulated node", "-f", str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def _host_key_file(lab: Lab, *, wrong: bool) -> Path:
    return lab.keys / ("wrong-host" if wrong else "host")


def services(lab: Lab) -> list[Service]:
    """The BMCs. Nodes are switched by the supervisor itself and read the TFTP folder directly."""
    return [bmc.service(lab)]


def machine(lab: Lab, node: LabNode) -> Machine:
    """The simulated machine of *node*."""
    return SimMachine(lab, node, lambda: _backend(lab))


_made: dict[str, Backend] = {}


def _backend(lab: Lab) -> Backend:
    """What answers for all nodes of a lab; made in its supervisor, when the first node is switched on."""
    if lab.name not in _made:
        _be_careful()
        _made[lab.name] = BACKENDS[lab.backend](lab, lambda node: _host_key_file(lab, wrong=node.fault == "wrong-key"))
    return _made[lab.name]


def _be_careful() -> None:
    """Whatever a node runs as root, it cannot reboot this machine or load modules; and many sockets may be open."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (_CAP_SYS_MODULE, _CAP_SYS_RAWIO, _CAP_SYS_BOOT):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
