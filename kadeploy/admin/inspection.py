"""What nodes are, asked of themselves: booted into the deployment system, read, and left as they were.

Two operations of the site do it for all nodes at once, so that they are claimed and recorded as by any user: a reboot
into the deployment system, and the way back. A node that fails costs no other one.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kadeploy.admin import hardware, hardware_program
from kadeploy.admin.former_profiles import FormerProfiles
from kadeploy.admin.hardware import Machine
from kadeploy.admin.operating import carried_out
from kadeploy.config.cluster import Cluster, address
from kadeploy.config.folder import Configuration
from kadeploy.errors import KadeployError, UserInterruptError
from kadeploy.nodeset import fold, told
from kadeploy.operations.requests import Level, PowerRequest, RebootRequest
from kadeploy.operations.service import Service
from kadeploy.power.switch import switch
from kadeploy.remote import namespace
from kadeploy.remote.connections import Connections
from kadeploy.remote.fanout import Credentials, Target, on_all
from kadeploy.runner.request import Options
from kadeploy.workflow import Outcome, Verdict

_SCRIPT = b"python3 -I - | gzip -9 | base64\n"
_PATIENCE = 60.0
"""Seconds that a node may take to tell what it is."""
_LONGEST = 1 << 20
"""Bytes that it may tell."""
_STATUS_LIMIT = 10
"""Seconds that a BMC may take to say whether its node is on."""

Say = Callable[[str], object]


@dataclass
class Inspected:
    """What has become known."""

    machines: dict[str, Machine] = field(default_factory=dict)
    ko: dict[str, str] = field(default_factory=dict)
    """Why the others have told nothing, by node."""
    left: dict[str, str] = field(default_factory=dict)
    """Why nodes are not as they were before, by node."""


def inspect(
    service: Service,
    configuration: Configuration,
    nodes: Sequence[str],
    *,
    boot: bool = True,
    back: bool = True,
    timeout: str = "",
    say: Say = lambda _: None,
) -> Inspected:
    """Ask *nodes* what they are.

    Without *boot* they are in the deployment system already. Without *back* they stay there; else those that were off
    are switched off again, and the others boot from their disks. *timeout*: seconds that a boot may take, in place of
    what the cluster file says.

    Raises:
        KadeployError: it is refused, and nothing was done.
        UserInterruptError: by Ctrl-C; the message says which nodes may be in the deployment system.
    """
    with namespace.inside(configuration.site.network_namespace):
        if not boot:
            return _read(configuration, nodes)
        off = _off(configuration, nodes) if back else []
        try:
            return _booted(service, configuration, nodes, off if back else None, timeout, say)
        except KeyboardInterrupt:
            raise UserInterruptError(
                f"Interrupted: {told(nodes)} may be in the deployment system; "
                f"kareboot3 -r simple_reboot -l hard -m '{fold(nodes)}' brings them back."
            ) from None


def _booted(
    service: Service,
    configuration: Configuration,
    nodes: Sequence[str],
    off: Sequence[str] | None,
    timeout: str,
    say: Say,
) -> Inspected:
    """What they tell once they are in the deployment system; they go back from it unless *off* is None."""
    say(f"{told(nodes)}: booting into the deployment system")
    members = [configuration.clusters[configuration.cluster_of[node]].members[node] for node in nodes]
    former = FormerProfiles.of(configuration.site, members)
    wish = RebootRequest(
        user=service.user,
        nodes=tuple(nodes),
        kind="deploy_env",
        level=_level(configuration, nodes),
        hook=False,
        options=Options(debug=True, reboot_timeout=timeout),
    )
    report = carried_out(service, wish)
    ours = FormerProfiles.of(configuration.site, members)
    found = _read(configuration, report.ok)
    found.ko |= report.ko
    say(f"{len(found.machines)} of {len(nodes)} nodes have told what they are")
    if off is not None:
        try:
            former.put_back(ours)
        except (OSError, KadeployError) as error:
            say(f"boot profiles were not put back, and nodes would boot the deployment system again: {error}")
        lost = {*report.aborted, *report.taken}  # others' by now
        left = _back(service, [node for node in nodes if node not in lost], off, say)
        found.left = {node: reason for node, reason in left.items() if node not in found.ko}
    return found


def _level(configuration: Configuration, nodes: Sequence[str]) -> Level:
    """Hard, as for nodes of which nobody knows what runs on them; only those that all lack a BMC are asked softly."""
    members = [configuration.clusters[configuration.cluster_of[node]] for node in nodes]
    switched = (
        cluster.power.driver == "command" or cluster.members[node].bmc
        for node, cluster in zip(nodes, members, strict=True)
    )
    return "hard" if any(switched) else "soft"


def _off(configuration: Configuration, nodes: Sequence[str]) -> list[str]:
    """Those that are off, as far as anybody can tell."""
    found = []
    for name, members in configuration.cluster_nodes(list(nodes)).items():
        states = _states(configuration, configuration.clusters[name], members)
        found += [node for node, outcome in states.items() if outcome.answer == "off"]
    return found


def _states(configuration: Configuration, cluster: Cluster, nodes: Sequence[str]) -> Mapping[str, Outcome]:
    site = configuration.site
    windows = msgspec.structs.replace(site.windows, reboot=site.windows.check)  # nothing is switched
    power = msgspec.structs.replace(cluster.power, timeout=min(cluster.power.timeout, _STATUS_LIMIT))
    return asyncio.run(
        switch(
            msgspec.structs.replace(site, windows=windows),
            msgspec.structs.replace(cluster, power=power),
            [cluster.members[node] for node in nodes],
            "status",
            config_dir=configuration.folder,
        )
    )


def _back(service: Service, nodes: Sequence[str], off: Sequence[str], say: Say) -> dict[str, str]:
    """Leave *nodes* as they were: why that did not work, by node."""
    dark = tuple(node for node in nodes if node in off)
    lit = tuple(node for node in nodes if node not in off)
    left: dict[str, str] = {}
    if dark:
        say(f"{told(dark)}: switching off again")
        left |= _tried(service, PowerRequest(user=service.user, nodes=dark, operation="off", level="hard", hook=False))
    if lit:
        say(f"{told(lit)}: rebooting from the disk")
        wish = RebootRequest(user=service.user, nodes=lit, kind="simple_reboot", level="soft", wait=False, hook=False)
        left |= _tried(service, wish)
    return left


def _tried(service: Service, wish: PowerRequest | RebootRequest) -> Mapping[str, str]:
    try:
        return carried_out(service, wish).ko
    except UserInterruptError:
        raise
    except KadeployError as error:  # what was read of the nodes is not to be lost by it
        return dict.fromkeys(wish.nodes, str(error))


# --- asking ---------------------------------------------------------------------------------------------------------


def _read(configuration: Configuration, nodes: Sequence[str]) -> Inspected:
    """What *nodes* tell, which are in the deployment system."""
    found = Inspected()
    for node, outcome in asyncio.run(_asked(configuration, nodes)).items():
        if outcome.verdict is not Verdict.OK:
            found.ko[node] = outcome.message
            continue
        try:
            found.machines[node] = hardware.read(_unpacked(outcome.stdout))
        except KadeployError as error:
            found.ko[node] = str(error)
    return found


async def _asked(configuration: Configuration, nodes: Sequence[str]) -> dict[str, Outcome]:
    site = configuration.site
    clusters = {node: configuration.clusters[configuration.cluster_of[node]] for node in nodes}
    targets = [Target(node, address(site, cluster.members[node]), site.ssh.port) for node, cluster in clusters.items()]
    program = Path(hardware_program.__file__).read_bytes()
    connections = Connections(Credentials.of(site))

    async def job(target: Target) -> Outcome:
        return await connections.run(target, _SCRIPT, timeout=_PATIENCE, stdin=program)

    try:
        return await on_all(targets, job, site.windows.ssh)
    finally:
        await connections.close()


def _unpacked(packed: str) -> str:
    """What a node has sent, which may be anything."""
    try:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)  # of gzip
        return unpacker.decompress(base64.b64decode(packed, validate=False), _LONGEST).decode()
    except (binascii.Error, zlib.error, UnicodeDecodeError) as error:
        raise KadeployError(f"what it tells is not what it was asked for: {error}") from error
