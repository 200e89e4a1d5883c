"""MAC addresses of nodes of which only the BMC is known: each is rebooted in turn, and heard as its firmware asks.

The reboot is an operation of the site, so that the node is claimed and recorded as by any user; it is given up as soon
as the card was heard. What the node does afterwards is up to its firmware: nothing answers it yet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from kadeploy.admin import card, route
from kadeploy.admin.contradictions import FIRMWARE
from kadeploy.admin.dhcp.packet import Question
from kadeploy.admin.findings import Finding
from kadeploy.admin.known_node import KnownNode
from kadeploy.admin.operating import operating
from kadeploy.errors import KadeployError, OptionError
from kadeploy.events import Event, StepResult
from kadeploy.operations.requests import RebootRequest
from kadeploy.operations.service import Service
from kadeploy.remote import namespace
from kadeploy.runner.request import Options
from kadeploy.workflow import Verdict

PATIENCE = 240.0
"""Seconds after its reboot in which the firmware of a server comes to its network card."""


class Heard(NamedTuple):
    """What became of one node."""

    node: KnownNode
    question: Question | None
    """What its card asked; None if it was not heard."""
    why: str = ""
    """Why not, and what to do."""


def learn(
    service: Service,
    nodes: Sequence[KnownNode],
    *,
    interface: str = "",
    patience: float = PATIENCE,
    say: Callable[[str], object] = lambda _: None,
) -> Iterator[Heard]:
    """Have *nodes* boot one after the other; each is given when its card was heard, or was not.

    *interface* is where they are heard, by default the one that leads to them; *patience* is in seconds.

    Raises:
        OptionError: this user may not listen, there is no such interface, or none leads to the nodes directly.
    """
    if not nodes:
        return
    with ExitStack() as stack:
        stack.enter_context(namespace.inside(nodes[0].site.network_namespace))
        clusters = nodes[0].configuration.clusters.values()
        known = {each.mac.lower() for cluster in clusters for each in cluster.members.values()}
        ears: dict[str, card.Listen] = {}
        for node in nodes:
            where = interface or _interface(node)
            if where not in ears:
                ears[where] = stack.enter_context(card.listening(where, known))
            say(f"{node.name}: rebooting from the network, and listening on {where}")
            heard = _heard(service, node, ears[where], patience)
            if heard.question:
                known.add(heard.question.mac)
            yield heard


def contradictions(heard: Heard) -> Iterator[Finding]:
    """What the cluster file says of the firmware, and the card does not."""
    loader = heard.node.cluster.loader
    if heard.question and heard.question.firmware != loader.firmware:
        yield FIRMWARE.warn(
            f"{heard.node.name}: it boots by {heard.question.firmware}, and loader.firmware is {loader.firmware}",
            f"set loader.firmware in {heard.node.cluster.file}, or change the firmware's own setting",
        )


def _interface(node: KnownNode) -> str:
    found = route.to(node.address)
    if found.gateway:
        raise OptionError(
            f"{node.name} is behind the router {found.gateway}: its card is heard in its own network alone. Put its "
            "MAC address into the cluster file."
        )
    if not found.interface:
        raise OptionError(f"No interface of this machine leads to {node.address}: say which one does by --interface.")
    return found.interface


def _heard(service: Service, node: KnownNode, listen: card.Listen, patience: float) -> Heard:
    reasons: list[str] = []
    until = math.inf  # it is not rebooted yet
    wish = RebootRequest(
        user=service.user,
        nodes=(node.name,),
        kind="simple_reboot",
        level="hard",
        hook=False,
        options=Options(reboot_timeout=str(int(patience))),
    )

    def hear(event: Event) -> None:
        nonlocal until
        if not isinstance(event, StepResult) or until < math.inf:
            return
        ko = [each.message for each in event.outcomes.values() if each.verdict is Verdict.KO]
        reasons.extend(ko)
        if event.micro_step == "reboot" and not ko:
            until = time.monotonic() + patience

    def goes_on() -> bool:
        return time.monotonic() < until if until < math.inf else not operation.ended.is_set()

    with operating(service, wish, hear) as operation:
        try:
            found = listen(goes_on)
        except KadeployError as error:
            return Heard(node, None, str(error))
        finally:
            operation.give_up()
    if isinstance(operation.error, KadeployError) and not found:  # refused: somebody else has the node, for one
        return Heard(node, None, str(operation.error))
    if operation.error and not found:
        raise operation.error
    return Heard(node, found) if found else Heard(node, None, _why(reasons, patience))


def _why(reasons: Sequence[str], patience: float) -> str:
    if reasons:
        return reasons[-1]
    return (
        f"its card was not heard within {patience:g} s: it boots from its disk, or its network is not this machine's; "
        "look at its console, and write its MAC address into the cluster file"
    )
