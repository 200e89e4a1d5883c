"""The lab's network: one namespace, a bridge in it, a tap per machine; nothing leaves it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kadeploy import process
from kadeploy.errors import KadeployError
from kadeploy.lab.lab import CONTROLLER, PREFIX, Lab
from kadeploy.remote import namespace

BRIDGE = "br0"
_NAMED = Path("/run/netns")


def tap(rank: int) -> str:
    """Name of a machine's network device on the controller's side."""
    return f"tap{rank}"


def exists(name: str) -> bool:
    """Whether the namespace is there."""
    return (_NAMED / name).exists()


def create(lab: Lab) -> None:
    """Make the namespace and everything in it; what a killed ``up`` left is replaced."""
    if exists(lab.name):
        remove(lab.name)
    _ip(["netns", "add", lab.name])
    _ip(["-n", lab.name, "-batch", "-"], "\n".join(commands(lab)) + "\n")


def commands(lab: Lab) -> list[str]:
    """``ip`` commands that fill the namespace; sim nodes live on its loopback device."""
    if lab.kind == "sim":
        return ["link set dev lo up"]
    bmcs = [node.bmc for node in lab.members.values() if node.fault != "dead"]
    # A light node brings its own device, which goes with it.
    taps = [tap(node.rank) for node in lab.members.values() if lab.kind == "vm"]
    return [
        "link set dev lo up",
        f"link add name {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        f"link set dev {BRIDGE} up",
        f"address add {CONTROLLER}/{PREFIX} dev {BRIDGE}",
        *(f"address add {address}/32 dev {BRIDGE}" for address in bmcs),
        *(
            command
            for name in taps
            for command in (f"tuntap add dev {name} mode tap", f"link set dev {name} master {BRIDGE} up")
        ),
    ]


def inside(name: str, command: Sequence[str]) -> list[str]:
    """*command* as it runs in the namespace, from wherever it is started."""
    if exists(name) and namespace.is_here(name):
        return list(command)
    return ["ip", "netns", "exec", name, *command]


def processes(name: str) -> list[process.Process]:
    """Every process that is in the namespace, our own family excepted."""
    if not exists(name):
        return []
    ours = process.ancestors(os.getpid())
    pids = [int(pid) for pid in _ip(["netns", "pids", name]).split()]
    return [found for pid in pids if pid not in ours and (found := process.find(pid))]


def remove(name: str) -> None:
    """End every process of the namespace and remove it, with its bridge and taps."""
    for _ in range(3):  # one that is just being started may be missed the first time
        members = processes(name)
        if not members:
            break
        for member in members:
            member.end(patience=5.0)
    if exists(name):
        _ip(["netns", "delete", name])


def _ip(arguments: Sequence[str], text: str = "") -> str:
    done = subprocess.run(["ip", *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KadeployError(
            f"ip {' '.join(arguments)}: {done.stderr.strip()}. Is this machine allowed to make namespaces?"
        )
    return done.stdout
