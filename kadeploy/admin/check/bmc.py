"""BMCs: each is logged in to, and asked whether its machine is on."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look, grouped
from kadeploy.config.cluster import Cluster, Node, Power
from kadeploy.errors import KadeployError
from kadeploy.nodeset import told
from kadeploy.power import bmc, command, silence
from kadeploy.power.silence import Silence
from kadeploy.power.switch import switch
from kadeploy.remote import namespace
from kadeploy.remote.fanout import TIMED_OUT
from kadeploy.workflow import Outcome

LOGIN = Look("bmc", "login")
PROTOCOL = Look("bmc", "protocol")
COMMAND = Look("bmc", "status-command")
PASSWORD = Look("bmc", "password")

LIMIT = 10
"""Seconds that a BMC may take: less than an operation gives it, for most of them answer within one."""
_HTTPS = 443
_QUICK = 1.0
"""Seconds for a look whether a port is open."""


def check(subject: Subject) -> Iterator[Finding]:
    """Which BMCs let the site in."""
    with namespace.inside(subject.site.network_namespace):
        for cluster, nodes in subject.members:
            yield from _of_cluster(subject, cluster, nodes)


def _of_cluster(subject: Subject, cluster: Cluster, nodes: Sequence[Node]) -> Iterator[Finding]:
    power = cluster.power
    asked = nodes if power.driver == "command" else [node for node in nodes if node.bmc]
    if power.driver == "command" and not power.commands.status:
        yield COMMAND.warn(
            f"{told(cluster.members)}: power.commands.status is not set: nobody can tell whether a node is on",
            f"set it in {cluster.file}",
        )
        return
    if not asked:
        return  # `configuration` tells it
    try:
        outcomes = _states(subject, cluster, asked)
    except KadeployError as error:
        yield PASSWORD.fail(f"cluster {cluster.name}: {error}", "see power in the cluster file; or run this as root")
        return
    read = _read_command if power.driver == "command" else _read_bmc
    found = {node.name: read(node, power, outcomes[node.name]) for node in asked}
    yield from grouped(found)
    yield from _protocol(power, asked, found)


def _states(subject: Subject, cluster: Cluster, nodes: Sequence[Node]) -> Mapping[str, Outcome]:
    """Ask all of them, many at a time: nothing is switched, and no slot of a window is needed."""
    windows = msgspec.structs.replace(subject.site.windows, reboot=subject.site.windows.check)
    site = msgspec.structs.replace(subject.site, windows=windows)
    quick = msgspec.structs.replace(cluster.power, timeout=min(cluster.power.timeout, LIMIT))
    hurried = msgspec.structs.replace(cluster, power=quick)
    folder: Path = subject.configuration.folder
    return asyncio.run(switch(site, hurried, nodes, "status", config_dir=folder))


def _read_command(node: Node, power: Power, outcome: Outcome) -> Finding:  # noqa: ARG001 - as the other reads
    if outcome.rc and (outcome.rc in (command.NOT_STARTED, TIMED_OUT) or outcome.stderr.strip()):
        return COMMAND.fail(
            f"its status command fails: {outcome.message}",
            "run it by hand; for a node that is off it must end with another status than 0, and say nothing",
        )
    return COMMAND.ok(f"its status command says {'off' if outcome.rc else 'on'}")


def _read_bmc(node: Node, power: Power, outcome: Outcome) -> Finding:
    if outcome.answer in ("on", "off"):
        return LOGIN.ok(f"the BMC answers: {outcome.answer}")
    reason = _without_address(outcome.message, node.bmc)
    if kind := silence.of(reason):
        text, advice = _KINDS[kind]
        return LOGIN.fail(text, advice.format(user=power.user or "the user"))
    return LOGIN.fail(reason, "see what the BMC's own log says")


_KINDS = {
    Silence.UNREACHED: (
        "nobody answers at the BMC's address",
        "check that BMCs have power and network, their addresses in the cluster file, and that IPMI over LAN (or "
        "Redfish) is switched on in them",
    ),
    Silence.AT_LOGIN: (
        "the BMC answers, and stays silent at the login: the user name or the password is wrong, or this user may not "
        "log in over the network",
        "check power.user and the password, and the rights of {user} in the BMC; many BMCs do not say no",
    ),
    Silence.LATE: (
        f"the BMC does not answer within {LIMIT} s: the password may be wrong, or it is overloaded or hangs",
        "log in by hand (ipmitool -I lanplus), and restart the BMC if that takes as long (ipmitool mc reset cold)",
    ),
}
"""How a BMC is silent → what is told of it, and what to do."""


def _without_address(reason: str, where: str) -> str:
    """What is the same for all nodes that fail in one way."""
    host, _ = bmc.split_address(where, 0)
    return re.sub(rf"\bat {re.escape(host)}( port \d+)?", "at its address", reason).replace(where, "…")


def _protocol(power: Power, nodes: Sequence[Node], found: Mapping[str, Finding]) -> Iterator[Finding]:
    """Whether BMCs that are silent in one protocol may speak the other; one of them is asked."""
    silent = [node for node in nodes if Silence.UNREACHED.value in found[node.name].text]
    if power.driver != "ipmi" or not silent:
        return
    host, _ = bmc.split_address(silent[0].bmc, 0)
    if _is_open(host, _HTTPS):
        yield PROTOCOL.warn(
            f"{silent[0].name}: its BMC is silent to IPMI, and answers on port {_HTTPS}",
            "if it speaks Redfish: power.driver: redfish, with addresses such as https://10.0.2.1",
        )


def _is_open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _QUICK).close()
    except OSError:
        return False
    return True
