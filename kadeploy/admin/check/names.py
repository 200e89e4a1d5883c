"""Names, addresses, BMCs and network cards: each is one machine's alone, and all ways to say it lead to it."""

from __future__ import annotations

import errno
import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look, grouped
from kadeploy.config.cluster import Node
from kadeploy.nodeset import told
from kadeploy.remote import namespace

CARDS = Look("names", "mac")
TWICE = Look("names", "twice")
FORWARD = Look("names", "forward")
REVERSE = Look("names", "reverse")
ROUTE = Look("names", "route")

LIMIT = 20.0
"""Seconds for all names and addresses together."""
THREADS = 64


def check(subject: Subject) -> Iterator[Finding]:
    """What is wrong with names and addresses."""
    nodes = subject.machines
    yield from _cards(nodes)
    yield from _twice(subject)
    with namespace.inside(subject.site.network_namespace):
        yield from _resolved(nodes, use_address=subject.site.use_address)
        yield from _routes(nodes, subject.site.server_address)


def _cards(nodes: Sequence[Node]) -> Iterator[Finding]:
    without = [node.name for node in nodes if not node.mac]
    if without:
        yield CARDS.warn(
            f"{told(without)} has no mac: which machine asks the boot server cannot be told, nor DHCP lines be made",
            "add mac to the nodes in the cluster file",
        )
    else:
        yield CARDS.ok(f"{len(nodes)} nodes have a mac")


def _twice(subject: Subject) -> Iterator[Finding]:
    """Addresses that stand for two things; the same of two nodes is refused when the configuration is read."""
    used: dict[str, list[str]] = {}
    for cluster in subject.configuration.clusters.values():
        for node in cluster.members.values():
            used.setdefault(node.address, []).append(f"the address of {node.name}")
            if node.bmc and cluster.power.driver != "command":
                used.setdefault(_host(node.bmc), []).append(f"the BMC of {node.name}")
    used.setdefault(subject.site.server_address, []).append("server_address")
    used.pop("", None)
    found = {where: who for where, who in used.items() if len(set(who)) > 1 and not _is_one_gateway(who)}
    for where, who in found.items():
        yield TWICE.fail(f"{where} is {' and '.join(who[:3])}", "correct one of them")
    if not found:
        yield TWICE.ok(f"{len(used)} addresses stand for one thing each")


def _is_one_gateway(who: Sequence[str]) -> bool:
    """Whether they are BMCs alone, behind other ports or paths of one chassis; the configuration tells them apart."""
    return all(each.startswith("the BMC") for each in who)


def _host(bmc: str) -> str:
    host = bmc.partition("://")[2].partition("/")[0] or bmc
    return host.rpartition(":")[0] if host.count(":") == 1 else host


# --- resolving ----------------------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """What resolvers say of a node."""

    addresses: tuple[str, ...] = ()
    """Of its name."""
    names: tuple[str, ...] = ()
    """Of its address in the cluster file."""


def _ask(node: Node) -> _Answer:
    addresses: tuple[str, ...] = ()
    with suppress(OSError):
        addresses = tuple(sorted({str(each[4][0]) for each in socket.getaddrinfo(node.name, None, socket.AF_INET)}))
    where = node.address or next(iter(addresses), "")
    names: tuple[str, ...] = ()
    if where:
        with suppress(OSError):
            main, aliases, _ = socket.gethostbyaddr(where)
            names = (main, *aliases)
    return _Answer(addresses, names)


def _resolved(nodes: Sequence[Node], use_address: bool) -> Iterator[Finding]:
    answers = in_threads(nodes, _ask, LIMIT)
    late = [node.name for node in nodes if node.name not in answers]
    if late:
        yield FORWARD.warn(
            f"{told(late)}: no answer of the resolver within {LIMIT:g} s for all",
            "see /etc/resolv.conf: a DNS server in it is slow, or does not answer",
        )
    asked = [node for node in nodes if node.name in answers]
    forward = {node.name: _forward(node, answers[node.name], use_address) for node in asked}
    others = [node for node in asked if not _agrees(node, answers[node.name])]
    seen = {node.name: f"{', '.join(answers[node.name].addresses)}, not {node.address}" for node in others}
    yield from grouped(forward, seen)
    named = [node for node in asked if _has_address(node, answers)]
    reverse = {node.name: _reverse(node, answers[node.name]) for node in named}
    strangers = {node.name: ", ".join(answers[node.name].names) for node in named if reverse[node.name].level != "ok"}
    yield from grouped(reverse, strangers)


def _agrees(node: Node, answer: _Answer) -> bool:
    return not node.address or not answer.addresses or node.address in answer.addresses


def _has_address(node: Node, answers: Mapping[str, _Answer]) -> bool:
    return bool(node.address or answers[node.name].addresses)


def _forward(node: Node, answer: _Answer, use_address: bool) -> Finding:
    bad = FORWARD.warn if use_address and node.address else FORWARD.fail
    if not answer.addresses:
        needed = "" if use_address and node.address else ", and the site reaches nodes by name"
        return bad(f"the name does not resolve{needed}", "add it to the DNS or to /etc/hosts of this machine")
    if not _agrees(node, answer):
        return bad(
            "the name resolves to another address than the cluster file has",
            "correct the cluster file, the DNS or /etc/hosts",
        )
    return FORWARD.ok("the name resolves to the node's address")


def _reverse(node: Node, answer: _Answer) -> Finding:
    if not answer.names:
        return REVERSE.warn("the address has no name", "add a reverse entry (PTR) to the DNS, or to /etc/hosts")
    meant = {node.name.lower(), node.name.partition(".")[0].lower()}
    if not meant & {name.lower().rstrip(".") for name in answer.names}:
        return REVERSE.warn(
            "the address has the name of another machine", "correct the reverse entry (PTR), or the cluster file"
        )
    return REVERSE.ok("the address has the node's name")


def in_threads(nodes: Sequence[Node], ask: Callable[[Node], _Answer], limit: float) -> dict[str, _Answer]:
    """Answers by node, as far as they have come after *limit* seconds in all; who still waits is left to itself."""
    waiting: queue.SimpleQueue[Node] = queue.SimpleQueue()
    for node in nodes:
        waiting.put(node)
    answers: dict[str, _Answer] = {}
    until = time.monotonic() + limit

    def work() -> None:
        with suppress(queue.Empty):
            while time.monotonic() < until:
                node = waiting.get_nowait()
                answers[node.name] = ask(node)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(THREADS, len(nodes)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return dict(answers)


# --- routes -------------------------------------------------------------------------------------------------------


def _routes(nodes: Sequence[Node], server: str) -> Iterator[Finding]:
    """Which address of this machine nodes would see; nothing is sent."""
    found = {node.name: _route(node.address, server) for node in nodes if node.address}
    yield from grouped(found)


def _route(address: str, server: str) -> Finding:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                return ROUTE.fail(
                    "there is no route to the address", "give this machine an address in that network, or a route"
                )
            return ROUTE.fail(f"the address cannot be used: {error.strerror}", "correct it in the cluster file")
        source = str(probe.getsockname()[0])
    if source != server and _is_address(server) and not source.startswith("127."):
        return ROUTE.warn(
            f"reached from {source}, and server_address is {server}",
            "set server_address to the address of this machine in the nodes' network, unless they are routed to it",
        )
    return ROUTE.ok(f"reached from {source}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
